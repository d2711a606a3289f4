//! `healthcheck`: asks the service on this machine whether it is ready.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::config::ServerConfig;

/// Longest it waits; below Docker's and Kubernetes' usual timeouts.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(2);

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
