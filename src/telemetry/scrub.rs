//! Takes secrets out of what is sent elsewhere.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

const REDACTED: &str = "[redacted]";

/// Parts of names whose values are not for others to see.
const SECRET_NAMES: [&str; 10] =
    ["auth", "code", "credential", "jwt", "key", "pass", "secret", "session", "sig", "token"];

/// Shorter values are no secrets, and taking them out would take out words.
const SHORTEST: usize = 5;

/// A credential in a header, one in a URL, and what stands behind a name that looks secret.
static PATTERNS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r#"(?xi)
        (?<scheme> \b(?:bearer|basic)\s+ ) [\w.~+/=-]+
        | (?<url> :// ) [^/@\s]+ @
        | (?<name> [\w-]*(?:auth|credential|jwt|api.?key|pass|secret|session|token)[\w-]*["']?\s*[=:]\s*["']? )
          (?:(?:bearer|basic)\s+)? [^\s"',;&}]+
        "#,
    )
    .ok()
});

/// What it takes out: this process's own secrets, wherever they are, and what looks like one.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    known: Vec<String>,
}

impl Scrub {
    pub(super) fn new(known: impl IntoIterator<Item = String>) -> Self {
        Self { known: known.into_iter().filter(|text| text.len() >= SHORTEST).collect() }
    }

    pub(super) fn text(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        for secret in self.known.iter().filter(|secret| !secret.is_empty()) {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), REDACTED).into();
            }
        }
        let Some(patterns) = &*PATTERNS else { return REDACTED.into() };
        let keep_name = |found: &Captures<'_>| {
            if let Some(url) = found.name("url") {
                return format!("{}{REDACTED}@", url.as_str());
            }
            let name = found.name("scheme").or_else(|| found.name("name"));
            format!("{}{REDACTED}", name.map_or("", |name| name.as_str()))
        };
        patterns.replace_all(&text, keep_name).into_owned()
    }

    /// Every string in it, and every value under a name that looks secret.
    pub(super) fn json(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(members) => {
                for (name, value) in members {
                    match value {
                        Value::String(text) if is_secret_name(name) => *text = REDACTED.into(),
                        value => self.json(value),
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// Whether a value is better not shown, by the name that it has.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRET_NAMES.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn credentials_are_taken_out_and_the_rest_stays() {
        let scrub = Scrub::new(["hunter2-hunter2".to_owned(), "ab".to_owned()]);
        for (text, scrubbed) in [
            (
                "cannot reach postgres://app:p%40ss@db/app",
                "cannot reach postgres://[redacted]@db/app",
            ),
            ("sent Authorization: Bearer ey.J-9_x= twice", "sent Authorization: [redacted] twice"),
            ("basic dXNlcjpwYXNz", "basic [redacted]"),
            ("it is hunter2-hunter2!", "it is [redacted]!"),
            (r#"{"password": "x y", "name": "z"}"#, r#"{"password": "[redacted] y", "name": "z"}"#),
            ("GET /plans?access_token=abc&q=1", "GET /plans?access_token=[redacted]&q=1"),
            ("api-key=abc, abs", "api-key=[redacted], abs"),
            ("no such table: plans", "no such table: plans"),
        ] {
            assert_eq!(scrub.text(text), scrubbed, "{text}");
        }
    }

    #[test]
    fn every_string_of_a_document_is_scrubbed() {
        let mut document = json!({
            "breadcrumbs": [{"message": "token=abc", "data": {"password": "x", "rows": 3}}],
            "tags": {"route": "/api/v1/plans/{id}"},
        });
        Scrub::default().json(&mut document);
        assert_eq!(
            document,
            json!({
                "breadcrumbs": [
                    {"message": "token=[redacted]", "data": {"password": "[redacted]", "rows": 3}}
                ],
                "tags": {"route": "/api/v1/plans/{id}"},
            })
        );
    }
}
