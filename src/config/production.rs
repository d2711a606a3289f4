//! What production demands: a table of rules, and every secret judged.

use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;
use url::Url;

use super::{AcceptContext, AuthMode, Config, LogFormat, SecretUrl, ServerConfig, log_targets};

/// `Warn` is for people to weigh; `Fail` keeps production from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    Pass,
    Warn,
    Fail,
}

/// What one production rule found.
#[derive(Debug, Clone)]
pub struct Finding {
    pub key: &'static str,
    /// What production asks.
    pub rule: &'static str,
    pub grade: Grade,
    /// The setting as it is, with no secret in it.
    pub found: String,
    /// What to set where it does not pass.
    pub fix: &'static str,
}

/// Judges a configuration by production's rules, whatever `APP_ENV` is. In production, `load`
/// refuses those that fail.
pub fn production_findings(config: &Config) -> Vec<Finding> {
    let ruled = PRODUCTION.iter().map(|rule| {
        let (safe, found) = (rule.judge)(config);
        let grade = if safe { Grade::Pass } else { rule.breach };
        Finding { key: rule.key, rule: rule.rule, grade, found, fix: rule.fix }
    });
    ruled.chain(secrets(config).into_iter().map(judge_secret)).collect()
}

/// `judge` says whether the setting is safe, and what it found.
struct Rule {
    key: &'static str,
    rule: &'static str,
    breach: Grade,
    fix: &'static str,
    judge: fn(&Config) -> (bool, String),
}

/// Kubernetes kills a pod this long after it asked it to stop, unless told otherwise.
const KUBERNETES_GRACE: Duration = Duration::from_secs(30);
/// After the drain: half a second for what was cut, two for the pools, two for telemetry.
const AFTER_DRAIN: Duration = Duration::from_millis(4500);

