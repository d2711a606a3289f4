//! The server: bind, accept, serve, drain.
//!
//! The loop is ours, on hyper-util, because `axum::serve` has no bound on how long a request head
//! may take, no cap on connections and no end to a drain: any one of those lets a client with one
//! socket, or a deploy, hang. What each connection may do is in `connection`, how long it may do
//! nothing in `watchdog`.

mod connection;
mod signals;
mod tls;
mod watchdog;

pub use signals::Shutdown;

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use metrics::{Counter, counter};
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::config::ServerConfig;
use connection::Handler;
use tls::Tls;

/// The kernel's queue of connections not yet accepted; it also trims this to `somaxconn`.
const BACKLOG: i32 = 4096;
/// How long to wait for a file to be closed when there is none left for the next connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How often a silent client's host is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Files that are not client connections: pools, logs, the listener itself.
const OTHER_FILES: u64 = 256;
/// How long connections that have been cut get to drop what they hold.
const CUT_GRACE: Duration = Duration::from_millis(500);

/// Whom a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Public,
    Management,
}

/// A bound listener, ready to serve.
pub struct Server {
    name: Listener,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    config: ServerConfig,
}

/// How the last connections ended.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were open when accepting stopped and closed with nothing in flight.
    pub completed: usize,
    /// Connections that were cut, with requests still in flight on them.
    pub aborted: usize,
}

impl Listener {
    /// What metrics call it.
    fn label(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Management => "management",
        }
    }
}

impl Server {
    /// Binds the address and loads the certificate. Call it inside a Tokio runtime.
    ///
    /// # Errors
    /// One line that names the setting at fault: the address is taken, not permitted or not ours;
    /// a TLS file is missing, unreadable, or not the other's pair.
    pub fn bind(name: Listener, config: &ServerConfig) -> anyhow::Result<Self> {
        let tls = match (&config.tls_cert, &config.tls_key) {
            (Some(cert), Some(key)) => Some(Arc::new(Tls::load(cert, key)?)),
            (None, None) => None,
            _ => bail!("TLS needs both tls_cert and tls_key; only one is set"),
        };
        raise_file_limit(config.max_connections);
        let listener = listen(config).map_err(|error| explain(name, config.address(), &error))?;
        let address = listener.local_addr().context("cannot read the listener's address")?;
        Ok(Self { name, listener, address, tls, config: config.clone() })
    }

    /// The address bound, with the real port where the configured one was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https` with a certificate, else `http`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Serves until `shutdown.drain` is cancelled, then drains:
    ///
    /// 1. `on_drain` is called at once, so that readiness turns 503;
    /// 2. connections are still accepted for `pre_stop_delay`, while balancers take notice;
    /// 3. the listener closes, idle connections close, the others are told to go away (`Connection:
    ///    close`, GOAWAY) as their requests end;
    /// 4. after `drain_timeout` what is left is cut.
    ///
    /// `shutdown.force` skips to the cut from anywhere; before `drain`, `on_drain` is not called.
    /// Each request carries [`ConnectInfo<SocketAddr>`](axum::extract::ConnectInfo), the peer.
    pub async fn serve<S>(self, app: S, shutdown: Shutdown, on_drain: impl FnOnce()) -> Drained
    where
        S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>,
        S: Clone + Send + 'static,
    {
        let Self { name, listener, tls, config, .. } = self;
        let _reload = tls::reload_on_hangup(tls.clone());
        let handler = Arc::new(Handler::new(name.label(), &config, tls));
        let shared = handler.clone();
        let serve = move |stream, peer, slot| shared.spawn(stream, peer, app.clone(), slot);
        let stop = async {
            shutdown.drain.cancelled().await;
            on_drain();
            tracing::info!(still_accepting_for = ?config.pre_stop_delay, "draining");
            sleep(config.pre_stop_delay).await;
        };
        tokio::select! {
            () = accept(name.label(), &listener, config.max_connections, serve) => {}
            () = stop => {}
            () = shutdown.force.cancelled() => {}
        }
        drop(listener);
        drain(&handler, config.drain_timeout, &shutdown.force).await
    }
}

