//! The commands: what each prints, and its exit code.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bad_start::{TLS, write_pair};
use crate::process::Folder;
use crate::support::{Engine, TestDatabase};

const SECRET: &str = "hunter2-hunter2";

#[tokio::test]
async fn migrate_shows_and_applies() {
    let folder = Folder::new();
    migrate(&folder, &[]).await;
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    migrate(&folder, &[("DATABASE_URL", &database.url)]).await;
}

async fn migrate(folder: &Folder, variables: &[(&str, &str)]) {
    for (action, state) in
        [("status", "pending"), ("run", "applied"), ("run", "applied"), ("status", "applied")]
    {
        let ended = folder.run(&["migrate", action], variables.iter().copied()).await;
        assert_eq!((ended.code, ended.err.len()), (Some(0), 0), "{ended:#?}");
        assert!(!ended.out.is_empty());
        for line in &ended.out {
            assert_eq!(line.split_whitespace().next(), Some(state), "{action}: {line}");
        }
        assert!(ended.out[0].ends_with(" 1  plans"), "{ended:#?}");
    }
}

#[tokio::test]
async fn check_judges_by_productions_rules() {
    let folder = Folder::new();
    let ended = folder.run(&["check"], [("APP_AUTH__MODE", "required")]).await;
    let text = ended.text();
    assert_eq!(ended.code, Some(0), "{text}");
    assert!(text.contains("pass  only named origins may call? yes: none"), "{text}");
    assert!(
        text.contains("WARN  errors are reported? no: none\n      fix: set SENTRY_DSN"),
        "{text}"
    );

    let url = format!("postgres://app:{SECRET}@db/app");
    let unsafe_settings = [
        ("APP_CORS__ALLOWED_ORIGINS", "*"),
        ("RUST_LOG", "trace"),
        ("DATABASE_URL", url.as_str()),
        ("REDIS_URL", "redis://:changeme@cache"),
    ];
    let ended = folder.run(&["check"], unsafe_settings).await;
    let text = ended.text();
    assert_eq!(ended.code, Some(1), "{text}");
    assert_eq!(text.matches("FAIL  ").count(), 4, "{text}");
    assert_eq!(text.matches("      fix: ").count(), text.matches("WARN  ").count() + 4, "{text}");
    assert!(ended.out.last().unwrap().starts_with("4 of "), "{text}");
    assert!(text.contains("FAIL  callers say who they are? no: open"), "{text}");
    assert!(text.contains("fix: name them in APP_CORS__ALLOWED_ORIGINS"), "{text}");
    assert!(!text.contains(SECRET) && !text.contains("changeme"), "{text}");
    assert!(folder.is_empty());
}

#[tokio::test]
async fn config_explains_itself_and_keeps_secrets() {
    let folder = Folder::new();
    std::fs::write(folder.path().join("plinth.toml"), "[server]\nmax_connections = 7\n").unwrap();
    std::fs::write(folder.path().join(".env"), "APP_SERVER__MAX_CONNECTIONS=8\n").unwrap();
    let database = format!("postgres://app:{SECRET}@db/app");
    let redis = format!("redis://:{SECRET}@cache");
    let dsn = format!("https://{SECRET}@sentry.example/1");
    let variables = [
        ("DATABASE_URL", database.as_str()),
        ("REDIS_URL", &redis),
        ("SENTRY_DSN", &dsn),
        ("APP_DATABASE__PASSWORD", SECRET),
        ("APP_SERVER__MAX_CONNECTIONS", "9"),
    ];

    let table = folder.run(&["config"], variables).await;
    assert_eq!(table.code, Some(0));
    assert!(table.out[0].starts_with("KEY ") && table.out[0].ends_with("OVERRODE"), "{table:#?}");
    let line = table.out.iter().find(|line| line.starts_with("server.max_connections ")).unwrap();
    let source = "environment (APP_SERVER__MAX_CONNECTIONS)";
    let lost = "8 (.env (APP_SERVER__MAX_CONNECTIONS)), 7 (plinth.toml), 10000 (default)";
    assert!(line.contains(source) && line.ends_with(lost), "{line}");
    assert!(!table.text().contains(SECRET), "{table:#?}");

    let json = folder.run(&["config", "--json"], variables).await;
    assert_eq!(json.code, Some(0));
    assert!(!json.text().contains(SECRET), "{json:#?}");
    let entries: Value = serde_json::from_str(&json.out.join("\n")).unwrap();
    let entries = entries.as_array().unwrap();
    assert_eq!(entries.len(), table.out.len() - 1);
    let entry = |key: &str| entries.iter().find(|entry| entry["key"] == key).unwrap();
    let connections = entry("server.max_connections");
    assert_eq!(connections["value"], "9");
    assert_eq!(connections["source"], source);
    assert_eq!(connections["overrode"][1]["value"], "7");
    for key in ["database.url", "database.password", "cache.redis_url", "sentry.dsn"] {
        assert!(entry(key)["value"].as_str().unwrap().contains("[redacted]"), "{key}");
        assert!(entry(key)["source"].as_str().unwrap().starts_with("environment ("), "{key}");
    }
}

