//! What someone who configures the service notices: which value wins, what is refused, and how
//! plainly it is said. No test reads this process's environment.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "the helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plinth::config::{
    Config, Environment, Explained, Fault, Faults, Grade, Loaded, Sources, load,
    production_findings, table,
};
use uuid::Uuid;

#[test]
fn with_nothing_set_it_runs_on_the_defaults() {
    let loaded = Place::new().load([]).unwrap();
    assert_eq!(loaded.config.env, Environment::Development);
    assert!(loaded.explain().iter().all(|entry| entry.source == "default"));
}

#[test]
fn later_layers_win_and_explain_says_over_what() {
    let place = Place::new().file("plinth.toml", "[server]\nport = 1111\nmax_connections = 7\n");
    let place = place.file(".env", "PORT=2222\n");
    let loaded = place.load([("APP_SERVER__PORT", "3333")]).unwrap();
    assert_eq!(loaded.config.server.port, 3333);
    assert_eq!(loaded.config.server.max_connections, 7);

    let port = entry(&loaded, "server.port");
    assert_eq!((port.variable.as_str(), port.value.as_str()), ("PORT", "3333"));
    assert_eq!(port.source, "environment (APP_SERVER__PORT)");
    let lost: Vec<_> = port.overrode.iter().map(|o| (&*o.source, &*o.value)).collect();
    assert_eq!(lost, [(".env (PORT)", "2222"), ("plinth.toml", "1111"), ("default", "8080")]);
    assert!(table(&loaded.explain()).contains("2222 (.env (PORT))"));
}

#[test]
fn every_key_is_explained_unset_ones_too() {
    let loaded = Place::new().load([("APP_SERVER__BODY_LIMIT", "2048KiB")]).unwrap();
    let redis = entry(&loaded, "cache.redis_url");
    assert_eq!((redis.variable.as_str(), redis.value.as_str()), ("REDIS_URL", "unset"));
    assert_eq!(entry(&loaded, "server.body_limit").value, "2MiB");
}

#[test]
fn text_is_read_as_its_key_means_it() {
    let loaded = Place::new()
        .load([
            ("APP_CORS__ALLOWED_ORIGINS", "https://a.example, https://b.example:8443"),
            ("APP_SERVER__TRUSTED_PROXIES", "10.0.0.0/8,fd00::/8"),
            ("APP_DATABASE__ALLOW_SQLITE", "true"),
            ("APP_CACHE__KEY_PREFIX", "true"),
            ("APP_CACHE__MAX_MEMORY", "2MiB"),
            ("APP_SERVER__DRAIN_TIMEOUT", "1m 30s"),
            ("APP_SENTRY__ENVIRONMENT", "2026"),
            ("APP_SENTRY__SAMPLE_RATE", "0.1"),
        ])
        .unwrap();
    let config = &loaded.config;
    assert_eq!(config.cors.allowed_origins, ["https://a.example", "https://b.example:8443"]);
    assert_eq!(config.server.trusted_proxies.len(), 2);
    assert!(config.database.allow_sqlite);
    assert_eq!(config.cache.key_prefix, "true");
    assert_eq!(config.cache.max_memory.as_u64(), 2 << 20);
    assert_eq!(config.server.drain_timeout, Duration::from_secs(90));
    assert_eq!(config.sentry.environment.as_deref(), Some("2026"));
    assert_eq!(entry(&loaded, "sentry.sample_rate").value, "0.1");
}

#[test]
fn a_password_of_digits_stays_text() {
    let from_environment = Place::new().load([("APP_DATABASE__PASSWORD", "0012345")]).unwrap();
    assert_eq!(password(&from_environment), "0012345");
    let from_toml = Place::new().file("plinth.toml", "[database]\npassword = 12345\n");
    assert_eq!(password(&from_toml.load([]).unwrap()), "12345");
}

#[test]
fn a_file_gives_a_value_without_its_last_newline() {
    for (written, read) in
        [("s3cr3t\n", "s3cr3t"), ("s3cr3t\r\n", "s3cr3t"), (" two\n\n", " two\n")]
    {
        let place = Place::new().file("pw", written);
        let loaded = place.load([("APP_DATABASE__PASSWORD_FILE", "pw")]).unwrap();
        assert_eq!(password(&loaded), read);
        let source = entry(&loaded, "database.password").source;
        assert_eq!(source, "file pw (APP_DATABASE__PASSWORD_FILE)");
    }
    let loaded = Place::new().file("port", "9000\n").load([("PORT_FILE", "port")]).unwrap();
    assert_eq!(loaded.config.server.port, 9000);
}

