//! What handlers take from a request: axum's own extractors, rejecting with our [`Error`], and
//! the two that HTTP has and axum has not: [`IfMatch`] and [`MergePatch`].
#![expect(clippy::disallowed_types, reason = "this is where axum's extractors are wrapped")]

use std::error::Error as StdError;

use axum::extract::path::ErrorKind;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{CONTENT_TYPE, IF_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use garde::Validate;
use headers::{ETag, HeaderMapExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use crate::error::{Error, FieldError, Result};

/// A JSON body in, or out. In: 400 for what is not JSON, 415 for what does not say it is, 422
/// with a pointer for what does not fit `T`.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        // In two steps, whether it is JSON and whether it fits: asked for an enum, serde_json
        // calls a number bad syntax.
        let axum::Json(text) = axum::Json::<Box<RawValue>>::from_request(request, state).await?;
        let mut json = serde_json::Deserializer::from_str(text.get());
        let input = serde_path_to_error::deserialize(&mut json)
            .map_err(|error| Error::Invalid(vec![misfit(error.path(), error.inner())]))?;
        Ok(Self(input))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// The path's parameters; 400 for one that does not fit `T`.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Error))]
pub struct Path<T>(pub T);

/// The query's parameters; 400 for one that does not fit `T`.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Error))]
pub struct Query<T>(pub T);

/// Input that also keeps its own rules: 422 with every broken rule of a body, 400 of a query.
#[derive(Debug, Clone, Copy)]
pub struct Valid<T>(pub T);

impl<S, T> FromRequest<S> for Valid<Json<T>>
where
    S: Send + Sync,
    T: DeserializeOwned + Validate<Context = ()>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let Json(input) = Json::<T>::from_request(request, state).await?;
        Ok(Self(Json(valid(input)?)))
    }
}

impl<S, T> FromRequestParts<S> for Valid<Query<T>>
where
    S: Send + Sync,
    T: DeserializeOwned + Validate<Context = ()>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let Query(input) = Query::<T>::from_request_parts(parts, state).await?;
        match input.validate() {
            Ok(()) => Ok(Self(Query(input))),
            Err(report) => Err(Error::Malformed(broken_rules("query", &report))),
        }
    }
}

/// The version a change is based on, from `If-Match`; 428 without the header.
#[derive(Debug, Clone)]
pub struct IfMatch(headers::IfMatch);

impl IfMatch {
    /// 412 unless the header names `current` (or is `*`).
    pub fn check(&self, current: &ETag) -> Result<()> {
        if self.0.precondition_passes(current) { Ok(()) } else { Err(Error::PreconditionFailed) }
    }

    /// The header where it may be left out.
    pub fn optional(headers: &HeaderMap) -> Result<Option<Self>> {
        if headers.get_all(IF_MATCH).iter().all(lists_etags) {
            return Ok(headers.typed_get().map(Self));
        }
        let takes = "If-Match takes * or ETags in quotes";
        Err(Error::malformed("header/if-match", "INVALID_VALUE", takes))
    }
}

/// `headers` takes anything, and then nothing matches. (An ETag may hold a comma; none of ours
/// does.)
fn lists_etags(value: &HeaderValue) -> bool {
    let is_etag = |tag: &str| tag.trim().parse::<ETag>().is_ok();
    value.to_str().is_ok_and(|value| value.trim() == "*" || value.split(',').all(is_etag))
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        Self::optional(&parts.headers)?.ok_or(Error::PreconditionRequired)
    }
}

/// A JSON merge patch (RFC 7396) for a `T`: members replace, `null` removes.
#[derive(Debug, Clone)]
pub struct MergePatch<T> {
    patch: Map<String, Value>,
    target: std::marker::PhantomData<fn() -> T>,
}

impl<T> MergePatch<T>
where
    T: Serialize + DeserializeOwned + Validate<Context = ()>,
{
    /// `current` with the patch applied; 422 where the outcome breaks a rule of `T`.
    pub fn apply(self, current: &T) -> Result<T> {
        let mut document = serde_json::to_value(current).map_err(Error::internal)?;
        json_patch::merge(&mut document, &Value::Object(self.patch));
        let patched = serde_path_to_error::deserialize(document)
            .map_err(|error| Error::Invalid(vec![misfit(error.path(), error.inner())]))?;
        valid(patched)
    }
}

impl<S: Send + Sync, T> FromRequest<S> for MergePatch<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        if !is_merge_patch(request.headers()) {
            return Err(Error::UnsupportedMediaType(MERGE_PATCH));
        }
        let Json(patch) = Json::from_request(request, state).await?;
        Ok(Self { patch, target: std::marker::PhantomData })
    }
}

const MERGE_PATCH: &str = "application/merge-patch+json";

