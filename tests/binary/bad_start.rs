//! Starts that cannot succeed: each says why in one line, or one block for the configuration, and
//! leaves nothing behind.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use sqlx::{Connection, PgConnection, SqliteConnection};

use crate::process::{Ended, Folder, Process};
use crate::support::{Engine, TestDatabase};

const BAD_CONFIGURATION: i32 = 2;

/// Never to be printed.
const PASSWORD: &str = "hunter2-hunter2";

/// It failed, saying one line that holds all of `says`.
fn one_line(ended: &Ended, says: &[&str]) {
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert_eq!(ended.err.len(), 1, "{ended:#?}");
    assert!(says.iter().all(|part| ended.err[0].contains(part)), "{says:?}: {ended:#?}");
    quiet(ended);
}

/// It refused its configuration in one block that holds all of `says`.
fn refused(ended: &Ended, folder: &Folder, faults: usize, says: &[&str]) {
    assert_eq!(ended.code, Some(BAD_CONFIGURATION), "{ended:#?}");
    let text = ended.err.join("\n");
    let word = if faults == 1 { "fault" } else { "faults" };
    assert!(text.starts_with(&format!("the configuration has {faults} {word}:")), "{text}");
    assert_eq!(text.matches("    problem: ").count(), faults, "{text}");
    assert_eq!(text.matches("    fix:     ").count(), faults, "{text}");
    assert!(says.iter().all(|part| text.contains(part)), "{says:?}: {text}");
    assert!(!folder.path().join("data").exists(), "a data folder was made");
    quiet(ended);
}

/// It never served, nor told a secret, nor how its code is laid out.
fn quiet(ended: &Ended) {
    let text = ended.text();
    assert!(ended.out.is_empty(), "{text}");
    for word in [PASSWORD, "backtrace", "panicked", "src/", "RUST_BACKTRACE"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
}

#[tokio::test]
async fn a_port_in_use() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let port = other.local_addr().unwrap().port().to_string();
    let folder = Folder::new();
    one_line(
        &folder.run(&[], [("PORT", port.as_str())]).await,
        &[&address, "another process has this port", "set PORT"],
    );
    assert!(folder.is_empty(), "nothing is written before the port is ours");
}

#[tokio::test]
async fn an_unreachable_database() {
    let folder = Folder::new();
    let url = format!("postgres://u:{PASSWORD}@127.0.0.1:1/d");
    let ended = folder.run(&[], [("DATABASE_URL", url.as_str())]).await;
    one_line(&ended, &["cannot reach PostgreSQL", "127.0.0.1:1/d", "Connection refused"]);
    assert_eq!(ended.text().matches("Connection refused").count(), 1, "{ended:#?}");

    // The system accepts; nobody ever answers.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://u:{PASSWORD}@{}/d", mute.local_addr().unwrap());
    let short = [("DATABASE_URL", url.as_str()), ("APP_DATABASE__ACQUIRE_TIMEOUT", "500ms")];
    for command in [&["serve"][..], &["migrate", "run"], &["migrate", "status"]] {
        let ended = folder.run(command, short).await;
        one_line(&ended, &["cannot reach PostgreSQL", "no answer within 500ms"]);
    }
    assert!(folder.is_empty());
}

#[tokio::test]
async fn a_database_that_is_not_there() {
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    let url = format!("{}_gone", database.url);
    let ended = Folder::new().run(&[], [("DATABASE_URL", url.as_str())]).await;
    one_line(&ended, &["cannot reach PostgreSQL", "_gone", "does not exist"]);
}

#[tokio::test]
async fn a_data_folder_that_cannot_be() {
    let folder = Folder::new();
    fs::write(folder.path().join("file"), "").unwrap();
    let ended = folder.run(&[], [("DATABASE_URL", "sqlite://file/below/plinth.db")]).await;
    one_line(&ended, &["cannot make the folder file/below"]);

    fs::create_dir(folder.path().join("folder")).unwrap();
    let ended = folder.run(&[], [("DATABASE_URL", "sqlite://folder")]).await;
    one_line(&ended, &["cannot open the SQLite database sqlite://folder"]);

    fs::write(
        folder.path().join("text.db"),
        "not a database, and longer than a header is".repeat(9),
    )
    .unwrap();
    let ended = folder.run(&[], [("DATABASE_URL", "sqlite://text.db")]).await;
    one_line(&ended, &["text.db", "not a database"]);
}

