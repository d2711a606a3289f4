//! One page of a list that is walked by cursor (keyset pagination): each page costs the same,
//! however deep.

use std::borrow::Cow;

use axum::http::header::LINK;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use url::form_urlencoded;
use utoipa::openapi::schema::{
    ArrayBuilder, KnownFormat, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::extract::Json;

/// A page of `T`, and where the next one begins.
#[derive(Debug, Serialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// The `cursor` of the next page; `null` on the last.
    pub next_cursor: Option<Uuid>,
}

/// By hand: derived, it would be called `Page_Plan` and repeat the whole of `Plan`.
impl<T: ToSchema> PartialSchema for Page<T> {
    fn schema() -> RefOr<Schema> {
        let cursor = ObjectBuilder::new()
            .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)))
            .description(Some("The `cursor` of the next page; `null` on the last."));
        ObjectBuilder::new()
            .property("items", ArrayBuilder::new().items(Ref::from_schema_name(T::name())))
            .required("items")
            .property("next_cursor", cursor)
            .required("next_cursor")
            .into()
    }
}

impl<T: ToSchema> ToSchema for Page<T> {
    fn name() -> Cow<'static, str> {
        format!("{}Page", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into(), T::schema()));
        T::schemas(schemas);
    }
}

impl<T: Serialize> Page<T> {
    /// A page of at most `limit` of `rows`, of which the query fetched one more: that it is there
    /// says that another page follows.
    pub fn cut(mut rows: Vec<T>, limit: usize, id: impl Fn(&T) -> Uuid) -> Self {
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(id);
        Self { items: rows, next_cursor }
    }

    /// The answer to `uri`, with a `Link` (RFC 8288) to the next page: the same query with another
    /// cursor.
    pub fn answer(self, uri: &Uri) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(link) = self.next_cursor.and_then(|cursor| next_link(uri, cursor)) {
            headers.insert(LINK, link);
        }
        (headers, Json(self)).into_response()
    }
}

fn next_link(uri: &Uri, cursor: Uuid) -> Option<HeaderValue> {
    let given = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(given.filter(|(name, _)| name != "cursor"))
        .append_pair("cursor", &cursor.to_string())
        .finish();
    HeaderValue::try_from(format!("<{}?{query}>; rel=\"next\"", uri.path())).ok()
}
