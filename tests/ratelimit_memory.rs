//! What a million callers cost, in a process of its own so that nothing else is measured.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use plinth::config::RateLimitConfig;
use plinth::ratelimit::{Caller, Limits};

const MIB: usize = 1 << 20;

/// Memory that this process holds.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

#[tokio::test]
async fn a_million_callers_take_less_than_60_mib_and_give_it_back() {
    let config =
        RateLimitConfig { default: "2/second".parse().unwrap(), ..RateLimitConfig::default() };
    let limits = Limits::new(&config, None);
    let before = resident();
    for address in 0..1_000_000 {
        let ip = IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + address));
        let caller = Caller { principal: None, api_key: None, ip, overrides: None };
        assert!(limits.take("default", &caller).await.unwrap().allowed);
    }
    assert_eq!(limits.tracked(), 1_000_000);
    let grown = resident() - before;
    eprintln!("a million windows take {} MiB", grown / MIB);
    assert!(grown < 60 * MIB, "{} MiB", grown / MIB);

    let start = Instant::now();
    while limits.tracked() > 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "{} are left", limits.tracked());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let kept = resident().saturating_sub(before);
    eprintln!("swept, {} MiB", kept / MIB);
    assert!(kept < grown / 2, "{} MiB of {}", kept / MIB, grown / MIB);
}