#[test]
fn a_file_that_is_missing_or_given_beside_its_value_is_a_fault() {
    let fault = only(Place::new().load([("DATABASE_URL_FILE", "/nowhere/url")]));
    assert_eq!(fault.key, "database.url");
    assert!(fault.problem.contains("/nowhere/url: No such file"), "{fault:?}");

    let place = Place::new().file("port", "9000");
    let fault = only(place.load([("PORT", "9000"), ("PORT_FILE", "port")]));
    assert_eq!(fault.problem, "`PORT` and `PORT_FILE` both set it");
}

#[test]
fn two_names_for_one_key_must_agree() {
    assert!(Place::new().load([("PORT", "81"), ("APP_SERVER__PORT", "81")]).is_ok());
    let fault = only(Place::new().load([("PORT", "81"), ("APP_SERVER__PORT", "82")]));
    assert_eq!(fault.problem, "`APP_SERVER__PORT` and `PORT` both set it");
}

#[test]
fn an_empty_value_is_an_unset_one() {
    let place = Place::new().file("plinth.toml", "[cache]\nredis_url = ''\n");
    let place = place.file(".env", "PORT=7000\n");
    let unset = [("PORT", ""), ("DATABASE_URL", ""), ("APP_ENV", ""), ("APP_CONFIG_FILE", "")];
    let loaded = place.load(unset).unwrap();
    assert_eq!(loaded.config.server.port, 7000);
    assert!(loaded.config.cache.redis_url.is_none());
}

#[test]
fn every_fault_is_reported_at_once() {
    let place = Place::new().file("plinth.toml", "[server]\nprot = 1\n[health]\ntimeout = '0s'\n");
    let faults = faults(place.load([
        ("APP_ENV", "prod"),
        ("PORT", "eighty"),
        ("APP_SERVER__DRAIN_TIMEOUT", "20"),
        ("APP_LOG_FORMAT", "json"),
    ]));
    let said = faults.to_string();
    assert_eq!(faults.0.len(), 6, "{said}");
    for expected in [
        "env, from environment (APP_ENV)\n    problem: `prod` is not one of development, test, \
         production\n    fix:     set `APP_ENV` to development or test or production\n",
        "server.port, from environment (PORT)\n    problem: `eighty` is not a whole number from 0 \
         to 65535\n    fix:     set `PORT` to a value such as the default, `8080`\n",
        "server.drain_timeout, from environment (APP_SERVER__DRAIN_TIMEOUT)\n    problem: `20` is \
         not a duration\n    fix:     set `APP_SERVER__DRAIN_TIMEOUT` to a value such as the \
         default, `20s`\n",
        "server.prot, from plinth.toml\n    problem: there is no `server.prot`\n    fix:     did \
         you mean `server.port`?\n",
        "health.timeout, from plinth.toml\n    problem: it is zero\n",
        "did you mean `APP_LOG__FORMAT`?",
    ] {
        assert!(said.contains(expected), "{expected}\n--- in ---\n{said}");
    }
}

#[test]
fn a_fault_without_a_default_to_show_points_at_the_example() {
    let fault = only(Place::new().load([("APP_SERVER__TRUSTED_PROXIES", "10.0.0.0/99")]));
    assert_eq!(fault.fix, "see what `APP_SERVER__TRUSTED_PROXIES` takes in .env.example");
}

#[test]
fn unknown_keys_are_faults_with_a_way_out() {
    for (name, fix) in [
        ("APP_SERVER__PROT", "did you mean `APP_SERVER__PORT`?"),
        ("APP_SERVER_PORT", "did you mean `APP_SERVER__PORT`?"),
        ("APP_SERVR__PORT", "did you mean `APP_SERVER__PORT`?"),
        ("APP_HEALTH__QQ", "take one of: APP_HEALTH__INTERVAL, APP_HEALTH__TIMEOUT"),
        ("APP_SERVER__PORT__NUMBER", "take one of: APP_SERVER__BIND, "),
        ("APP___PORT", "begin with a section: auth, cache, "),
    ] {
        let fault = only(Place::new().load([(name, "1")]));
        assert!(fault.fix.contains(fix), "{name}: {fault:?}");
    }
    let fault = only(Place::new().file("plinth.toml", "[sever]\nport = 1\n").load([]));
    assert_eq!(fault.fix, "did you mean `server`?");
}

