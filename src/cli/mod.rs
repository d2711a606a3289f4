//! The commands.

mod healthcheck;
mod key;

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use healthcheck::healthcheck;
pub use key::{Key, key};

use crate::app;
use crate::auth::{self, Known};
use crate::config::{self, Config, Fault, Faults, Grade, Loaded};
use crate::db::{Db, State};

/// Plinth: an axum service, complete and in production shape on the first run.
///
/// Configuration comes from plinth.toml, .env and the environment; later wins. `.env.example`
/// documents every key, and `plinth config` shows what each is and where it came from.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve requests until SIGTERM or SIGINT (the default).
    ///
    /// The first signal drains: not ready at once, still accepting for server.pre_stop_delay,
    /// then server.drain_timeout for what is in flight. A second signal cuts what is left.
    Serve,
    /// Apply the database's migrations, or show how they stand.
    Migrate {
        #[command(subcommand)]
        action: Migrate,
    },
    /// Judge this configuration by production's rules, whatever APP_ENV is.
    ///
    /// Prints a table of pass, warn and fail, each with its fix, and every fault in the principals
    /// file. Exits with 1 if anything fails.
    Check,
    /// Print every key, its value (secrets redacted), where it came from and what it overrode.
    Config {
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Print the OpenAPI document.
    Openapi,
    /// Ask the service on this machine whether it is ready; exits with 0 or 1.
    ///
    /// For images without a shell or curl. It reads the same configuration as the service.
    Healthcheck,
    /// Make, list, take back and replace API keys.
    Key {
        #[command(subcommand)]
        action: Key,
    },
}

#[derive(Debug, Subcommand)]
pub enum Migrate {
    /// Apply what is pending. Safe to start many times at once.
    Run,
    /// List every migration: applied, pending, changed since it ran, or another release's.
    Status,
}

/// Writes a command's answer. A reader that has left, as `head` does, has had enough of it:
/// `println!` would panic.
fn answer(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// Runs `migrate`.
///
/// # Errors
/// What keeps the database from being opened or migrated.
pub async fn migrate(action: &Migrate, config: &Config) -> anyhow::Result<ExitCode> {
    let db = Db::connect(&config.database).await?;
    if let Migrate::Run = action {
        db.migrate().await?;
    }
    let migrations = db.migrations().await?;
    let mut text = String::new();
    for migration in &migrations {
        let state = match migration.state {
            State::Applied => "applied",
            State::Pending => "pending",
            State::Changed => "changed",
            State::Unknown => "unknown",
        };
        writeln!(text, "{state:<8}  {:>4}  {}", migration.version, migration.description)?;
    }
    answer(&text)?;
    let broken = migrations.iter().any(|migration| migration.state == State::Changed);
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs `check`.
///
/// # Errors
/// Standard output that cannot be written, a full disk behind it for one.
pub fn check(config: &Config) -> anyhow::Result<ExitCode> {
    let findings = config::production_findings(config);
    let mut text = String::new();
    for finding in &findings {
        let grade = match finding.grade {
            Grade::Pass => "pass",
            Grade::Warn => "WARN",
            Grade::Fail => "FAIL",
        };
        let kept = if finding.grade == Grade::Pass { "yes" } else { "no" };
        writeln!(text, "{grade}  {}? {kept}: {}", finding.rule, finding.found)?;
        if finding.grade != Grade::Pass {
            writeln!(text, "      fix: {}", finding.fix)?;
        }
    }
    let failed = findings.iter().filter(|finding| finding.grade == Grade::Fail).count();
    writeln!(text, "{failed} of {} rules fail", findings.len())?;
    let faults = principals_faults(config);
    let good = failed == 0 && faults.is_empty();
    if !faults.is_empty() {
        write!(text, "{}", Faults(faults))?;
    }
    answer(&text)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn principals_faults(config: &Config) -> Vec<Fault> {
    let Some(path) = &config.auth.principals_file else { return Vec::new() };
    let classes = config.rate_limit.classes();
    auth::check(path, &Known { scopes: &app::scopes(), classes: &classes })
}

/// Runs `config`.
///
/// # Errors
/// As [`check`].
pub fn config(loaded: &Loaded, json: bool) -> anyhow::Result<ExitCode> {
    let entries = loaded.explain();
    answer(&if json {
        serde_json::to_string_pretty(&entries)? + "\n"
    } else {
        config::table(&entries)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `openapi`.
///
/// # Errors
/// As [`check`].
pub fn openapi() -> anyhow::Result<ExitCode> {
    answer(&(app::openapi().to_pretty_json()? + "\n"))?;
    Ok(ExitCode::SUCCESS)
}
