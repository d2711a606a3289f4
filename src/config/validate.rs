//! The rules: those that hold everywhere, and those of production.

use std::path::Path;
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};
use url::Url;

use super::{
    CacheConfig, Config, CorsConfig, DatabaseConfig, Fault, HealthConfig, LogConfig, LogFormat,
    SecretUrl, SentryConfig, ServerConfig,
};

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

/// The breaches of the rules that hold in every environment.
pub(super) fn faults(config: &Config, source_of: impl Fn(&str) -> String) -> Vec<Fault> {
    let Config { env: _, server, database, cache, log, sentry, cors, security_headers: _, health } =
        config;
    let checks = [
        check_server(server),
        check_database(database),
        check_cache(cache),
        check_log(log),
        check_sentry(sentry),
        check_cors(cors),
        check_health(health),
    ];
    let broken = checks.into_iter().flatten().filter(|check| check.broken);
    broken
        .map(|Check { key, problem, fix, .. }| Fault {
            key: key.to_owned(),
            source: source_of(key),
            problem,
            fix: fix.to_owned(),
        })
        .collect()
}

struct Check {
    broken: bool,
    key: &'static str,
    problem: String,
    fix: &'static str,
}

fn check(broken: bool, key: &'static str, problem: impl Into<String>, fix: &'static str) -> Check {
    Check { broken, key, problem: problem.into(), fix }
}

fn not_zero(key: &'static str, duration: Duration) -> Check {
    check(duration.is_zero(), key, "it is zero", "give it a time, such as `5s`")
}

fn at_least_one(key: &'static str, count: u64) -> Check {
    check(count == 0, key, "it is zero", "make it at least 1")
}

fn check_server(server: &ServerConfig) -> Vec<Check> {
    let certificate = "set both APP_SERVER__TLS_CERT and APP_SERVER__TLS_KEY, or neither";
    let mut checks = vec![
        not_zero("server.request_timeout", server.request_timeout),
        not_zero("server.body_idle_timeout", server.body_idle_timeout),
        not_zero("server.body_timeout", server.body_timeout),
        not_zero("server.header_timeout", server.header_timeout),
        not_zero("server.idle_timeout", server.idle_timeout),
        not_zero("server.write_timeout", server.write_timeout),
        not_zero("server.drain_timeout", server.drain_timeout),
        at_least_one("server.max_connections", server.max_connections as u64),
        at_least_one("server.body_limit", server.body_limit.as_u64()),
        check(
            server.tls_cert.is_none() && server.tls_key.is_some(),
            "server.tls_cert",
            "there is a key without its certificate",
            certificate,
        ),
        check(
            server.tls_key.is_none() && server.tls_cert.is_some(),
            "server.tls_key",
            "there is a certificate without its key",
            certificate,
        ),
    ];
    checks.extend(server.public_url.iter().map(|url| {
        check(
            !(is_origin(url) && (url.starts_with("http://") || url.starts_with("https://"))),
            "server.public_url",
            format!("`{url}` is not an http or https origin"),
            "write it as `https://api.example.com`, with no path and no `/` at the end",
        )
    }));
    let files = [("server.tls_cert", &server.tls_cert), ("server.tls_key", &server.tls_key)];
    checks.extend(files.into_iter().filter_map(|(key, path)| unreadable(key, path.as_deref()?)));
    checks
}

fn unreadable(key: &'static str, path: &Path) -> Option<Check> {
    let error = std::fs::read(path).err()?;
    let fix = "correct the path, or let the service's user read the file";
    Some(check(true, key, format!("{} cannot be read: {error}", path.display()), fix))
}

fn check_database(database: &DatabaseConfig) -> Vec<Check> {
    let mut checks = vec![
        check(
            !is_sqlite(&database.url) && !is_postgres(&database.url),
            "database.url",
            "its scheme is neither sqlite nor postgres",
            "set DATABASE_URL to `sqlite://path` or `postgres://user:password@host/name`",
        ),
        not_zero("database.acquire_timeout", database.acquire_timeout),
        not_zero("database.statement_timeout", database.statement_timeout),
        not_zero("database.lock_timeout", database.lock_timeout),
        not_zero("database.idle_in_transaction_timeout", database.idle_in_transaction_timeout),
        at_least_one("database.max_connections", database.max_connections.into()),
        check(
            database.min_connections > database.max_connections.max(1),
            "database.min_connections",
            format!("it is above max_connections, {}", database.max_connections),
            "lower APP_DATABASE__MIN_CONNECTIONS or raise APP_DATABASE__MAX_CONNECTIONS",
        ),
    ];
    if is_postgres(&database.url) {
        checks.push(malformed("database.url", &database.url));
    }
    if let Some(replica) = &database.read_url {
        checks.push(check(
            !(is_postgres(&database.url) && is_postgres(replica)),
            "database.read_url",
            "a replica is for PostgreSQL alone",
            "remove DATABASE_READ_URL, or make it and DATABASE_URL `postgres://`",
        ));
        checks.push(malformed("database.read_url", replica));
    }
    checks
}

