//! A class of route: its windows, whom it counts, and what it does without Redis.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use metrics::{Counter, counter};

use super::Verdict;
use crate::config::{ClassConfig, KeyBy, OnStoreFailure, Policies, Policy, RateLimitConfig};

pub(super) struct Class {
    name: String,
    windows: Vec<Window>,
    pub(super) key: KeyBy,
    pub(super) on_store_failure: OnStoreFailure,
    decisions: Decisions,
}

/// How often it was decided what.
struct Decisions {
    allowed: Counter,
    refused: Counter,
    uncounted: Counter,
}

/// A policy and what clients know it by, such as `default-minute`.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) name: Arc<str>,
    pub(super) policy: Policy,
}

/// The class `default`, and the others.
pub(super) fn all(config: &RateLimitConfig) -> (Class, Vec<Class>) {
    let built_in = [("auth", &config.auth), ("strict", &config.strict)];
    let is_new = |(name, _): &(&String, _)| !RateLimitConfig::BUILT_IN.contains(&name.as_str());
    let configured = config
        .classes
        .iter()
        .filter(is_new)
        .map(|(name, class)| (name.as_str(), class.limit.as_ref().unwrap_or(&config.default)));
    let others = built_in.into_iter().chain(configured);
    let class = |(name, limit)| Class::new(name, limit, config);
    (class(("default", &config.default)), others.map(class).collect())
}

impl Class {
    fn new(name: &str, limit: &Policies, config: &RateLimitConfig) -> Self {
        let own = settings(config, name);
        let default = settings(config, "default");
        // Guesses at credentials come from addresses, and must not become free when Redis is away.
        let (key, on_store_failure) = match (name, own.on_store_failure) {
            ("auth", Some(OnStoreFailure::Deny)) => (KeyBy::Ip, OnStoreFailure::Deny),
            ("auth", _) => (KeyBy::Ip, OnStoreFailure::Local),
            (_, on_store_failure) => (
                default.key.unwrap_or_default(),
                on_store_failure.or(default.on_store_failure).unwrap_or(config.on_store_failure),
            ),
        };
        Self {
            name: name.to_owned(),
            windows: windows(name, limit),
            key: own.key.unwrap_or(key),
            on_store_failure,
            decisions: Decisions::of(name),
        }
    }

    /// Counts a decision; none is that the request was let through uncounted.
    pub(super) fn decided(&self, verdict: Option<&Verdict>) {
        let decision = match verdict {
            None => &self.decisions.uncounted,
            Some(verdict) if verdict.allowed => &self.decisions.allowed,
            Some(_) => &self.decisions.refused,
        };
        decision.increment(1);
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The windows of a caller with these limits of its own, shortest first.
    pub(super) fn windows(
        &self,
        overrides: Option<&BTreeMap<String, Policies>>,
    ) -> Cow<'_, [Window]> {
        match overrides.and_then(|overrides| overrides.get(&self.name)) {
            Some(limit) => windows(&self.name, limit).into(),
            None => (&self.windows[..]).into(),
        }
    }
}

impl Decisions {
    fn of(class: &str) -> Self {
        let counter = |decision: &'static str| {
            let class = class.to_owned();
            counter!("rate_limit_decisions_total", "class" => class, "decision" => decision)
        };
        Self {
            allowed: counter("allowed"),
            refused: counter("refused"),
            uncounted: counter("uncounted"),
        }
    }
}

fn settings(config: &RateLimitConfig, name: &str) -> ClassConfig {
    config.classes.get(name).cloned().unwrap_or_default()
}

fn windows(class: &str, limit: &Policies) -> Vec<Window> {
    let window = |policy: &Policy| Window {
        name: format!("{class}-{}", policy.window_name()).into(),
        policy: *policy,
    };
    limit.as_slice().iter().map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class<'a>(classes: &'a [Class], name: &str) -> &'a Class {
        classes.iter().find(|class| class.name() == name).unwrap()
    }

    fn classes(change: impl FnOnce(&mut RateLimitConfig)) -> Vec<Class> {
        let mut config = RateLimitConfig::default();
        change(&mut config);
        let (default, others) = all(&config);
        std::iter::once(default).chain(others).collect()
    }

    fn names(windows: &[Window]) -> Vec<&str> {
        windows.iter().map(|window| &*window.name).collect()
    }

    #[test]
    fn windows_are_called_by_class_and_length() {
        let classes = classes(|config| {
            config.default = "10/15m, 5/second, 100/day".parse().unwrap();
        });
        let default = class(&classes, "default");
        let own_names = ["default-second", "default-15-minutes", "default-day"];
        assert_eq!(names(&default.windows(None)), own_names);
        let overrides = BTreeMap::from([("default".to_owned(), "7/hour".parse().unwrap())]);
        let windows = default.windows(Some(&overrides));
        assert_eq!((names(&windows), windows[0].policy.quota), (vec!["default-hour"], 7));
        let strict = class(&classes, "strict").windows(Some(&overrides)).into_owned();
        assert_eq!(names(&strict), ["strict-minute"]);
    }

    #[test]
    fn what_a_class_leaves_unset_is_as_for_default() {
        let classes = classes(|config| {
            config.on_store_failure = OnStoreFailure::Allow;
            let by_api_key = ClassConfig { key: Some(KeyBy::ApiKey), ..ClassConfig::default() };
            let export = ClassConfig {
                limit: Some("1/hour".parse().unwrap()),
                key: Some(KeyBy::Ip),
                on_store_failure: Some(OnStoreFailure::Deny),
            };
            config.classes =
                BTreeMap::from([("default".into(), by_api_key), ("export".into(), export)]);
        });
        let all: Vec<_> =
            classes.iter().map(|class| (class.name(), class.key, class.on_store_failure)).collect();
        let expected = [
            ("default", KeyBy::ApiKey, OnStoreFailure::Allow),
            ("auth", KeyBy::Ip, OnStoreFailure::Local),
            ("strict", KeyBy::ApiKey, OnStoreFailure::Allow),
            ("export", KeyBy::Ip, OnStoreFailure::Deny),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn auth_is_never_let_through_for_want_of_redis() {
        for (own, then) in [
            (None, OnStoreFailure::Local),
            (Some(OnStoreFailure::Allow), OnStoreFailure::Local),
            (Some(OnStoreFailure::Deny), OnStoreFailure::Deny),
        ] {
            let classes = classes(|config| {
                let auth = ClassConfig { on_store_failure: own, ..ClassConfig::default() };
                config.classes = BTreeMap::from([("auth".into(), auth)]);
                config.on_store_failure = OnStoreFailure::Allow;
            });
            assert_eq!(class(&classes, "auth").on_store_failure, then, "{own:?}");
        }
    }
}
