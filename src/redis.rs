//! The link to Redis, one for all that keep something there, and the way out and back when it does
//! not answer.
//!
//! One multiplexed connection serves all requests; checking one out of the pool each time would
//! cost a second round trip. There is a connection, or there is none: late or failed answers take
//! it away, and one background task, outside any request, brings it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncCommands, RedisError};
use deadpool_redis::{Connection, Pool, Runtime, Timeouts};
use futures_util::future::BoxFuture;
use metrics::gauge;
use tokio_util::sync::CancellationToken;

use crate::config::{CacheConfig, SecretUrl};

/// Longest the background task waits to connect; requests never wait for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The link. It is there while Redis is not, and finds back by itself.
pub struct Redis {
    pool: Pool,
    prefix: String,
    budget: Duration,
    max_failures: u32,
    retry: Duration,
    prepare: Prepare,
    live: ArcSwapOption<Live>,
    failures: AtomicU32,
}

/// What is done with each new connection before anyone asks over it. It ends with
/// [`Opening::open`], or with an error, after which another connection is tried.
pub type Prepare = Box<dyn Fn(Opening) -> BoxFuture<'static, anyhow::Result<Opened>> + Send + Sync>;

/// Tells connections apart; none is 0.
pub type ConnectionId = u128;

/// The connection in use.
pub struct Live {
    /// Another one after each return of Redis, which may have forgotten everything meanwhile.
    pub id: ConnectionId,
    connection: MultiplexedConnection,
    /// Cancelled when the link goes on without it: nobody is to wait for an answer any longer.
    left: CancellationToken,
}

/// A connection that answers, and over which nobody asks yet.
pub struct Opening {
    link: Arc<Redis>,
    connection: MultiplexedConnection,
}

/// Says that a connection was opened.
pub struct Opened(());

impl Redis {
    /// Opens the link. Redis is given a second to be there; if it is not, the link starts without
    /// it and goes on trying.
    ///
    /// # Errors
    /// Only a URL that cannot be used.
    pub async fn connect(
        config: &CacheConfig,
        url: &SecretUrl,
        prepare: Prepare,
    ) -> anyhow::Result<Arc<Self>> {
        let mut settings = deadpool_redis::Config::from_url(url.expose());
        let mut pool = deadpool_redis::PoolConfig::new(1);
        pool.timeouts = Timeouts {
            wait: Some(CONNECT_TIMEOUT),
            create: Some(CONNECT_TIMEOUT),
            recycle: Some(CONNECT_TIMEOUT),
        };
        settings.pool = Some(pool);
        let pool = settings
            .create_pool(Some(Runtime::Tokio1))
            .with_context(|| format!("REDIS_URL {url} is not a Redis URL"))?;
        let redis = Arc::new(Self {
            pool,
            prefix: config.key_prefix.clone(),
            budget: config.budget,
            max_failures: config.breaker_failures,
            retry: config.breaker_retry,
            prepare,
            live: ArcSwapOption::empty(),
            failures: AtomicU32::new(0),
        });
        show_state("open");
        if let Err(error) = redis.clone().try_return().await {
            tracing::warn!(%error, redis = %url, "Redis is not there; going on in process");
            redis.clone().return_later();
        }
        Ok(redis)
    }

    /// Whether Redis is in use just now.
    pub fn is_connected(&self) -> bool {
        self.live.load().is_some()
    }

    /// The connection in use; `None` while Redis is away.
    pub fn live(&self) -> Option<Arc<Live>> {
        self.live.load_full()
    }

    /// Most time that one question may take.
    pub fn budget(&self) -> Duration {
        self.budget
    }

    /// A key as it is called in Redis, which services may share.
    pub fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// Runs `ask` over this connection. `None`, and a mark against Redis, when it fails or takes
    /// longer than `budget`; `None` at once when the link leaves the connection meanwhile.
    pub async fn ask<T>(
        self: &Arc<Self>,
        live: &Arc<Live>,
        budget: Duration,
        ask: impl AsyncFnOnce(MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Option<T> {
        let answer = tokio::time::timeout(budget, ask(live.connection.clone()));
        match live.left.run_until_cancelled(answer).await? {
            Ok(Ok(answer)) => {
                self.failures.store(0, Relaxed);
                return Some(answer);
            }
            Ok(Err(error)) if error.is_unrecoverable_error() => {
                self.leave_this(live, &error.to_string());
            }
            Ok(Err(error)) => self.mark(live, &error.to_string()),
            Err(_) => self.mark(live, "no answer within the budget"),
        }
        None
    }

    /// Goes on without whichever connection there is, until a new one is prepared.
    pub fn leave(self: &Arc<Self>, why: &str) {
        if let Some(live) = self.live() {
            self.leave_this(&live, why);
        }
    }

    fn mark(self: &Arc<Self>, live: &Arc<Live>, why: &str) {
        if self.failures.fetch_add(1, Relaxed) + 1 >= self.max_failures {
            self.leave_this(live, why);
        }
    }

    /// Of all that a connection fails at once, one is told and comes back for all.
    fn leave_this(self: &Arc<Self>, live: &Arc<Live>, why: &str) {
        let was = self.live.compare_and_swap(live, None);
        if was.as_ref().is_some_and(|was| Arc::ptr_eq(was, live)) {
            live.left.cancel();
            show_state("open");
            tracing::warn!(why, "Redis is away; going on in process");
            self.clone().return_later();
        }
    }

    fn return_later(self: Arc<Self>) {
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(self.retry).await;
                if self.clone().try_return().await.is_ok() {
                    tracing::info!("Redis is back");
                    return;
                }
            }
        });
    }

    async fn try_return(self: Arc<Self>) -> anyhow::Result<()> {
        let connection = Connection::take(self.pool.get().await?);
        let opening = Opening { link: self.clone(), connection };
        opening.ask(async |mut redis| redis.ping().await).await?;
        let Opened(()) = (self.prepare)(opening).await?;
        Ok(())
    }
}

impl Opening {
    /// Runs `ask` outside any request, within the time that connecting may take.
    ///
    /// # Errors
    /// Redis failed, or was late.
    pub async fn ask(
        &self,
        ask: impl AsyncFnOnce(MultiplexedConnection) -> Result<(), RedisError>,
    ) -> anyhow::Result<()> {
        tokio::time::timeout(CONNECT_TIMEOUT, ask(self.connection.clone())).await??;
        Ok(())
    }

    /// As [`Redis::key`].
    pub fn key(&self, name: &str) -> String {
        self.link.key(name)
    }

    /// Lets everyone ask over it from now on.
    pub fn open(self) -> Opened {
        let live = Live {
            id: fastrand::u128(1..),
            connection: self.connection,
            left: CancellationToken::new(),
        };
        self.link.failures.store(0, Relaxed);
        self.link.live.store(Some(Arc::new(live)));
        show_state("closed");
        Opened(())
    }
}

/// Open while Redis is away.
fn show_state(now: &'static str) {
    for state in ["closed", "open"] {
        let value = f64::from(u8::from(state == now));
        gauge!("circuit_breaker_state", "breaker" => "redis", "state" => state).set(value);
    }
}
