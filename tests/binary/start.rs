//! The first start, the second, and three at once.

use reqwest::StatusCode;
use sqlx::{Connection, PgConnection, SqliteConnection};

use crate::process::{Folder, Process};
use crate::support::{Engine, TestDatabase};

#[tokio::test]
async fn with_no_configuration_in_an_empty_folder_it_serves_and_says_where() {
    let folder = Folder::new();
    for start in 1..=2 {
        let (mut process, url) = folder.serve([]).await;
        let said = process.line("the API is at").await;
        assert!(said.contains(&format!("{url}/docs")), "{said}");
        for path in ["/health/ready", "/api/v1/plans", "/docs/", "/openapi.json"] {
            let answer = reqwest::get(format!("{url}{path}")).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK, "{path}, start {start}");
        }
        assert!(folder.path().join("data/plinth.db").is_file());
        let ended = process.stop().await;
        assert_eq!((ended.code, ended.err.len()), (Some(0), 0), "{ended:#?}");
    }
}

#[tokio::test]
async fn three_at_once_on_one_empty_sqlite_file_all_become_ready() {
    let folder = Folder::new();
    three_at_once(&folder, &[]).await;
    let url = format!("sqlite://{}", folder.path().join("data/plinth.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let applied: Vec<i64> = sqlx::query_scalar(APPLIED).fetch_all(&mut connection).await.unwrap();
    assert_eq!(applied, versions());
}

#[tokio::test]
async fn three_at_once_on_one_empty_postgres_all_become_ready() {
    let Some(database) = TestDatabase::new(Engine::Postgres).await else { return };
    let folder = Folder::new();
    three_at_once(&folder, &[("DATABASE_URL", &database.url)]).await;
    assert!(folder.is_empty(), "PostgreSQL needs no data folder");
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let applied: Vec<i64> = sqlx::query_scalar(APPLIED).fetch_all(&mut connection).await.unwrap();
    assert_eq!(applied, versions());
}

const APPLIED: &str = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";

/// The versions of the files.
fn versions() -> Vec<i64> {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
    let version = |name: &str| name.split_once('_').unwrap().0.parse().unwrap();
    let mut versions: Vec<i64> =
        folder.map(|file| version(file.unwrap().file_name().to_str().unwrap())).collect();
    versions.sort_unstable();
    versions
}

async fn three_at_once(folder: &Folder, variables: &[(&str, &str)]) {
    let spawn = |_| Process::spawn(&mut folder.plinth(&[], variables.iter().copied()));
    // All are running before the first is waited for.
    let running: Vec<_> = (0..3).map(spawn).collect();
    let mut ready = Vec::new();
    for mut process in running {
        let url = process.ready().await;
        ready.push((process, url));
    }
    for (_, url) in &ready {
        let answer = reqwest::get(format!("{url}/health/ready")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
}