#[tokio::test]
async fn openapi_prints_the_document_that_is_served() {
    let folder = Folder::new();
    let printed = folder.run(&["openapi"], []).await;
    assert_eq!((printed.code, printed.err.len()), (Some(0), 0));
    assert!(folder.is_empty());
    let printed: Value = serde_json::from_str(&printed.out.join("\n")).unwrap();
    assert!(printed["openapi"].as_str().unwrap().starts_with("3.1."), "{}", printed["openapi"]);
    let (_process, url) = folder.serve([]).await;
    let served: Value =
        reqwest::get(format!("{url}/openapi.json")).await.unwrap().json().await.unwrap();
    assert_eq!(printed, served);
}

#[tokio::test]
async fn healthcheck_asks_whether_it_is_ready() {
    let folder = Folder::new();
    let (process, url) = folder.serve([]).await;
    let port = url.rsplit_once(':').unwrap().1;
    let ready = folder.healthcheck([("PORT", port)]).await;
    assert_eq!((ready.code, ready.text().trim()), (Some(0), ""));
    process.stop().await;

    let gone = folder.healthcheck([("PORT", port)]).await;
    assert_eq!((gone.code, gone.err.len()), (Some(1), 1), "{gone:#?}");
    assert!(gone.err[0].contains("nothing answers at 127.0.0.1:"), "{gone:#?}");
}

#[tokio::test]
async fn healthcheck_gives_up_on_what_never_answers() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port().to_string();
    let start = Instant::now();
    let ended = Folder::new().run(&["healthcheck"], [("PORT", port.as_str())]).await;
    println!("healthcheck of a mute port: {:.2} s", start.elapsed().as_secs_f64());
    assert!(start.elapsed() < Duration::from_secs(12));
    assert_eq!((ended.code, ended.err.len()), (Some(1), 1), "{ended:#?}");
    assert!(ended.err[0].contains("no answer from"), "{ended:#?}");
    assert!(ended.err[0].ends_with("it takes longer than 2s"), "{ended:#?}");
}

#[tokio::test]
async fn healthcheck_speaks_tls() {
    let folder = Folder::new();
    write_pair(folder.path());
    let (_process, url) = folder.serve(TLS).await;
    let port = url.strip_prefix("https://127.0.0.1:").expect("it says https");
    let ended = folder.healthcheck(TLS.into_iter().chain([("PORT", port)])).await;
    assert_eq!((ended.code, ended.text().trim()), (Some(0), ""));
    // Without the certificate's settings it speaks plain HTTP to a TLS port.
    let plain = folder.healthcheck([("PORT", port)]).await;
    assert_eq!((plain.code, plain.err.len()), (Some(1), 1), "{plain:#?}");
}

#[tokio::test]
async fn help_helps() {
    let folder = Folder::new();
    for (arguments, says) in [
        (
            &["--help"][..],
            &["serve", "migrate", "check", "config", "openapi", "healthcheck", "key"][..],
        ),
        (&["--help"], &["plinth.toml", ".env.example", "(the default)"]),
        (&["serve", "--help"], &["SIGTERM", "drain_timeout", "second signal"]),
        (&["migrate", "--help"], &["run", "status", "pending"]),
        (&["check", "--help"], &["production", "Exits with 1"]),
        (&["config", "--help"], &["--json", "redacted", "overrode"]),
        (&["openapi", "--help"], &["OpenAPI"]),
        (&["healthcheck", "--help"], &["ready", "0 or 1"]),
        (&["key", "create", "--help"], &["plans:read,plans:write", "90d", "not kept"]),
        (&["--version"], &[env!("CARGO_PKG_VERSION")]),
    ] {
        let ended = folder.run(arguments, []).await;
        let text = ended.text();
        assert_eq!(ended.code, Some(0), "{arguments:?}");
        assert!(says.iter().all(|word| text.contains(word)), "{arguments:?}, {says:?}: {text}");
    }
    for wrong in [&["srve"][..], &["migrate"], &["migrate", "down"], &["config", "--yaml"]] {
        let ended = folder.run(wrong, []).await;
        let text = ended.err.join("\n");
        assert_eq!(ended.code, Some(2), "{wrong:?}");
        assert!(text.contains("Usage: plinth"), "{wrong:?}: {text}");
    }
    assert!(folder.is_empty());
}

/// As `plinth config | head -1` does, only sooner.
#[tokio::test]
async fn a_reader_that_leaves_causes_no_panic() {
    let folder = Folder::new();
    assert_eq!(folder.run(&["migrate", "run"], []).await.code, Some(0));
    for arguments in
        [&["config"][..], &["config", "--json"], &["openapi"], &["check"], &["migrate", "status"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = folder.plinth(arguments, [("APP_AUTH__MODE", "required")]);
        let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, "", "{arguments:?}");
        assert!(output.status.success(), "{arguments:?}: {:?}", output.status);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_answer_that_cannot_be_written_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Folder::new().plinth(&["openapi"], []);
    command.current_dir("/");
    let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("No space left on device"), "{said}");
}
