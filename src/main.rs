//! The start-up, in order; `app::start` opens the house. Until telemetry stands nothing runs beside
//! it, and whatever fails says what, why and how to mend it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use plinth::app;
use plinth::cli::{self, Cli, Command};
use plinth::config::{self, AuthMode, Config, Faults, Loaded, Sources};
use plinth::error::chain;
use plinth::server::Shutdown;
use plinth::telemetry::{self, COMMIT, VERSION};
use tokio::runtime::Runtime;

/// What a faulty configuration exits with; everything else that fails exits with 1.
const BAD_CONFIGURATION: u8 = 2;

/// Longest to wait for queries under way when the last request has gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let command = Cli::parse().command.unwrap_or(Command::Serve);
    let outcome = config::load(&Sources::process())
        .map_err(anyhow::Error::from)
        .and_then(|loaded| run(command, loaded));
    outcome.unwrap_or_else(|error| match error.downcast_ref::<Faults>() {
        Some(faults) => {
            eprintln!("{faults}");
            ExitCode::from(BAD_CONFIGURATION)
        }
        None => {
            eprintln!("{}: {}", env!("CARGO_PKG_NAME"), chain(error.as_ref()));
            ExitCode::FAILURE
        }
    })
}

fn run(command: Command, loaded: Loaded) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve => {
            let config = loaded.usable()?;
            let _telemetry = telemetry::init(&config)?;
            block_on(serve(config))
        }
        Command::Migrate { action } => {
            let config = loaded.usable()?;
            block_on(cli::migrate(&action, &config))
        }
        Command::Check => cli::check(&loaded.config),
        Command::Config { json } => cli::config(&loaded, json),
        Command::Openapi => cli::openapi(),
        Command::Healthcheck => cli::healthcheck(&loaded.config.server),
        Command::Key { action } => {
            let config = loaded.usable()?;
            block_on(cli::key(action, &config))
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let shutdown = Shutdown::on_signals()?;
    let Some(mut service) = app::start(&config, &shutdown).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    tracing::info!(
        env = config.env.as_str(),
        version = VERSION,
        commit = COMMIT,
        database = %config.database.url,
        cache = ?service.state.cache.store(),
        "ready"
    );
    if service.state.auth.mode() == AuthMode::Open {
        tracing::warn!("anyone may call, with every scope: APP_AUTH__MODE is open");
    }
    let url = config.server.public_url.as_deref().unwrap_or(&service.url);
    tracing::info!("the API is at {url}/api, its documentation at {url}/docs");
    if let Some(url) = &service.management_url {
        tracing::info!("operators are served at {url}/status");
    }

    let drained = service.drained().await?;
    service.state.close(CLOSE_TIMEOUT).await;
    tracing::info!(aborted = drained.aborted, "stopped");
    Ok(ExitCode::SUCCESS)
}

/// Runs `work`, and waits for nothing that still blocks a thread after it, such as a look-up of a
/// name that no server answers.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}
