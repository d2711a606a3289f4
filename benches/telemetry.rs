//! What telemetry costs a plan read: throughput and latency with everything on, with one trace in ten,
//! with everything on and nobody to take it, and with nothing at all. `make bench`.
//!
//! Each way is a process of its own, since telemetry is a process's. One at a time is asked, in short
//! rounds that take turns, and medians are compared: what else the machine does weighs on all alike.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark is a program for people"
)]

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use plinth::app;
use plinth::config::{Config, Environment, LogFormat, Secret, SecretUrl, TraceSampler};
use plinth::server::Shutdown;
use plinth::telemetry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ROUNDS: usize = 31;
const ROUND: Duration = Duration::from_millis(500);
const CONNECTIONS: usize = 8;

/// Logs, metrics, every trace, and one request in a hundred timed by Sentry; or parts of it.
const WAYS: [&str; 4] = ["off", "on", "one in ten", "blackholed"];

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match &arguments[1..] {
        [mode, way, store, sink] if mode == "serve" => serve(way, store, sink),
        _ => measure(),
    }
}

const EMBEDDED: &str = "SQLite and memory";
const SHARED: &str = "PostgreSQL and Redis";

/// The servers that `make bench` brings.
fn shared_stores() -> Option<(String, String)> {
    Some((std::env::var("TEST_DATABASE_URL").ok()?, std::env::var("TEST_REDIS_URL").ok()?))
}

/// A process that serves until its standard input ends.
fn serve(way: &str, store: &str, sink: &str) {
    let folder = std::env::temp_dir().join(format!("plinth-bench-{}", std::process::id()));
    let mut config = Config::defaults(Environment::Test);
    config.server.port = 0;
    config.rate_limit.default = "1000000000/minute, 1000000000/hour".parse().unwrap();
    config.flood_guard.per_second = 1_000_000_000;
    config.flood_guard.burst = 1_000_000_000;
    config.database.url = SecretUrl::new(format!("sqlite://{}/plinth.db", folder.display()));
    if let Some((database, redis)) = shared_stores().filter(|_| store != EMBEDDED) {
        config.database.url = SecretUrl::new(database);
        config.cache.redis_url = Some(SecretUrl::new(redis));
    }
    config.cache.soft_ttl = Duration::from_secs(3600);
    config.cache.hard_ttl = Duration::from_secs(7200);
    config.log.format = LogFormat::Json;
    config.traces.endpoint = Some(SecretUrl::new(format!("http://{sink}")));
    config.sentry.dsn = Some(Secret::new(format!("http://key@{sink}/1")));
    config.sentry.traces_sample_rate = 0.01;
    if way == "one in ten" {
        config.traces.sampler = TraceSampler::ParentbasedTraceidratio;
        config.traces.sampler_arg = 0.1;
    }
    let telemetry = (way != "off").then(|| telemetry::init(&config).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let service = app::start(&config, &Shutdown::new()).await.unwrap().unwrap();
        // Standard error, because the log has the other.
        eprintln!("{}", service.url);
        let end = || std::io::stdin().read_line(&mut String::new());
        tokio::task::spawn_blocking(end).await.unwrap().unwrap();
    });
    drop(telemetry);
    let _ = std::fs::remove_dir_all(folder);
}

/// A way, up and serving a plan.
struct Server {
    process: Child,
    _until_dropped: ChildStdin,
    request: String,
    connections: Vec<TcpStream>,
    figures: Vec<Figures>,
}

