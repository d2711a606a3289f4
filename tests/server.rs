//! The server's loop over real sockets: what a hostile or a slow client can hold, what a patient
//! one may, and how a drain ends.
//!
//! Time is the subject here, so limits are short, and "closed" means within the limit and `SLACK`.
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]
#![expect(clippy::print_stdout, reason = "`--nocapture` shows the seconds measured")]

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::routing::{get, post};
use futures_util::stream::{self, StreamExt};
use plinth::config::{Config, Environment, ServerConfig};
use plinth::server::{Drained, Listener, Server, Shutdown};
use rustix::process::{Signal, getpid, kill_process};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower_http::timeout::RequestBodyTimeoutLayer;

const LIMIT: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

/// What a client sends before it leaves the server waiting.
struct Attack {
    name: &'static str,
    opening: &'static [u8],
    /// Sent again every 100 ms.
    drip: &'static [u8],
}

const ATTACKS: [Attack; 10] = [
    Attack { name: "connect, send nothing", opening: b"", drip: b"" },
    Attack { name: "partial HTTP/2 preface", opening: b"PRI * HTTP/2.0\r\n\r\nSM", drip: b"" },
    Attack { name: "dribbled request head", opening: b"GET / HTTP/1.1\r\n", drip: b"x" },
    Attack {
        name: "stalled body",
        opening: b"POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\nabc",
        drip: b"",
    },
    Attack {
        name: "body nobody reads",
        opening: b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\nabc",
        drip: b"",
    },
    Attack {
        name: "pipelined, second head unfinished",
        opening: b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HT",
        drip: b"",
    },
    Attack {
        name: "idle HTTP/2, no PING ack",
        opening: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0",
        drip: b"",
    },
    Attack {
        name: "idle HTTP/2 after a request, PINGs of its own",
        opening: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
            \0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01x",
        drip: b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0",
    },
    Attack {
        name: "HTTP/2 head without end (CONTINUATION)",
        opening: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
            \0\0\x06\x01\x01\0\0\0\x01\x82\x86\x84\x41\x01x",
        drip: b"",
    },
    Attack {
        name: "HTTP/2 window of 0 for the response",
        opening: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0\
            \0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01x",
        drip: b"",
    },
];

impl Attack {
    /// Opens the attack and returns how long the server let it stand.
    async fn stands(&self, address: SocketAddr) -> Duration {
        let start = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(self.opening).await.unwrap();
        let (reader, mut writer) = stream.split();
        let drip = async {
            let mut tick = interval(Duration::from_millis(100));
            while !self.drip.is_empty() && writer.write_all(self.drip).await.is_ok() {
                tick.tick().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = drip => unreachable!(),
            () = closed(reader) => {}
        }
        start.elapsed()
    }
}

/// A server in its own task, and what stops it.
struct Running {
    address: SocketAddr,
    shutdown: Shutdown,
    draining: CancellationToken,
    served: JoinHandle<Drained>,
}

impl Running {
    fn start(config: &ServerConfig, app: Router) -> Self {
        let server = Server::bind(Listener::Public, config).unwrap();
        let (address, shutdown) = (server.address(), Shutdown::new());
        let draining = CancellationToken::new();
        let on_drain = draining.clone();
        let served = server.serve(app, shutdown.clone(), move || on_drain.cancel());
        Self { address, shutdown, draining, served: tokio::spawn(served) }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Drains, and returns how that ended and how long it took.
    async fn drain(self) -> (Drained, Duration) {
        let start = Instant::now();
        self.shutdown.drain.cancel();
        (self.served.await.unwrap(), start.elapsed())
    }
}

/// Holds a handler until the test lets it go.
#[derive(Clone, Default)]
struct Gate {
    entered: CancellationToken,
    release: CancellationToken,
}

/// Every limit is `LIMIT`.
fn config() -> ServerConfig {
    ServerConfig {
        port: 0,
        header_timeout: LIMIT,
        idle_timeout: LIMIT,
        write_timeout: LIMIT,
        drain_timeout: LIMIT,
        ..Config::defaults(Environment::Test).server
    }
}

fn app(body_idle: Duration) -> Router {
    Router::new()
        .route("/", get(|| async { "ok" }).post(|| async { "ok" }))
        .route(
            "/peer",
            get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }),
        )
        .route("/upload", post(|body: Bytes| async move { body.len().to_string() }))
        .layer(RequestBodyTimeoutLayer::new(body_idle))
}

