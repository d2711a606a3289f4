//! Where each value came from, and what it took the place of.

use std::fmt::Write as _;

use serde::Serialize;

use super::keys::{Keys, Setting, rows, show, variable};
use super::{Config, Loaded};

pub(super) const DEFAULT: &str = "default";

/// One key, as `plinth config` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct Explained {
    /// As in `server.port`.
    pub key: String,
    /// The variable that sets it, as in `PORT`.
    pub variable: String,
    /// Redacted where it is secret; `unset` where there is none.
    pub value: String,
    pub source: String,
    /// What lost to it, nearest first; the default is last.
    pub overrode: Vec<Overridden>,
}

/// A value that a later layer took the place of; redacted where it is secret.
#[derive(Debug, Clone, Serialize)]
pub struct Overridden {
    pub source: String,
    pub value: String,
}

impl Loaded {
    /// Every key, in order.
    pub fn explain(&self) -> Vec<Explained> {
        self.entries.clone()
    }
}

/// The entries as aligned text for people.
pub fn table(entries: &[Explained]) -> String {
    let head = ["KEY", "VALUE", "FROM", "OVERRODE"].map(str::to_owned);
    let lines: Vec<_> = std::iter::once(head).chain(entries.iter().map(columns)).collect();
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    };
    let (key, value, from) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [a, b, c, d] in &lines {
        let line = format!("{a:key$}  {b:value$}  {c:from$}  {d}");
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

pub(super) fn entries(
    keys: &Keys,
    config: &Config,
    defaults: &Config,
    settings: &[Setting],
) -> Vec<Explained> {
    let defaults = rows(defaults);
    let default = |key: &str| {
        let value = defaults.get(key).map(show)?;
        Some(Overridden { source: DEFAULT.into(), value })
    };
    let entry = |(key, value): (String, _)| {
        let said = settings.iter().filter(|setting| setting.decides(&key));
        let said = said.filter_map(|setting| said_by(keys, setting, &key));
        let mut overrode: Vec<_> = default(&key).into_iter().chain(said).collect();
        let source = overrode.pop().map_or_else(|| DEFAULT.into(), |winner| winner.source);
        overrode.reverse();
        Explained { variable: variable(&key), value: show(&value), source, overrode, key }
    };
    rows(config).into_iter().map(entry).collect()
}

/// What a setting alone makes of a key: passed through the key's own type, a secret is redacted.
fn said_by(keys: &Keys, setting: &Setting, key: &str) -> Option<Overridden> {
    let alone = keys.alone(setting).ok()?;
    let value = rows(&alone).get(key).map(show)?;
    Some(Overridden { source: setting.source.clone(), value })
}

fn columns(entry: &Explained) -> [String; 4] {
    let overrode = entry.overrode.iter().map(|lost| format!("{} ({})", lost.value, lost.source));
    let overrode = overrode.collect::<Vec<_>>().join(", ");
    [entry.key.clone(), entry.value.clone(), entry.source.clone(), overrode]
}
