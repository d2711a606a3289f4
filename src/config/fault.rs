//! What is wrong with a setting, said so that it can be mended without reading code.

use std::fmt;

use figment::error::{Actual, Kind};

use super::keys::{Keys, Setting, UNSET, own_name, show, variable};

/// One thing wrong with the configuration. No field ever holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, as in `server.port`; or the file that could not be read.
    pub key: String,
    /// Where the value came from.
    pub source: String,
    /// What is wrong with it, in words.
    pub problem: String,
    /// What to change, naming the variable.
    pub fix: String,
}

/// Everything wrong with the configuration, at once. It displays as one block of text.
#[derive(Debug)]
pub struct Faults(pub Vec<Fault>);

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("the configuration has 1 fault:\n")?,
            n => writeln!(f, "the configuration has {n} faults:")?,
        }
        for Fault { key, source, problem, fix } in &self.0 {
            write!(f, "\n  {key}, from {source}\n    problem: {problem}\n    fix:     {fix}\n")?;
        }
        Ok(())
    }
}

impl Fault {
    /// A setting that its field does not take.
    pub(super) fn unreadable(keys: &Keys, setting: &Setting, error: &figment::Error) -> Self {
        let (problem, fix) = match &error.kind {
            Kind::UnknownField(..) => unknown(keys, setting),
            // `APP_SERVER__PORT__X` looks for a key inside a number.
            Kind::InvalidType(Actual::Map, _) if setting.is_variable() => unknown(keys, setting),
            kind => (problem(keys, setting, kind), example(keys, setting, kind)),
        };
        let (key, source) = (setting.key.clone(), setting.source.clone());
        Self { key, source, problem, fix }
    }
}

fn unknown(keys: &Keys, setting: &Setting) -> (String, String) {
    let spell = |key: &str| if setting.is_variable() { own_name(key) } else { key.to_owned() };
    (format!("there is no `{}`", setting.name), keys.suggest(&setting.key, spell))
}

/// figment's own messages quote the value, so they are used for what is not secret alone.
fn problem(keys: &Keys, setting: &Setting, kind: &Kind) -> String {
    // What stands in a section's place may be anything, a URL with a password for one.
    let known = keys.default_of(&setting.key).is_some() || keys.is_in_map(&setting.key);
    let secret = !known || keys.is_secret(&setting.key);
    let value = if secret { "the value".into() } else { format!("`{}`", show(&setting.value)) };
    match kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("{value} is not {}", in_words(expected))
        }
        Kind::UnknownVariant(_, allowed) => format!("{value} is not one of {}", allowed.join(", ")),
        _ if secret => format!("{value} cannot be read"),
        other => format!("{value} cannot be read: {other}"),
    }
}

fn example(keys: &Keys, setting: &Setting, kind: &Kind) -> String {
    if let Kind::UnknownVariant(_, allowed) = kind {
        return format!("set `{}` to {}", setting.name, allowed.join(" or "));
    }
    match keys.default_of(&setting.key).map(show) {
        Some(default) if default != UNSET => {
            format!("set `{}` to a value such as the default, `{default}`", setting.name)
        }
        _ => format!("see what `{}` takes in .env.example", variable(&setting.key)),
    }
}

fn in_words(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "parsable string" | "an integer or string" => "a size",
        "a sequence" => "a list",
        name if name.starts_with("struct ") => "a section",
        other => other,
    }
}