fn gated(gate: &Gate) -> Router {
    let gate = gate.clone();
    let handler = || async move {
        gate.entered.cancel();
        gate.release.cancelled().await;
        "released"
    };
    app(LONG).route("/gate", get(handler))
}

/// Sends a request and reads its response, which must have a `content-length`.
async fn exchange(stream: &mut TcpStream, path: &str) -> io::Result<String> {
    send(stream, path).await?;
    receive(stream).await
}

async fn send(stream: &mut TcpStream, path: &str) -> io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await
}

async fn receive(stream: &mut TcpStream) -> io::Result<String> {
    let mut response = String::new();
    while !response.ends_with("\r\n\r\n") {
        response.push(char::from(stream.read_u8().await?));
    }
    let (_, length) = response.split_once("content-length: ").unwrap();
    let mut body = vec![0; length.split_once("\r\n").unwrap().0.parse().unwrap()];
    stream.read_exact(&mut body).await?;
    response.push_str(&String::from_utf8_lossy(&body));
    Ok(response)
}

/// Reads until the server closes, by FIN or by RST.
async fn closed(mut stream: impl AsyncReadExt + Unpin) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}

#[tokio::test]
async fn every_attack_is_closed_in_time() {
    let server = Running::start(&config(), app(LIMIT));
    let stood: Vec<_> = stream::iter(&ATTACKS)
        .map(|attack| async { (attack.name, attack.stands(server.address).await) })
        .buffered(ATTACKS.len())
        .collect()
        .await;
    for (name, stood) in stood {
        println!("{name}: {:.2} s", stood.as_secs_f64());
        assert!(stood < LIMIT + SLACK, "{name}: {stood:?}");
    }
}

#[tokio::test]
async fn every_attack_ends_with_the_drain() {
    let patient =
        ServerConfig { header_timeout: LONG, idle_timeout: LONG, write_timeout: LONG, ..config() };
    let ends = stream::iter(&ATTACKS).map(|attack| async {
        let server = Running::start(&patient, app(LONG));
        let attacker = attack.stands(server.address);
        let drained = async {
            // Accepted in order: once this one is served, the attacker has been let in.
            exchange(&mut server.connect().await, "/").await.unwrap();
            server.drain().await
        };
        let (_, (drained, took)) = tokio::join!(attacker, drained);
        (attack.name, drained, took)
    });
    for (name, drained, took) in ends.buffered(ATTACKS.len()).collect::<Vec<_>>().await {
        println!("{name}: {:.2} s, {drained:?}", took.as_secs_f64());
        assert!(took < LIMIT + SLACK, "{name}: {took:?}");
    }
}

