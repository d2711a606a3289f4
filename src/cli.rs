//! The commands.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Parser, Subcommand};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::app;
use crate::config::{self, Config, Grade, Loaded, ServerConfig};
use crate::db::{Db, State};

/// Longest the health check waits; below Docker's and Kubernetes' usual timeouts.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// Prints a table of pass, warn and fail, each with its fix. Exits with 1 if anything fails.
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
    answer(&text)?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

/// Runs `healthcheck`.
///
/// # Errors
/// One line: nothing answers, or what does is not ready.
pub fn healthcheck(config: &ServerConfig) -> anyhow::Result<ExitCode> {
    let address = SocketAddr::new(reachable(config.bind), config.port);
    let tcp = TcpStream::connect_timeout(&address, HEALTHCHECK_TIMEOUT)
        .with_context(|| format!("nothing answers at {address}"))?;
    tcp.set_read_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    tcp.set_write_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    let answer = match config.tls_cert {
        Some(_) => ask(StreamOwned::new(loopback_tls(address.ip())?, tcp)),
        None => ask(tcp),
    };
    let answer = answer.map_err(|error| match error.kind() {
        // What a socket calls its timeout says nothing of time.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            anyhow!("it takes longer than {HEALTHCHECK_TIMEOUT:?}")
        }
        _ => error.into(),
    });
    match answer.with_context(|| format!("no answer from {address}"))?.get(9..12) {
        Some("200") => Ok(ExitCode::SUCCESS),
        Some(status) => bail!("not ready: {status} from {address}"),
        None => bail!("what answers at {address} does not speak HTTP"),
    }
}

/// The address to reach a listener on `bind` at from this machine.
fn reachable(bind: IpAddr) -> IpAddr {
    if bind.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { bind }
}

/// The head of the answer, or as much as fits.
fn ask(mut stream: impl Read + Write) -> std::io::Result<String> {
    stream
        .write_all(b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut head = [0; 64];
    let length = stream.read(&mut head)?;
    Ok(String::from_utf8_lossy(&head[..length]).into_owned())
}

/// TLS to this machine's own listener. Its certificate names a public host, not the loopback
/// address, so it is not checked: nothing secret is sent, and nobody stands between.
fn loopback_tls(ip: IpAddr) -> anyhow::Result<ClientConnection> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        .with_no_client_auth();
    Ok(ClientConnection::new(Arc::new(config), ServerName::IpAddress(ip.into()))?)
}

#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
