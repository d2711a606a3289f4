//! Which keys there are, what each is called in the environment, and how text becomes a value.
//!
//! The keys are those of the serialised defaults, so a new field is known the moment it exists.

use std::collections::{BTreeMap, BTreeSet};

use figment::providers::Serialized;
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};

use super::secret::REDACTED;
use super::{Config, Environment};

/// Names the ecosystem already uses, and the key each stands for.
const ALIASES: [(&str, &str); 13] = [
    ("PORT", "server.port"),
    ("DATABASE_URL", "database.url"),
    ("DATABASE_READ_URL", "database.read_url"),
    ("REDIS_URL", "cache.redis_url"),
    ("SENTRY_DSN", "sentry.dsn"),
    ("RUST_LOG", "log.filter"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "traces.endpoint"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "traces.headers"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "traces.timeout_ms"),
    ("OTEL_SERVICE_NAME", "traces.service_name"),
    ("OTEL_RESOURCE_ATTRIBUTES", "traces.resource_attributes"),
    ("OTEL_TRACES_SAMPLER", "traces.sampler"),
    ("OTEL_TRACES_SAMPLER_ARG", "traces.sampler_arg"),
];

/// Tables whose members' names are the user's own, so that no default tells them.
const MAPS: [&str; 1] = ["rate_limit.classes"];

const PREFIX: &str = "APP_";
pub(super) const UNSET: &str = "unset";

/// One key set in one place. Its value may be a secret, so it cannot be printed.
pub(super) struct Setting {
    pub key: String,
    /// The key as it is spelled there: `PORT` in the environment, `server.port` in a file.
    pub name: String,
    pub source: String,
    pub value: Value,
}

impl Setting {
    /// Whether it decides `key`: a table given whole decides every key below it.
    pub fn decides(&self, key: &str) -> bool {
        key.strip_prefix(&self.key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    pub fn is_variable(&self) -> bool {
        self.name != self.key
    }
}

impl Provider for &Setting {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let nested = figment::util::nest(&self.key, self.value.clone());
        Ok(Map::from([(Profile::Default, nested.into_dict().unwrap_or_default())]))
    }
}

/// What a variable's name turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Value {
        key: String,
    },
    /// The value is in the file that the variable names.
    File {
        key: String,
    },
    /// Meant for us, but missing an underscore.
    Squeezed {
        key: String,
    },
    NotOurs,
}

pub(super) struct Keys {
    defaults: Config,
    rows: BTreeMap<String, Value>,
    names: BTreeMap<String, String>,
}

impl Keys {
    /// Types, and so keys, are the same in every environment; only values differ.
    pub fn new() -> Self {
        let defaults = Config::defaults(Environment::default());
        let rows = rows(&defaults);
        let aliases = ALIASES.map(|(name, key)| (name.to_owned(), key.to_owned()));
        let names = rows.keys().map(|key| (own_name(key), key.clone())).chain(aliases).collect();
        Self { defaults, rows, names }
    }

    pub fn default_of(&self, key: &str) -> Option<&Value> {
        self.rows.get(key)
    }

    pub fn is_section(&self, path: &str) -> bool {
        self.below(path).next().is_some() || MAPS.contains(&path) || self.is_in_map(path)
    }

    /// Whether it is in a table whose members the user names.
    pub fn is_in_map(&self, path: &str) -> bool {
        let below = |map| path.strip_prefix(map).is_some_and(|rest: &str| rest.starts_with('.'));
        MAPS.into_iter().any(below)
    }

    pub fn recognise(&self, name: &str) -> Name {
        if let Some(key) = self.names.get(name) {
            return Name::Value { key: key.clone() };
        }
        let base = name.strip_suffix("_FILE").unwrap_or(name);
        if let Some(key) = self.names.get(base) {
            return Name::File { key: key.clone() };
        }
        let Some(own) = name.strip_prefix(PREFIX) else { return Name::NotOurs };
        if own.contains("__") {
            let parts: Vec<_> = own.split("__").filter(|part| !part.is_empty()).collect();
            return Name::Value { key: parts.join(".").to_lowercase() };
        }
        let squeezed = squeeze(base.strip_prefix(PREFIX).unwrap_or(base));
        match self.rows.keys().find(|key| squeeze(key) == squeezed) {
            Some(key) => Name::Squeezed { key: key.clone() },
            None => Name::NotOurs,
        }
    }

    /// Environment values are text. The default tells what the text stands for, so that an
    /// all-digit password stays text; where it is unset, the first reading the field takes.
    pub fn parse(&self, key: &str, text: &str) -> Value {
        let plain = Value::from(text);
        match self.rows.get(key) {
            Some(Value::Num(..)) => number(text).unwrap_or(plain),
            Some(Value::Bool(..)) => boolean(text).unwrap_or(plain),
            Some(Value::Array(..)) => list(text),
            Some(Value::Empty(..)) | None => {
                let readings = [Some(plain.clone()), number(text), boolean(text), Some(list(text))];
                let taken = readings
                    .into_iter()
                    .flatten()
                    .find(|v| self.try_value(key, v.clone()).is_some());
                taken.unwrap_or(plain)
            }
            Some(_) => plain,
        }
    }

    /// The whole configuration with only this set, which finds a fault whatever else is wrong.
    pub fn alone(&self, setting: &Setting) -> Result<Config, Box<Error>> {
        merge(&self.defaults, [setting])
    }

