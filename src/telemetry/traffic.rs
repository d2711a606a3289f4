//! The last five minutes of this process, for its status page: how many requests, how many failed,
//! how long they took, and which to look at.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Serialize;

/// What one sample stands for.
pub const INTERVAL: Duration = Duration::from_secs(5);

const SAMPLES: usize = 60;
const ERRORS: usize = 20;
const SLOWEST: usize = 10;

/// Times are counted in classes, each 15 % longer than the one before: a percentile is that exact.
const GROWTH: f64 = 1.15;
const SHORTEST: f64 = 0.000_01;
const CLASSES: usize = 112;

static TRAFFIC: LazyLock<Mutex<Traffic>> = LazyLock::new(|| Mutex::new(Traffic::new()));

/// A request that was answered, or given up.
#[derive(Debug, Clone, Serialize)]
pub struct RequestSummary {
    pub at: DateTime<Utc>,
    pub method: String,
    /// The route's template.
    pub route: String,
    pub status: u16,
    /// What the problem document called it; none where it did not fail.
    pub code: Option<String>,
    pub duration_ms: f64,
    pub error_id: Option<String>,
    pub request_id: String,
    pub trace_id: Option<String>,
}

/// One interval.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Sample {
    /// When it began.
    pub at: DateTime<Utc>,
    pub requests: u64,
    /// Of these, answered with 5xx.
    pub errors: u64,
    /// Within 15 %; none without requests.
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

/// What the status page draws.
#[derive(Debug, Clone, Serialize)]
pub struct Recent {
    /// Whole intervals, oldest first.
    pub samples: Vec<Sample>,
    /// Newest first.
    pub recent_errors: Vec<RequestSummary>,
    /// Slowest first.
    pub slowest: Vec<RequestSummary>,
}

struct Traffic {
    begun: Instant,
    current: Interval,
    samples: VecDeque<Sample>,
    errors: VecDeque<RequestSummary>,
    slowest: Vec<(Instant, RequestSummary)>,
}

struct Interval {
    requests: u64,
    errors: u64,
    by_class: [u32; CLASSES],
}

/// Counts a request. `describe` is called only for one that is to be shown.
pub fn record(duration: Duration, status: u16, describe: impl FnOnce() -> RequestSummary) {
    lock().record(Instant::now(), duration, status, describe);
}

/// What was counted lately.
pub fn recent() -> Recent {
    lock().recent(Instant::now())
}

fn lock() -> MutexGuard<'static, Traffic> {
    TRAFFIC.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            current: Interval::new(),
            samples: VecDeque::with_capacity(SAMPLES),
            errors: VecDeque::with_capacity(ERRORS),
            slowest: Vec::with_capacity(SLOWEST + 1),
        }
    }

    fn record(
        &mut self,
        now: Instant,
        duration: Duration,
        status: u16,
        describe: impl FnOnce() -> RequestSummary,
    ) {
        self.turn(now);
        let failed = status >= 500;
        self.current.requests += 1;
        self.current.errors += u64::from(failed);
        self.current.by_class[class(duration)] += 1;
        let slow = self.is_slow(duration);
        if !failed && !slow {
            return;
        }
        let summary = describe();
        if slow {
            self.slowest.push((now, summary.clone()));
            self.slowest.sort_by(|a, b| b.1.duration_ms.total_cmp(&a.1.duration_ms));
            self.slowest.truncate(SLOWEST);
        }
        if failed {
            self.errors.truncate(ERRORS - 1);
            self.errors.push_front(summary);
        }
    }

    fn is_slow(&self, duration: Duration) -> bool {
        let fastest = self.slowest.last().filter(|_| self.slowest.len() >= SLOWEST);
        fastest.is_none_or(|(_, kept)| milliseconds(duration) > kept.duration_ms)
    }

    fn recent(&mut self, now: Instant) -> Recent {
        self.turn(now);
        Recent {
            samples: self.samples.iter().cloned().collect(),
            recent_errors: self.errors.iter().cloned().collect(),
            slowest: self.slowest.iter().map(|(_, kept)| kept.clone()).collect(),
        }
    }

    /// Closes the intervals that have ended, and forgets what is too old.
    fn turn(&mut self, now: Instant) {
        let ended = now.saturating_duration_since(self.begun).as_secs() / INTERVAL.as_secs();
        if ended == 0 {
            return;
        }
        let kept = ended.min(SAMPLES as u64);
        if ended > kept {
            // What it counted is older than all that is shown.
            self.current = Interval::new();
        }
        let last = self.begun + INTERVAL * u32::try_from(ended).unwrap_or(u32::MAX);
        let ago = now.saturating_duration_since(last);
        for back in (0..kept).rev() {
            let age = ago + INTERVAL * u32::try_from(back + 1).unwrap_or(u32::MAX);
            let sample =
                std::mem::replace(&mut self.current, Interval::new()).sample(Utc::now() - age);
            if self.samples.len() == SAMPLES {
                self.samples.pop_front();
            }
            self.samples.push_back(sample);
        }
        self.begun = last;
        let window = INTERVAL * u32::try_from(SAMPLES).unwrap_or(u32::MAX);
        self.slowest.retain(|(at, _)| now.saturating_duration_since(*at) < window);
    }
}

