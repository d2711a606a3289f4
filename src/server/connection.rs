//! One connection: TLS handshake, HTTP/1 or HTTP/2, and the requests on it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use axum::response::Response;
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use metrics::{Counter, counter, gauge};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tower::{Service, ServiceExt};

use super::refused;
use super::tls::Tls;
use super::watchdog::{Activity, Expired, InFlight, Limits};
use crate::config::ServerConfig;

/// hyper's buffer for each HTTP/1 connection, and with it the longest request head.
const BUFFER: usize = 64 * 1024;
const STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The longest HTTP/2 request head, decompressed. hyper's default, here because it is a limit.
const HEADER_LIST: u32 = 16 * 1024;
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What every connection shares.
pub(super) struct Handler {
    /// The listener's name.
    name: &'static str,
    /// Counts open sockets. An upgraded one (a WebSocket) counts until its handler drops it.
    pub(super) open: TaskTracker,
    /// Connections are to finish what is in flight and close.
    pub(super) drain: CancellationToken,
    /// Connections are to close as they are.
    pub(super) cut: CancellationToken,
    http: Builder<TokioExecutor>,
    tls: Option<Arc<Tls>>,
    limits: Limits,
}

/// One connection, on its way through the handshake to HTTP.
struct Session<S> {
    app: S,
    peer: SocketAddr,
    activity: Arc<Activity>,
    leave: CancellationToken,
    held: Held,
}

/// What a socket holds for as long as it is open.
type Held = (OwnedSemaphorePermit, TaskTrackerToken, Counted);
type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Handler {
    pub(super) fn new(name: &'static str, config: &ServerConfig, tls: Option<Arc<Tls>>) -> Self {
        for reason in Expired::ALL {
            timed_out(name, reason).increment(0);
        }
        for reason in ["accept", "tls"] {
            refused(name, reason).increment(0);
        }
        Self {
            name,
            open: TaskTracker::new(),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
            http: http(),
            tls,
            limits: Limits::new(config),
        }
    }

    /// Serves a connection in its own task, handshake and all: nothing a client does, or fails to
    /// do, may hold up the accept loop.
    pub(super) fn spawn<S>(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        app: S,
        slot: OwnedSemaphorePermit,
    ) where
        S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>,
        S: Clone + Send + 'static,
    {
        let handler = self.clone();
        let activity = Activity::new();
        let leave = self.drain.child_token();
        let held = (slot, self.open.token(), Counted::new(self.name));
        let session = Session { app, peer, activity: activity.clone(), leave: leave.clone(), held };
        tokio::spawn(async move {
            let idle = || timed_out(handler.name, Expired::Idle).increment(1);
            tokio::select! {
                result = session.serve(&handler, stream) => if let Err(error) = result {
                    tracing::debug!(%peer, error, "connection failed");
                },
                reason = activity.expired(handler.limits, &leave, idle) => {
                    timed_out(handler.name, reason).increment(1);
                    tracing::debug!(%peer, %reason, "connection closed");
                }
                () = handler.cut.cancelled() => {}
            }
        });
    }
}

impl<S> Session<S>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>,
    S: Clone + Send + 'static,
{
    async fn serve(self, handler: &Handler, stream: TcpStream) -> Result<(), Failure> {
        match &handler.tls {
            Some(tls) => {
                let shaken = tls.acceptor().accept(stream).await;
                let stream = shaken.inspect_err(|_| refused(handler.name, "tls").increment(1))?;
                self.http(&handler.http, stream).await
            }
            None => self.http(&handler.http, stream).await,
        }
    }

    async fn http(
        self,
        builder: &Builder<TokioExecutor>,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), Failure> {
        let Self { app, peer, activity, leave, held } = self;
        // Inside TLS, so that only the client's HTTP counts as something received.
        let received = activity.clone();
        let io = InspectReader::new(io, move |_: &[u8]| {
            let _until_closed = &held;
            received.received();
        });
        let begun = activity.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let in_flight = begun.begin(request.version());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            let response = app.clone().oneshot(request);
            async move { Ok::<_, Infallible>(response.await?.map(|b| Reply::new(b, in_flight))) }
        });
        let mut http = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
        // hyper would drop a connection that has yet to send its first request, although that may
        // be on its way; the watchdog gives it a moment.
        let asked_to_leave = async {
            leave.cancelled().await;
            activity.version.wait().await;
        };
        tokio::select! {
            biased;
            () = asked_to_leave => http.as_mut().graceful_shutdown(),
            result = http.as_mut() => return result,
        }
        http.await
    }
}

fn timed_out(listener: &'static str, reason: Expired) -> Counter {
    let reason = reason.label();
    counter!("server_connections_timed_out_total", "listener" => listener, "reason" => reason)
}

/// A socket in the gauge of open ones, until it is dropped.
struct Counted(&'static str);

impl Counted {
    fn new(listener: &'static str) -> Self {
        gauge!("server_connections", "listener" => listener).increment(1);
        Self(listener)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        gauge!("server_connections", "listener" => self.0).decrement(1);
    }
}

fn http() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// A response body that keeps its request in flight.
struct Reply {
    body: Body,
    in_flight: Arc<InFlight>,
}

impl Reply {
    fn new(body: Body, in_flight: Arc<InFlight>) -> Self {
        in_flight.offered(0);
        Self { body, in_flight }
    }
}

impl http_body::Body for Reply {
    type Data = Chunk;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, axum::Error>>> {
        let poll = Pin::new(&mut self.body).poll_frame(cx);
        if poll.is_pending() {
            self.in_flight.working();
        }
        let frame = ready!(poll);
        Poll::Ready(
            frame.map(|frame| {
                Ok(frame?.map_data(|bytes| Chunk::new(bytes, self.in_flight.clone())))
            }),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of a response body, from when hyper takes it until it is written. A body that is one
/// large piece ends long before the client has it.
struct Chunk {
    bytes: Bytes,
    in_flight: Arc<InFlight>,
}

impl Chunk {
    fn new(bytes: Bytes, in_flight: Arc<InFlight>) -> Self {
        in_flight.offered(1);
        Self { bytes, in_flight }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, written: usize) {
        self.bytes.advance(written);
        self.in_flight.wrote();
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.in_flight.taken();
    }
}
