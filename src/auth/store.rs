//! The API keys' SQL, one for both engines.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;
use uuid::Uuid;

use super::scopes::Scopes;
use crate::db::{Db, Engine, Tx};
use crate::on;

/// An API key, as far as it is kept: not the key itself.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct ApiKey {
    pub id: Uuid,
    pub name: String,
    /// How the key begins.
    pub hint: String,
    #[sqlx(try_from = "String")]
    pub scopes: Scopes,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
    /// Up to a minute behind.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// Whether a key opens anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    Live,
    Expired,
    Revoked,
}

impl ApiKey {
    pub fn state(&self, now: DateTime<Utc>) -> KeyState {
        match self {
            Self { revoked_at: Some(_), .. } => KeyState::Revoked,
            Self { expires_at: Some(at), .. } if *at <= now => KeyState::Expired,
            _ => KeyState::Live,
        }
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, hint, scopes, created_at, expires_at, revoked_at, last_used_at \
             FROM api_keys ",
            $rest
        )
    };
}

/// Keeps others that change keys waiting until the transaction ends. SQLite has one writer anyway.
pub(super) async fn lock(tx: &mut Tx) -> sqlx::Result<()> {
    match tx.connection().await? {
        Engine::Sqlite(_) => Ok(()),
        Engine::Postgres(conn) => sqlx::query("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE")
            .execute(conn)
            .await
            .map(drop),
    }
}

/// Never a replica's yesterday: what it revoked must stay out.
pub(super) async fn find(db: &Db, hash: &str) -> sqlx::Result<Option<ApiKey>> {
    const FIND: &str = select!("WHERE hash = $1");
    on!(db.primary(), |conn| sqlx::query_as(FIND).bind(hash).fetch_optional(conn).await)
}

/// All of them, oldest first.
pub(super) async fn list(db: &Db) -> sqlx::Result<Vec<ApiKey>> {
    const LIST: &str = select!("ORDER BY id");
    on!(db.primary(), |conn| sqlx::query_as(LIST).fetch_all(conn).await)
}

/// The live keys with this id or this name, oldest first.
pub(super) async fn live(
    tx: &mut Tx,
    id: Option<Uuid>,
    name: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<ApiKey>> {
    const LIVE: &str = select!(
        "WHERE (id = $1 OR name = $2) AND revoked_at IS NULL
            AND (expires_at IS NULL OR expires_at > $3)
         ORDER BY id"
    );
    on!(tx, |conn| sqlx::query_as(LIVE).bind(id).bind(name).bind(now).fetch_all(conn).await)
}

pub(super) async fn insert(tx: &mut Tx, key: &ApiKey, hash: &str) -> sqlx::Result<()> {
    on!(tx, |conn| sqlx::query(
        "INSERT INTO api_keys (id, name, hash, hint, scopes, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)"
    )
    .bind(key.id)
    .bind(&key.name)
    .bind(hash)
    .bind(&key.hint)
    .bind(key.scopes.to_text())
    .bind(key.created_at)
    .bind(key.expires_at)
    .execute(conn)
    .await
    .map(drop))
}

pub(super) async fn revoke(tx: &mut Tx, id: Uuid, now: DateTime<Utc>) -> sqlx::Result<()> {
    on!(tx, |conn| sqlx::query("UPDATE api_keys SET revoked_at = $2 WHERE id = $1")
        .bind(id)
        .bind(now)
        .execute(conn)
        .await
        .map(drop))
}

/// Lets a key live until `end`, or for as long as it would have, if that is shorter.
pub(super) async fn expire(tx: &mut Tx, id: Uuid, end: DateTime<Utc>) -> sqlx::Result<()> {
    on!(tx, |conn| sqlx::query(
        "UPDATE api_keys SET expires_at = $2
         WHERE id = $1 AND (expires_at IS NULL OR expires_at > $2)"
    )
    .bind(id)
    .bind(end)
    .execute(conn)
    .await
    .map(drop))
}

/// Never goes back: another process may have seen a later use.
pub(super) async fn used(db: &Db, id: Uuid, at: DateTime<Utc>) -> sqlx::Result<()> {
    on!(db.writer(), |conn| sqlx::query(
        "UPDATE api_keys SET last_used_at = $2
         WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)"
    )
    .bind(id)
    .bind(at)
    .execute(conn)
    .await
    .map(drop))
}