const PRODUCTION: &[Rule] = &[
    Rule {
        key: "auth.mode",
        rule: "callers say who they are",
        breach: Grade::Fail,
        fix: "set APP_AUTH__MODE=required, and make keys with `plinth key create`",
        judge: |config| match config.auth.mode {
            AuthMode::Required => (true, "required".into()),
            AuthMode::Open => (false, "open".into()),
        },
    },
    Rule {
        key: "auth.jwt.jwks",
        rule: "the issuer's keys come by TLS or from a file",
        breach: Grade::Fail,
        fix: "set APP_AUTH__JWT__JWKS to an https URL or to a file",
        judge: |config| {
            let jwks = config.auth.jwt.jwks.as_deref().unwrap_or_default();
            let plain = Url::parse(jwks).is_ok_and(|url| url.scheme() == "http");
            (!plain, or_none(jwks))
        },
    },
    Rule {
        key: "rate_limit.enabled",
        rule: "callers have quotas",
        breach: Grade::Warn,
        fix: "set APP_RATE_LIMIT__ENABLED=true, unless a gateway in front counts",
        judge: |config| on_or_off(config.rate_limit.enabled),
    },
    Rule {
        key: "flood_guard.enabled",
        rule: "no address can flood it",
        breach: Grade::Warn,
        fix: "set APP_FLOOD_GUARD__ENABLED=true, unless something in front guards",
        judge: |config| on_or_off(config.flood_guard.enabled),
    },
    Rule {
        key: "cors.allowed_origins",
        rule: "only named origins may call",
        breach: Grade::Fail,
        fix: "name them in APP_CORS__ALLOWED_ORIGINS",
        judge: |config| {
            let origins = &config.cors.allowed_origins;
            (!origins.iter().any(|origin| origin == "*"), or_none(&origins.join(", ")))
        },
    },
    Rule {
        key: "log.filter",
        rule: "logs hold no bodies, no wire contents",
        breach: Grade::Fail,
        fix: "set RUST_LOG to `info`, and `trace` only for targets of your own",
        judge: |config| (!logs_the_wire(&config.log.filter), config.log.filter.clone()),
    },
    Rule {
        key: "database.url",
        rule: "a public address is not served from SQLite",
        breach: Grade::Fail,
        fix: "set DATABASE_URL to PostgreSQL, or APP_DATABASE__ALLOW_SQLITE=true",
        judge: |config| {
            let Config { server, database, .. } = config;
            let local = server.bind.is_loopback() || database.allow_sqlite;
            let found = format!("{} behind {}", database.url.scheme(), server.bind);
            (database.url.scheme() != "sqlite" || local, found)
        },
    },
    Rule {
        key: "server.bind",
        rule: "other machines can reach it",
        breach: Grade::Warn,
        fix: "set APP_SERVER__BIND=0.0.0.0, unless a proxy on this machine is in front",
        judge: |config| (!config.server.bind.is_loopback(), config.server.bind.to_string()),
    },
    Rule {
        key: "server.trusted_proxies",
        rule: "not everyone is a trusted proxy",
        breach: Grade::Warn,
        fix: "name your proxies' networks in APP_SERVER__TRUSTED_PROXIES; with /0 clients choose \
              their own address",
        judge: |config| {
            let proxies = &config.server.trusted_proxies;
            let shown: Vec<_> = proxies.iter().map(ToString::to_string).collect();
            (proxies.iter().all(|network| network.prefix_len() > 0), or_none(&shown.join(", ")))
        },
    },
    Rule {
        key: "server.public_url",
        rule: "its own address is known",
        breach: Grade::Warn,
        fix: "set APP_SERVER__PUBLIC_URL, for the links in the API document",
        judge: |config| {
            let url = config.server.public_url.as_deref().unwrap_or_default();
            (!url.is_empty(), or_none(url))
        },
    },
    Rule {
        key: "server.pre_stop_delay",
        rule: "balancers have time to notice a stop",
        breach: Grade::Warn,
        fix: "set APP_SERVER__PRE_STOP_DELAY=5s",
        judge: |config| {
            let delay = config.server.pre_stop_delay;
            (!delay.is_zero(), if delay.is_zero() { or_none("") } else { format!("{delay:?}") })
        },
    },
    Rule {
        key: "server.drain_timeout",
        rule: "it stops within Kubernetes' 30 s",
        breach: Grade::Warn,
        fix: "lower APP_SERVER__DRAIN_TIMEOUT, or raise terminationGracePeriodSeconds",
        judge: |config| {
            let ServerConfig { pre_stop_delay, drain_timeout, .. } = &config.server;
            let stop = pre_stop_delay.saturating_add(*drain_timeout).saturating_add(AFTER_DRAIN);
            (stop <= KUBERNETES_GRACE, format!("{stop:?} with all that precedes and follows it"))
        },
    },
    Rule {
        key: "database.statement_timeout",
        rule: "a query ends before its request does",
        breach: Grade::Warn,
        fix: "set APP_DATABASE__STATEMENT_TIMEOUT below APP_SERVER__REQUEST_TIMEOUT",
        judge: |config| {
            let (query, request) =
                (config.database.statement_timeout, config.server.request_timeout);
            (query < request, format!("{query:?} of {request:?}"))
        },
    },
    Rule {
        key: "cache.redis_url",
        rule: "replicas share one cache and one count",
        breach: Grade::Warn,
        fix: "set REDIS_URL, unless there is only ever one replica",
        judge: |config| {
            let url = config.cache.redis_url.as_ref().map(ToString::to_string);
            (url.is_some(), or_none(&url.unwrap_or_default()))
        },
    },
    Rule {
        key: "management.bind",
        rule: "metrics and the health report are not public",
        breach: Grade::Warn,
        fix: "set APP_MANAGEMENT__BIND to an address that only operators reach",
        judge: |config| {
            let bind = config.management.bind.map(|bind| bind.to_string());
            (bind.is_some(), or_none(&bind.unwrap_or_default()))
        },
    },
    Rule {
        key: "traces.accept_context",
        rule: "callers do not choose what is traced",
        breach: Grade::Warn,
        fix: "set APP_TRACES__ACCEPT_CONTEXT=trusted, and name your proxies",
        judge: |config| match config.traces.accept_context {
            AcceptContext::Trusted => (true, "trusted".into()),
            AcceptContext::All => (false, "all".into()),
        },
    },
    Rule {
        key: "sentry.dsn",
        rule: "errors are reported",
        breach: Grade::Warn,
        fix: "set SENTRY_DSN",
        judge: |config| {
            let set = config.sentry.dsn.is_some();
            (set, or_none(if set { "set" } else { "" }))
        },
    },
    Rule {
        key: "log.format",
        rule: "logs are for machines",
        breach: Grade::Warn,
        fix: "set APP_LOG__FORMAT=json",
        judge: |config| match config.log.format {
            LogFormat::Json => (true, "json".into()),
            LogFormat::Pretty => (false, "pretty".into()),
        },
    },
    Rule {
        key: "security_headers.enabled",
        rule: "security headers are sent",
        breach: Grade::Warn,
        fix: "set APP_SECURITY_HEADERS__ENABLED=true, unless a proxy in front sends them",
        judge: |config| on_or_off(config.security_headers.enabled),
    },
];

/// Crates that write what passes through them, bodies, headers and query values among it, at
/// `trace`. At `debug` they name events only.
const WIRE: &[&str] = &[
    "h2",
    "hyper",
    "hyper_util",
    "redis",
    "reqwest",
    "rustls",
    "sqlx",
    "sqlx_core",
    "sqlx_postgres",
    "sqlx_sqlite",
    "tokio_util",
    "tower_http",
];

