//! Who a request comes from, the one identity that logs, limits and Sentry know a client by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use ipnet::IpNet;

use crate::config::{ForwardedHeader, ServerConfig};

/// A client's address. Of IPv6 only the first 64 bits are kept: the rest a host chooses itself, and
/// one that could choose its identity would have any number of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientIp(IpAddr);

/// Marks a request that came from a trusted proxy.
#[derive(Debug, Clone, Copy)]
pub(super) struct FromProxy;

/// The peer of a request that came over no socket.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Whom to believe, and in which header.
pub(super) struct Proxies {
    trusted: Vec<IpNet>,
    header: ForwardedHeader,
}

impl ClientIp {
    pub fn address(self) -> IpAddr {
        self.0
    }

    /// Of a request that this layer has seen; handlers take it as an `Extension`.
    pub fn of(request: &Request) -> Self {
        request.extensions().get().copied().unwrap_or(Self(UNKNOWN))
    }
}

impl From<IpAddr> for ClientIp {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(ip) if !ip.is_loopback() => {
                let network = ip.to_bits() & !u128::from(u64::MAX);
                Self(Ipv6Addr::from_bits(network).into())
            }
            ip => Self(ip),
        }
    }
}

impl Proxies {
    pub(super) fn new(config: &ServerConfig) -> Self {
        Self { trusted: config.trusted_proxies.clone(), header: config.forwarded_header }
    }

    /// The socket's peer, unless that is a trusted proxy: then the header is walked from the right,
    /// past trusted hops, since everything further left is the client's own claim.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let name = match self.header {
            ForwardedHeader::XForwardedFor => "x-forwarded-for",
            ForwardedHeader::Forwarded => "forwarded",
        };
        let values = headers.get_all(name).iter().rev();
        let mut hops = values.flat_map(|v| from_the_right(v.to_str().unwrap_or_default(), ','));
        while self.trusts(client) {
            match hops.next().and_then(|hop| self.address(hop)) {
                Some(further) => client = further,
                None => break,
            }
        }
        client
    }

    /// Of a canonical address.
    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&address))
    }

    fn address(&self, hop: &str) -> Option<IpAddr> {
        match self.header {
            ForwardedHeader::XForwardedFor => address(hop),
            ForwardedHeader::Forwarded => from_the_right(hop, ';').find_map(|parameter| {
                let (name, value) = parameter.split_once('=')?;
                name.trim().eq_ignore_ascii_case("for").then(|| address(value))?
            }),
        }
    }
}

pub(super) async fn client_ip(
    State(proxies): State<Arc<Proxies>>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    let client = peer.map_or(UNKNOWN, |peer| proxies.client(peer, request.headers()));
    if peer.is_some_and(|peer| proxies.trusts(peer.to_canonical())) {
        request.extensions_mut().insert(FromProxy);
    }
    request.extensions_mut().insert(ClientIp::from(client));
    next.run(request).await
}

/// The parts of a list, last first; a separator in quotes is text. Read from the right because that
/// end is a proxy's work: a quote that the client leaves open further left then hides nothing.
fn from_the_right(list: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut rest = Some(list);
    std::iter::from_fn(move || {
        let list = rest?;
        let mut quoted = false;
        let start = list.char_indices().rev().find_map(|(at, c)| {
            quoted ^= c == '"' && !is_escaped(&list[..at]);
            (c == separator && !quoted).then_some(at)
        });
        rest = start.map(|at| &list[..at]);
        Some(start.map_or(list, |at| &list[at + 1..]))
    })
}

/// Whether what follows this is a character in a quoted string, by the backslash in front of it: one
/// that is not itself escaped.
fn is_escaped(before: &str) -> bool {
    before.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

/// An address as RFC 7239 and the proxies write it: with or without quotes, brackets and port.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().or_else(|_| text.parse().map(|address: SocketAddr| address.ip()));
    ip.ok().map(|ip: IpAddr| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(header: ForwardedHeader, peer: &str, forwarded: &[&str]) -> String {
        let trusted = vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let name = match header {
            ForwardedHeader::XForwardedFor => "x-forwarded-for",
            ForwardedHeader::Forwarded => "forwarded",
        };
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(name, value.parse().unwrap());
        }
        Proxies { trusted, header }.client(peer.parse().unwrap(), &headers).to_string()
    }

    fn by_list(peer: &str, forwarded: &[&str]) -> String {
        seen(ForwardedHeader::XForwardedFor, peer, forwarded)
    }

    fn by_rfc_7239(peer: &str, forwarded: &[&str]) -> String {
        seen(ForwardedHeader::Forwarded, peer, forwarded)
    }

    #[test]
    fn a_stranger_cannot_choose_its_address() {
        assert_eq!(by_list("203.0.113.7", &["198.51.100.1"]), "203.0.113.7");
        assert_eq!(by_list("10.0.0.1", &["1.1.1.1, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(by_rfc_7239("203.0.113.7", &["for=198.51.100.1"]), "203.0.113.7");
        assert_eq!(by_rfc_7239("10.0.0.1", &["for=1.1.1.1, for=198.51.100.1"]), "198.51.100.1");
    }

    #[test]
    fn trusted_hops_are_walked_from_the_right_over_all_headers() {
        assert_eq!(
            by_list("10.0.0.1", &["1.1.1.1", "198.51.100.1:5000, 10.2.2.2"]),
            "198.51.100.1"
        );
        assert_eq!(by_list("::1", &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(by_list("::ffff:10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        let hops = ["for=1.1.1.1", "for=\"198.51.100.1:5000\";proto=https, by=x;For=10.2.2.2"];
        assert_eq!(by_rfc_7239("10.0.0.1", &hops), "198.51.100.1");
        assert_eq!(by_rfc_7239("::1", &["for=\"[2001:db8::1]\""]), "2001:db8::1");
    }

    #[test]
    fn garbage_ends_the_walk_at_the_last_address_known() {
        assert_eq!(by_list("10.0.0.1", &["198.51.100.1, nonsense"]), "10.0.0.1");
        assert_eq!(by_list("10.0.0.1", &[]), "10.0.0.1");
        for hidden in ["for=unknown", "for=_hidden", "proto=https", ""] {
            assert_eq!(by_rfc_7239("10.0.0.1", &[hidden]), "10.0.0.1");
        }
    }

    #[test]
    fn quotes_hide_nothing_that_a_proxy_wrote() {
        for forwarded in [
            "for=\"1.1.1.1, for=198.51.100.1",
            "for=198.51.100.1;host=\"a,for=1.1.1.1\"",
            "for=198.51.100.1;host=\"a;for=1.1.1.1\"",
            "for=198.51.100.1;host=\"\\\",for=1.1.1.1\"",
            "for=1.1.1.1;x=\", for=198.51.100.1;host=\"a\\\\\"",
            "for=198.51.100.1;host=\"a\\\\\"",
        ] {
            assert_eq!(by_rfc_7239("10.0.0.1", &[forwarded]), "198.51.100.1", "{forwarded}");
        }
    }

    #[test]
    fn hosts_of_one_network_are_one_client() {
        let client = |ip: &str| ClientIp::from(ip.parse::<IpAddr>().unwrap()).address().to_string();
        assert_eq!(client("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(client("2001:db8:1:2::"), "2001:db8:1:2::");
        assert_eq!(client("::ffff:198.51.100.1"), "198.51.100.1");
        assert_eq!(client("::1"), "::1");
    }
}