/// Plain JSON will do. Another `+json`, such as a JSON Patch (RFC 6902), means something else.
fn is_merge_patch(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    [MERGE_PATCH, "application/json"].iter().any(|known| kind.eq_ignore_ascii_case(known))
}

/// The schema of `T` with nothing required. The patch of a `PlanInput` is a `PlanPatch`.
impl<T: ToSchema> PartialSchema for MergePatch<T> {
    fn schema() -> RefOr<Schema> {
        let mut schema = T::schema();
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            object.required.clear();
            object.description =
                Some("What changes; `null` removes, and what is left out stays.".into());
        }
        schema
    }
}

impl<T: ToSchema> ToSchema for MergePatch<T> {
    fn name() -> std::borrow::Cow<'static, str> {
        format!("{}Patch", T::name().trim_end_matches("Input")).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        T::schemas(schemas);
    }
}

impl From<JsonRejection> for Error {
    fn from(rejection: JsonRejection) -> Self {
        match &rejection {
            JsonRejection::MissingJsonContentType(_) => {
                Self::UnsupportedMediaType("application/json")
            }
            JsonRejection::JsonSyntaxError(error) => {
                let why = error.source().map(ToString::to_string).unwrap_or_default();
                Self::malformed("", "INVALID_JSON", format!("the body is not JSON: {why}"))
            }
            rejection => body_error(rejection),
        }
    }
}

impl From<QueryRejection> for Error {
    fn from(rejection: QueryRejection) -> Self {
        type Misfit = serde_path_to_error::Error<serde::de::value::Error>;
        let mut fault = match find::<Misfit>(&rejection) {
            Some(error) => misfit(error.path(), error.inner()),
            None => FieldError::new("", "INVALID_VALUE", rejection.body_text()),
        };
        fault.pointer = format!("query{}", fault.pointer);
        Self::Malformed(vec![fault])
    }
}

impl From<PathRejection> for Error {
    fn from(rejection: PathRejection) -> Self {
        let PathRejection::FailedToDeserializePathParams(rejection) = rejection else {
            return Self::internal(rejection);
        };
        let key = match rejection.kind() {
            ErrorKind::ParseErrorAtKey { key, .. }
            | ErrorKind::DeserializeError { key, .. }
            | ErrorKind::InvalidUtf8InPathParam { key } => Some(key),
            _ => None,
        };
        let pointer = key.map_or("path".into(), |key| format!("path/{key}"));
        Self::malformed(&pointer, "INVALID_VALUE", rejection.kind().to_string())
    }
}

/// Why a body could not be read to its end.
fn body_error(rejection: &JsonRejection) -> Error {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Error::BodyTooLarge
    } else if find::<tower_http::timeout::TimeoutError>(rejection).is_some() {
        Error::BodyTimeout
    } else {
        Error::malformed("", "UNREADABLE_BODY", "the body broke off before its end")
    }
}

fn valid<T: Validate<Context = ()>>(input: T) -> Result<T> {
    match input.validate() {
        Ok(()) => Ok(input),
        Err(report) => Err(Error::Invalid(broken_rules("", &report))),
    }
}

fn broken_rules(place: &str, report: &garde::Report) -> Vec<FieldError> {
    let pointer = |path: &garde::Path| {
        let path = path.to_string().replace('[', ".").replace(']', "");
        format!("{place}/{}", path.replace('.', "/"))
    };
    report
        .iter()
        .map(|(path, error)| FieldError::new(pointer(path), "INVALID_VALUE", error.message()))
        .collect()
}

/// A serde error as a fault: serde points at the object, and names in its text the member that
/// is missing or unknown; the pointer is to name that member.
fn misfit(path: &serde_path_to_error::Path, error: &dyn std::fmt::Display) -> FieldError {
    let text = error.to_string();
    let text = match text.split_once(" at line ").map_or(text.as_str(), |(what, _)| what) {
        "expected value" => "invalid type: expected the name of a variant",
        text => text,
    };
    let code = match text.split(' ').next() {
        Some("missing") => "MISSING_FIELD",
        Some("unknown") if text.starts_with("unknown field") => "UNKNOWN_FIELD",
        Some("duplicate") => "DUPLICATE_FIELD",
        _ if text.starts_with("invalid type") => "INVALID_TYPE",
        _ => "INVALID_VALUE",
    };
    let mut pointer = pointer(path);
    if code.ends_with("_FIELD")
        && let Some(member) = text.split('`').nth(1).map(escape)
        && !pointer.ends_with(&format!("/{member}"))
    {
        pointer = format!("{pointer}/{member}");
    }
    FieldError::new(pointer, code, text)
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => format!("/{index}"),
            Segment::Map { key } => format!("/{}", escape(key)),
            Segment::Enum { .. } | Segment::Unknown => String::new(),
        })
        .collect()
}

/// RFC 6901, section 3.
fn escape(member: &str) -> String {
    member.replace('~', "~0").replace('/', "~1")
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref())
}