/// Accepts for ever. The slot is taken before the connection is, so what is over the cap waits in
/// the kernel's backlog and costs this process nothing.
async fn accept(
    name: &'static str,
    listener: &TcpListener,
    cap: usize,
    serve: impl Fn(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let slots = Arc::new(Semaphore::new(cap.min(Semaphore::MAX_PERMITS)));
    let mut failing = false;
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => {
                failing = false;
                counter!("server_connections_accepted_total", "listener" => name).increment(1);
                serve(stream, peer, slot);
            }
            Err(error) if client_went_away(&error) => {}
            // Out of files or memory: others' connections are closing, and ours must go on.
            Err(error) => {
                refused(name, "accept").increment(1);
                if !failing {
                    tracing::error!(%error, "cannot accept connections; trying on");
                }
                failing = true;
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Connections that came to nothing.
fn refused(listener: &'static str, reason: &'static str) -> Counter {
    counter!("server_connections_refused_total", "listener" => listener, "reason" => reason)
}

async fn drain(handler: &Handler, cap: Duration, force: &CancellationToken) -> Drained {
    let open = &handler.open;
    let at_stop = open.len();
    open.close();
    handler.drain.cancel();
    tracing::info!(connections = at_stop, "no longer accepting");
    tokio::select! {
        _ = timeout(cap, open.wait()) => {}
        () = force.cancelled() => {}
    }
    let aborted = open.len();
    handler.cut.cancel();
    let _ = timeout(CUT_GRACE, open.wait()).await;
    let drained = Drained { completed: at_stop.saturating_sub(aborted), aborted };
    tracing::info!(completed = drained.completed, aborted = drained.aborted, "drained");
    drained
}

/// The options are set on the listener: what it accepts inherits them.
fn listen(config: &ServerConfig) -> io::Result<TcpListener> {
    let address = config.address();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if config.bind == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(config.write_timeout))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn explain(name: Listener, address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let (host, port) = match name {
        Listener::Public => ("APP_SERVER__BIND", "PORT"),
        Listener::Management => ("APP_MANAGEMENT__BIND", "APP_MANAGEMENT__BIND"),
    };
    match error.kind() {
        ErrorKind::AddrInUse => anyhow!(
            "cannot listen on {address}: another process has this port: stop it, or set {port}"
        ),
        ErrorKind::PermissionDenied => anyhow!(
            "cannot listen on {address}: ports below 1024 are privileged: set {port} to another"
        ),
        ErrorKind::AddrNotAvailable => {
            anyhow!("cannot listen on {address}: this machine has no such address: set {host}")
        }
        _ => anyhow!("cannot listen on {address}: {error}"),
    }
}

/// The usual soft limit, 1024, is for programs that use `select`; the hard one is ours to take.
fn raise_file_limit(max_connections: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "cannot raise the limit on open files");
    }
    let needed = max_connections as u64 + OTHER_FILES;
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|files| *files < needed) {
        tracing::warn!(files, max_connections, "the limit on open files is below max_connections");
    }
}

fn client_went_away(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};

    fn config() -> ServerConfig {
        ServerConfig { port: 0, ..Config::defaults(Environment::Test).server }
    }

    #[tokio::test]
    async fn a_taken_port_is_one_clear_line() {
        let first = Server::bind(Listener::Public, &config()).unwrap();
        let again = ServerConfig { port: first.address().port(), ..config() };
        let error = format!("{:#}", Server::bind(Listener::Public, &again).err().unwrap());
        assert_eq!(
            error,
            format!(
                "cannot listen on {}: another process has this port: stop it, or set PORT",
                first.address()
            )
        );
    }

    #[tokio::test]
    async fn half_a_tls_pair_is_refused() {
        let half = ServerConfig { tls_cert: Some("cert.pem".into()), ..config() };
        assert!(
            Server::bind(Listener::Public, &half)
                .err()
                .unwrap()
                .to_string()
                .contains("only one is set")
        );
    }

    #[tokio::test]
    async fn accepted_sockets_inherit_the_options() {
        let config = config();
        let server = Server::bind(Listener::Public, &config).unwrap();
        let (_client, accepted) =
            tokio::join!(tokio::net::TcpStream::connect(server.address), server.listener.accept());
        let (stream, _) = accepted.unwrap();
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(config.write_timeout));
    }
}
