//! Many addresses: those that are one client's are one entry, and those of many fit into memory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use plinth::config::{Config, Environment};
use plinth::middleware::{ClientIp, FloodGuard};
use plinth::ratelimit::{Caller, Limits};
use serde_json::{Value, json};
use tower::{Layer, Service, service_fn};

use crate::alone;
use crate::support::{Engine, TestApp, until};

const NAMES: u32 = 10_000;
const MILLION: u64 = 1_000_000;

/// Both tables that grow with the number of clients.
struct Tables {
    flood_guard: FloodGuard,
    limits: Limits,
}

impl Tables {
    fn new() -> Self {
        let mut config = Config::defaults(Environment::Test);
        config.flood_guard.per_second = 1;
        config.rate_limit.default = "100/10s".parse().unwrap();
        let flood_guard = FloodGuard::new(&config.flood_guard).unwrap();
        Self { flood_guard, limits: Limits::new(&config.rate_limit, None) }
    }

    /// A request from this address; says whether both let it in.
    async fn admit(&self, address: Ipv6Addr) -> bool {
        let client = ClientIp::from(IpAddr::V6(address));
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(client);
        let inner = service_fn(async |_: Request<Body>| {
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        });
        let answer = self.flood_guard.layer().layer(inner).call(request).await.unwrap();
        let caller =
            Caller { principal: None, api_key: None, ip: client.address(), overrides: None };
        let verdict = self.limits.take("default", &caller).await.unwrap();
        answer.status() == StatusCode::OK && verdict.allowed
    }

    fn sizes(&self) -> [usize; 2] {
        [self.flood_guard.tracked(), self.limits.tracked()]
    }
}

/// Over HTTP, through all that is in front of a route.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_ten_thousand_names_is_one_client() {
    let _alone = alone().await;
    let change = |config: &mut Config| config.rate_limit.default = "100/hour".parse().unwrap();
    let app = TestApp::start_with(Engine::Sqlite, change).await.unwrap();
    let next = AtomicU32::new(0);
    let allowed = AtomicU32::new(0);
    let ask = async || {
        while let index @ ..NAMES = next.fetch_add(1, Relaxed) {
            let name = Ipv4Addr::from_bits(0x0100_0000 + index).to_string();
            let request = app.get("/api/v1/plans").header("x-forwarded-for", name);
            match request.send().await.unwrap().status().as_u16() {
                200 => allowed.fetch_add(1, Relaxed),
                429 => 0,
                other => panic!("{other}"),
            };
        }
    };
    tokio::join!(ask(), ask(), ask(), ask());
    let report: Value = app.get("/health").send().await.unwrap().json().await.unwrap();
    let gauges = &report["gauges"];
    println!("{NAMES} addresses in X-Forwarded-For: {} let in, {gauges}", allowed.load(Relaxed));
    assert_eq!(allowed.load(Relaxed), 100);
    assert_eq!((&gauges["flood_guard_clients"], &gauges["quota_entries"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn a_million_addresses_of_one_network_are_one_client() {
    let _alone = alone().await;
    let tables = Tables::new();
    let mut admitted = 0;
    for host in 0..MILLION {
        let address = Ipv6Addr::from_bits(0x2001_0db8_0001_0002 << 64 | u128::from(host));
        admitted += usize::from(tables.admit(address).await);
        if host % 100_000 == 0 {
            assert_eq!(tables.sizes(), [1, 1]);
        }
    }
    println!("a million addresses of one /64: {admitted} requests let in");
    assert!(admitted < 1000, "{admitted}");
}

#[tokio::test]
async fn a_million_clients_fit_into_memory_and_are_forgotten() {
    let _alone = alone().await;
    let tables = Tables::new();
    let before = resident();
    for network in 0..MILLION {
        tables.admit(Ipv6Addr::from_bits(u128::from(network) << 64)).await;
    }
    let (full, sizes) = (resident().saturating_sub(before), tables.sizes());
    until("both are swept", async || tables.sizes().iter().all(|size| *size < 1000)).await;
    let swept = resident().saturating_sub(before);
    let mib = |bytes: u64| bytes / (1 << 20);
    println!("a million clients: {sizes:?} entries, {} MiB; swept, {} MiB", mib(full), mib(swept));
    // Those that came first may have been swept before the last came.
    assert!(sizes.iter().all(|size| *size as u64 > MILLION / 2), "{sizes:?}");
    assert!(mib(full) < 100, "{} MiB", mib(full));
    assert!(swept < full / 2, "{} of {} MiB are left", mib(swept), mib(full));
}

/// The second figure of `/proc/self/statm`, in pages.
fn resident() -> u64 {
    let figures = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = figures.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}
