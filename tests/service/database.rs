//! The database: transactions that survive their callers, migrations that race, and errors.

use std::future::poll_fn;
use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use plinth::config::{DatabaseConfig, Secret, SecretUrl};
use plinth::db::{Db, State};
use plinth::error::Error;
use plinth::on;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use url::Url;
use uuid::Uuid;

use crate::support::{Engine, TestApp, TestDatabase, config, until};
use crate::{both_databases, both_engines};

fn settings(database: &TestDatabase) -> DatabaseConfig {
    // The machine may be busy; what is to time out is set to where it is tested.
    let acquire_timeout = Duration::from_secs(30);
    let lock_timeout = Duration::from_secs(30);
    // Nor is what a test is to find to be swept away meanwhile.
    let idle_in_transaction_timeout = Duration::from_secs(3600);
    DatabaseConfig {
        acquire_timeout,
        lock_timeout,
        idle_in_transaction_timeout,
        ..config(&database.url).database
    }
}

async fn migrated(database: &TestDatabase) -> Db {
    let db = Db::connect(&settings(database)).await.unwrap();
    db.migrate().await.unwrap();
    db
}

const INSERT: &str = "INSERT INTO plans
    (id, name, start_date, end_date, status, created_at, updated_at, version)
    VALUES ($1, $2, '2027-03-01', '2027-03-01', 'draft', '2027-01-01', '2027-01-01', 1)";

async fn insert(db: &Db, name: &str) -> sqlx::Result<()> {
    on!(db.writer(), |conn| sqlx::query(INSERT)
        .bind(Uuid::now_v7())
        .bind(name)
        .execute(conn)
        .await
        .map(drop))
}

/// In a transaction, up to its commit.
macro_rules! insert_in {
    ($tx:expr, $name:expr) => {
        on!($tx, |conn| sqlx::query(INSERT)
            .bind(Uuid::now_v7())
            .bind($name)
            .execute(conn)
            .await
            .map(drop))
    };
}

async fn count(db: &Db, name: &str) -> i64 {
    on!(db.writer(), |conn| sqlx::query_scalar("SELECT COUNT(*) FROM plans WHERE name = $1")
        .bind(name)
        .fetch_one(conn)
        .await)
    .unwrap()
}

