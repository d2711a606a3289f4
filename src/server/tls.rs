//! TLS from two PEM files, read again on SIGHUP so that a renewed certificate needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// The pair now in use, and where it came from.
pub(super) struct Tls {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<ServerConfig>,
}

impl Tls {
    pub(super) fn load(cert: &Path, key: &Path) -> anyhow::Result<Self> {
        let current = ArcSwap::new(read(cert, key)?);
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), current })
    }

    /// Takes the files as they are now for the connections to come. On an error the old pair
    /// stays.
    pub(super) fn reload(&self) -> anyhow::Result<()> {
        self.current.store(read(&self.cert, &self.key)?);
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }
}

/// Reloads on each SIGHUP until the handle is dropped.
pub(super) fn reload_on_hangup(tls: Option<Arc<Tls>>) -> AbortOnDropHandle<()> {
    let hangup = signal(SignalKind::hangup());
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut hangup = match hangup {
            Ok(hangup) => hangup,
            Err(error) => return tracing::error!(%error, "SIGHUP cannot be listened to"),
        };
        while hangup.recv().await.is_some() {
            // Without a certificate it is still listened to: unheard, it would end the process.
            let Some(tls) = &tls else { continue };
            match tls.reload() {
                Ok(()) => tracing::info!(cert = %tls.cert.display(), "certificate reloaded"),
                Err(error) => {
                    tracing::error!("certificate not reloaded, the old one stays: {error:#}")
                }
            }
        }
    }))
}

fn read(cert: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read the certificate {}", cert.display()))?;
    ensure!(!chain.is_empty(), "no certificate in {}", cert.display());
    let secret = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("cannot read the private key {}", key.display()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| {
            anyhow!("{} and {} cannot be used together: {error}", cert.display(), key.display())
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A folder of its own for one test, with a fresh pair in it.
    fn pair(test: &str) -> (PathBuf, PathBuf) {
        let folder = std::env::temp_dir().join(format!("plinth-tls-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        write_pair(&cert, &key);
        (cert, key)
    }

    fn write_pair(cert: &Path, key: &Path) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(cert, made.cert.pem()).unwrap();
        fs::write(key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_good_new_pair_is_taken_and_a_bad_one_is_not() {
        let (cert, key) = pair("reload");
        let tls = Tls::load(&cert, &key).unwrap();
        let first = tls.current.load_full();

        write_pair(&cert, &key);
        tls.reload().unwrap();
        let second = tls.current.load_full();
        assert!(!Arc::ptr_eq(&first, &second));

        let (_, stranger) = pair("stranger");
        fs::copy(stranger, &key).unwrap();
        let error = format!("{:#}", tls.reload().unwrap_err());
        assert!(error.contains("cannot be used together"), "{error}");
        assert!(Arc::ptr_eq(&second, &tls.current.load_full()));
    }

    #[test]
    fn each_fault_names_its_file() {
        let (cert, key) = pair("faults");
        let missing = key.with_file_name("missing.pem");
        let error = format!("{:#}", Tls::load(&cert, &missing).err().unwrap());
        assert!(error.starts_with("cannot read the private key") && error.contains("missing.pem"));
        let error = format!("{:#}", Tls::load(&missing, &key).err().unwrap());
        assert!(error.starts_with("cannot read the certificate") && error.contains("missing.pem"));
        let error = format!("{:#}", Tls::load(&key, &key).err().unwrap());
        assert!(error.starts_with("no certificate in") && error.contains("key.pem"));
    }
}
