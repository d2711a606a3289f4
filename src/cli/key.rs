//! `key`: API keys made, listed, taken back and replaced.

use std::process::ExitCode;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::Subcommand;
use serde::Serialize;

use super::answer;
use crate::app;
use crate::auth::manage::{self, Made};
use crate::auth::{ApiKey, KeyState, Scopes};
use crate::config::Config;
use crate::db::{self, Db};

#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make a key and print it, once: it is not kept.
    ///
    /// Standard output has the key alone, so that `KEY=$(plinth key create …)` works.
    Create {
        /// Whose it is: 1 to 64 letters, digits, `-`, `.` and `_`.
        #[arg(long)]
        name: String,
        /// What it may do: scopes parted by commas, such as `plans:read,plans:write`; `plans:*`
        /// and `*` are patterns.
        #[arg(long, required = true, value_delimiter = ',')]
        scopes: Vec<String>,
        /// How long it lives, such as `90d`; for ever, if this is left out.
        #[arg(long, value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
    },
    /// List every key, live, expired and revoked. What is shown of a key is how it begins.
    List {
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Take back a key by its id, or every live key of a name. It holds within 10 s.
    Revoke { id_or_name: String },
    /// Make a key with the name and the scopes of a live one, which then lives on for a while.
    Rotate {
        name: String,
        /// How long the old one lives on; never longer than it would have.
        #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
        overlap: Duration,
        /// How long the new one lives, such as `90d`; as long as the old one was to, if this is
        /// left out.
        #[arg(long, value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
    },
}

/// Runs `key`.
///
/// # Errors
/// One line: what is asked for cannot be done, or the database cannot do it.
pub async fn key(action: Key, config: &Config) -> anyhow::Result<ExitCode> {
    let db = Db::connect(&config.database).await?;
    if config.database.migrate_on_start {
        db.migrate().await?;
    } else {
        db.require_migrated().await?;
    }
    let prefix = &config.auth.key_prefix;
    match action {
        Key::Create { name, scopes, expires } => {
            let scopes = scopes.iter().map(|scope| scope.trim());
            let scopes = Scopes::asked(scopes, &app::scopes()).map_err(anyhow::Error::msg)?;
            show(&manage::create(&db, prefix, &name, scopes, expires).await?)?;
        }
        Key::List { json } => answer(&list(&manage::list(&db).await?, json)?)?,
        Key::Revoke { id_or_name } => {
            for ApiKey { id, name, hint, .. } in manage::revoke(&db, &id_or_name).await? {
                eprintln!("revoked {name}, {hint}…, {id}; it is refused within 10 s");
            }
        }
        Key::Rotate { name, overlap, expires } => {
            show(&manage::rotate(&db, prefix, &name, overlap, expires).await?)?;
            eprintln!("those before it live for {} at most", humantime::format_duration(overlap));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(Made { key, kept }: &Made) -> anyhow::Result<()> {
    answer(&format!("{}\n", key.expose()))?;
    let end =
        kept.expires_at.map_or("it does not expire".into(), |at| format!("expires {}", date(at)));
    eprintln!("keep it now, it is not shown again; id {}; {end}", kept.id);
    Ok(())
}

fn list(keys: &[ApiKey], json: bool) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Listed<'a> {
        #[serde(flatten)]
        key: &'a ApiKey,
        state: KeyState,
    }
    let now = db::now();
    if json {
        let listed: Vec<_> = keys.iter().map(|key| Listed { key, state: key.state(now) }).collect();
        return Ok(serde_json::to_string_pretty(&listed)? + "\n");
    }
    let heading = ["ID", "NAME", "HINT", "STATE", "CREATED", "EXPIRES", "LAST USED", "SCOPES"];
    let rows = keys.iter().map(|key| row(key, now));
    Ok(table(&[heading.map(String::from)].into_iter().chain(rows).collect::<Vec<_>>()))
}

fn row(key: &ApiKey, now: DateTime<Utc>) -> [String; 8] {
    let or_dash = |at: Option<DateTime<Utc>>| at.map_or("-".into(), date);
    let state = match key.state(now) {
        KeyState::Live => "live",
        KeyState::Expired => "expired",
        KeyState::Revoked => "revoked",
    };
    [
        key.id.to_string(),
        key.name.clone(),
        key.hint.clone(),
        state.into(),
        date(key.created_at),
        or_dash(key.expires_at),
        or_dash(key.last_used_at),
        key.scopes.iter().collect::<Vec<_>>().join(","),
    ]
}

fn date(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Aligned, for people.
fn table(rows: &[[String; 8]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: [usize; 8] = std::array::from_fn(width);
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