#[test]
fn quota_classes_are_the_users_to_name() {
    let file = "[rate_limit]\ndefault = \"1/s\"\n[rate_limit.classes.search]\nlimit = \"3/m\"\n";
    let place = Place::new().file("plinth.toml", file);
    let loaded = place
        .load([
            ("APP_RATE_LIMIT__CLASSES__REPORTS__LIMIT", "10/minute, 100/hour"),
            ("APP_RATE_LIMIT__CLASSES__REPORTS__KEY", "ip"),
        ])
        .unwrap();
    let classes = loaded.config.rate_limit.classes();
    assert_eq!(
        classes.into_iter().collect::<Vec<_>>(),
        ["auth", "default", "reports", "search", "strict"]
    );
    let limit = entry(&loaded, "rate_limit.classes.reports.limit");
    assert_eq!(limit.value, "10/minute, 100/hour");
    assert_eq!(limit.source, "environment (APP_RATE_LIMIT__CLASSES__REPORTS__LIMIT)");
    assert_eq!(entry(&loaded, "rate_limit.default").value, "1/second");
}

#[test]
fn a_quota_that_is_none_is_a_fault_with_its_key() {
    let fault = |file: &str| only(Place::new().file("plinth.toml", file).load([]));
    let of_default = fault("[rate_limit]\ndefault = \"10/fortnight\"\n");
    assert!(of_default.problem.contains("`10/fortnight` is not a limit such as"), "{of_default:?}");
    let of_class = fault("[rate_limit.classes.search]\nlimit = \"0/m\"\n");
    assert_eq!(of_class.key, "rate_limit.classes.search.limit");
    assert!(of_class.problem.contains("lets nobody through"), "{of_class:?}");
    let without = fault("[rate_limit.classes.search]\nkey = \"ip\"\n");
    assert_eq!(
        (&*without.key, &*without.problem),
        ("rate_limit.classes.search.limit", "it is a class without a limit")
    );
    let open = fault("[rate_limit.classes.auth]\non_store_failure = \"allow\"\n");
    assert_eq!(open.key, "rate_limit.classes.auth.on_store_failure");
    let exempt = fault("[rate_limit]\nexempt = [\"10.0.0.0/8\", \"key:ci\", \"2001:db8::1\"]\n");
    assert!(exempt.problem.starts_with("`2001:db8::1` is neither"), "{exempt:?}");
}

#[test]
fn variables_of_others_are_ignored() {
    let kubernetes = [
        ("APP_PORT", "tcp://10.0.0.1:80"),
        ("APP_SERVICE_HOST", "10.0.0.1"),
        ("APP_SERVER_PORT", "tcp://10.0.0.1:80"),
        ("HOME", "/"),
    ];
    assert_eq!(Place::new().load(kubernetes).unwrap().config.server.port, 8080);
}

#[test]
fn malformed_files_are_named_with_the_line_and_without_its_text() {
    let place = Place::new().file("plinth.toml", "[database]\npassword = \"hunter2\n");
    let place = place.file(".env", "PORT=1\n\nAPP_DATABASE__PASSWORD=hunter2 and more\n");
    let faults = faults(place.load([]));
    let sources: Vec<_> = faults.0.iter().map(|fault| fault.source.as_str()).collect();
    assert_eq!(sources, [".env line 3", "plinth.toml line 2"]);
    assert!(!faults.to_string().contains("hunter2"), "{faults}");
}

#[test]
fn a_named_configuration_file_must_exist() {
    let place = Place::new().file("other.toml", "[server]\nport = 99\n");
    let loaded = place.load([("APP_CONFIG_FILE", "other.toml")]).unwrap();
    assert_eq!(loaded.config.server.port, 99);
    assert_eq!(entry(&loaded, "server.port").source, "other.toml");
    let fault = only(place.load([("APP_CONFIG_FILE", "missing.toml")]));
    assert!(fault.fix.contains("APP_CONFIG_FILE"), "{fault:?}");
}

