//! gzip, for answers that gain by it.

use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, ETAG};
use axum::http::{Extensions, HeaderMap, StatusCode, Version};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};

/// Bodies smaller than this gain less from gzip than it costs.
const WORTH_IT: u64 = 1024;

/// Not for `text/…`: the scripts of `/docs` are large, and packing them anew for whoever asks would
/// take the processor from the API. An answer with an ETag stays as it is: a strong one names these
/// very bytes (RFC 9110, 8.8.3.3).
pub(super) fn layer() -> CompressionLayer<impl Predicate> {
    let has_no_etag = |_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions| {
        !headers.contains_key(ETAG)
    };
    let worth_it = SizeAbove::new(WORTH_IT)
        .and(NotForContentType::IMAGES)
        .and(NotForContentType::GRPC)
        .and(NotForContentType::const_new("text/"))
        .and(has_no_etag);
    CompressionLayer::new().compress_when(worth_it)
}

/// Overlooks an `Accept-Encoding` that refuses plain bytes, as RFC 9110, 12.5.3 allows. The layer
/// would make a 406 of whatever the handler answered, after it had done its work.
pub(super) async fn tolerate(mut request: Request) -> Request {
    let refuses_plain = |part: &str| {
        let (coding, weight) = part.split_once(';').unwrap_or((part, ""));
        let weight = weight.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok());
        matches!(coding.trim(), "identity" | "*") && weight == Some(0.0)
    };
    let values = request.headers().get_all(ACCEPT_ENCODING);
    if values.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(refuses_plain) {
        request.headers_mut().remove(ACCEPT_ENCODING);
    }
    request
}