/// Whether a log filter lets through what is on the wire.
pub fn logs_the_wire(filter: &str) -> bool {
    // A filter that does not parse is a fault of its own.
    let Ok(targets) = log_targets(filter) else { return false };
    let root = |target: &str| target.split("::").next().is_some_and(|root| WIRE.contains(&root));
    WIRE.iter().any(|target| targets.would_enable(target, &tracing::Level::TRACE))
        || targets.iter().any(|(target, level)| level == LevelFilter::TRACE && root(target))
}

const PLACEHOLDERS: &[&str] = &[
    "",
    "admin",
    "change-me",
    "change_me",
    "changeit",
    "changeme",
    "changethis",
    "default",
    "example",
    "examplepublickey",
    "password",
    "placeholder",
    "postgres",
    "redis",
    "replaceme",
    "secret",
    "test",
    "todo",
    "xxx",
    "your-password",
    "your-secret",
];

/// Every secret that is set, by key. A test holds it to the keys whose values are redacted.
pub(super) fn secrets(config: &Config) -> Vec<(&'static str, String)> {
    let Config { database, cache, sentry, traces, .. } = config;
    let in_url = |url: &SecretUrl| url.password().map(str::to_owned);
    // Where the password is mounted apart, that in the URL is not used.
    let overridden = database.password.is_some();
    let in_database_url = |url: &SecretUrl| in_url(url).filter(|_| !overridden);
    let dsn = sentry.dsn.as_ref().map(|dsn| {
        let user = Url::parse(dsn.expose()).map(|url| url.username().to_owned());
        user.unwrap_or_else(|_| dsn.expose().to_owned())
    });
    let secrets = [
        ("cache.redis_url", cache.redis_url.as_ref().and_then(in_url)),
        ("database.password", database.password.as_ref().map(|text| text.expose().to_owned())),
        ("database.read_url", database.read_url.as_ref().and_then(in_database_url)),
        ("database.url", in_database_url(&database.url)),
        ("sentry.dsn", dsn),
        ("traces.endpoint", traces.endpoint.as_ref().and_then(in_url)),
    ];
    let secrets = secrets.into_iter().filter_map(|(key, secret)| Some((key, secret?)));
    let headers = traces.header_pairs().into_values().map(|value| ("traces.headers", value));
    secrets.chain(headers).collect()
}

fn judge_secret((key, secret): (&'static str, String)) -> Finding {
    let placeholder = PLACEHOLDERS.contains(&secret.trim().to_lowercase().as_str());
    Finding {
        key,
        rule: "no secret is a placeholder",
        grade: if placeholder { Grade::Fail } else { Grade::Pass },
        found: if placeholder { "a well-known placeholder" } else { "a secret" }.into(),
        fix: "make one with `openssl rand -hex 32`, and give it as a file by appending _FILE",
    }
}

fn on_or_off(on: bool) -> (bool, String) {
    (on, if on { "on" } else { "off" }.into())
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::keys::{Keys, rows};
    use super::super::{Environment, Secret};
    use super::*;

    #[test]
    fn trace_is_refused_where_it_reaches_the_wire() {
        for filter in ["trace", "hyper=trace", "info,hyper::proto=trace", "hyp=trace"] {
            assert!(logs_the_wire(filter), "{filter}");
        }
        for filter in ["info", "info,plinth=debug", "info,plinth=trace", "debug"] {
            assert!(!logs_the_wire(filter), "{filter}");
        }
    }

    #[test]
    fn every_secret_key_is_judged() {
        let mut config = Config::defaults(Environment::Production);
        let url = || SecretUrl::new("postgres://u:changeme@h/d");
        config.database.url = url();
        config.database.read_url = Some(url());
        config.cache.redis_url = Some(url());
        config.sentry.dsn = Some(Secret::new("changeme"));
        config.traces.endpoint = Some(url());
        config.traces.headers = Some(Secret::new("api-key=changeme"));
        let mut judged: Vec<_> = secrets(&config).into_iter().map(|(key, _)| key).collect();
        config.database.password = Some(Secret::new("changeme"));
        judged.extend(secrets(&config).into_iter().map(|(key, _)| key));
        judged.sort_unstable();
        judged.dedup();

        let keys = Keys::new();
        let secret: Vec<_> = rows(&config).into_keys().filter(|key| keys.is_secret(key)).collect();
        assert_eq!(judged, secret, "add the new secret to secrets()");
    }

    #[test]
    fn a_given_empty_password_is_a_placeholder() {
        let mut config = Config::defaults(Environment::Production);
        config.database.url = SecretUrl::new("postgres://app:@db/app");
        let findings = production_findings(&config);
        assert!(findings.iter().any(|f| f.key == "database.url" && f.grade == Grade::Fail));
    }
}
