//! Quotas: how often a caller may call, by class of route.
//!
//! A class has policies, such as `10/second, 100/minute`, that hold all at once. A window begins
//! with a caller's first request after its last window ended. All windows of a class are looked at
//! before any is counted in, in one step: a refused request costs nothing.
//!
//! Counts are kept in Redis, where all processes share them, and in this process's memory without
//! Redis or while it is away. A store that fails never fails a request: the class says whether it
//! is then counted here, refused or let through.

mod caller;
mod class;
mod memory;
mod shared;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

pub use caller::Caller;
pub use verdict::{HEADERS, Verdict, WindowState};

use crate::config::{OnStoreFailure, RateLimitConfig};
use crate::redis::Redis;
use caller::{Exempt, Subject};
use class::Class;
use memory::Memory;
use shared::Shared;

/// How often memory is cleared of windows that have ended.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The quotas' handle. Cheap to clone.
#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    enabled: bool,
    default: Class,
    others: Vec<Class>,
    exempt: Exempt,
    memory: Memory,
    shared: Option<Shared>,
}

/// What a look at a caller's windows counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cost {
    Nothing,
    OneRequest,
}

impl Limits {
    /// Counts in Redis when there is one. Needs a Tokio runtime: a task sweeps the memory until
    /// the last handle is dropped.
    pub fn new(config: &RateLimitConfig, redis: Option<Arc<Redis>>) -> Self {
        let (default, others) = class::all(config);
        let limits = Self(Arc::new(Inner {
            enabled: config.enabled,
            default,
            others,
            exempt: Exempt::new(&config.exempt),
            memory: Memory::new(),
            shared: redis.map(Shared::new),
        }));
        limits.sweep_for_life();
        limits
    }

    /// The classes there are, built in and configured.
    pub fn classes(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.0.default).chain(&self.0.others).map(Class::name)
    }

    /// Counts one request, unless it is refused. A class that is not there is `default`. `None`
    /// lets it through uncounted: there are no limits, none for this caller, or Redis is away and
    /// the class lets requests through meanwhile.
    pub async fn take(&self, class: &str, caller: &Caller<'_>) -> Option<Verdict> {
        let verdict = self.look(class, caller, Cost::OneRequest).await;
        self.class(class).decided(verdict.as_ref());
        verdict
    }

    /// What [`Limits::take`] would say, without counting.
    pub async fn peek(&self, class: &str, caller: &Caller<'_>) -> Option<Verdict> {
        self.look(class, caller, Cost::Nothing).await
    }

    /// Windows in memory, a gauge.
    pub fn tracked(&self) -> usize {
        self.0.memory.len()
    }

    async fn look(&self, class: &str, caller: &Caller<'_>, cost: Cost) -> Option<Verdict> {
        let Inner { enabled, exempt, memory, shared, .. } = &*self.0;
        if !enabled || exempt.covers(caller) {
            return None;
        }
        let class = self.class(class);
        let subject = Subject::of(caller, class.key);
        // A principal's own limits are no limits for others who come from the same address.
        let overrides = caller.overrides.filter(|_| !matches!(subject, Subject::Ip(_)));
        let windows = class.windows(overrides);
        if let Some(shared) = shared {
            if let Some(verdict) = shared.look(class.name(), &subject, &windows, cost).await {
                return Some(verdict);
            }
            match class.on_store_failure {
                OnStoreFailure::Local => {}
                OnStoreFailure::Deny => return Some(Verdict::denied(&windows)),
                OnStoreFailure::Allow => return None,
            }
        }
        Some(memory.look(class.name(), &subject, &windows, cost, memory.now()))
    }

    fn class(&self, name: &str) -> &Class {
        self.0.others.iter().find(|class| class.name() == name).unwrap_or(&self.0.default)
    }

    fn sweep_for_life(&self) {
        let limits = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_INTERVAL).await;
                let Some(inner) = limits.upgrade() else { return };
                inner.memory.sweep(inner.memory.now()).await;
            }
        });
    }
}