#[tokio::test]
async fn a_migration_that_was_changed_after_it_ran() {
    const CHANGE: &str = "UPDATE _sqlx_migrations SET description = 'x', checksum = $1";
    let folder = Folder::new();
    folder.serve([]).await.0.stop().await;
    let url = format!("sqlite://{}", folder.path().join("data/plinth.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query(CHANGE).bind(&[7_u8][..]).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    changed(&folder, []).await;

    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    let url = [("DATABASE_URL", database.url.as_str())];
    let folder = Folder::new();
    folder.serve(url).await.0.stop().await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    sqlx::query(CHANGE).bind(&[7_u8][..]).execute(&mut connection).await.unwrap();
    changed(&folder, url).await;
}

async fn changed<const N: usize>(folder: &Folder, variables: [(&str, &str); N]) {
    for command in [&["serve"][..], &["migrate", "run"]] {
        let ended = folder.run(command, variables).await;
        one_line(&ended, &["migration 1 was changed after it ran", "new migration"]);
    }
    let status = folder.run(&["migrate", "status"], variables).await;
    assert_eq!(status.code, Some(1));
    assert!(status.out[0].starts_with("changed ") && status.out[0].contains('1'), "{status:#?}");
}

#[tokio::test]
async fn a_database_older_than_the_release() {
    let folder = Folder::new();
    let by_hand = [("APP_DATABASE__MIGRATE_ON_START", "false")];
    let ended = folder.run(&[], by_hand).await;
    one_line(&ended, &["older than this release", "pending: 1", "`plinth migrate run`"]);
    assert_eq!(folder.run(&["migrate", "run"], by_hand).await.code, Some(0));
    let (process, _) = folder.serve(by_hand).await;
    assert_eq!(process.stop().await.code, Some(0));
}

#[tokio::test]
async fn a_certificate_and_a_key_that_are_no_pair() {
    let folder = Folder::new();
    write_pair(folder.path());
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.path().join("key.pem"), key.signing_key.serialize_pem()).unwrap();
    let ended = folder.run(&[], TLS).await;
    one_line(&ended, &["cert.pem and key.pem cannot be used together"]);
    assert!(!folder.path().join("data").exists());
}

/// What [`write_pair`] wrote.
pub const TLS: [(&str, &str); 2] =
    [("APP_SERVER__TLS_CERT", "cert.pem"), ("APP_SERVER__TLS_KEY", "key.pem")];

pub fn write_pair(folder: &Path) {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.join("cert.pem"), pair.cert.pem()).unwrap();
    fs::write(folder.join("key.pem"), pair.signing_key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn six_faults_are_named_at_once() {
    let folder = Folder::new();
    let url = format!("mysql://u:{PASSWORD}@h/d");
    let faults = [
        ("PORT", "eighty"),
        ("DATABASE_URL", &url),
        ("APP_SERVER__PROT", "1"),
        ("APP_SERVER__IDLE_TIMEOUT", "soon"),
        ("APP_LOG__FORMAT", "xml"),
        ("APP_CACHE__BUDGET", "0s"),
    ];
    let says: Vec<_> =
        faults.iter().map(|(name, _)| format!("from environment ({name})")).collect();
    let mut says: Vec<_> = says.iter().map(String::as_str).collect();
    says.push("did you mean `APP_SERVER__PORT`?");
    refused(&folder.run(&[], faults).await, &folder, 6, &says);
    // Whatever the command.
    refused(&folder.run(&["migrate", "run"], faults).await, &folder, 6, &says);
}

#[tokio::test]
async fn one_fault_is_named_with_its_source_and_fix() {
    let malformed = format!("postgres://u:{PASSWORD}@127.0.0.1:99999/d");
    let memory = format!("sqlite::memory:?key={PASSWORD}");
    for (name, value, says) in [
        ("DATABASE_URL", malformed.as_str(), "it is not a URL"),
        ("APP_SERVER__PROT", PASSWORD, "did you mean `APP_SERVER__PORT`?"),
        ("APP_DATABASE__PASSWORD_FILE", "missing", "missing: No such file"),
        ("APP_SERVER__TLS_CERT", "missing", "server.tls_cert"),
        ("SENTRY_DSN", PASSWORD, "it is not a URL"),
        ("RUST_LOG", "plinth=loud", "write levels by target"),
    ] {
        let folder = Folder::new();
        let ended = folder.run(&[], [(name, value)]).await;
        assert_eq!(ended.code, Some(BAD_CONFIGURATION), "{name}: {ended:#?}");
        let text = ended.err.join("\n");
        assert!(text.contains(name) && text.contains(says), "{name}: {text}");
        assert!(folder.is_empty(), "{name}");
        quiet(&ended);
    }
    let folder = Folder::new();
    one_line(&folder.run(&[], [("DATABASE_URL", memory.as_str())]).await, &["use a file"]);
    assert!(folder.is_empty());
}

#[tokio::test]
async fn production_refuses_what_is_unsafe() {
    for (name, value, key) in [
        ("APP_CORS__ALLOWED_ORIGINS", "*", "cors.allowed_origins"),
        ("RUST_LOG", "trace", "log.filter"),
        ("RUST_LOG", "info,hyper=trace", "log.filter"),
        ("APP_SERVER__BIND", "0.0.0.0", "database.url"),
        ("APP_DATABASE__PASSWORD", "changeme", "database.password"),
        ("DATABASE_URL", "postgres://app:password@db/app", "database.url"),
        ("REDIS_URL", "redis://:changeme@cache", "cache.redis_url"),
    ] {
        let folder = Folder::new();
        let ended = folder.run(&[], [("APP_ENV", "production"), (name, value)]).await;
        refused(&ended, &folder, 1, &["in production, ", key]);
    }
}

#[tokio::test]
async fn production_starts_when_what_is_unsafe_is_allowed_by_name() {
    let folder = Folder::new();
    let variables = [
        ("APP_ENV", "production"),
        ("APP_SERVER__BIND", "0.0.0.0"),
        ("APP_DATABASE__ALLOW_SQLITE", "true"),
        ("APP_SERVER__PRE_STOP_DELAY", "0s"),
    ];
    let (process, _): (Process, _) = folder.serve(variables).await;
    assert_eq!(process.stop().await.code, Some(0));
}