/// Polls `work` so many times, then drops it, wherever it is by then.
async fn given_up_after<T>(polls: u32, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut polled = 0;
    poll_fn(|context| {
        if polled == polls {
            return Poll::Ready(None);
        }
        polled += 1;
        match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if polled == polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

both_databases! {
    async fn a_begin_given_up_leaves_no_transaction_open(database) {
        let db = migrated(&database).await;
        for round in 0..20 {
            let begins = (0..8).map(|_| async {
                // One that got through is dropped at once: the others wait for its connection.
                drop(given_up_after(1 + round % 4, db.begin()).await);
            });
            join_all(begins).await;
            // Inside a forgotten transaction, what is written is not seen from outside.
            let name = format!("round {round}");
            for done in join_all((0..8).map(|_| insert(&db, &name))).await {
                done.unwrap();
            }
            let outside = Db::connect(&settings(&database)).await.unwrap();
            assert_eq!(count(&outside, &name).await, 8);
            outside.close(Duration::from_secs(30)).await;
        }
    }

    async fn transactions_given_up_anywhere_leave_no_connection_inside_one(database) {
        let db = migrated(&database).await;
        let tasks = (0..240_u32).map(|round| {
            let db = db.clone();
            let name = format!("round {round}");
            tokio::spawn(async move {
                let work = async {
                    let mut tx = db.begin().await?;
                    insert_in!(&mut tx, &name)?;
                    tx.commit().await
                };
                let done = given_up_after(round % 12, work).await;
                (name, matches!(done, Some(Ok(()))))
            })
        });
        let mut committed = 0;
        for task in join_all(tasks).await {
            let (name, said_so) = task.unwrap();
            if said_so {
                committed += 1;
                assert_eq!(count(&db, &name).await, 1, "what was said to be committed is there");
            }
        }
        assert!((1..240).contains(&committed), "some were given up, and some were not");

        // A connection inside a forgotten transaction would fail these, or hide them.
        let inserts = (0..100).map(|_| insert(&db, "after"));
        for done in join_all(inserts).await {
            done.unwrap();
        }
        let outside = Db::connect(&settings(&database)).await.unwrap();
        assert_eq!(count(&outside, "after").await, 100);
        if db.engine() == "postgres" {
            let sql = "SELECT COUNT(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
            let mut connection = PgConnection::connect(&database.url).await.unwrap();
            until("no transaction is open", async || {
                sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut connection).await.unwrap() == 0
            })
            .await;
        }
    }

    async fn a_query_given_up_leaves_its_connection_in_order(database) {
        let db = migrated(&database).await;
        for round in 0..100_u32 {
            given_up_after(round % 4, insert(&db, "given up")).await;
        }
        for done in join_all((0..100).map(|_| insert(&db, "after"))).await {
            done.unwrap();
        }
        assert_eq!(count(&db, "after").await, 100);
    }

    async fn a_dropped_transaction_is_rolled_back(database) {
        let db = migrated(&database).await;
        for _ in 0..10 {
            let mut tx = db.begin().await.unwrap();
            insert_in!(&mut tx, "undone").unwrap();
            drop(tx);
        }
        let mut tx = db.begin().await.unwrap();
        insert_in!(&mut tx, "done").unwrap();
        tx.commit().await.unwrap();
        assert_eq!(count(&db, "undone").await, 0);
        assert_eq!(count(&db, "done").await, 1);
    }

    async fn what_follows_a_commit_runs_though_its_caller_is_gone(database) {
        let db = migrated(&database).await;
        for round in 1..=20 {
            let mut tx = db.begin().await.unwrap();
            insert_in!(&mut tx, "done").unwrap();
            let after = Arc::new(Notify::new());
            let told = after.clone();
            let commit = tx.commit_then(async move {
                tokio::task::yield_now().await;
                told.notify_one();
            });
            // Once called: a future that was never polled was not.
            given_up_after(1, commit).await;
            tokio::time::timeout(Duration::from_secs(30), after.notified()).await.unwrap();
            assert_eq!(count(&db, "done").await, round, "it runs after the commit");
        }
    }

    async fn what_follows_a_commit_does_not_run_when_that_fails(database) {
        let db = migrated(&database).await;
        let sql = "CREATE TABLE child (plan UUID REFERENCES plans (id) DEFERRABLE INITIALLY DEFERRED)";
        on!(db.writer(), |conn| sqlx::query(sql).execute(conn).await.map(drop)).unwrap();
        let mut tx = db.begin().await.unwrap();
        on!(&mut tx, |conn| sqlx::query("INSERT INTO child (plan) VALUES ($1)")
            .bind(Uuid::now_v7())
            .execute(conn)
            .await
            .map(drop))
        .unwrap();
        let after = Arc::new(Notify::new());
        let told = after.clone();
        tx.commit_then(async move { told.notify_one() }).await.unwrap_err();
        assert_eq!(Arc::strong_count(&after), 1, "it was dropped");
        assert!(given_up_after(1, after.notified()).await.is_none(), "and never run");
        insert(&db, "after").await.unwrap();
        assert_eq!(count(&db, "after").await, 1);
    }

    async fn a_busy_pool_is_a_503_and_not_a_wait(database) {
        let settings = DatabaseConfig {
            max_connections: 1,
            acquire_timeout: Duration::from_secs(2),
            ..settings(&database)
        };
        let db = Db::connect(&settings).await.unwrap();
        let held = db.begin().await.unwrap();
        let Err(error) = db.begin().await else { panic!("there was but one connection") };
        assert!(matches!(error, sqlx::Error::PoolTimedOut), "{error:?}");
        assert_eq!(Error::from(error).status(), StatusCode::SERVICE_UNAVAILABLE);
        db.clone().ping().await.unwrap();
        drop(held);
        until("it is free again", async || db.begin().await.is_ok()).await;
    }

    async fn migrations_that_race_are_applied_once(database) {
        let settings = settings(&database);
        let starts = (0..8).map(|_| {
            let settings = settings.clone();
            tokio::spawn(async move {
                let db = Db::connect(&settings).await?;
                db.migrate().await?;
                db.require_migrated().await
            })
        });
        for start in join_all(starts).await {
            start.unwrap().unwrap();
        }
        let db = Db::connect(&settings).await.unwrap();
        let all = db.migrations().await.unwrap();
        assert!(!all.is_empty());
        assert!(all.iter().all(|migration| migration.state == State::Applied), "{all:?}");
        let rows: i64 = on!(db.writer(), |conn| {
            sqlx::query_scalar("SELECT COUNT(*) FROM _sqlx_migrations").fetch_one(conn).await
        })
        .unwrap();
        assert_eq!(usize::try_from(rows).unwrap(), all.len());
    }

    async fn a_migration_that_was_changed_is_one_clear_line(database) {
        let db = migrated(&database).await;
        let sql = "UPDATE _sqlx_migrations SET checksum = $1";
        on!(db.writer(), |conn| sqlx::query(sql).bind(vec![0_u8]).execute(conn).await.map(drop))
            .unwrap();
        let error = format!("{:#}", db.migrate().await.unwrap_err());
        assert!(error.contains("was changed after it ran here; restore its file"), "{error}");
        assert!(!error.contains('\n'), "{error}");
        let all = db.migrations().await.unwrap();
        assert!(all.iter().all(|migration| migration.state == State::Changed), "{all:?}");
        // A failed run holds no lock.
        db.migrate().await.unwrap_err();
    }

    async fn a_migration_that_is_half_applied_is_one_clear_line(database) {
        let db = migrated(&database).await;
        let sql = "UPDATE _sqlx_migrations SET success = FALSE";
        on!(db.writer(), |conn| sqlx::query(sql).execute(conn).await.map(drop)).unwrap();
        let error = format!("{:#}", db.migrate().await.unwrap_err());
        assert!(error.contains("is half applied; mend the schema by hand"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    async fn a_migration_of_a_newer_release_is_passed_over(database) {
        let db = migrated(&database).await;
        let sql = "INSERT INTO _sqlx_migrations
            (version, description, success, checksum, execution_time)
            VALUES (99990101000000, 'later', TRUE, $1, 0)";
        on!(db.writer(), |conn| sqlx::query(sql).bind(vec![0_u8]).execute(conn).await.map(drop))
            .unwrap();
        db.migrate().await.unwrap();
        db.require_migrated().await.unwrap();
        let all = db.migrations().await.unwrap();
        let (last, ours) = all.split_last().unwrap();
        assert_eq!((last.version, last.state), (99_990_101_000_000, State::Unknown));
        assert!(ours.iter().all(|migration| migration.state == State::Applied), "{all:?}");
    }

    async fn an_older_database_is_refused_and_left_as_it_was(database) {
        let db = Db::connect(&settings(&database)).await.unwrap();
        // At once: several processes may ask.
        let asks = (0..4).map(|_| async { db.require_migrated().await });
        for refused in join_all(asks).await {
            let error = format!("{:#}", refused.unwrap_err());
            assert!(error.contains("run `plinth migrate run`"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let all = db.migrations().await.unwrap();
        assert!(all.iter().all(|migration| migration.state == State::Pending), "{all:?}");
        let touched = on!(db.writer(), |conn| {
            sqlx::query("SELECT 1 FROM _sqlx_migrations").execute(conn).await.map(drop)
        });
        touched.expect_err("asking makes no table");
    }
}

mod service {
    use super::*;

    both_engines! {
        async fn a_change_whose_client_leaves_is_whole_or_not_there(app) {
            let plan = |name: &str| {
                json!({"name": name, "start_date": "2027-03-01", "end_date": "2027-05-31"})
            };
            let created = app.post("/api/v1/plans").json(&plan("0")).send().await.unwrap();
            let path = created.headers()["location"].to_str().unwrap().to_owned();
            let id: Uuid = path.rsplit('/').next().unwrap().parse().unwrap();
            let stored = async || -> i64 {
                on!(app.state.db.writer(), |conn| {
                    sqlx::query_scalar("SELECT version FROM plans WHERE id = $1")
                        .bind(id)
                        .fetch_one(conn)
                        .await
                })
                .unwrap()
            };
            let read = async || {
                let answer = app.get(&path).send().await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
                answer.json::<Value>().await.unwrap()["version"].as_i64().unwrap()
            };
            let (mut whole, mut undone) = (0, 0);
            until("clients left before and after the commit", async || {
                // Cached before it is changed, so that a removal left out would show.
                until("the cache has what the database has", async || {
                    stored().await == read().await
                })
                .await;
                let version = stored().await;
                let change = app
                    .put(&path)
                    .header("if-match", format!("\"{version}\""))
                    .json(&plan("changed"))
                    .send();
                let patience = Duration::from_micros(fastrand::u64(200..6000));
                let left = tokio::time::timeout(patience, change).await.is_err();
                until("the cache has what the database has", async || {
                    stored().await == read().await
                })
                .await;
                match (left, stored().await == version) {
                    (true, true) => undone += 1,
                    (true, false) => whole += 1,
                    (false, _) => {}
                }
                whole >= 5 && undone >= 5
            })
            .await;
        }
    }
}

/// What a connection that cannot be made says.
async fn refused(settings: &DatabaseConfig) -> String {
    let error = Db::connect(settings).await.expect_err("it was taken");
    let error = format!("{error:#}");
    assert!(!error.contains('\n'), "one line: {error}");
    assert!(!error.contains("hunter2"), "a password: {error}");
    error
}

fn at(url: &str) -> DatabaseConfig {
    DatabaseConfig { acquire_timeout: Duration::from_secs(30), ..config(url).database }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_one_clear_line() {
    let closed = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = refused(&at(&format!("postgres://me:hunter2@127.0.0.1:{closed}/plinth"))).await;
    assert!(error.contains("cannot reach PostgreSQL") && error.contains("refused"), "{error}");

    let silent = StdListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut settings = at(&format!("postgres://me:hunter2@127.0.0.1:{port}/plinth"));
    settings.acquire_timeout = Duration::from_millis(300);
    let error = refused(&settings).await;
    assert!(error.contains("no answer within 300ms"), "{error}");

    let error = refused(&at("mysql://me:hunter2@127.0.0.1/plinth")).await;
    assert!(error.contains("must begin with sqlite:// or postgres://"), "{error}");
    let error = refused(&at("postgres://me:hunter2@127.0.0.1:port/plinth")).await;
    assert!(error.contains("is not a PostgreSQL URL"), "{error}");
}

#[tokio::test]
async fn an_unknown_database_is_one_clear_line() {
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    let mut url = Url::parse(&database.url).unwrap();
    url.set_path("/nowhere");
    url.set_password(Some("hunter2")).unwrap();
    let error = refused(&at(url.as_str())).await;
    assert!(error.contains("database \"nowhere\" does not exist"), "{error}");
}

/// A server that asks for a password, tells which it got, and refuses it.
async fn suspicious_server() -> (u16, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asking = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut message = async |tag: bool| {
            if tag {
                assert_eq!(stream.read_u8().await.unwrap(), b'p', "a password message");
            }
            let length = usize::try_from(stream.read_u32().await.unwrap()).unwrap();
            let mut body = vec![0; length - 4];
            stream.read_exact(&mut body).await.unwrap();
            let answer: &[u8] = match body.first_chunk() {
                _ if tag => b"E\0\0\0\x2aSFATAL\0C28P01\0Mauthentication failed\0\0",
                // A question for TLS.
                Some([4, 0xd2, 0x16, 0x2f]) => b"N",
                _ => b"R\0\0\0\x08\0\0\0\x03",
            };
            stream.write_all(answer).await.unwrap();
            (body, answer)
        };
        while message(false).await.1 == b"N" {}
        let (password, _) = message(true).await;
        String::from_utf8(password).unwrap().trim_end_matches('\0').to_owned()
    });
    (port, asking)
}

#[tokio::test]
async fn a_wrong_password_is_one_clear_line() {
    let (port, asking) = suspicious_server().await;
    let error = refused(&at(&format!("postgres://me:hunter2@127.0.0.1:{port}/plinth"))).await;
    assert!(error.contains("authentication failed"), "{error}");
    assert_eq!(asking.await.unwrap(), "hunter2");
}

#[tokio::test]
async fn a_password_of_its_own_takes_the_place_of_the_urls() {
    for password in ["0123456789", "p@ss:w/rd?#%&"] {
        let (port, asking) = suspicious_server().await;
        let mut settings = at(&format!("postgres://me:hunter2@127.0.0.1:{port}/plinth"));
        settings.password = Some(Secret::new(password));
        let error = refused(&settings).await;
        assert!(!error.contains(password), "{error}");
        assert_eq!(asking.await.unwrap(), password);
    }
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    let password = Some(Secret::new("0123456789"));
    let db = Db::connect(&DatabaseConfig { password, ..settings(&database) }).await.unwrap();
    db.migrate().await.unwrap();
    db.clone().ping().await.unwrap();
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("plinth_test_{}", Uuid::now_v7().simple()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_a_database_is_one_clear_line() {
    let folder = Folder::new();
    let file = folder.0.join("notes.txt");
    std::fs::write(&file, "not a database, ".repeat(1000)).unwrap();
    let error = refused(&at(&format!("sqlite://{}", file.display()))).await;
    assert!(error.contains("file is not a database"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "not a database, ".repeat(1000));

    // Root may write anywhere, but not below a file.
    let error = refused(&at(&format!("sqlite://{}/data/plinth.db", file.display()))).await;
    assert!(error.contains("cannot make the folder") && error.contains("notes.txt"), "{error}");

    let error = refused(&at(&format!("sqlite://{}", folder.0.display()))).await;
    assert!(error.contains("cannot open the SQLite database"), "{error}");

    for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite://x?mode=memory"] {
        let error = refused(&at(url)).await;
        assert!(error.contains("names SQLite in memory"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_writers_take_turns() {
    let database = TestDatabase::new(Engine::Sqlite).await.unwrap();
    let db = migrated(&database).await;
    // Reading first, then writing: what fails at once in a deferred transaction beside another.
    let writers = (0..50).map(|_| {
        let db = db.clone();
        tokio::spawn(async move {
            let mut tx = db.begin().await?;
            let seen: i64 = on!(&mut tx, |conn| {
                sqlx::query_scalar("SELECT COUNT(*) FROM plans").fetch_one(conn).await
            })?;
            insert_in!(&mut tx, &seen.to_string())?;
            tx.commit().await
        })
    });
    for written in join_all(writers).await {
        written.unwrap().unwrap();
    }
    for seen in 0..50 {
        assert_eq!(count(&db, &seen.to_string()).await, 1, "each saw those before it");
    }
}

#[tokio::test]
async fn sqlite_is_set_up_as_it_should_be() {
    let database = TestDatabase::new(Engine::Sqlite).await.unwrap();
    let db = migrated(&database).await;
    for pool in [db.writer(), db.reader()] {
        let mode: String =
            on!(pool, |conn| sqlx::query_scalar("PRAGMA journal_mode").fetch_one(conn).await)
                .unwrap();
        assert_eq!(mode, "wal");
        for (pragma, value) in
            [("PRAGMA foreign_keys", 1), ("PRAGMA synchronous", 1), ("PRAGMA busy_timeout", 30_000)]
        {
            let set: i64 =
                on!(pool, |conn| sqlx::query_scalar(pragma).fetch_one(conn).await).unwrap();
            assert_eq!(set, value, "{pragma}");
        }
    }
    let written =
        on!(db.reader(), |conn| sqlx::query("DELETE FROM plans").execute(conn).await.map(drop));
    let error = written.expect_err("readers only read").to_string();
    assert!(error.contains("readonly"), "{error}");

    insert(&db, "last").await.unwrap();
    db.close(Duration::from_secs(30)).await;
    let file = database.url.strip_prefix("sqlite://").unwrap();
    assert!(!std::fs::exists(format!("{file}-wal")).unwrap(), "its log was written back");
}

#[tokio::test]
async fn postgres_ends_what_takes_too_long() {
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    let settings = DatabaseConfig {
        statement_timeout: Duration::from_secs(7),
        lock_timeout: Duration::from_millis(1500),
        idle_in_transaction_timeout: Duration::from_secs(90),
        ..settings(&database)
    };
    let db = Db::connect(&settings).await.unwrap();
    db.migrate().await.unwrap();
    for (question, answer) in [
        ("SHOW statement_timeout", "7s"),
        ("SHOW lock_timeout", "1500ms"),
        ("SHOW idle_in_transaction_session_timeout", "90s"),
    ] {
        for pool in [db.writer(), db.reader()] {
            let set: String =
                on!(pool, |conn| sqlx::query_scalar(question).fetch_one(conn).await).unwrap();
            assert_eq!(set.replace("1min 30s", "90s"), answer, "{question}");
        }
    }

    let quick = DatabaseConfig { statement_timeout: Duration::from_millis(100), ..settings };
    let quick = Db::connect(&quick).await.unwrap();
    let slow = on!(quick.writer(), |conn| {
        sqlx::query("SELECT pg_sleep(60)").execute(conn).await.map(drop)
    });
    let error = Error::from(slow.unwrap_err());
    assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
    insert(&quick, "after").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_server_ended_are_replaced() {
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    let db = migrated(&database).await;
    // Four at once: the pool is full.
    let held = join_all((0..4).map(|_| db.begin())).await;
    for tx in held {
        tx.unwrap().commit().await.unwrap();
    }
    let mut admin = PgConnection::connect(&database.url).await.unwrap();
    let sql = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let ended: i64 = sqlx::query_scalar(sql).fetch_one(&mut admin).await.unwrap();
    assert!(ended >= 4, "{ended}");
    until("they are gone", async || {
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut admin).await.unwrap() == 0
    })
    .await;
    let mut failures = 0;
    for _ in 0..20 {
        if let Err(error) = insert(&db, "after").await {
            failures += 1;
            let error = Error::from(error);
            assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE, "{error:?}");
        }
    }
    assert!(failures <= 4, "each broken connection fails once at most: {failures}");
    assert_eq!(count(&db, "after").await, 20 - failures);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_read_from_the_replica_and_single_plans_from_the_primary() {
    let Some(replica) = TestDatabase::new(Engine::Postgres).await else { return };
    let behind = migrated(&replica).await;
    insert(&behind, "on the replica").await.unwrap();
    let url = SecretUrl::new(&*replica.url);
    let app = TestApp::start_with(Engine::Postgres, |config| config.database.read_url = Some(url));
    let app = app.await.unwrap();
    let plan = json!({"name": "Spring", "start_date": "2027-03-01", "end_date": "2027-05-31"});
    let created = app.post("/api/v1/plans").json(&plan).send().await.unwrap();
    assert_eq!(created.status(), StatusCode::CREATED);
    let location = created.headers()["location"].to_str().unwrap().to_owned();
    let read: Value = app.get(&location).send().await.unwrap().json().await.unwrap();
    assert_eq!(read["name"], "Spring", "the replica has no such plan");
    let list = app.get("/api/v1/plans").send().await.unwrap().text().await.unwrap();
    assert!(list.contains("on the replica") && !list.contains("Spring"), "{list}");
}

#[tokio::test]
async fn a_process_that_may_only_read_can_ask_how_migrations_stand() {
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    migrated(&database).await;
    let url = format!("{}?options=-c%20default_transaction_read_only%3Don", database.url);
    let db = Db::connect(&at(&url)).await.unwrap();
    insert(&db, "x").await.expect_err("it may only read");
    db.require_migrated().await.unwrap();
}