impl Cost {
    fn requests(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::OneRequest => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr};

    use crate::config::{ClassConfig, KeyBy};

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

    fn user(principal: &str) -> Caller<'_> {
        Caller { principal: Some(principal), api_key: None, ip: ADDRESS, overrides: None }
    }

    fn limits(change: impl FnOnce(&mut RateLimitConfig)) -> Limits {
        let mut config =
            RateLimitConfig { default: "2/minute".parse().unwrap(), ..RateLimitConfig::default() };
        change(&mut config);
        Limits::new(&config, None)
    }

    async fn left(limits: &Limits, class: &str, caller: &Caller<'_>) -> u32 {
        limits.peek(class, caller).await.unwrap().windows[0].remaining
    }

    #[tokio::test]
    async fn as_many_as_the_limit_are_allowed_and_a_peek_is_free() {
        let limits = limits(|_| {});
        let (alice, bob) = (user("user:alice"), user("user:bob"));
        for left in [1, 0] {
            assert!(limits.peek("default", &alice).await.unwrap().allowed);
            let verdict = limits.take("default", &alice).await.unwrap();
            assert_eq!((verdict.allowed, verdict.windows[0].remaining), (true, left));
        }
        assert!(!limits.peek("default", &alice).await.unwrap().allowed);
        let refused = limits.take("default", &alice).await.unwrap();
        assert!(!refused.allowed);
        assert!(refused.windows[0].reset > Duration::from_secs(50));
        assert_eq!(left(&limits, "default", &bob).await, 2, "another's is untouched");
        assert_eq!(left(&limits, "strict", &alice).await, 3, "so is another class's");
        assert_eq!(limits.tracked(), 1);
    }

    #[tokio::test]
    async fn classes_are_the_built_in_and_the_configured_and_else_default() {
        let limits = limits(|config| {
            let limit = Some("7/hour".parse().unwrap());
            let strict = ClassConfig { key: Some(KeyBy::Ip), ..ClassConfig::default() };
            let export = ClassConfig { limit, ..ClassConfig::default() };
            config.classes = BTreeMap::from([("export".into(), export), ("strict".into(), strict)]);
        });
        let classes: Vec<_> = limits.classes().collect();
        assert_eq!(classes, ["default", "auth", "strict", "export"]);
        assert_eq!(left(&limits, "export", &user("user:alice")).await, 7);
        limits.take("no such class", &user("user:alice")).await.unwrap();
        assert_eq!(left(&limits, "default", &user("user:alice")).await, 1);
        limits.take("strict", &user("user:alice")).await.unwrap();
        assert_eq!(left(&limits, "strict", &user("user:bob")).await, 2, "of the same address");
    }

    #[tokio::test]
    async fn a_principal_may_have_limits_of_its_own() {
        let limits = limits(|_| {});
        let overrides = BTreeMap::from([("default".to_owned(), "9/hour".parse().unwrap())]);
        let alice = Caller { overrides: Some(&overrides), ..user("user:alice") };
        let verdict = limits.take("default", &alice).await.unwrap();
        let [window] = &verdict.windows[..] else { panic!("{verdict:?}") };
        assert_eq!((&*window.name, window.remaining), ("default-hour", 8));
        assert_eq!(left(&limits, "strict", &alice).await, 3);
    }

    #[tokio::test]
    async fn nobody_is_counted_who_is_exempt_and_none_when_limits_are_off() {
        let exempt = limits(|config| config.exempt = vec!["user:alice".into()]);
        assert_eq!(exempt.take("default", &user("user:alice")).await, None);
        assert!(exempt.take("default", &user("user:bob")).await.is_some());
        let off = limits(|config| config.enabled = false);
        assert_eq!(off.take("default", &user("user:bob")).await, None);
    }
}