#[tokio::test]
async fn a_tls_client_that_never_shakes_hands_is_closed() {
    let pair = Pair::new("mute");
    let server = Running::start(&pair.config(), app(LIMIT));
    let start = Instant::now();
    closed(server.connect().await).await;
    assert!(start.elapsed() < LIMIT + SLACK, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let dropped = CancellationToken::new();
    let guard = Arc::new(std::sync::Mutex::new(Some(dropped.clone().drop_guard())));
    let handler = || async move {
        let guard = guard.lock().unwrap().take();
        Body::from_stream(stream::repeat_with(move || {
            let _until_dropped = &guard;
            Ok::<_, io::Error>(Bytes::from_static(&[0; 65536]))
        }))
    };
    let server = Running::start(&config(), app(LIMIT).route("/endless", get(handler)));
    let mut stream = server.connect().await;
    send(&mut stream, "/endless").await.unwrap();
    timeout(LIMIT + SLACK, dropped.cancelled()).await.unwrap();
}

#[tokio::test]
async fn keep_alive_has_its_own_limit() {
    let idle = 2 * LIMIT;
    let header = LIMIT / 2;
    let config = ServerConfig { header_timeout: header, idle_timeout: idle, ..config() };
    let server = Running::start(&config, app(LIMIT));
    let mut stream = server.connect().await;
    exchange(&mut stream, "/").await.unwrap();
    sleep(LIMIT).await;
    exchange(&mut stream, "/").await.unwrap();

    let start = Instant::now();
    closed(stream).await;
    let stood = start.elapsed();
    assert!(stood > idle - header && stood < idle + SLACK, "{stood:?}");
}

#[tokio::test]
async fn a_later_head_is_bounded_from_its_first_byte() {
    let server = Running::start(&ServerConfig { idle_timeout: LONG, ..config() }, app(LIMIT));
    let mut stream = server.connect().await;
    exchange(&mut stream, "/").await.unwrap();
    stream.write_all(b"GET").await.unwrap();
    timeout(LIMIT + SLACK, closed(stream)).await.unwrap();
}

#[tokio::test]
async fn slow_work_is_not_cut() {
    let (first, second) = (Bytes::from_static(b"one "), Bytes::from_static(b"two"));
    let slow = || async {
        sleep(2 * LIMIT).await;
        "slow"
    };
    let chunks = move || async {
        let second = stream::once(async {
            sleep(2 * LIMIT).await;
            second
        });
        Body::from_stream(stream::iter([first]).chain(second).map(Ok::<_, io::Error>))
    };
    let app = app(LIMIT).route("/slow", get(slow)).route("/chunks", get(chunks));
    let server = Running::start(&config(), app);
    for client in [reqwest::Client::builder(), reqwest::Client::builder().http2_prior_knowledge()] {
        let client = client.build().unwrap();
        let read = |path| {
            let request = client.get(format!("http://{}{path}", server.address)).send();
            async { request.await.unwrap().text().await.unwrap() }
        };
        let (slow, chunks) = tokio::join!(read("/slow"), read("/chunks"));
        assert_eq!((slow.as_str(), chunks.as_str()), ("slow", "one two"));
    }
}

#[tokio::test]
async fn handlers_know_the_peer() {
    let server = Running::start(&config(), app(LIMIT));
    let mut stream = server.connect().await;
    let response = exchange(&mut stream, "/peer").await.unwrap();
    assert!(response.ends_with(&stream.local_addr().unwrap().to_string()));
}

#[tokio::test]
async fn a_drain_lets_a_request_finish() {
    let gate = Gate::default();
    let server = Running::start(&config(), gated(&gate));
    let (mut busy, mut idle) = (server.connect().await, server.connect().await);
    exchange(&mut idle, "/").await.unwrap();
    send(&mut busy, "/gate").await.unwrap();
    gate.entered.cancelled().await;

    server.shutdown.drain.cancel();
    closed(idle).await;
    assert!(TcpStream::connect(server.address).await.is_err(), "no longer accepting");
    gate.release.cancel();
    let response = receive(&mut busy).await.unwrap();
    assert!(response.contains("connection: close") && response.ends_with("released"), "{response}");
    assert_eq!(server.drain().await.0, Drained { completed: 2, aborted: 0 });
}

#[tokio::test]
async fn a_drain_cuts_what_outlasts_it() {
    let gate = Gate::default();
    let server = Running::start(&config(), gated(&gate));
    let mut stream = server.connect().await;
    send(&mut stream, "/gate").await.unwrap();
    gate.entered.cancelled().await;
    let (drained, took) = server.drain().await;
    assert_eq!(drained, Drained { completed: 0, aborted: 1 });
    assert!(took >= LIMIT && took < LIMIT + SLACK, "{took:?}");
}

#[tokio::test]
async fn the_pre_stop_delay_goes_on_accepting() {
    let server = Running::start(&ServerConfig { pre_stop_delay: LIMIT, ..config() }, app(LIMIT));
    let start = Instant::now();
    server.shutdown.drain.cancel();
    server.draining.cancelled().await;
    exchange(&mut server.connect().await, "/").await.unwrap();
    let _ = server.served.await.unwrap();
    assert!(start.elapsed() >= LIMIT);
}

#[tokio::test]
async fn a_second_signal_forces() {
    let gate = Gate::default();
    let long = ServerConfig { drain_timeout: LONG, pre_stop_delay: LONG, ..config() };
    let server = Running::start(&long, gated(&gate));
    let mut stream = server.connect().await;
    send(&mut stream, "/gate").await.unwrap();
    gate.entered.cancelled().await;

    let signals = Shutdown::on_signals().unwrap();
    kill_process(getpid(), Signal::TERM).unwrap();
    signals.drain.cancelled().await;
    server.shutdown.drain.cancel();
    server.draining.cancelled().await;
    kill_process(getpid(), Signal::TERM).unwrap();
    signals.force.cancelled().await;
    server.shutdown.force.cancel();
    let drained = timeout(SLACK, server.served).await.unwrap().unwrap();
    assert_eq!(drained, Drained { completed: 0, aborted: 1 });
}

#[tokio::test]
async fn over_the_cap_waits_its_turn() {
    let config = ServerConfig { max_connections: 2, idle_timeout: LONG, ..config() };
    let server = Running::start(&config, app(LIMIT));
    let (mut one, mut two) = (server.connect().await, server.connect().await);
    exchange(&mut one, "/").await.unwrap();
    exchange(&mut two, "/").await.unwrap();
    let mut third = server.connect().await;
    send(&mut third, "/").await.unwrap();
    assert!(timeout(LIMIT / 4, third.readable()).await.is_err(), "served over the cap");
    drop(one);
    assert!(receive(&mut third).await.unwrap().ends_with("ok"));
}

#[tokio::test]
async fn http2_is_spoken_in_the_clear_and_over_tls() {
    let clear = Running::start(&config(), app(LIMIT));
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let response = client.get(format!("http://{}/", clear.address)).send().await.unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_2);

    let pair = Pair::new("http2");
    let secure = Running::start(&pair.config(), app(LIMIT));
    let trusted = reqwest::Certificate::from_der(&pair.trusted()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([trusted]).build().unwrap();
    let url = format!("https://localhost:{}/", secure.address.port());
    let response = client.get(url).send().await.unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
    assert_eq!(response.text().await.unwrap(), "ok");
}

#[tokio::test]
async fn a_hangup_takes_the_new_certificate() {
    let pair = Pair::new("hangup");
    let server = Running::start(&pair.config(), app(LIMIT));
    let old = pair.trusted();
    handshake(server.address, &old).await.unwrap();

    pair.renew();
    let new = pair.trusted();
    handshake(server.address, &new).await.unwrap_err();
    kill_process(getpid(), Signal::HUP).unwrap();
    let taken = async { while handshake(server.address, &new).await.is_err() {} };
    timeout(5 * LIMIT, taken).await.unwrap();
    handshake(server.address, &old).await.unwrap_err();
}

/// A certificate and its key, in files.
struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("plinth-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let pair = Self { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
        pair.renew();
        pair
    }

    fn renew(&self) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&self.cert, made.cert.pem()).unwrap();
        std::fs::write(&self.key, made.signing_key.serialize_pem()).unwrap();
    }

    fn config(&self) -> ServerConfig {
        let some = |path: &Path| Some(path.to_owned());
        ServerConfig { tls_cert: some(&self.cert), tls_key: some(&self.key), ..config() }
    }

    fn trusted(&self) -> CertificateDer<'static> {
        use rustls::pki_types::pem::PemObject;
        CertificateDer::from_pem_file(&self.cert).unwrap()
    }
}

/// Succeeds when the server shows exactly this certificate.
async fn handshake(address: SocketAddr, trusted: &CertificateDer<'static>) -> io::Result<()> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await?;
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.map(drop)
}
