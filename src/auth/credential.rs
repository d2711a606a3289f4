//! What a request presents to say who calls.

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// No credential is longer, and hashing one takes time.
const LONGEST: usize = 8 * 1024;

/// What was presented, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credential<'a> {
    ApiKey(&'a str),
    Token(&'a str),
}

impl<'a> Credential<'a> {
    /// Reads `Authorization: Bearer` or `X-API-Key`. What begins with `prefix_` is an API key.
    ///
    /// # Errors
    /// For the client developer: why what is there is not a credential.
    pub(super) fn read(headers: &'a HeaderMap, prefix: &str) -> Result<Option<Self>, &'static str> {
        let key = the_only(headers, &X_API_KEY, "X-API-Key is there more than once")?;
        let bearer = the_only(headers, &AUTHORIZATION, "Authorization is there more than once")?;
        let credential = match (key, bearer) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err("send Authorization or X-API-Key, not both"),
            (Some(key), None) => Self::ApiKey(key.trim()),
            (None, Some(bearer)) => Self::bearer(bearer, prefix)?,
        };
        match credential.text().len() {
            0 => Err("the credential is empty"),
            length if length > LONGEST => Err("the credential is too long"),
            _ => Ok(Some(credential)),
        }
    }

    fn bearer(header: &'a str, prefix: &str) -> Result<Self, &'static str> {
        let header = header.trim();
        let (scheme, text) = header.split_once(' ').unwrap_or((header, ""));
        if !scheme.eq_ignore_ascii_case("Bearer") {
            return Err("the only scheme that Authorization takes here is Bearer");
        }
        let text = text.trim();
        let is_key = text.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('_'));
        Ok(if is_key { Self::ApiKey(text) } else { Self::Token(text) })
    }

    pub(super) fn text(self) -> &'a str {
        match self {
            Self::ApiKey(text) | Self::Token(text) => text,
        }
    }
}

fn the_only<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    repeated: &'static str,
) -> Result<Option<&'a str>, &'static str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            value.to_str().map(Some).map_err(|_| "the credential has characters that are not ASCII")
        }
        (Some(_), Some(_)) => Err(repeated),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn a_credential_is_told_by_its_header_and_its_beginning() {
        for (pairs, read) in [
            (&[][..], None),
            (&[("authorization", "Bearer acme_1")][..], Some(Credential::ApiKey("acme_1"))),
            (&[("authorization", "bEARER  acme_1 ")], Some(Credential::ApiKey("acme_1"))),
            (&[("authorization", "Bearer a.b.c")], Some(Credential::Token("a.b.c"))),
            (&[("authorization", "Bearer acmex_1")], Some(Credential::Token("acmex_1"))),
            (&[("x-api-key", "a.b.c")], Some(Credential::ApiKey("a.b.c"))),
        ] {
            assert_eq!(Credential::read(&headers(pairs), "acme"), Ok(read), "{pairs:?}");
        }
    }

    #[test]
    fn what_is_not_one_credential_is_refused() {
        let long = "x".repeat(LONGEST + 1);
        let bearer_long = format!("Bearer {long}");
        for (pairs, says) in [
            (&[("authorization", "Bearer a"), ("x-api-key", "a")][..], "not both"),
            (&[("authorization", "Bearer a"), ("authorization", "Bearer a")], "more than once"),
            (&[("x-api-key", "a"), ("x-api-key", "a")], "more than once"),
            (&[("authorization", "Basic YTpi")], "Bearer"),
            (&[("authorization", "acme_1")], "Bearer"),
            (&[("authorization", "Bearer")], "empty"),
            (&[("authorization", "Bearer ")], "empty"),
            (&[("authorization", "")], "Bearer"),
            (&[("x-api-key", "")], "empty"),
            (&[("x-api-key", "schlüssel")], "ASCII"),
            (&[("x-api-key", &long)], "too long"),
            (&[("authorization", &bearer_long)], "too long"),
        ] {
            let said = Credential::read(&headers(pairs), "acme").unwrap_err();
            assert!(said.contains(says), "{pairs:?}: {said}");
        }
    }
}
