//! An entry's bytes, the same in memory and in Redis:
//! stamp (16) | generation (16) | soft age in Unix milliseconds (8) | body. A tombstone has no body.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::redis::ConnectionId;

const HEADER: usize = 16 + 16 + 8;

/// How long a tombstone stays: longer than any load.
const TOMBSTONE_TTL: Duration = Duration::from_secs(600);

/// How long a space's generation stays: longer than any entry.
const GENERATION_TTL: Duration = Duration::from_secs(7 * 86_400);

/// Random, so that no two writes of a key look alike.
pub(super) type Stamp = [u8; 16];

/// What a lookup saw; storing is allowed only while that is still so.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Ticket {
    /// The stamp that was there, if anything was.
    pub(super) stamp: Option<Stamp>,
    /// The space's generation; an entry of an older one is as good as gone.
    generation: Stamp,
    /// The connection to Redis that saw it; in memory, none. A Redis that was away may have
    /// forgotten the tombstone that would keep a late store out.
    pub(super) connection: Option<ConnectionId>,
}

/// What a lookup found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) body: Option<Bytes>,
    /// Not yet past its soft age.
    pub(super) fresh: bool,
    pub(super) ticket: Ticket,
}

/// The key of a space's generation.
pub(super) fn generation_of(space: &str) -> String {
    format!("{{{space}}}")
}

/// How long what is buried under this name stays so.
pub(super) fn grave_ttl(name: &str) -> Duration {
    if name.ends_with('}') { GENERATION_TTL } else { TOMBSTONE_TTL }
}

pub(super) fn read(
    raw: Option<Bytes>,
    generation: Option<Bytes>,
    connection: Option<ConnectionId>,
) -> Found {
    let generation = generation.as_deref().and_then(stamp_of).unwrap_or_default();
    let ticket = Ticket { stamp: raw.as_deref().and_then(stamp_of), generation, connection };
    let Some(raw) = raw.filter(|raw| raw.len() > HEADER && raw[16..32] == generation) else {
        return Found { body: None, fresh: false, ticket };
    };
    let mut soft_at = [0; 8];
    soft_at.copy_from_slice(&raw[32..HEADER]);
    let fresh = now_ms() < u64::from_be_bytes(soft_at);
    Found { body: Some(raw.slice(HEADER..)), fresh, ticket }
}

/// What a lookup without an answer found. No connection has this id, so nothing is stored.
pub(super) fn unknown() -> Found {
    read(None, None, Some(0))
}

pub(super) fn write(ticket: &Ticket, soft: Duration, body: &[u8]) -> Bytes {
    let soft_at = now_ms() + u64::try_from(soft.as_millis()).unwrap_or(0);
    let stamp = new_stamp();
    [&stamp, &ticket.generation, &soft_at.to_be_bytes()[..], body].concat().into()
}

pub(super) fn tombstone() -> Bytes {
    Bytes::copy_from_slice(&new_stamp())
}

pub(super) fn stamp_of(raw: &[u8]) -> Option<Stamp> {
    raw.first_chunk().copied()
}

fn new_stamp() -> Stamp {
    fastrand::u128(..).to_be_bytes()
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