fn check_cache(cache: &CacheConfig) -> Vec<Check> {
    let mut checks = vec![
        not_zero("cache.soft_ttl", cache.soft_ttl),
        not_zero("cache.budget", cache.budget),
        not_zero("cache.breaker_retry", cache.breaker_retry),
        at_least_one("cache.breaker_failures", cache.breaker_failures.into()),
        check(
            cache.hard_ttl <= cache.soft_ttl,
            "cache.hard_ttl",
            "it is not longer than soft_ttl",
            "raise APP_CACHE__HARD_TTL, or lower APP_CACHE__SOFT_TTL",
        ),
    ];
    if let Some(url) = &cache.redis_url {
        checks.push(check(
            !matches!(url.scheme(), "redis" | "rediss"),
            "cache.redis_url",
            "its scheme is neither redis nor rediss",
            "set REDIS_URL to `redis://host:6379`, or `rediss://` for TLS",
        ));
        checks.push(malformed("cache.redis_url", url));
    }
    checks
}

fn check_log(log: &LogConfig) -> Vec<Check> {
    let error = log.filter.parse::<Targets>().err().map(|error| {
        let problem = format!("`{}` is not a filter: {error}", log.filter);
        check(true, "log.filter", problem, "write levels by target: `info,plinth=debug`")
    });
    error.into_iter().collect()
}

fn check_sentry(sentry: &SentryConfig) -> Vec<Check> {
    let dsn = sentry.dsn.as_ref().and_then(|dsn| Url::parse(dsn.expose()).err());
    vec![
        check(
            dsn.is_some(),
            "sentry.dsn",
            "it is not a URL",
            "copy it whole from Sentry, under Client Keys",
        ),
        check(
            !(0.0..=1.0).contains(&sentry.sample_rate),
            "sentry.sample_rate",
            format!("{} is not within 0 and 1", sentry.sample_rate),
            "set APP_SENTRY__SAMPLE_RATE to the part to send: `0.25` is a quarter",
        ),
    ]
}

fn check_cors(cors: &CorsConfig) -> Vec<Check> {
    let any = |cors: &CorsConfig| cors.allowed_origins.iter().any(|origin| origin == "*");
    let mut checks = vec![check(
        cors.allow_credentials && any(cors),
        "cors.allow_credentials",
        "browsers take no credentials with `*`",
        "name the origins in APP_CORS__ALLOWED_ORIGINS",
    )];
    let origins = cors.allowed_origins.iter().filter(|origin| *origin != "*");
    checks.extend(origins.map(|origin| {
        check(
            !is_origin(origin),
            "cors.allowed_origins",
            format!("`{origin}` is not an origin as browsers send it"),
            "write `https://app.example.com`: lower case, no path, no `/`, no default port",
        )
    }));
    checks
}

fn check_health(health: &HealthConfig) -> Vec<Check> {
    vec![not_zero("health.interval", health.interval), not_zero("health.timeout", health.timeout)]
}

fn malformed(key: &'static str, url: &SecretUrl) -> Check {
    check(
        Url::parse(url.expose()).is_err(),
        key,
        "it is not a URL",
        "percent-encode what is not a letter or digit in its user and password",
    )
}

fn is_sqlite(url: &SecretUrl) -> bool {
    url.scheme() == "sqlite"
}

fn is_postgres(url: &SecretUrl) -> bool {
    matches!(url.scheme(), "postgres" | "postgresql")
}

/// Origins are compared as text, so only the one form that browsers send is right.
fn is_origin(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let Some(host) = url.host_str() else { return false };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    text == format!("{}://{host}{port}", url.scheme())
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
/// For flushing telemetry after the drain.
const FLUSH: Duration = Duration::from_secs(2);

const PRODUCTION: &[Rule] = &[
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
            (!is_sqlite(&database.url) || local, found)
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
            let stop = pre_stop_delay.saturating_add(*drain_timeout).saturating_add(FLUSH);
            (stop <= KUBERNETES_GRACE, format!("{stop:?} with delay and flush"))
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
        rule: "replicas share one cache",
        breach: Grade::Warn,
        fix: "set REDIS_URL, unless there is only ever one replica",
        judge: |config| {
            let url = config.cache.redis_url.as_ref().map(ToString::to_string);
            (url.is_some(), or_none(&url.unwrap_or_default()))
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
        judge: |config| {
            let on = config.security_headers.enabled;
            (on, if on { "on" } else { "off" }.into())
        },
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

fn logs_the_wire(filter: &str) -> bool {
    // A filter that does not parse is a fault of its own.
    let Ok(targets) = filter.parse::<Targets>() else { return false };
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
fn secrets(config: &Config) -> Vec<(&'static str, String)> {
    let Config { database, cache, sentry, .. } = config;
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
    ];
    secrets.into_iter().filter_map(|(key, secret)| Some((key, secret?))).collect()
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
        for filter in ["trace", "hyper=trace", "info,hyper::proto=trace", "info,h2", "hyp=trace"] {
            assert!(logs_the_wire(filter), "{filter}");
        }
        for filter in ["info", "info,plinth=debug", "info,plinth=trace", "debug"] {
            assert!(!logs_the_wire(filter), "{filter}");
        }
    }

    #[test]
    fn an_origin_is_what_browsers_send() {
        for origin in
            ["https://a.example", "http://localhost:3000", "http://[::1]:81", "tauri://localhost"]
        {
            assert!(is_origin(origin), "{origin}");
        }
        for other in ["a.example", "https://a.example/", "https://A.example", "https://a:443", ""] {
            assert!(!is_origin(other), "{other}");
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
