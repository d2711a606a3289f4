//! Quota policies, written as people say them: `10/minute, 100/hour`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// At most `quota` requests in each window of this length. A window begins with the first request
/// after the last one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Requests a window, at least 1.
    pub quota: u32,
    /// Whole seconds, at least one.
    pub window: Duration,
}

/// Policies that hold all at once, at least one, no two of one window. Text such as
/// `10/minute, 100/hour`, `5 per 10 seconds` or `20/15m`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies(Vec<Policy>);

/// Units with their seconds, largest first. Each has its full name, its plural and its short forms.
const UNITS: [(u64, &[&str]); 4] = [
    (86_400, &["day", "days", "d"]),
    (3_600, &["hour", "hours", "h"]),
    (60, &["minute", "minutes", "min", "m"]),
    (1, &["second", "seconds", "sec", "s"]),
];

/// Longer windows are for billing, not for limits.
const MAX_WINDOW: Duration = Duration::from_secs(31 * 86_400);

impl Policy {
    /// `minute` or `15 minutes`: the window in words.
    fn window_in_words(self) -> String {
        let seconds = self.window.as_secs();
        let (unit, names) =
            UNITS.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit)).unwrap_or(UNITS[3]);
        match seconds / unit {
            1 => names[0].to_owned(),
            count => format!("{count} {}", names[1]),
        }
    }

    /// `minute` or `15-minutes`: the window as part of a policy's name.
    pub fn window_name(self) -> String {
        self.window_in_words().replace(' ', "-")
    }
}

impl Policies {
    pub(super) fn new(quota: u32, seconds: u64) -> Self {
        Self(vec![Policy { quota, window: Duration::from_secs(seconds) }])
    }

    /// By length of window, shortest first.
    pub fn as_slice(&self) -> &[Policy] {
        &self.0
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.quota, self.window_in_words())
    }
}

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, policy) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{policy}")?;
        }
        Ok(())
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a limit such as `10/minute` or `5 per 10 seconds`");
        let (quota, window) =
            text.split_once('/').or_else(|| text.split_once(" per ")).ok_or_else(wrong)?;
        let quota = quota.trim().parse().map_err(|_| wrong())?;
        let window = window.trim();
        let (count, unit) =
            window.split_at(window.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
        let count: u64 = if count.is_empty() { 1 } else { count.parse().map_err(|_| wrong())? };
        let unit = unit.trim();
        let seconds = UNITS.iter().find(|(_, names)| names.contains(&unit)).ok_or_else(wrong)?.0;
        let window = Duration::from_secs(count.saturating_mul(seconds));
        if quota == 0 || window.is_zero() {
            return Err(format!("`{text}` lets nobody through"));
        }
        if window > MAX_WINDOW {
            return Err(format!("`{text}` has a window of more than 31 days"));
        }
        Ok(Self { quota, window })
    }
}

impl FromStr for Policies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut policies: Vec<Policy> =
            text.split([',', ';']).map(|part| part.trim().parse()).collect::<Result<_, _>>()?;
        policies.sort_by_key(|policy| policy.window);
        match policies.windows(2).find(|pair| pair[0].window == pair[1].window) {
            Some(pair) => Err(format!("`{}` and `{}` are of one window", pair[0], pair[1])),
            None => Ok(Self(policies)),
        }
    }
}

impl Serialize for Policies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Policies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_people_write_them() {
        for (text, read) in [
            ("10/minute, 100/hour", "10/minute, 100/hour"),
            ("100/hour;10/minute", "10/minute, 100/hour"),
            ("5 per 10 seconds", "5/10 seconds"),
            ("20/15m", "20/15 minutes"),
            ("1/60s", "1/minute"),
            (" 7 / day ", "7/day"),
        ] {
            let policies: Policies = text.parse().unwrap();
            assert_eq!(policies.to_string(), read, "{text}");
            assert_eq!(policies.to_string().parse(), Ok(policies), "{text}");
        }
    }

    #[test]
    fn what_is_no_limit_is_refused_by_name() {
        for (text, why) in [
            ("", "`` is not a limit"),
            ("10", "`10` is not a limit"),
            ("10/fortnight", "`10/fortnight` is not a limit"),
            ("-1/minute", "`-1/minute` is not a limit"),
            ("10/minute,", "`` is not a limit"),
            ("0/minute", "lets nobody through"),
            ("1/0s", "lets nobody through"),
            ("1/32days", "more than 31 days"),
            ("1/99999999999999999999s", "is not a limit"),
            ("1/minute, 2/60s", "are of one window"),
        ] {
            let error = text.parse::<Policies>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
