//! TLS for clients and members: certificates in files, which are read again when they change.
//!
//! - [`ServerTls`] takes connections: one certificate, and the authorities whose clients it lets in.
//! - [`ClientTls`] makes them.
//! - [`self_signed`] keeps a certificate that nobody else signed, for `--auto-tls`.
//!
//! Nothing here knows what goes over a connection. A handshake that fails is an error of that connection alone; files that
//! cannot be read while it runs leave the last good ones in use (`reload.rs`).

mod certificate;
mod client;
mod refusals;
mod reload;
mod self_signed;
mod server;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, SupportedCipherSuite, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};

pub use certificate::{NameRules, ShownCertificate};
pub use client::{ClientTls, ClientTlsOptions, connect, open};
pub use refusals::Refusals;
pub use self_signed::self_signed;
pub use server::{ServerTls, ServerTlsOptions, TlsStream};

/// A connection, whatever protects it.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

/// A socket that listens, and what protects the connections that it takes.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// Plain text without.
    pub tls: Option<ServerTls>,
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self { socket, tls: None }
    }
}

/// A certificate with those that lead to its authority, and its private key: two files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPairFiles {
    /// The certificate, its own first.
    pub cert: PathBuf,
    /// The key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// What is spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protocol {
    /// The oldest version; none for 1.2.
    pub min: Option<Version>,
    /// The newest version; none for 1.3.
    pub max: Option<Version>,
    /// Names of cipher suites as IANA has them; empty for all that are safe.
    pub cipher_suites: Vec<String>,
}

/// A version of the protocol. Older ones are not spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 1.2
    V12,
    /// 1.3
    V13,
}

impl Protocol {
    /// Fails for a range without a version, and for a suite that is unknown or not safe.
    pub(super) fn provider(&self) -> Result<Arc<CryptoProvider>, String> {
        let mut provider = rustls::crypto::ring::default_provider();
        if !self.cipher_suites.is_empty() {
            let known = provider.cipher_suites;
            let named = |name: &String| {
                let suite = known.iter().find(|suite| suite_name(suite) == *name);
                suite.copied().ok_or_else(|| {
                    let names: Vec<_> = known.iter().map(suite_name).collect();
                    format!(
                        "the cipher suite {name:?} is unknown or not safe; there are {}",
                        names.join(", ")
                    )
                })
            };
            provider.cipher_suites = self
                .cipher_suites
                .iter()
                .map(named)
                .collect::<Result<_, _>>()?;
        }
        Ok(Arc::new(provider))
    }

    pub(super) fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
        let (min, max) = (
            self.min.unwrap_or(Version::V12),
            self.max.unwrap_or(Version::V13),
        );
        let all = [(Version::V12, &TLS12), (Version::V13, &TLS13)];
        let spoken = all.into_iter().filter(|(v, _)| (min..=max).contains(v));
        let versions: Vec<_> = spoken.map(|(_, version)| version).collect();
        if versions.is_empty() {
            return Err("the oldest TLS version allowed is newer than the newest".to_owned());
        }
        Ok(versions)
    }
}

/// As IANA and Go have it: the library says `TLS13_` where they say `TLS_`.
fn suite_name(suite: &SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1)
}

#[expect(
    clippy::disallowed_methods,
    reason = "certificates are no data of the store: no simulator and no recovery knows them"
)]
fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| format!("{} is not PEM: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!(
            "{}: expected a certificate in PEM, found none",
            path.display()
        ));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| {
        format!(
            "{}: expected a private key in PEM without a password, found: {error}",
            path.display()
        )
    })
}

fn authorities(path: &Path) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{}: not usable as an authority: {error}", path.display()))?;
    }
    Ok(Arc::new(roots))
}
