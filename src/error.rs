//! One error for every handler, and the problem document (RFC 9457) it becomes.
//!
//! A handler returns [`Error`]; its response carries a [`Failure`] and no body. The `problem`
//! layer writes the document, because only there are the request's path and id known, and it does
//! the same for what the framework answers by itself (404, 405, 413, …). The access log reads the
//! same [`Failure`], so the log and the client name one `error_id`.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What lies behind a 5xx. It is logged, and never told to the client.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why a request failed, as its client needs to know it.
#[derive(Debug, Clone)]
pub enum Error {
    /// 400: a path, a query, a header or a body that cannot be read.
    Malformed(Vec<FieldError>),
    /// 401: says what is wrong with the credential, or that there is none.
    Unauthorized { reason: &'static str, presented: bool },
    /// 403: names the scope that is missing.
    Forbidden { scope: &'static str },
    /// 404: names what was not found, such as `plan`.
    NotFound(&'static str),
    /// 405: the `Allow` header says what would do.
    MethodNotAllowed,
    /// 408: the body stalled, or took too long to arrive.
    BodyTimeout,
    /// 409: says what it collides with.
    Conflict(&'static str),
    /// 412: `If-Match` names another version than the current one.
    PreconditionFailed,
    /// 413
    BodyTooLarge,
    /// 415: names the media type that would do.
    UnsupportedMediaType(&'static str),
    /// 422: well-formed, and breaks a rule; every broken rule is listed.
    Invalid(Vec<FieldError>),
    /// 428: `If-Match` is missing.
    PreconditionRequired,
    /// 429: names the policies that are used up.
    TooManyRequests { policies: Vec<String>, retry_after: Duration },
    /// 500: our fault.
    Internal(Cause),
    /// 503: a dependency, named, cannot serve just now.
    Unavailable { what: &'static str, retry_after: Duration, cause: Option<Cause> },
    /// 503: too much is being worked on already.
    Overloaded,
    /// 504: the handler took longer than `server.request_timeout`.
    Timeout,
    /// Any other 4xx or 5xx that came without a body of its own.
    Status(StatusCode),
}

/// One fault in the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Where: a JSON Pointer (RFC 6901) into the body, or the parameter's name after `path`,
    /// `query` or `header`.
    #[schema(example = "/end_date")]
    pub pointer: String,
    /// Stable, for programs: INVALID_JSON, INVALID_TYPE, INVALID_VALUE, MISSING_FIELD, UNKNOWN_FIELD,
    /// DUPLICATE_FIELD or UNREADABLE_BODY.
    #[schema(example = "INVALID_VALUE")]
    pub code: Cow<'static, str>,
    /// For people.
    #[schema(example = "end_date must be on or after start_date")]
    pub detail: String,
}

impl FieldError {
    pub fn new(
        pointer: impl Into<String>,
        code: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
    ) -> Self {
        Self { pointer: clipped(pointer.into()), code: code.into(), detail: clipped(detail.into()) }
    }
}

impl Error {
    /// A 500 whose cause is only logged.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(Arc::from(cause.into()))
    }

    /// The 503 of a service that is not open yet.
    pub fn starting() -> Self {
        Self::Unavailable { what: "the service", retry_after: Duration::from_secs(1), cause: None }
    }

    /// A 400 with one fault.
    pub fn malformed(pointer: &str, code: &'static str, detail: impl Into<String>) -> Self {
        Self::Malformed(vec![FieldError::new(pointer, code, detail)])
    }

    /// The error that a bare status stands for.
    pub fn from_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::NotFound("route"),
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Self::BodyTimeout,
            StatusCode::PAYLOAD_TOO_LARGE => Self::BodyTooLarge,
            StatusCode::GATEWAY_TIMEOUT => Self::Timeout,
            other => Self::Status(other),
        }
    }

    pub fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// The stable name that programs may match on.
    pub fn code(&self) -> Cow<'static, str> {
        match self.kind() {
            (status, None) => screaming(title(status)).into(),
            (_, Some(code)) => code.into(),
        }
    }

    fn kind(&self) -> (StatusCode, Option<&'static str>) {
        let (status, code) = match self {
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "MALFORMED_REQUEST"),
            Self::Unauthorized { .. } => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "FORBIDDEN"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "NOT_FOUND"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED"),
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "BODY_TIMEOUT"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "CONFLICT"),
            Self::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, "PRECONDITION_FAILED"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE"),
            Self::UnsupportedMediaType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE")
            }
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "VALIDATION_FAILED"),
            Self::PreconditionRequired => {
                (StatusCode::PRECONDITION_REQUIRED, "PRECONDITION_REQUIRED")
            }
            Self::TooManyRequests { .. } => (StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR"),
            Self::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "OVERLOADED"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "TIMEOUT"),
            Self::Status(status) => return (*status, None),
        };
        (status, Some(code))
    }

    /// One sentence for the client. Says nothing of a 5xx's cause.
    pub fn detail(&self) -> String {
        match self {
            Self::Malformed(faults) => match faults.as_slice() {
                [fault] => fault.detail.clone(),
                _ => "the request could not be read".into(),
            },
            Self::Unauthorized { reason, .. } => (*reason).into(),
            Self::Forbidden { scope } => format!("this needs the scope {scope}"),
            Self::NotFound(what) => format!("there is no such {what}"),
            Self::MethodNotAllowed => "this route does not answer that method".into(),
            Self::BodyTimeout => "the request body took too long to arrive".into(),
            Self::Conflict(what) => (*what).into(),
            Self::PreconditionFailed => {
                "it has changed since the version that If-Match names; read it again".into()
            }
            Self::BodyTooLarge => "the request body is larger than this service accepts".into(),
            Self::UnsupportedMediaType(wanted) => format!("send the body as {wanted}"),
            Self::Invalid(faults) => match faults.as_slice() {
                [fault] => fault.detail.clone(),
                faults => format!("{} fields break a rule", faults.len()),
            },
            Self::PreconditionRequired => {
                "send If-Match with the ETag of the version this changes".into()
            }
            Self::TooManyRequests { policies, retry_after } => {
                let seconds = whole_seconds(*retry_after);
                format!("the limit {} is used up; try again in {seconds} s", policies.join(", "))
            }
            Self::Internal(_) => "something went wrong on our side; quote the error_id".into(),
            Self::Unavailable { what, .. } => {
                format!("{what} is not available just now; try again")
            }
            Self::Overloaded => "too much is being worked on just now; try again".into(),
            Self::Timeout => "the request took longer than this service allows".into(),
            Self::Status(status) => title(*status).to_lowercase(),
        }
    }

    /// Whether it is a fault of this service, for people to look into. An overload is not: it is one
    /// of very many, and refusing is what is wanted.
    pub fn is_fault(&self) -> bool {
        self.status().is_server_error() && !matches!(self, Self::Overloaded)
    }

    fn fields(&self) -> &[FieldError] {
        match self {
            Self::Malformed(faults) | Self::Invalid(faults) => faults,
            _ => &[],
        }
    }

    /// What lies behind it, outermost first, for the log.
    pub fn causes(&self) -> Option<String> {
        let cause = match self {
            Self::Internal(cause) => Some(cause),
            Self::Unavailable { cause, .. } => cause.as_ref(),
            _ => None,
        };
        cause.map(|cause| chain(cause))
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let unavailable = match &error {
            sqlx::Error::RowNotFound => return Self::NotFound("resource"),
            sqlx::Error::Database(cause) if cause.is_unique_violation() => {
                return Self::Conflict("there is one like it already");
            }
            sqlx::Error::Database(cause) => cause.code().is_some_and(|code| passing(&code)),
            sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => true,
            _ => false,
        };
        if unavailable {
            Self::Unavailable {
                what: "the database",
                retry_after: Duration::from_secs(1),
                cause: Some(Arc::new(error)),
            }
        } else {
            Self::internal(error)
        }
    }
}

