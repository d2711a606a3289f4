//! Who is counted, and who is not.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::config::{KeyBy, Policies};

/// Who makes a request.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// `key:ci` or `user:alice`; `None` of an anonymous caller.
    pub principal: Option<&'a str>,
    /// The id of the API key that was presented.
    pub api_key: Option<&'a str>,
    /// The client's address; of an IPv6 address, its /64 counts.
    pub ip: IpAddr,
    /// The principal's own limits, by class.
    pub overrides: Option<&'a BTreeMap<String, Policies>>,
}

/// Whose requests are counted together. As text, no two are alike.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject<'a> {
    Principal(&'a str),
    ApiKey(&'a str),
    Ip(IpAddr),
}

/// Who has no quota.
pub(super) struct Exempt {
    networks: Vec<IpNet>,
    principals: HashSet<String>,
}

impl<'a> Subject<'a> {
    pub(super) fn of(caller: &Caller<'a>, key: KeyBy) -> Self {
        let Caller { principal, api_key, ip, overrides: _ } = *caller;
        let ip = Self::Ip(counted_ip(ip));
        let principal = principal.map(Self::Principal);
        match key {
            KeyBy::Principal => principal.unwrap_or(ip),
            KeyBy::ApiKey => api_key.map(Self::ApiKey).or(principal).unwrap_or(ip),
            KeyBy::Ip => ip,
        }
    }
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(id) => write!(f, "principal:{id}"),
            Self::ApiKey(id) => write!(f, "api_key:{id}"),
            Self::Ip(ip) => write!(f, "ip:{ip}"),
        }
    }
}

impl Exempt {
    /// Entries are networks, addresses or principals.
    pub(super) fn new(entries: &[String]) -> Self {
        let (mut networks, mut principals) = (Vec::new(), HashSet::new());
        for entry in entries {
            match entry.parse().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from)) {
                Ok(network) => networks.push(network),
                Err(_) => drop(principals.insert(entry.clone())),
            }
        }
        Self { networks, principals }
    }

    pub(super) fn covers(&self, caller: &Caller<'_>) -> bool {
        let ip = caller.ip.to_canonical();
        self.networks.iter().any(|network| network.contains(&ip))
            || caller.principal.is_some_and(|principal| self.principals.contains(principal))
    }
}

/// An IPv6 client has a whole /64 to choose its address from.
fn counted_ip(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller<'a>(principal: Option<&'a str>, api_key: Option<&'a str>, ip: &str) -> Caller<'a> {
        Caller { principal, api_key, ip: ip.parse().unwrap(), overrides: None }
    }

    #[test]
    fn a_class_says_whose_requests_are_counted_together() {
        let known = caller(Some("user:alice"), Some("k1"), "203.0.113.7");
        let keyless = caller(Some("user:alice"), None, "203.0.113.7");
        let anonymous = caller(None, None, "203.0.113.7");
        for (key, of_known, of_keyless) in [
            (KeyBy::Principal, "principal:user:alice", "principal:user:alice"),
            (KeyBy::ApiKey, "api_key:k1", "principal:user:alice"),
            (KeyBy::Ip, "ip:203.0.113.7", "ip:203.0.113.7"),
        ] {
            assert_eq!(Subject::of(&known, key).to_string(), of_known);
            assert_eq!(Subject::of(&keyless, key).to_string(), of_keyless);
            assert_eq!(Subject::of(&anonymous, key).to_string(), "ip:203.0.113.7");
        }
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        let of = |ip| Subject::of(&caller(None, None, ip), KeyBy::Ip).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "ip:2001:db8:1:2::");
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:203.0.113.7"), "ip:203.0.113.7");
    }

    #[test]
    fn networks_addresses_and_principals_are_exempt() {
        let entries = ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "key:ci"].map(String::from);
        let exempt = Exempt::new(&entries);
        let by_ip = |ip| exempt.covers(&caller(None, None, ip));
        assert!(["10.1.2.3", "::ffff:10.1.2.3", "192.0.2.1", "2001:db8::1"].into_iter().all(by_ip));
        assert!(!["11.1.2.3", "192.0.2.2", "2001:db9::1"].into_iter().any(by_ip));
        let by_principal = |id| exempt.covers(&caller(Some(id), None, "203.0.113.7"));
        assert!(by_principal("key:ci"));
        assert!(!by_principal("key:c") && !by_principal("10.0.0.0/8/"));
    }
}
