//! The places settings are read from, least important first.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use figment::value::{Dict, Value};

use super::keys::{Keys, Name, Setting, own_name};
use super::{Fault, Sources};

const CONFIG_FILE: &str = "plinth.toml";
const CONFIG_FILE_VARIABLE: &str = "APP_CONFIG_FILE";

/// Everything set in `plinth.toml`, `.env` and the environment, in that order.
pub(super) fn read(sources: &Sources, keys: &Keys, faults: &mut Vec<Fault>) -> Vec<Setting> {
    let Sources { environment, directory } = sources;
    let dotenv = dotenv(directory, faults);
    let mut settings = config_file(sources, &dotenv, keys, faults);
    settings.extend(variables(".env", &dotenv, directory, keys, faults));
    settings.extend(variables("environment", environment, directory, keys, faults));
    settings
}

fn config_file(
    sources: &Sources,
    dotenv: &BTreeMap<String, String>,
    keys: &Keys,
    faults: &mut Vec<Fault>,
) -> Vec<Setting> {
    let named = [&sources.environment, dotenv]
        .into_iter()
        .find_map(|layer| layer.get(CONFIG_FILE_VARIABLE).filter(|path| !path.is_empty()));
    let path = named.map_or(CONFIG_FILE, String::as_str);
    let text = match fs::read_to_string(sources.directory.join(path)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => return Vec::new(),
        Err(error) => {
            let fix = format!("make it readable, or correct `{CONFIG_FILE_VARIABLE}`");
            faults.push(unreadable(path, path, &error.to_string(), fix));
            return Vec::new();
        }
    };
    match toml::from_str(&text) {
        Ok(table) => leaves(path, "", table, keys),
        Err(error) => {
            // Not its Display, which quotes the line, and the line may hold a secret.
            let source = at_line(path, &text, error.span().map_or(0, |span| span.start));
            let problem = error.message().replace('\n', ", ");
            faults.push(Fault { key: path.into(), source, problem, fix: "mend the line".into() });
            Vec::new()
        }
    }
}

/// Descends as far as the defaults do, so that a whole table can be one setting.
fn leaves(source: &str, prefix: &str, table: Dict, keys: &Keys) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            Value::Dict(_, inner) if keys.is_section(&key) => {
                settings.extend(leaves(source, &format!("{key}."), inner, keys));
            }
            Value::String(_, text) if text.is_empty() => {}
            value => {
                settings.push(Setting { name: key.clone(), key, source: source.into(), value })
            }
        }
    }
    settings
}

fn dotenv(directory: &Path, faults: &mut Vec<Fault>) -> BTreeMap<String, String> {
    let mut text = match fs::read_to_string(directory.join(".env")) {
        Ok(text) => text.trim_start_matches('\u{feff}').to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            faults.push(unreadable(".env", ".env", &error.to_string(), "make it readable".into()));
            return BTreeMap::new();
        }
    };
    // dotenvy takes a blank at the very end of the file for an open quote.
    text.push('\n');
    let mut variables = BTreeMap::new();
    for entry in dotenvy::Iter::new(text.as_bytes()) {
        match entry {
            Ok((name, value)) => {
                variables.insert(name, value);
            }
            Err(error) => faults.push(malformed_dotenv(&text, &error)),
        }
    }
    variables
}

/// The error's Display quotes the line, and the line may hold a secret.
fn malformed_dotenv(text: &str, error: &dotenvy::Error) -> Fault {
    let source = match error {
        dotenvy::Error::LineParse(line, _) => {
            let place = text.find(&format!("={line}")).or_else(|| text.find(line));
            at_line(".env", text, place.unwrap_or(0))
        }
        _ => ".env".to_owned(),
    };
    Fault {
        key: ".env".into(),
        source,
        problem: "the line is not NAME=value, or a quote is left open".into(),
        fix: "put a value with blanks, quotes, `$` or `#` in single quotes".into(),
    }
}

/// An empty value is an unset one: compose writes `${X:-}`.
fn variables(
    layer: &str,
    variables: &BTreeMap<String, String>,
    directory: &Path,
    keys: &Keys,
    faults: &mut Vec<Fault>,
) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for (name, text) in variables.iter().filter(|(_, text)| !text.is_empty()) {
        match setting(layer, name, text, directory, keys) {
            Ok(Some(setting)) => match settings.iter().find(|other| other.key == setting.key) {
                None => settings.push(setting),
                Some(other) if agree(other, &setting) => {}
                Some(other) => faults.push(twice(other, setting)),
            },
            Ok(None) => {}
            Err(fault) => faults.push(fault),
        }
    }
    settings
}

fn setting(
    layer: &str,
    name: &str,
    text: &str,
    directory: &Path,
    keys: &Keys,
) -> Result<Option<Setting>, Fault> {
    let (key, source, value) = match keys.recognise(name) {
        Name::Value { key } => {
            let value = keys.parse(&key, text);
            (key, format!("{layer} ({name})"), value)
        }
        Name::File { key } => {
            let source = format!("file {text} ({name})");
            let value = file(&directory.join(text)).map_err(|problem| {
                let fix = format!("make it readable, or correct `{name}`");
                unreadable(&key, &source, &format!("{text}: {problem}"), fix)
            })?;
            let value = keys.parse(&key, &value);
            (key, source, value)
        }
        // Kubernetes writes APP_SERVER_PORT=tcp://… for a service called app-server.
        Name::Squeezed { key } if !text.starts_with("tcp://") => {
            return Err(Fault {
                problem: format!("`{name}` is not read: two underscores part section from key"),
                fix: format!("did you mean `{}`?", own_name(&key)),
                source: format!("{layer} ({name})"),
                key,
            });
        }
        Name::Squeezed { .. } | Name::NotOurs => return Ok(None),
    };
    Ok(Some(Setting { key, name: name.to_owned(), source, value }))
}

fn file(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let line = text.strip_suffix('\n').map_or(&*text, |t| t.strip_suffix('\r').unwrap_or(t));
    if line.is_empty() { Err("the file is empty".into()) } else { Ok(line.to_owned()) }
}

/// A platform may set `PORT` beside our own name for it; that harms only where they differ.
fn agree(one: &Setting, other: &Setting) -> bool {
    let is_file = |setting: &Setting| setting.source.starts_with("file ");
    !is_file(one) && !is_file(other) && one.value == other.value
}

fn twice(one: &Setting, other: Setting) -> Fault {
    Fault {
        problem: format!("`{}` and `{}` both set it", one.name, other.name),
        fix: "remove one of them".into(),
        key: other.key,
        source: format!("{} and {}", one.source, other.source),
    }
}

fn unreadable(key: &str, source: &str, problem: &str, fix: String) -> Fault {
    let (key, source) = (key.into(), source.into());
    Fault { key, source, problem: format!("cannot be read: {problem}"), fix }
}

fn at_line(path: &str, text: &str, offset: usize) -> String {
    let line = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
    format!("{path} line {line}")
}