/// Whether a database code says "not now": PostgreSQL's connection (08), resource (53) and
/// operator (57, the statement timeout among them) classes, serialization, deadlock and lock
/// timeouts, a promotion (25006), a new connection refused (28, 3D000; 55000 where the database
/// is closed for maintenance); SQLite's BUSY, LOCKED,
/// READONLY, IOERR, FULL and CANTOPEN with their extended forms.
fn passing(code: &str) -> bool {
    match code {
        "25006" | "3D000" | "40001" | "40P01" | "55000" | "55P03" => true,
        _ if code.len() == 5 => matches!(&code[..2], "08" | "28" | "53" | "57"),
        _ => code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14)),
    }
}

/// One failed request: an [`Error`] and the id that its log line and its client share.
#[derive(Debug, Clone)]
pub struct Failure {
    pub id: Uuid,
    pub error: Error,
}

impl Failure {
    pub fn new(error: Error) -> Self {
        Self { id: Uuid::now_v7(), error }
    }

    /// The document for a request to `instance` with these ids.
    pub fn problem(&self, instance: &str, request_id: &str, trace_id: Option<String>) -> Problem {
        let status = self.error.status();
        let detail = self.error.detail();
        Problem {
            r#type: "about:blank".into(),
            title: title(status).into(),
            status: status.as_u16(),
            message: detail.clone(),
            detail,
            instance: instance.into(),
            error_id: self.id,
            code: self.error.code(),
            request_id: request_id.into(),
            trace_id,
            timestamp: Utc::now(),
            errors: self.error.fields().to_vec(),
            violated_policies: match &self.error {
                Error::TooManyRequests { policies, .. } => policies.clone(),
                _ => Vec::new(),
            },
        }
    }
}

