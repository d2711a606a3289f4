//! Reads the layers into one [`Config`], or says everything that is wrong with them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::explain::{self, Explained};
use super::keys::{self, Keys, Setting};
use super::production::{self, Grade};
use super::{Config, Environment, Fault, Faults, layers, validate};

/// Where configuration is read from; tests give their own.
pub struct Sources {
    /// Variables by name.
    pub environment: BTreeMap<String, String>,
    /// Holds `plinth.toml` and `.env`; relative paths start here.
    pub directory: PathBuf,
}

impl Sources {
    /// The environment and the working directory of this process. What is not UTF-8 is replaced,
    /// so that its key refuses it rather than not hear of it.
    pub fn process() -> Self {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self {
            environment: std::env::vars_os()
                .map(|(name, value)| (lossy(name), lossy(value)))
                .collect(),
            directory: std::env::current_dir().unwrap_or_default(),
        }
    }
}

/// A valid configuration that knows where each of its values came from.
#[derive(Debug)]
pub struct Loaded {
    /// The merged values. They keep the rules of every environment; [`Loaded::usable`] says
    /// whether they keep production's.
    pub config: Config,
    pub(super) entries: Vec<Explained>,
    refused: Vec<Fault>,
}

impl Loaded {
    /// The configuration to run with.
    ///
    /// # Errors
    /// What production refuses, where that is the environment.
    pub fn usable(self) -> Result<Config, Faults> {
        if self.refused.is_empty() { Ok(self.config) } else { Err(Faults(self.refused)) }
    }
}

/// Reads, merges and validates. The error names every fault at once.
///
/// An empty value counts as unset. Two names for one key in one layer are a fault, unless they
/// hold the same value.
pub fn load(sources: &Sources) -> Result<Loaded, Faults> {
    let keys = Keys::new();
    let mut faults = Vec::new();
    let mut settings = layers::read(sources, &keys, &mut faults);
    settings.retain(|setting| accept(&keys, setting, &mut faults));

    let env = merge(&Config::defaults(Environment::default()), &settings, &mut faults).env;
    let defaults = Config::defaults(env);
    let config = merge(&defaults, &settings, &mut faults);

    faults.extend(validate::faults(&config, |key| source_of(&settings, key)));
    if !faults.is_empty() {
        return Err(Faults(faults));
    }
    let entries = explain::entries(&keys, &config, &defaults, &settings);
    let refused = match env {
        Environment::Production => refused(&config, &settings).collect(),
        Environment::Development | Environment::Test => Vec::new(),
    };
    Ok(Loaded { config, entries, refused })
}

fn accept(keys: &Keys, setting: &Setting, faults: &mut Vec<Fault>) -> bool {
    let fault = keys.alone(setting).err().map(|error| Fault::unreadable(keys, setting, &error));
    let accepted = fault.is_none();
    faults.extend(fault);
    accepted
}

/// Settings that are good alone are good together, short of two that make one table between them.
fn merge(defaults: &Config, settings: &[Setting], faults: &mut Vec<Fault>) -> Config {
    keys::merge(defaults, settings).unwrap_or_else(|error| {
        let key = error.path.join(".");
        faults.push(Fault {
            source: source_of(settings, &key),
            problem: "its values do not fit together".into(),
            fix: "give it whole in one place".into(),
            key,
        });
        defaults.clone()
    })
}

fn refused(config: &Config, settings: &[Setting]) -> impl Iterator<Item = Fault> {
    let findings = production::production_findings(config);
    findings.into_iter().filter(|finding| finding.grade == Grade::Fail).map(|finding| Fault {
        key: finding.key.to_owned(),
        source: source_of(settings, finding.key),
        problem: format!("in production, {}; this is {}", finding.rule, finding.found),
        fix: finding.fix.to_owned(),
    })
}

fn source_of(settings: &[Setting], key: &str) -> String {
    let last = settings.iter().rev().find(|setting| setting.decides(key));
    last.map_or_else(|| explain::DEFAULT.to_owned(), |setting| setting.source.clone())
}