#[test]
fn secrets_are_in_no_output() {
    let place = Place::new().file("plinth.toml", "[sentry]\ndsn = 'https://hunter2@s.example/1'\n");
    let set = [
        ("DATABASE_URL", "postgres://app:hunter2@db/app?sslkey=hunter2"),
        ("APP_DATABASE__PASSWORD", "hunter2"),
        ("REDIS_URL", "redis://:hunter2@cache:6379"),
        ("SENTRY_DSN", "https://hunter2@sentry.example/2"),
    ];
    let loaded = place.load(set).unwrap();
    for printed in [
        table(&loaded.explain()),
        serde_json::to_string(&loaded.explain()).unwrap(),
        format!("{loaded:?}"),
        format!("{:?}", production_findings(&loaded.config)),
    ] {
        assert!(!printed.contains("hunter2"), "{printed}");
    }
    assert_eq!(entry(&loaded, "cache.redis_url").value, "redis://:[redacted]@cache:6379");

    let wrong = [
        ("DATABASE_URL", "mysql://app:hunter2@db/app"),
        ("DATABASE_READ_URL", "postgres://app:hunter2#@db/app"),
        ("REDIS_URL", "hunter2"),
        ("SENTRY_DSN", "hunter2"),
    ];
    let toml = Place::new().file("plinth.toml", "[database]\npassword = ['hunter2']\n");
    let faults = faults(toml.load(wrong));
    assert!(faults.0.len() >= 5, "{faults}");
    assert!(!format!("{faults} {faults:?}").contains("hunter2"), "{faults}");

    let misplaced = Place::new().file("plinth.toml", "database = 'postgres://app:hunter2@db'\n");
    assert_eq!(only(misplaced.load([])).problem, "the value is not a section");
}

#[test]
fn a_redacted_value_does_not_pass_for_a_secret() {
    let fault = only(Place::new().load([("APP_DATABASE__PASSWORD", "[redacted]")]));
    assert_eq!(fault.key, "database.password");
}

#[test]
fn rules_hold_in_every_environment() {
    for (name, value, key) in [
        ("APP_SERVER__TLS_KEY", "Cargo.toml", "server.tls_cert"),
        ("APP_SERVER__HEADER_TIMEOUT", "0s", "server.header_timeout"),
        ("APP_SERVER__BODY_LIMIT", "0", "server.body_limit"),
        ("APP_SERVER__MAX_CONNECTIONS", "0", "server.max_connections"),
        ("APP_SERVER__PUBLIC_URL", "https://a.example/", "server.public_url"),
        ("RUST_LOG", "info,[span]=loud", "log.filter"),
        ("SENTRY_DSN", "nonsense", "sentry.dsn"),
        ("RUST_LOG", "inof", "log.filter"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@collector", "traces.endpoint"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "traces.endpoint"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "key", "traces.headers"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=%0d%0ab", "traces.headers"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "traces.timeout_ms"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team", "traces.resource_attributes"),
        ("OTEL_TRACES_SAMPLER", "nonsense", "traces.sampler"),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "traces.sampler_arg"),
        ("APP_MANAGEMENT__BIND", "127.0.0.1:8080", "management.bind"),
        ("APP_SENTRY__TRACES_SAMPLE_RATE", "-1", "sentry.traces_sample_rate"),
        ("APP_SENTRY__SAMPLE_RATE", "1.5", "sentry.sample_rate"),
        ("APP_CACHE__HARD_TTL", "30s", "cache.hard_ttl"),
        ("APP_CACHE__BUDGET", "0ms", "cache.budget"),
        ("DATABASE_URL", "mysql://db/app", "database.url"),
        ("DATABASE_READ_URL", "postgres://replica/app", "database.read_url"),
        ("APP_DATABASE__MAX_CONNECTIONS", "0", "database.max_connections"),
        ("REDIS_URL", "http://cache", "cache.redis_url"),
        ("APP_CORS__ALLOWED_ORIGINS", "https://a.example/path", "cors.allowed_origins"),
        ("APP_HEALTH__TIMEOUT", "0s", "health.timeout"),
    ] {
        let found = faults(Place::new().load([(name, value)]));
        assert!(found.0.iter().any(|fault| fault.key == key), "{name}={value}: {found}");
    }
    let any = [("APP_CORS__ALLOWED_ORIGINS", "*"), ("APP_CORS__ALLOW_CREDENTIALS", "true")];
    assert_eq!(only(Place::new().load(any)).key, "cors.allow_credentials");
}

