//! One watchdog per connection: how long a client may keep it while nothing is happening.
//!
//! - Before the first request, TLS handshake and HTTP/2 preface included: `header_timeout`.
//! - HTTP/1, from the first byte of a later request's head: `header_timeout`.
//! - No request in flight: `idle_timeout`. HTTP/2 pings are not requests.
//! - Every request in flight waits for the client, and it has taken nothing of one of them:
//!   `write_timeout`. Requests beside it do not buy a stalled one more time.
//!
//! While the handler or its response stream is at work, the watchdog sleeps; how long that may
//! take is the middleware's to say, as is how long a request body may take to arrive.
//!
//! hyper's own `header_read_timeout` is not used: it also bounds the idle time of a kept-alive
//! connection, so it would have to be long for balancers and short for attackers; and it does not
//! run while hyper-util reads the first bytes to tell HTTP/1 from HTTP/2.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::Version;
use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::ServerConfig;

/// How long a connection with nothing in flight has to close once it was asked to go away.
const GOODBYE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    header: Duration,
    idle: Duration,
    write: Duration,
}

/// What has happened on one connection, written by its I/O, its service and its response bodies.
pub(super) struct Activity {
    accepted: Instant,
    /// The protocol, known from the first request.
    pub(super) version: SetOnce<Version>,
    now: Mutex<Now>,
}

struct Now {
    /// Requests whose head has arrived and whose response has not all been written.
    in_flight: usize,
    /// Those of them that wait for the client, and since when it has taken nothing of each.
    waiting: HashMap<u64, Instant>,
    /// Requests begun so far, which names them.
    begun: u64,
    /// When a request last began or ended.
    progress: Instant,
    /// When the first byte after the last request came.
    head: Option<Instant>,
}

/// One request in flight. It counts until the last clone is dropped: the handler has one, then the
/// response body, then each chunk of it until that is written.
pub(super) struct InFlight {
    activity: Arc<Activity>,
    id: u64,
    turn: Mutex<Turn>,
}

struct Turn {
    working: bool,
    unwritten: usize,
}

/// Why a connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    Head,
    Idle,
    Write,
    Goodbye,
}

impl Limits {
    pub(super) fn new(config: &ServerConfig) -> Self {
        Self {
            header: config.header_timeout,
            idle: config.idle_timeout,
            write: config.write_timeout,
        }
    }
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        let accepted = Instant::now();
        let now =
            Now { in_flight: 0, waiting: HashMap::new(), begun: 0, progress: accepted, head: None };
        Arc::new(Self { accepted, version: SetOnce::new(), now: Mutex::new(now) })
    }

    /// Bytes came. While a request is in flight they are its body, or one pipelined behind it.
    pub(super) fn received(&self) {
        let mut now = lock(&self.now);
        if now.in_flight == 0 && now.head.is_none() {
            now.head = Some(Instant::now());
        }
    }

    /// A whole request head came.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> Arc<InFlight> {
        let _ = self.version.set(version);
        let mut now = lock(&self.now);
        now.in_flight += 1;
        now.begun += 1;
        let id = now.begun;
        now.progress = Instant::now();
        now.head = None;
        drop(now);
        let turn = Mutex::new(Turn { working: true, unwritten: 0 });
        Arc::new(InFlight { activity: self.clone(), id, turn })
    }

    /// Waits until the connection must be closed. An idle one is first asked to go away, by
    /// cancelling `leave`, so that an HTTP/2 client is told which requests were not taken; `idle` is
    /// called then.
    pub(super) async fn expired(
        &self,
        limits: Limits,
        leave: &CancellationToken,
        idle: impl Fn(),
    ) -> Expired {
        let mut left = None;
        loop {
            let now = Instant::now();
            if leave.is_cancelled() {
                left.get_or_insert(now);
            }
            let deadline = self.deadline(limits, left);
            if let Some((at, reason)) = deadline
                && at <= now
            {
                match reason {
                    Expired::Idle => {
                        idle();
                        leave.cancel();
                    }
                    reason => return reason,
                }
                continue;
            }
            // No deadline that is yet to be set can come before this, so nothing need wake us.
            let check = now + limits.shortest(left.is_some());
            tokio::select! {
                () = sleep_until(deadline.map_or(check, |(at, _)| at.min(check))) => {}
                () = leave.cancelled(), if left.is_none() => {}
            }
        }
    }

    fn deadline(&self, limits: Limits, left: Option<Instant>) -> Option<(Instant, Expired)> {
        let now = lock(&self.now);
        if now.in_flight > 0 {
            let all_wait = now.waiting.len() == now.in_flight;
            let oldest = now.waiting.values().min().filter(|_| all_wait)?;
            return Some((*oldest + limits.write, Expired::Write));
        }
        if let Some(left) = left {
            return Some((left.max(now.progress) + GOODBYE, Expired::Goodbye));
        }
        Some(match (self.version.get(), now.head) {
            (None, _) => (self.accepted + limits.header, Expired::Head),
            (Some(&Version::HTTP_2), _) | (Some(_), None) => {
                (now.progress + limits.idle, Expired::Idle)
            }
            (Some(_), Some(first_byte)) => (first_byte + limits.header, Expired::Head),
        })
    }
}

impl Limits {
    fn shortest(self, leaving: bool) -> Duration {
        let shortest = self.header.min(self.idle).min(self.write);
        if leaving { shortest.min(GOODBYE) } else { shortest }
    }
}

impl InFlight {
    /// The client is to take the response's head, or more of its body.
    pub(super) fn offered(&self, chunks: usize) {
        self.turn(|turn| {
            turn.working = false;
            turn.unwritten += chunks;
        });
    }

    /// The response stream has nothing to send yet.
    pub(super) fn working(&self) {
        self.turn(|turn| turn.working = true);
    }

    /// Some bytes of a chunk were written.
    pub(super) fn wrote(&self) {
        if let Some(since) = lock(&self.activity.now).waiting.get_mut(&self.id) {
            *since = Instant::now();
        }
    }

    /// A chunk was written, or given up.
    pub(super) fn taken(&self) {
        self.turn(|turn| turn.unwritten -= 1);
    }

    fn turn(&self, change: impl FnOnce(&mut Turn)) {
        let mut turn = lock(&self.turn);
        let before = turn.is_ours();
        change(&mut turn);
        let after = turn.is_ours();
        if before != after {
            let mut now = lock(&self.activity.now);
            if after {
                now.waiting.remove(&self.id);
            } else {
                now.waiting.insert(self.id, Instant::now());
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut now = lock(&self.activity.now);
        now.in_flight -= 1;
        now.waiting.remove(&self.id);
        now.progress = Instant::now();
    }
}

impl Turn {
    fn is_ours(&self) -> bool {
        self.working && self.unwritten == 0
    }
}

impl Expired {
    pub(super) const ALL: [Self; 4] = [Self::Head, Self::Idle, Self::Write, Self::Goodbye];

    /// What metrics call it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Idle => "idle",
            Self::Write => "write",
            Self::Goodbye => "goodbye",
        }
    }
}

impl fmt::Display for Expired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Head => "no whole request head within header_timeout",
            Self::Idle => "no request within idle_timeout",
            Self::Write => "nothing of the response taken within write_timeout",
            Self::Goodbye => "not closed after it was asked to go away",
        })
    }
}

/// These few numbers are never left half written, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
