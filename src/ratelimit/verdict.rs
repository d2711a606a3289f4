//! What came of a request's count, as the client is told.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::class::Window;
use crate::config::Policy;
use crate::error::{Error, whole_seconds};

/// What is left in each window: draft-ietf-httpapi-ratelimit-headers-10.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The policies, from the same draft.
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The quota of the window with the least left, for clients that know only these older names.
const X_RATE_LIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");

/// What is left of it.
const X_RATE_LIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");

/// When it is whole again, in Unix seconds.
const X_RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// All that [`Verdict::write_headers`] may write.
pub const HEADERS: [HeaderName; 5] =
    [RATE_LIMIT, RATE_LIMIT_POLICY, X_RATE_LIMIT_LIMIT, X_RATE_LIMIT_REMAINING, X_RATE_LIMIT_RESET];

/// When to come back to a store that does not answer.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Whether a request may go on, and what its caller has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Refused, it has been counted nowhere.
    pub allowed: bool,
    /// Shortest first.
    pub windows: Vec<WindowState>,
}

/// A caller's window after its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowState {
    /// `default-minute`, `default-15-minutes`: as clients know the policy.
    pub name: Arc<str>,
    pub policy: Policy,
    /// Requests that still fit into it.
    pub remaining: u32,
    /// Until the window ends; of one that has not begun, its length.
    pub reset: Duration,
}

impl Verdict {
    /// Whether one more request fits into every window.
    pub(super) fn before_counting(windows: Vec<WindowState>) -> Self {
        Self { allowed: windows.iter().all(|window| window.remaining > 0), windows }
    }

    /// Refused unseen, for want of Redis.
    pub(super) fn denied(windows: &[Window]) -> Self {
        let spent = |window: &Window| WindowState {
            reset: STORE_RETRY,
            ..window.with_count(window.policy.quota, None)
        };
        Self { allowed: false, windows: windows.iter().map(spent).collect() }
    }

    /// Tells the client what it has left, whether it was refused or not.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        let (mut policies, mut states) = (String::new(), String::new());
        for WindowState { name, policy, remaining, reset } in &self.windows {
            let comma = if policies.is_empty() { "" } else { ", " };
            let (quota, window) = (policy.quota, policy.window.as_secs());
            // Writing to a string does not fail.
            let _ = write!(policies, "{comma}\"{name}\";q={quota};w={window}");
            let seconds = whole_seconds(*reset);
            let _ = write!(states, "{comma}\"{name}\";r={remaining};t={seconds}");
        }
        // A class's name may be one that no header can hold.
        headers.extend(HeaderValue::try_from(policies).map(|text| (RATE_LIMIT_POLICY, text)));
        headers.extend(HeaderValue::try_from(states).map(|text| (RATE_LIMIT, text)));
        if let Some(tightest) = self.tightest() {
            headers.insert(X_RATE_LIMIT_LIMIT, tightest.policy.quota.into());
            headers.insert(X_RATE_LIMIT_REMAINING, tightest.remaining.into());
            headers.insert(X_RATE_LIMIT_RESET, unix_seconds(tightest.reset).into());
        }
    }

    /// The error of a request that was refused: it names the policies that are used up, and no
    /// earlier time than the last of them needs.
    pub fn refusal(&self) -> Error {
        let used_up = || self.windows.iter().filter(|window| window.remaining == 0);
        Error::TooManyRequests {
            policies: used_up().map(|window| window.name.to_string()).collect(),
            retry_after: used_up().map(|window| window.reset).max().unwrap_or_default(),
        }
    }

    /// The window with the least left; of several, the one that ends last.
    fn tightest(&self) -> Option<&WindowState> {
        self.windows.iter().min_by_key(|window| (window.remaining, std::cmp::Reverse(window.reset)))
    }
}

impl Window {
    /// `left` is what is left of its time, `None` when it has not begun.
    pub(super) fn with_count(&self, count: u32, left: Option<Duration>) -> WindowState {
        let Policy { quota, window } = self.policy;
        WindowState {
            name: self.name.clone(),
            policy: self.policy,
            remaining: quota.saturating_sub(count),
            // Stores round a window's end up; clients need not hear of the odd millisecond.
            reset: left.map_or(window, |left| left.min(window)),
        }
    }
}

fn unix_seconds(from_now: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    whole_seconds(now + from_now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(name: &str, policy: &str, remaining: u32, reset_ms: u64) -> WindowState {
        WindowState {
            name: name.into(),
            policy: policy.parse().unwrap(),
            remaining,
            reset: Duration::from_millis(reset_ms),
        }
    }

    fn verdict(windows: &[WindowState]) -> Verdict {
        Verdict::before_counting(windows.to_vec())
    }

    fn headers(windows: &[WindowState]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        verdict(windows).write_headers(&mut headers);
        headers
    }

    #[test]
    fn headers_are_the_drafts_with_times_rounded_up() {
        let headers = headers(&[
            state("default-minute", "100/minute", 99, 41_001),
            state("default-hour", "1000/hour", 7, 3_600_000),
        ]);
        assert_eq!(
            headers[RATE_LIMIT_POLICY],
            "\"default-minute\";q=100;w=60, \"default-hour\";q=1000;w=3600"
        );
        assert_eq!(
            headers[RATE_LIMIT],
            "\"default-minute\";r=99;t=42, \"default-hour\";r=7;t=3600"
        );
        assert_eq!(headers[X_RATE_LIMIT_LIMIT], "1000");
        assert_eq!(headers[X_RATE_LIMIT_REMAINING], "7");
        assert_eq!(headers.len(), HEADERS.len());
    }

    #[test]
    fn the_older_headers_show_the_window_that_ends_last_of_those_with_least_left() {
        let before = unix_seconds(Duration::from_secs(600));
        let headers = headers(&[
            state("a-minute", "10/minute", 0, 60_000),
            state("a-hour", "20/hour", 0, 600_000),
            state("a-day", "30/day", 1, 86_400_000),
        ]);
        assert_eq!(headers[X_RATE_LIMIT_LIMIT], "20");
        let reset = headers[X_RATE_LIMIT_RESET].to_str().unwrap().parse::<u64>().unwrap();
        assert!((before..=unix_seconds(Duration::from_secs(600))).contains(&reset), "{reset}");
    }

    #[test]
    fn a_refusal_names_what_is_used_up_and_waits_for_the_last_of_it() {
        let verdict = verdict(&[
            state("a-second", "1/second", 0, 900),
            state("a-minute", "10/minute", 0, 30_000),
            state("a-hour", "100/hour", 5, 3_000_000),
        ]);
        assert!(!verdict.allowed);
        let Error::TooManyRequests { policies, retry_after } = verdict.refusal() else {
            panic!("another error")
        };
        assert_eq!(policies, ["a-second", "a-minute"]);
        assert_eq!(retry_after, Duration::from_secs(30));
    }
}