#[test]
fn production_refuses_what_is_unsafe() {
    for (name, value, key) in [
        ("APP_CORS__ALLOWED_ORIGINS", "*", "cors.allowed_origins"),
        ("RUST_LOG", "trace", "log.filter"),
        ("RUST_LOG", "info,hyper=trace", "log.filter"),
        ("APP_SERVER__BIND", "0.0.0.0", "database.url"),
        ("APP_DATABASE__PASSWORD", "ChangeMe", "database.password"),
        ("DATABASE_URL", "postgres://postgres:postgres@db/app", "database.url"),
        ("REDIS_URL", "redis://:@cache", "cache.redis_url"),
    ] {
        let loaded = Place::new().load([("APP_ENV", "production"), (name, value)]).unwrap();
        assert!(!loaded.explain().is_empty(), "it can still be looked at");
        let fault = only(loaded.usable());
        assert_eq!(fault.key, key, "{name}={value}");
        assert!(fault.problem.starts_with("in production, "), "{fault:?}");
        let development = Place::new().load([(name, value)]).and_then(Loaded::usable);
        assert!(development.is_ok(), "development takes {name}={value}");
    }
}

#[test]
fn production_takes_what_is_safe() {
    let loaded = Place::new()
        .load([
            ("APP_ENV", "production"),
            ("APP_SERVER__BIND", "0.0.0.0"),
            ("DATABASE_URL", "postgres://app:postgres@db/app"),
            ("APP_DATABASE__PASSWORD", "kX9-long-and-random"),
            ("RUST_LOG", "info,plinth=debug"),
        ])
        .unwrap();
    assert_eq!(loaded.config.server.pre_stop_delay, Duration::from_secs(5));
    assert_eq!(entry(&loaded, "log.format").value, "json");
    let findings = production_findings(&loaded.config);
    let warned: Vec<_> =
        findings.iter().filter(|f| f.grade == Grade::Warn).map(|f| f.key).collect();
    assert_eq!(warned, ["server.public_url", "cache.redis_url", "management.bind", "sentry.dsn"]);
    assert!(loaded.usable().is_ok());
}

/// `.env.example` is read as a `.env` with every setting in it: it has each key once, by the name
/// that `plinth config` gives, with the value that development takes without it.
#[test]
fn the_example_documents_every_key_and_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".env.example");
    let example = fs::read_to_string(path).unwrap();
    let settings: Vec<_> = example
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.split_once('=').is_some_and(|(name, _)| is_variable(name)))
        .collect();
    let mut documented: Vec<_> =
        settings.iter().map(|line| line.split_once('=').unwrap()).collect();
    documented.sort_unstable();

    let defaults = Place::new().load([]).unwrap().explain();
    let mut known: Vec<_> = defaults.iter().map(|entry| entry.variable.as_str()).collect();
    known.sort_unstable();
    assert_eq!(documented.iter().map(|(name, _)| *name).collect::<Vec<_>>(), known);

    let read = Place::new().file(".env", &settings.join("\n")).load([]).unwrap().explain();
    for (entry, default) in read.iter().zip(&defaults) {
        assert_eq!(entry.value, default.value, "{}", entry.key);
        assert_eq!(entry.source == "default", default.value == "unset", "{}", entry.key);
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

fn password(loaded: &Loaded) -> &str {
    let Config { database, .. } = &loaded.config;
    database.password.as_ref().unwrap().expose()
}

fn entry(loaded: &Loaded, key: &str) -> Explained {
    loaded.explain().into_iter().find(|entry| entry.key == key).unwrap()
}

fn faults<T>(loaded: Result<T, Faults>) -> Faults {
    loaded.map(drop).expect_err("it should be refused")
}

fn only<T>(loaded: Result<T, Faults>) -> Fault {
    let mut faults = faults(loaded);
    assert_eq!(faults.0.len(), 1, "{faults}");
    faults.0.remove(0)
}

/// An empty directory to load from, gone when dropped.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("config-{}", Uuid::now_v7()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.0.join(name), text).unwrap();
        self
    }

    fn load<const N: usize>(&self, environment: [(&str, &str); N]) -> Result<Loaded, Faults> {
        let owned = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        load(&Sources { environment: BTreeMap::from(owned), directory: self.0.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
