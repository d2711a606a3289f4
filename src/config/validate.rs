//! The rules that hold in every environment. Production's own are in `production`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use url::Url;

use super::log::log_targets;
use super::traces::pairs;
use super::{
    AuthConfig, CacheConfig, Config, CorsConfig, DatabaseConfig, Fault, FloodGuardConfig,
    HealthConfig, JwtConfig, LogConfig, ManagementConfig, OnStoreFailure, RateLimitConfig, Secret,
    SecretUrl, SentryConfig, ServerConfig, TracesConfig,
};

/// The breaches of the rules that hold in every environment.
pub(super) fn faults(config: &Config, source_of: impl Fn(&str) -> String) -> Vec<Fault> {
    let Config {
        env: _,
        server,
        database,
        cache,
        auth,
        rate_limit,
        flood_guard,
        management,
        log,
        traces,
        sentry,
        cors,
        security_headers: _,
        health,
    } = config;
    let checks = [
        check_server(server),
        check_database(database),
        check_cache(cache),
        check_auth(auth),
        check_rate_limit(rate_limit),
        check_flood_guard(flood_guard),
        check_management(management, server),
        check_log(log),
        check_traces(traces),
        check_sentry(sentry),
        check_cors(cors),
        check_health(health),
    ];
    let broken = checks.into_iter().flatten().filter(|check| check.broken);
    broken
        .map(|Check { key, problem, fix, .. }| Fault {
            source: source_of(&key),
            key: key.into_owned(),
            problem,
            fix: fix.to_owned(),
        })
        .collect()
}

struct Check {
    broken: bool,
    key: Cow<'static, str>,
    problem: String,
    fix: &'static str,
}

fn check(
    broken: bool,
    key: impl Into<Cow<'static, str>>,
    problem: impl Into<String>,
    fix: &'static str,
) -> Check {
    Check { broken, key: key.into(), problem: problem.into(), fix }
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
        check(
            server.body_timeout >= server.request_timeout,
            "server.body_timeout",
            "it is not below request_timeout, of which it is a part",
            "lower APP_SERVER__BODY_TIMEOUT, or raise APP_SERVER__REQUEST_TIMEOUT",
        ),
        not_zero("server.header_timeout", server.header_timeout),
        not_zero("server.idle_timeout", server.idle_timeout),
        not_zero("server.write_timeout", server.write_timeout),
        not_zero("server.drain_timeout", server.drain_timeout),
        at_least_one("server.max_connections", server.max_connections as u64),
        at_least_one("server.max_in_flight", server.max_in_flight as u64),
        at_least_one("server.max_in_flight_per_client", server.max_in_flight_per_client as u64),
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

fn check_auth(auth: &AuthConfig) -> Vec<Check> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut checks = vec![check(
        auth.key_prefix.is_empty() || !auth.key_prefix.chars().all(word),
        "auth.key_prefix",
        format!("`{}` is not one word", auth.key_prefix),
        "set APP_AUTH__KEY_PREFIX to letters, digits and `-`, such as `acme`",
    )];
    let path = auth.principals_file.as_deref();
    checks.extend(path.and_then(|path| unreadable("auth.principals_file", path)));
    checks.extend(check_jwt(&auth.jwt));
    checks
}

fn check_jwt(jwt: &JwtConfig) -> Vec<Check> {
    let on = jwt.issuer.is_some();
    let jwks = jwt.jwks.as_deref().unwrap_or_default();
    let mut checks = vec![
        check(
            on && jwt.audience.is_empty(),
            "auth.jwt.audience",
            "with an issuer and no audience, tokens for other services would do here",
            "set APP_AUTH__JWT__AUDIENCE to what the issuer calls this service",
        ),
        check(
            on && jwks.is_empty(),
            "auth.jwt.jwks",
            "there is an issuer, and no keys to check its tokens with",
            "set APP_AUTH__JWT__JWKS to its `jwks_uri`, or to a file",
        ),
        check(
            !on && !jwks.is_empty(),
            "auth.jwt.issuer",
            "there are keys, and no issuer whose tokens they are to check",
            "set APP_AUTH__JWT__ISSUER to the `iss` of its tokens",
        ),
        check(
            jwt.algorithms.is_empty(),
            "auth.jwt.algorithms",
            "no token could be accepted",
            "set APP_AUTH__JWT__ALGORITHMS, such as `RS256,ES256`",
        ),
        not_zero("auth.jwt.refresh", jwt.refresh),
        not_zero("auth.jwt.cooldown", jwt.cooldown),
    ];
    if jwks.contains("://") {
        checks.push(check(
            !is_public_url(jwks),
            "auth.jwt.jwks",
            "it is not an http or https URL, or it has a user or password in it",
            "copy the issuer's `jwks_uri`; what it serves is public",
        ));
    } else if !jwks.is_empty() {
        checks.extend(unreadable("auth.jwt.jwks", Path::new(jwks)));
    }
    checks
}

