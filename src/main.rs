//! The whole start-up, in order. Until telemetry stands nothing runs beside it, and whatever
//! fails says what, why and how to mend it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use plinth::app::App;
use plinth::cli::{self, Cli, Command};
use plinth::config::{self, Config, Loaded, Sources};
use plinth::error::chain;
use plinth::health::{COMMIT, Health, VERSION};
use plinth::server::{Server, Shutdown};
use plinth::state::AppState;
use plinth::telemetry;
use tokio::runtime::Runtime;

/// What a faulty configuration exits with; everything else that fails exits with 1.
const BAD_CONFIGURATION: u8 = 2;

/// Longest to wait for queries under way when the last request has gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let loaded = match config::load(&Sources::process()) {
        Ok(loaded) => loaded,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    run(cli.command.unwrap_or(Command::Serve), loaded).unwrap_or_else(|error| {
        eprintln!("{}: {}", env!("CARGO_PKG_NAME"), chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

fn run(command: Command, loaded: Loaded) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve => {
            let _telemetry = telemetry::init(&loaded.config)?;
            Runtime::new()?.block_on(serve(loaded.config))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Migrate { action } => {
            Runtime::new()?.block_on(cli::migrate(&action, &loaded.config))
        }
        Command::Check => cli::check(&loaded.config),
        Command::Config { json } => cli::config(&loaded, json),
        Command::Openapi => cli::openapi(),
        Command::Healthcheck => cli::healthcheck(&loaded.config.server),
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals()?;
    let server = Server::bind(&config.server)?;
    let url = format!("{}://{}", server.scheme(), server.address());
    let health = Health::starting(&config.health);

    // The door is open before the house is ready, so that probes have an answer meanwhile.
    let app = App::starting(&health, &config);
    let draining = health.clone();
    let serving = tokio::spawn(server.serve(app.clone(), shutdown.clone(), move || {
        draining.draining();
    }));

    let state = tokio::select! {
        state = AppState::connect(&config, health.clone()) => state?,
        () = shutdown.drain.cancelled() => return Ok(()),
    };
    app.open(state.clone(), &config);
    health.serving();
    tracing::info!(env = config.env.as_str(), version = VERSION, commit = COMMIT, "ready");
    tracing::info!("the API is at {url}/api/v1/plans, its documentation at {url}/docs");

    let drained = serving.await.context("the server stopped by itself")?;
    state.close(CLOSE_TIMEOUT).await;
    tracing::info!(aborted = drained.aborted, "stopped");
    Ok(())
}
