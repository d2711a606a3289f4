//! Traces: off until they have somewhere to go. The names are OpenTelemetry's own (`OTEL_…`).

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::{Secret, SecretUrl};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracesConfig {
    /// The OTLP receiver's base URL, such as `http://collector:4318`; unset sends none. Also
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: Option<SecretUrl>,
    /// Headers for the receiver, `name=value,…`. Also `OTEL_EXPORTER_OTLP_HEADERS`.
    pub headers: Option<Secret>,
    /// Longest one delivery may take, in milliseconds. Also `OTEL_EXPORTER_OTLP_TIMEOUT`.
    pub timeout_ms: u64,
    /// The service's name in traces; unset takes the package's. Also `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// More about this process, `name=value,…`. Also `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource_attributes: Option<String>,
    /// Which traces are kept. Also `OTEL_TRACES_SAMPLER`.
    pub sampler: TraceSampler,
    /// The part that a ratio sampler keeps, 0.0 to 1.0. Also `OTEL_TRACES_SAMPLER_ARG`.
    pub sampler_arg: f64,
    /// Whose `traceparent` is continued.
    pub accept_context: AcceptContext,
}

/// The specification's samplers, under its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceSampler {
    AlwaysOn,
    AlwaysOff,
    Traceidratio,
    ParentbasedAlwaysOn,
    ParentbasedAlwaysOff,
    ParentbasedTraceidratio,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceptContext {
    /// That of peers in `server.trusted_proxies`.
    Trusted,
    /// Anyone's: any caller may then choose trace ids, and that its requests are sampled.
    All,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            headers: None,
            timeout_ms: 10_000,
            service_name: None,
            resource_attributes: None,
            sampler: TraceSampler::ParentbasedAlwaysOn,
            sampler_arg: 1.0,
            accept_context: AcceptContext::Trusted,
        }
    }
}

impl TracesConfig {
    /// The names and values of `headers`; none when it cannot be read.
    pub fn header_pairs(&self) -> BTreeMap<String, String> {
        let pairs = self.headers.as_ref().and_then(|headers| pairs(headers.expose()));
        pairs.unwrap_or_default()
    }

    /// The names and values of `resource_attributes`; none when it cannot be read.
    pub fn attribute_pairs(&self) -> BTreeMap<String, String> {
        self.resource_attributes.as_deref().and_then(pairs).unwrap_or_default()
    }
}

/// `name=value,…` with percent-encoded values, as in W3C Baggage.
pub(super) fn pairs(text: &str) -> Option<BTreeMap<String, String>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            let name = name.trim();
            (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded_and_half_ones_refused() {
        let read = |text: &str| pairs(text).map(|pairs| pairs.into_iter().collect::<Vec<_>>());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            read("api-key=a%20b, team = core,"),
            Some(vec![pair("api-key", "a b"), pair("team", "core")])
        );
        assert_eq!(read("x=Bearer a=b"), Some(vec![pair("x", "Bearer a=b")]));
        for bad in ["key", "=value", "a=%ff"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