/// Of one round.
#[derive(Clone, Copy)]
struct Figures {
    per_second: f64,
    p99_ms: f64,
    cpu_us: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn measure() {
    let taker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taker.local_addr().unwrap().to_string();
    let take = Router::new().fallback(post(async |_: Bytes| "{}"));
    tokio::spawn(async { axum::serve(taker, take).await });
    // Takes connections, and never reads.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let muted = mute.local_addr().unwrap().to_string();

    compare(EMBEDDED, &taken, &muted).await;
    if shared_stores().is_some() {
        compare(SHARED, &taken, &muted).await;
    }
}

async fn compare(store: &str, taken: &str, muted: &str) {
    let mut servers = Vec::new();
    for way in WAYS {
        let sink = if way == "blackholed" { muted } else { taken };
        servers.push(Server::start(way, store, sink).await);
    }
    for round in 0..=ROUNDS {
        for server in &mut servers {
            let figures = server.round().await;
            // The first is to warm up.
            if round > 0 {
                server.figures.push(figures);
            }
        }
    }
    println!(
        "a plan read, {store}; medians of {ROUNDS} rounds of {ROUND:?}, {CONNECTIONS} connections:"
    );
    let off = servers[0].median();
    for (way, server) in WAYS.iter().zip(&servers) {
        let figures = server.median();
        println!(
            "  {way:10} {:7.0} requests/s ({:.2}), p99 {:.2} ms ({:.2}), {:.1} µs CPU ({:.2})",
            figures.per_second,
            figures.per_second / off.per_second,
            figures.p99_ms,
            figures.p99_ms / off.p99_ms,
            figures.cpu_us,
            figures.cpu_us / off.cpu_us,
        );
    }
    let (on, blackholed) = (servers[1].median(), servers[3].median());
    println!("  blackholed beside on: p99 {:.2}", blackholed.p99_ms / on.p99_ms);
}

impl Server {
    async fn start(way: &str, store: &str, sink: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["serve", way, store, sink])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(process.stderr.take().unwrap()).read_line(&mut url).unwrap();
        let address = url.trim().strip_prefix("http://").unwrap().to_owned();
        let plan = json!({"name": "A plan", "start_date": "2027-03-01", "end_date": "2027-05-31"});
        let created = reqwest::Client::new().post(format!("http://{address}/api/v1/plans"));
        let plan: Value = created.json(&plan).send().await.unwrap().json().await.unwrap();
        let path = format!("/api/v1/plans/{}", plan["id"].as_str().unwrap());
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(TcpStream::connect(&address).await.unwrap());
        }
        let _until_dropped = process.stdin.take().unwrap();
        Self { process, _until_dropped, request, connections, figures: Vec::new() }
    }

    async fn round(&mut self) -> Figures {
        let (begun, cpu) = (Instant::now(), self.cpu());
        let request = self.request.as_bytes();
        let asking = self.connections.iter_mut().map(|connection| ask(connection, request, begun));
        let times = futures_util::future::join_all(asking).await;
        let elapsed = begun.elapsed().as_secs_f64();
        let mut times: Vec<f64> = times.into_iter().flatten().collect();
        times.sort_by(f64::total_cmp);
        let requests = times.len() as f64;
        Figures {
            per_second: requests / elapsed,
            p99_ms: times[(times.len() * 99) / 100],
            cpu_us: (self.cpu() - cpu).as_secs_f64() * 1e6 / requests,
        }
    }

    /// The process's own time on any processor, from `/proc`, in ticks of 10 ms.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    fn median(&self) -> Figures {
        let of = |figure: fn(&Figures) -> f64| {
            let mut values: Vec<_> = self.figures.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Figures {
            per_second: of(|f| f.per_second),
            p99_ms: of(|f| f.p99_ms),
            cpu_us: of(|f| f.cpu_us),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks one after the other until the round is over; how long each took, in ms.
async fn ask(connection: &mut TcpStream, request: &[u8], begun: Instant) -> Vec<f64> {
    let (mut times, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    while begun.elapsed() < ROUND {
        let start = Instant::now();
        connection.write_all(request).await.unwrap();
        read_answer(connection, &mut buffer).await;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times
}

/// A whole answer: its head, and as much as that says.
async fn read_answer(connection: &mut TcpStream, buffer: &mut [u8]) {
    let mut held = 0;
    loop {
        let read = connection.read(&mut buffer[held..]).await.unwrap();
        assert!(read > 0, "the service left");
        held += read;
        let text = std::str::from_utf8(&buffer[..held]).unwrap();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.unwrap().parse().unwrap() {
                return;
            }
        }
    }
}