impl Interval {
    fn new() -> Self {
        Self { requests: 0, errors: 0, by_class: [0; CLASSES] }
    }

    fn sample(&self, at: DateTime<Utc>) -> Sample {
        Sample {
            at,
            requests: self.requests,
            errors: self.errors,
            p50_ms: self.percentile(0.50),
            p95_ms: self.percentile(0.95),
            p99_ms: self.percentile(0.99),
        }
    }

    /// The upper bound of the class that the request of this rank is in.
    fn percentile(&self, part: f64) -> Option<f64> {
        let rank = (self.requests as f64 * part).ceil().max(1.0) as u64;
        let mut counted = 0;
        let class = self.by_class.iter().position(|count| {
            counted += u64::from(*count);
            counted >= rank
        })?;
        Some((SHORTEST * GROWTH.powi(class as i32) * 1e6).round() / 1e3)
    }
}

fn class(duration: Duration) -> usize {
    let steps = (duration.as_secs_f64() / SHORTEST).ln() / GROWTH.ln();
    (steps.ceil().max(0.0) as usize).min(CLASSES - 1)
}

/// To the microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(status: u16, duration: Duration) -> RequestSummary {
        RequestSummary {
            at: Utc::now(),
            method: "GET".into(),
            route: "/".into(),
            status,
            code: None,
            duration_ms: milliseconds(duration),
            error_id: None,
            request_id: String::new(),
            trace_id: None,
        }
    }

    fn record(traffic: &mut Traffic, now: Instant, ms: u64, status: u16) {
        let duration = Duration::from_millis(ms);
        traffic.record(now, duration, status, || summary(status, duration));
    }

    #[test]
    fn an_interval_is_shown_when_it_has_ended_and_percentiles_are_within_15_percent() {
        let mut traffic = Traffic::new();
        let start = traffic.begun;
        for ms in 1..=100 {
            record(&mut traffic, start, ms, if ms == 7 { 503 } else { 200 });
        }
        assert_eq!(traffic.recent(start + Duration::from_secs(4)).samples, []);

        let recent = traffic.recent(start + INTERVAL);
        let [sample] = &recent.samples[..] else { panic!("{recent:?}") };
        assert_eq!((sample.requests, sample.errors), (100, 1));
        for (shown, exact) in [(sample.p50_ms, 50.0), (sample.p95_ms, 95.0), (sample.p99_ms, 99.0)]
        {
            let ratio = shown.unwrap() / exact;
            assert!((1.0..=1.15).contains(&ratio), "{shown:?} for {exact}");
        }
    }

    #[test]
    fn quiet_intervals_are_samples_too_and_there_are_sixty_at_most() {
        let mut traffic = Traffic::new();
        let start = traffic.begun;
        record(&mut traffic, start, 1, 200);
        let recent = traffic.recent(start + 3 * INTERVAL);
        let requests: Vec<_> = recent.samples.iter().map(|sample| sample.requests).collect();
        assert_eq!(requests, [1, 0, 0]);
        assert_eq!(recent.samples[1].p50_ms, None);
        let ages = recent.samples[1].at - recent.samples[0].at;
        assert_eq!(ages.num_seconds(), 5);

        record(&mut traffic, start + 3 * INTERVAL, 1, 200);
        let recent = traffic.recent(start + 1000 * INTERVAL);
        assert_eq!(recent.samples.len(), SAMPLES);
        assert!(recent.samples.iter().all(|sample| sample.requests == 0));
    }

    #[test]
    fn the_newest_errors_and_the_slowest_requests_of_five_minutes_are_kept() {
        let mut traffic = Traffic::new();
        let start = traffic.begun;
        for ms in 1..=50 {
            record(&mut traffic, start, ms, 500);
        }
        let recent = traffic.recent(start);
        let times =
            |seen: &[RequestSummary]| seen.iter().map(|seen| seen.duration_ms).collect::<Vec<_>>();
        assert_eq!(
            times(&recent.recent_errors),
            (31..=50).rev().map(f64::from).collect::<Vec<_>>()
        );
        assert_eq!(times(&recent.slowest), (41..=50).rev().map(f64::from).collect::<Vec<_>>());

        let recent = traffic.recent(start + 61 * INTERVAL);
        assert_eq!(recent.slowest.len(), 0);
        assert_eq!(recent.recent_errors.len(), ERRORS);
    }
}
