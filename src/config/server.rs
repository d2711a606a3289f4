//! The listener, its limits and its shutdown.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Environment;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address to listen on.
    pub bind: IpAddr,
    /// Port to listen on; `0` lets the system choose. Also `PORT`.
    pub port: u16,
    /// The origin clients use, such as `https://api.example.com`; for links in the API document.
    pub public_url: Option<String>,
    /// Networks of proxies that are believed when they say whom they forward for, as CIDRs.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they say it. The other one is the client's own word: a proxy passes on
    /// what it does not write.
    pub forwarded_header: ForwardedHeader,
    /// Longest a handler may take before its request is answered with 504.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Largest request body; larger is 413.
    #[serde(serialize_with = "super::size::exact")]
    pub body_limit: ByteSize,
    /// Longest pause between two pieces of a request body; longer is 408.
    #[serde(with = "humantime_serde")]
    pub body_idle_timeout: Duration,
    /// Longest a whole request body may take to arrive; longer is 408. It is part of the request's
    /// time, so it must be below `request_timeout`.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// Longest from the first byte of a request's head to its last, the TLS handshake and the
    /// first head of a new connection included.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// Longest a connection may stay open with no request in flight. Keep it above the idle
    /// timeout of a balancer in front (60 s is usual), or the balancer sees 502s.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Longest sent data may stay unacknowledged before the connection is dropped.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// Connections open at once; more wait in the kernel's backlog.
    pub max_connections: usize,
    /// Requests worked on at once, probes apart; more are 503.
    pub max_in_flight: usize,
    /// Of these, one client address's.
    pub max_in_flight_per_client: usize,
    /// Longest a request waits for its turn before it is that 503.
    #[serde(with = "humantime_serde")]
    pub queue_timeout: Duration,
    /// How long to go on accepting after SIGTERM, while balancers notice that we are not ready.
    #[serde(with = "humantime_serde")]
    pub pre_stop_delay: Duration,
    /// How long requests in flight may take to finish after that, before they are cut.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// PEM certificate chain; with `tls_key`, serves HTTPS. Read again on SIGHUP.
    pub tls_cert: Option<PathBuf>,
    /// PEM private key of `tls_cert`.
    pub tls_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    XForwardedFor,
    /// RFC 7239
    Forwarded,
}

impl ServerConfig {
    pub(super) fn defaults(env: Environment) -> Self {
        Self {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8080,
            public_url: None,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::XForwardedFor,
            request_timeout: Duration::from_secs(30),
            body_limit: ByteSize::kib(256),
            body_idle_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(20),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            max_connections: 10_000,
            max_in_flight: 256,
            max_in_flight_per_client: 64,
            queue_timeout: Duration::from_millis(25),
            pre_stop_delay: match env {
                Environment::Production => Duration::from_secs(5),
                Environment::Development | Environment::Test => Duration::ZERO,
            },
            drain_timeout: Duration::from_secs(20),
            tls_cert: None,
            tls_key: None,
        }
    }

    /// Where to listen.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.bind, self.port)
    }
}
