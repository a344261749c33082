//! The side that takes connections.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::certificate::{NameRules, ShownCertificate, end_of};
use super::reload::Reloaded;
use super::{KeyPairFiles, Protocol, authorities, certificates, private_key, read};

/// How long a handshake may take: who connects and says nothing holds a descriptor no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connection whose handshake is done.
pub type TlsStream<S> = tokio_rustls::server::TlsStream<S>;

/// What [`ServerTls`] is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsOptions {
    /// What this side shows.
    pub identity: KeyPairFiles,
    /// Authorities, in PEM. With them each client has to show a certificate that one of them has signed; without, none is
    /// asked for.
    pub client_ca: Option<PathBuf>,
    /// Certificates that their authority took back: lists in PEM, or one in DER.
    pub revoked: Option<PathBuf>,
    /// Which of the clients' certificates are let in.
    pub names: NameRules,
    /// A client's certificate that is for hosts or addresses has to be for the address that it comes from.
    pub check_address: bool,
    /// What is spoken.
    pub protocol: Protocol,
}

/// Takes connections. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls(Arc<Inner>);

struct Inner {
    names: NameRules,
    check_address: bool,
    shown: Reloaded<Shown>,
}

/// What is shown to who connects.
struct Shown {
    config: Arc<ServerConfig>,
    expires: Duration,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// The file that cannot be used, and why; or what of the options is wrong.
    pub fn open(options: ServerTlsOptions) -> Result<Self, String> {
        if options.client_ca.is_none() && (options.names.are_given() || options.revoked.is_some()) {
            return Err(
                "rules for clients' certificates need the authority that signs them".to_owned(),
            );
        }
        let files = [&options.identity.cert, &options.identity.key]
            .into_iter()
            .chain(&options.client_ca)
            .chain(&options.revoked)
            .cloned()
            .collect();
        let (names, check_address) = (options.names.clone(), options.check_address);
        let make = move || {
            Ok(Shown {
                config: Arc::new(config(&options)?),
                expires: expires(&options.identity)?,
            })
        };
        let shown = Reloaded::new(files, Box::new(make))?;
        Ok(Self(Arc::new(Inner {
            names,
            check_address,
            shown,
        })))
    }

    /// When the certificate that it shows ends, or one of those that lead to its authority, if that is sooner: time since
    /// 1970. Of the newest files that could be used.
    #[must_use]
    pub fn expires(&self) -> Duration {
        self.0.shown.get().expires
    }

    /// Shakes hands on a new connection from `from`. Ends by itself after some seconds.
    ///
    /// # Errors
    /// Why the connection is refused.
    pub async fn accept<S>(
        &self,
        socket: S,
        from: SocketAddr,
    ) -> Result<(TlsStream<S>, Option<ShownCertificate>), String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.0.shown.get().config));
        let stream = timeout(HANDSHAKE, acceptor.accept(socket))
            .await
            .map_err(|_| "no TLS handshake in time".to_owned())?
            .map_err(|error| describe(&error))?;
        let chain = stream.get_ref().1.peer_certificates();
        let Some(certificate) = chain.and_then(|chain| chain.first()) else {
            return Ok((stream, None));
        };
        let shown = ShownCertificate::parse(certificate)?;
        self.0.names.check(certificate, &shown)?;
        if self.0.check_address {
            check_address(&shown, from.ip().to_canonical()).await?;
        }
        Ok((stream, Some(shown)))
    }
}

fn describe(error: &std::io::Error) -> String {
    use rustls::{Error, InvalidMessage};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "it speaks plain text, and this address takes TLS: use https://".to_owned()
        }
        Some(Error::NoCertificatesPresented) => {
            "it shows no certificate, and this address asks for one".to_owned()
        }
        _ => error.to_string(),
    }
}

fn config(options: &ServerTlsOptions) -> Result<ServerConfig, String> {
    let provider = options.protocol.provider()?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&options.protocol.versions()?)
        .map_err(|error| error.to_string())?;
    let verifier: Arc<dyn ClientCertVerifier> = match &options.client_ca {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(path) => {
            let roots: Arc<RootCertStore> = authorities(path)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .with_crls(revocations(options.revoked.as_ref())?)
                .only_check_end_entity_revocation()
                .allow_unknown_revocation_status();
            verifier
                .build()
                .map_err(|error| format!("{}: {error}", path.display()))?
        }
    };
    let KeyPairFiles { cert, key } = &options.identity;
    let mut config = builder
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(cert)?, private_key(key)?)
        .map_err(|error| {
            let (cert, key) = (cert.display(), key.display());
            format!("the certificate {cert} with the key {key}: {error}")
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn expires(identity: &KeyPairFiles) -> Result<Duration, String> {
    let mut first = Duration::MAX;
    for certificate in certificates(&identity.cert)? {
        first = first.min(end_of(&certificate)?);
    }
    Ok(first)
}

fn revocations(
    path: Option<&PathBuf>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    let bytes = read(path)?;
    if !bytes.starts_with(b"-----") {
        return Ok(vec![bytes.into()]);
    }
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    lists.map_err(|error| format!("{} is not PEM: {error}", path.display()))
}

/// As etcd's: a certificate without hosts and addresses is good from everywhere.
async fn check_address(shown: &ShownCertificate, from: IpAddr) -> Result<(), String> {
    if shown.addresses.is_empty() && shown.host_names.is_empty() {
        return Ok(());
    }
    if shown.addresses.contains(&from) {
        return Ok(());
    }
    for host in &shown.host_names {
        let found = lookup_host((host.as_str(), 0)).await;
        if found.is_ok_and(|mut found| found.any(|found| found.ip().to_canonical() == from)) {
            return Ok(());
        }
    }
    Err(format!(
        "it comes from {from}, and its certificate is for {}; --peer-skip-client-san-verification lets it in",
        shown
            .addresses
            .iter()
            .map(IpAddr::to_string)
            .chain(shown.host_names.iter().cloned())
            .collect::<Vec<_>>()
            .join(", ")
    ))
}