fn is_public_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        let anonymous = url.username().is_empty() && url.password().is_none();
        matches!(url.scheme(), "http" | "https") && anonymous
    })
}

fn check_rate_limit(rate_limit: &RateLimitConfig) -> Vec<Check> {
    let mut checks = vec![];
    for entry in &rate_limit.exempt {
        checks.push(check(
            !is_exemptible(entry),
            "rate_limit.exempt",
            format!("`{entry}` is neither a network nor a principal"),
            "write networks as `10.0.0.0/8` or, since clients are told apart by /64, \
             `2001:db8::/64`; principals as `key:name` or `user:subject`",
        ));
    }
    for (name, class) in &rate_limit.classes {
        let key = |field: &str| format!("rate_limit.classes.{name}.{field}");
        let built_in = RateLimitConfig::BUILT_IN.contains(&name.as_str());
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        checks.push(check(
            name.is_empty() || !name.chars().all(letter),
            format!("rate_limit.classes.{name}"),
            "headers name the class, and it is not one plain word",
            "call it by lower-case letters, digits, `-` and `_`",
        ));
        checks.push(check(
            class.limit.is_none() && !built_in,
            key("limit"),
            "it is a class without a limit",
            "give it one, such as `10/minute`",
        ));
        checks.push(check(
            class.limit.is_some() && built_in,
            key("limit"),
            format!("that class has its limit in rate_limit.{name}"),
            "move it there",
        ));
        checks.push(check(
            name == "auth" && class.on_store_failure == Some(OnStoreFailure::Allow),
            key("on_store_failure"),
            "failed credentials must stay limited when Redis is away",
            "set it to `local` or `deny`",
        ));
    }
    checks
}

fn is_exemptible(entry: &str) -> bool {
    let network = entry.parse().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from));
    match network {
        Ok(IpNet::V6(network)) => network.prefix_len() <= 64,
        Ok(IpNet::V4(_)) => true,
        Err(_) => entry.split_once(':').is_some_and(|(kind, _)| matches!(kind, "key" | "user")),
    }
}

fn check_flood_guard(flood_guard: &FloodGuardConfig) -> Vec<Check> {
    vec![
        at_least_one("flood_guard.per_second", flood_guard.per_second.into()),
        at_least_one("flood_guard.burst", flood_guard.burst.into()),
    ]
}

fn check_log(log: &LogConfig) -> Vec<Check> {
    let error = log_targets(&log.filter).err().map(|error| {
        let problem = format!("`{}` is not a filter: {error}", log.filter);
        check(true, "log.filter", problem, "write levels by target: `info,plinth=debug`")
    });
    error.into_iter().collect()
}

fn check_management(management: &ManagementConfig, server: &ServerConfig) -> Vec<Check> {
    let same_port =
        management.bind.is_some_and(|bind| bind.port() != 0 && bind.port() == server.port);
    vec![check(
        same_port,
        "management.bind",
        "it is the public port, which is what it should be apart from",
        "give it another port, such as `127.0.0.1:9090`",
    )]
}

fn check_traces(traces: &TracesConfig) -> Vec<Check> {
    let unreadable = |text: Option<&str>| text.is_some_and(|text| pairs(text).is_none());
    let endpoint = traces.endpoint.as_ref().map(SecretUrl::expose);
    let is_base = |url: &str| {
        is_public_url(url)
            && Url::parse(url).is_ok_and(|url| url.query().is_none() && url.fragment().is_none())
    };
    let are_headers = |headers: &BTreeMap<String, String>| {
        headers.iter().all(|(name, value)| {
            HeaderName::try_from(name).is_ok() && HeaderValue::try_from(value).is_ok()
        })
    };
    vec![
        check(
            endpoint.is_some_and(|url| !is_base(url)),
            "traces.endpoint",
            "it is not an http or https URL, or there is a user, a password or a query in it",
            "set it to the receiver's base, such as `http://collector:4318`; credentials go into \
             OTEL_EXPORTER_OTLP_HEADERS",
        ),
        check(
            unreadable(traces.headers.as_ref().map(Secret::expose))
                || !are_headers(&traces.header_pairs()),
            "traces.headers",
            "it is not a list of headers",
            "write `name=value,name=value`, with blanks and commas in values percent-encoded",
        ),
        check(
            unreadable(traces.resource_attributes.as_deref()),
            "traces.resource_attributes",
            "it is not a list of attributes",
            "write `name=value,name=value`, with blanks and commas in values percent-encoded",
        ),
        part("traces.sampler_arg", traces.sampler_arg),
    ]
}

fn part(key: &'static str, part: f64) -> Check {
    check(
        !(0.0..=1.0).contains(&part),
        key,
        format!("{part} is not within 0 and 1"),
        "set it to the part to send: `0.25` is a quarter",
    )
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
        part("sentry.sample_rate", sentry.sample_rate.into()),
        part("sentry.traces_sample_rate", sentry.traces_sample_rate.into()),
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
