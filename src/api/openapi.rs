//! The API document: what the routes do not say themselves, said once for all of them.

use axum::http::StatusCode;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, Ref, RefOr,
    Response, ServerBuilder, Type,
};
use utoipa::{PartialSchema, ToSchema};

use crate::error::{FieldError, Problem};

/// What any operation may answer.
const ANY: [(&str, &str); 3] = [
    ("500", "Something went wrong on our side; quote the `error_id`"),
    ("503", "A dependency is not available; `Retry-After` says when to try again"),
    ("504", "The request took longer than this service allows"),
];

/// What an operation that reads a body may answer.
const WITH_BODY: [(&str, &str); 4] = [
    ("400", "The request cannot be read"),
    ("408", "The body took too long to arrive"),
    ("413", "The body is too large"),
    ("415", "The body is not JSON, or does not say that it is"),
];

/// The names of the security schemes.
pub(super) const API_KEY: &str = "api_key";
pub(super) const BEARER: &str = "bearer";

/// The document without its paths. They come with the routes.
pub fn document() -> OpenApi {
    let info = InfoBuilder::new()
        .title(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(env!("CARGO_PKG_DESCRIPTION")))
        .build();
    OpenApiBuilder::new().info(info).build()
}

/// Adds to every operation the answers that the layers give, the body that every failure has, and
/// the header that every answer has.
pub fn finish(document: &mut OpenApi, public_url: Option<&str>) {
    document.servers = public_url.map(|url| vec![ServerBuilder::new().url(url).build()]);
    let components = document.components.get_or_insert_default();
    components.schemas.insert(Problem::name().into(), Problem::schema());
    components.schemas.insert(FieldError::name().into(), FieldError::schema());
    for (name, scheme) in security_schemes() {
        components.security_schemes.insert(name.into(), RefOr::T(scheme));
    }
    document.paths.paths.values_mut().flat_map(operations).for_each(finish_operation);
}

/// Every operation of a path that a service such as this may have.
pub(super) fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let operations =
        [&mut path.get, &mut path.put, &mut path.post, &mut path.delete, &mut path.patch];
    operations.into_iter().flatten()
}

/// Adds an answer, unless the handler documents it itself.
pub(super) fn may_answer(operation: &mut Operation, status: &str, description: &str) {
    let response = || RefOr::T(Response::new(description));
    operation.responses.responses.entry(status.into()).or_insert_with(response);
}

/// The two ways to present a credential; either does for either kind.
fn security_schemes() -> [(&'static str, SecurityScheme); 2] {
    let header = ApiKeyValue::with_description("X-API-Key", "An API key");
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("An API key, or a token of the configured issuer"));
    [
        (API_KEY, SecurityScheme::ApiKey(ApiKey::Header(header))),
        (BEARER, SecurityScheme::Http(bearer.build())),
    ]
}

fn finish_operation(operation: &mut Operation) {
    // A handler's name is unique in its resource, an operation's must be in the document.
    let tag = operation.tags.iter().flatten().next();
    if let (Some(tag), Some(name)) = (tag, &operation.operation_id) {
        operation.operation_id = Some(format!("{tag}_{name}"));
    }
    let with_body = operation.request_body.is_some().then_some(WITH_BODY);
    for (status, description) in ANY.into_iter().chain(with_body.into_iter().flatten()) {
        may_answer(operation, status, description);
    }
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            finish_response(status, response);
        }
    }
}

fn finish_response(status: &str, response: &mut Response) {
    let mut header = |name: &str, kind, description| {
        let schema = ObjectBuilder::new().schema_type(kind);
        let header = HeaderBuilder::new().description(Some(description)).schema(Some(schema));
        response.headers.insert(name.into(), RefOr::T(header.build()));
    };
    header(
        "X-Request-Id",
        Type::String,
        "The request's id: the caller's, if it sent one, else one made here",
    );
    if matches!(status, "429" | "503") && response.content.is_empty() {
        header("Retry-After", Type::Integer, "Seconds after which to try again");
    }
    if status == "401" {
        header("WWW-Authenticate", Type::String, "How to present a credential (RFC 6750)");
    }
    if response.description.is_empty() {
        let status = status.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
        let reason = status.and_then(|status| status.canonical_reason());
        response.description = reason.unwrap_or_default().into();
    }
    if status.starts_with(['4', '5']) && response.content.is_empty() {
        let problem = Ref::from_schema_name(Problem::name());
        let content = ContentBuilder::new().schema(Some(problem)).build();
        response.content.insert("application/problem+json".into(), RefOr::T(content));
    }
}
