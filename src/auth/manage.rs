//! Keys made, listed, replaced and taken back: what the `key` commands do.

use std::time::Duration;

use anyhow::bail;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::key::Key;
use super::scopes::Scopes;
use super::store::{self, ApiKey};
use crate::db::{Db, Tx, now};

/// Longest name of a key, in characters.
const NAME_LENGTH: usize = 64;

/// Longest time that may be given: both engines, and people, can write where it ends.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A key that was just made, in full and as it is kept.
pub struct Made {
    pub key: Key,
    pub kept: ApiKey,
}

/// Makes a key. `lifetime` unset is for ever.
///
/// # Errors
/// The name is malformed or has a live key; or the database's.
pub async fn create(
    db: &Db,
    prefix: &str,
    name: &str,
    scopes: Scopes,
    lifetime: Option<Duration>,
) -> anyhow::Result<Made> {
    check_name(name)?;
    let now = now();
    let mut tx = begin(db).await?;
    if !store::live(&mut tx, None, name, now).await?.is_empty() {
        bail!("there is a live key called `{name}`; replace it with `key rotate {name}`");
    }
    let made = insert(&mut tx, prefix, name, scopes, now, end(now, lifetime)?).await?;
    tx.commit().await?;
    Ok(made)
}

/// Every key there ever was, oldest first.
///
/// # Errors
/// The database's.
pub async fn list(db: &Db) -> anyhow::Result<Vec<ApiKey>> {
    Ok(store::list(db).await?)
}

/// Takes back the live key with this id, or all of this name, and says which those were. A service
/// that has just seen one takes it for 5 s more.
///
/// # Errors
/// There is none; or the database's.
pub async fn revoke(db: &Db, id_or_name: &str) -> anyhow::Result<Vec<ApiKey>> {
    let now = now();
    let mut tx = begin(db).await?;
    let keys = live(&mut tx, id_or_name, now).await?;
    for key in &keys {
        store::revoke(&mut tx, key.id, now).await?;
    }
    tx.commit().await?;
    Ok(keys)
}

/// Makes a key with the name and the scopes of the newest live one, and its lifetime where none is
/// given. Those before it live on for `overlap`, and never longer than they would have.
///
/// # Errors
/// There is none; or the database's.
pub async fn rotate(
    db: &Db,
    prefix: &str,
    name: &str,
    overlap: Duration,
    lifetime: Option<Duration>,
) -> anyhow::Result<Made> {
    check_name(name)?;
    let now = now();
    let overlap = now + overlap.min(LONGEST);
    let mut tx = begin(db).await?;
    let old = live(&mut tx, name, now).await?;
    let newest = old.last();
    let scopes = newest.map(|key| key.scopes.clone()).unwrap_or_default();
    let lifetime = lifetime.or_else(|| newest.and_then(lifetime_of));
    for key in &old {
        store::expire(&mut tx, key.id, overlap).await?;
    }
    let made = insert(&mut tx, prefix, name, scopes, now, end(now, lifetime)?).await?;
    tx.commit().await?;
    Ok(made)
}

/// One at a time, or two could each find that there is no key of a name, and make one.
async fn begin(db: &Db) -> sqlx::Result<Tx> {
    let mut tx = db.begin().await?;
    store::lock(&mut tx).await?;
    Ok(tx)
}

/// How long a key was to live when it was made; rotation may have cut it short since.
fn lifetime_of(key: &ApiKey) -> Option<Duration> {
    (key.expires_at? - key.created_at).to_std().ok()
}

/// At least one.
async fn live(tx: &mut Tx, id_or_name: &str, now: DateTime<Utc>) -> anyhow::Result<Vec<ApiKey>> {
    let keys = store::live(tx, id_or_name.parse().ok(), id_or_name, now).await?;
    if keys.is_empty() {
        bail!("there is no live key called `{id_or_name}`; `key list` shows what there is");
    }
    Ok(keys)
}

async fn insert(
    tx: &mut Tx,
    prefix: &str,
    name: &str,
    scopes: Scopes,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
) -> anyhow::Result<Made> {
    let key = Key::generate(prefix)?;
    let kept = ApiKey {
        id: Uuid::now_v7(),
        name: name.to_owned(),
        hint: key.hint(),
        scopes,
        created_at,
        expires_at,
        revoked_at: None,
        last_used_at: None,
    };
    store::insert(tx, &kept, &key.hash()).await?;
    Ok(Made { key, kept })
}

fn end(now: DateTime<Utc>, lifetime: Option<Duration>) -> anyhow::Result<Option<DateTime<Utc>>> {
    match lifetime {
        Some(lifetime) if lifetime.is_zero() => bail!("a key that lives for no time opens nothing"),
        Some(lifetime) if lifetime > LONGEST => bail!("no key is planned for over a century ahead"),
        lifetime => Ok(lifetime.map(|lifetime| now + lifetime)),
    }
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.is_empty() || name.len() > NAME_LENGTH || !name.chars().all(letter) {
        bail!("`{name}` is not a name of 1 to {NAME_LENGTH} letters, digits, `-`, `.` and `_`");
    }
    // It could be taken for a key's id.
    if Uuid::try_parse(name).is_ok() {
        bail!("`{name}` is an id; give the key a name");
    }
    Ok(())
}