    /// Whether printing the key's value would have to redact it.
    pub fn is_secret(&self, key: &str) -> bool {
        let value = self.parse(key, "redis://:probe@host");
        self.try_value(key, value).is_some_and(|config| {
            rows(&config).get(key).is_some_and(|v| show(v).contains(REDACTED))
        })
    }

    /// What to do about a key that does not exist.
    pub fn suggest(&self, unknown: &str, spell: impl Fn(&str) -> String) -> String {
        let sections = self.rows.keys().filter_map(|key| Some(key.split_once('.')?.0));
        let closest = (self.rows.keys().map(String::as_str).chain(sections.clone()))
            .map(|known| (strsim::normalized_damerau_levenshtein(known, unknown), known))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((likeness, known)) = closest
            && likeness > 0.7
        {
            return format!("did you mean `{}`?", spell(known));
        }
        let section = unknown.split('.').next().unwrap_or(unknown);
        if self.is_section(section) {
            let known: Vec<_> = self.below(section).map(spell).collect();
            return format!("remove it, or take one of: {}", known.join(", "));
        }
        let known: BTreeSet<_> = sections.collect();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        format!("remove it, or begin with a section: {known}")
    }

    fn below(&self, path: &str) -> impl Iterator<Item = &str> {
        let start = format!("{path}.");
        self.rows.keys().map(String::as_str).filter(move |key| key.starts_with(&start))
    }

    fn try_value(&self, key: &str, value: Value) -> Option<Config> {
        let (key, name) = (key.to_owned(), key.to_owned());
        self.alone(&Setting { key, name, source: String::new(), value }).ok()
    }
}

/// The settings over the defaults; later wins.
pub(super) fn merge<'a>(
    defaults: &Config,
    settings: impl IntoIterator<Item = &'a Setting>,
) -> Result<Config, Box<Error>> {
    let base = Figment::from(Serialized::defaults(defaults));
    Ok(settings.into_iter().fold(base, Figment::merge).extract()?)
}

/// Every key with its value. Secrets are redacted, because they serialise so.
pub(super) fn rows(config: &Config) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    if let Ok(Value::Dict(_, sections)) = Value::serialize(config) {
        flatten("", sections, &mut rows);
    }
    rows
}

/// A value as one would write it in the environment.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Empty(..) => UNSET.to_owned(),
        Value::Array(_, items) if items.is_empty() => UNSET.to_owned(),
        Value::Array(_, items) => items.iter().map(show).collect::<Vec<_>>().join(","),
        Value::String(_, text) => text.clone(),
        Value::Dict(..) => "a table".to_owned(),
        Value::Bool(..) | Value::Num(..) | Value::Char(..) => {
            serde_json::to_string(value).unwrap_or_default()
        }
    }
}

/// The name to set a key by: the ecosystem's where there is one.
pub(super) fn variable(key: &str) -> String {
    let alias = ALIASES.into_iter().find(|(_, aliased)| *aliased == key);
    alias.map_or_else(|| own_name(key), |(name, _)| name.to_owned())
}

/// `server.port` is `APP_SERVER__PORT`.
pub(super) fn own_name(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn flatten(prefix: &str, dict: Dict, rows: &mut BTreeMap<String, Value>) {
    for (name, value) in dict {
        match value {
            Value::Dict(_, inner) => flatten(&format!("{prefix}{name}."), inner, rows),
            leaf => {
                rows.insert(format!("{prefix}{name}"), leaf);
            }
        }
    }
}

fn number(text: &str) -> Option<Value> {
    let text = text.trim();
    let whole = text.parse::<i64>().map(Value::from);
    whole.or_else(|_| text.parse::<f64>().map(Value::from)).ok()
}

fn boolean(text: &str) -> Option<Value> {
    text.trim().parse::<bool>().map(Value::from).ok()
}

fn list(text: &str) -> Value {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(Value::from).collect::<Vec<_>>().into()
}

fn squeeze(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_recognised() {
        let keys = Keys::new();
        let port = || "server.port".to_owned();
        for (name, expected) in [
            ("PORT", Name::Value { key: port() }),
            ("APP_SERVER__PORT", Name::Value { key: port() }),
            ("PORT_FILE", Name::File { key: port() }),
            ("APP_SERVER__PORT_FILE", Name::File { key: port() }),
            ("APP_SERVER_PORT", Name::Squeezed { key: port() }),
            ("APP_SERVER__PROT", Name::Value { key: "server.prot".into() }),
            ("APP_PORT", Name::NotOurs),
            ("HOME", Name::NotOurs),
        ] {
            assert_eq!(keys.recognise(name), expected, "{name}");
        }
    }

    #[test]
    fn every_alias_stands_for_a_key() {
        let keys = Keys::new();
        assert!(ALIASES.iter().all(|(_, key)| keys.default_of(key).is_some()));
    }

    /// A default passes through its serialised form, where a secret is lost; `Secret` refuses to
    /// read that, so a secret given a default fails here rather than in production.
    #[test]
    fn the_defaults_survive_serialisation() {
        for env in [Environment::Development, Environment::Test, Environment::Production] {
            let defaults = Config::defaults(env);
            let merged = merge(&defaults, []).unwrap();
            assert_eq!(rows(&merged), rows(&defaults));
        }
    }
}