/// The body of every 4xx and 5xx: RFC 9457 and our members.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: `code` tells problems apart.
    #[schema(example = "about:blank")]
    r#type: String,
    /// The status in words.
    #[schema(example = "Not Found")]
    title: String,
    #[schema(example = 404)]
    status: u16,
    /// What went wrong this time.
    #[schema(example = "there is no such plan")]
    detail: String,
    /// The path asked for.
    #[schema(example = "/api/v1/plans/0199f3c2-7b1e-7cc0-b7a5-3f1d2f3c4d5e")]
    instance: String,
    /// Names this one failure in our logs.
    #[schema(example = "0199f3c2-7b1e-7cc0-b7a5-3f1d2f3c4d5e")]
    error_id: Uuid,
    /// Stable, for programs: MALFORMED_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND,
    /// METHOD_NOT_ALLOWED, BODY_TIMEOUT, CONFLICT, PRECONDITION_FAILED, BODY_TOO_LARGE,
    /// UNSUPPORTED_MEDIA_TYPE, VALIDATION_FAILED, PRECONDITION_REQUIRED, TOO_MANY_REQUESTS,
    /// INTERNAL_ERROR, UNAVAILABLE, OVERLOADED or TIMEOUT; else the status in words.
    #[schema(example = "NOT_FOUND")]
    code: Cow<'static, str>,
    /// The same as `detail`, for clients that look for it under this name.
    #[schema(example = "there is no such plan")]
    message: String,
    /// The request's `X-Request-Id`.
    #[schema(example = "0199f3c2-7b1e-7cc0-b7a5-3f1d2f3c4d5e")]
    request_id: String,
    /// The trace that the request was a part of, when it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "0af7651916cd43dd8448eb211c80319c")]
    trace_id: Option<String>,
    #[serde(serialize_with = "rfc3339")]
    timestamp: DateTime<Utc>,
    /// Each fault in the input, when that is what failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// The policies that are used up, by the names they have in `RateLimit-Policy`.
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    violated_policies: Vec<String>,
}

/// An error with what caused it, outermost first. One that repeats its cause, as sqlx's do, is
/// not made to say it twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Failure::new(self).into_response()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.error.status().into_response();
        let headers = response.headers_mut();
        match &self.error {
            Error::Unavailable { retry_after, .. } | Error::TooManyRequests { retry_after, .. } => {
                headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(*retry_after)));
            }
            Error::Overloaded => {
                headers.insert(RETRY_AFTER, HeaderValue::from(1));
            }
            Error::Unauthorized { presented, .. } => {
                let challenge = if *presented { INVALID_TOKEN } else { CHALLENGE };
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
            Error::Forbidden { scope } => {
                let challenge =
                    format!("{CHALLENGE}, error=\"insufficient_scope\", scope=\"{scope}\"");
                headers.extend(HeaderValue::try_from(challenge).map(|c| (WWW_AUTHENTICATE, c)));
            }
            _ => {}
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Challenges as RFC 6750, section 3 has them.
const CHALLENGE: &str = concat!("Bearer realm=\"", env!("CARGO_PKG_NAME"), "\"");
const INVALID_TOKEN: &str =
    concat!("Bearer realm=\"", env!("CARGO_PKG_NAME"), "\", error=\"invalid_token\"");

/// For `Retry-After`: never too early, never at once.
pub fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0 || duration.is_zero())
}

/// What echoes the input says enough in so many characters.
fn clipped(text: String) -> String {
    const ENOUGH: usize = 300;
    match text.char_indices().nth(ENOUGH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn title(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Error")
}

fn screaming(title: &str) -> String {
    title.replace(|c: char| !c.is_ascii_alphanumeric(), "_").to_uppercase()
}

fn rfc3339<S: serde::Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_5xx_tells_the_client_nothing_of_its_cause() {
        let failure = Failure::new(Error::internal("password=hunter2 rejected by db-7"));
        let body = serde_json::to_string(&failure.problem("/x", "id", None)).unwrap();
        assert!(!body.contains("hunter2") && !body.contains("db-7"), "{body}");
        assert_eq!(failure.error.causes().unwrap(), "password=hunter2 rejected by db-7");
    }

    #[test]
    fn a_busy_database_is_a_503_and_a_broken_query_a_500() {
        assert!(
            ["57014", "53300", "08006", "28P01", "3D000", "55000", "40P01", "5", "261", "6", "13"]
                .into_iter()
                .all(passing)
        );
        assert!(!["42P01", "23502", "1", "2067"].into_iter().any(passing));
    }

    #[test]
    fn a_bare_status_gets_a_code_from_its_name() {
        assert_eq!(Error::Status(StatusCode::IM_A_TEAPOT).code(), "I_M_A_TEAPOT");
    }
}
