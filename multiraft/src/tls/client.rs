//! The side that makes connections.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::certificate::{NameRules, ShownCertificate};
use super::reload::Reloaded;
use super::{Connection, KeyPairFiles, Protocol, authorities, certificates, private_key};

/// What [`ClientTls`] is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTlsOptions {
    /// Authorities, in PEM, one of which has to have signed the server's certificate.
    pub ca: Option<PathBuf>,
    /// Without a file of authorities: those that the system trusts. Default false: who talks to them is trusted by somebody
    /// else.
    pub system_authorities: bool,
    /// What this side shows when it is asked.
    pub identity: Option<KeyPairFiles>,
    /// Takes any certificate. Danger: whoever is in between reads and changes everything.
    pub skip_verification: bool,
    /// Which of the servers' certificates are trusted.
    pub names: NameRules,
    /// What is spoken.
    pub protocol: Protocol,
}

/// Makes connections. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls(Arc<Inner>);

struct Inner {
    names: NameRules,
    config: Reloaded<ClientConfig>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// The file that cannot be used, and why; or what of the options is wrong.
    pub fn open(options: ClientTlsOptions) -> Result<Self, String> {
        let identity = options.identity.iter();
        let files = identity
            .flat_map(|pair| [&pair.cert, &pair.key])
            .chain(&options.ca)
            .cloned()
            .collect();
        let names = options.names.clone();
        let config = Reloaded::new(files, Box::new(move || config(&options)))?;
        Ok(Self(Arc::new(Inner { names, config })))
    }

    async fn shake(&self, host: &str, socket: TcpStream) -> io::Result<Box<dyn Connection>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let connector = TlsConnector::from(self.0.config.get());
        let stream = connector.connect(name, socket).await?;
        if self.0.names.are_given() {
            let chain = stream.get_ref().1.peer_certificates();
            let certificate = chain.and_then(|chain| chain.first());
            let checked = match certificate {
                Some(certificate) => ShownCertificate::parse(certificate)
                    .and_then(|shown| self.0.names.check(certificate, &shown)),
                None => Err("it shows no certificate".to_owned()),
            };
            checked.map_err(io::Error::other)?;
        }
        Ok(Box::new(stream))
    }
}

/// Opens a connection to where a URL points, protected if it begins with `https`.
///
/// # Errors
/// Also when there is nothing to protect it with.
pub async fn open(uri: &Uri, tls: Option<&ClientTls>) -> io::Result<Box<dyn Connection>> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let host = uri
        .host()
        .ok_or_else(|| invalid(format!("{uri} has no host")))?;
    // An IPv6 address is in brackets there.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let protects = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if protects { 443 } else { 80 });
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    if !protects {
        return Ok(Box::new(socket));
    }
    let tls = tls.ok_or_else(|| {
        invalid("an https URL needs the authority that signed its certificate".to_owned())
    })?;
    tls.shake(host, socket).await
}

/// Connects a channel for gRPC.
///
/// # Errors
/// As [`open`], and tonic's.
pub async fn connect(
    endpoint: &Endpoint,
    tls: Option<&ClientTls>,
) -> Result<Channel, tonic::transport::Error> {
    let tls = tls.cloned();
    let connector = service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move { open(&uri, tls.as_ref()).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}

fn config(options: &ClientTlsOptions) -> Result<ClientConfig, String> {
    let provider = options.protocol.provider()?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&options.protocol.versions()?)
        .map_err(|error| error.to_string())?;
    let verifier: Arc<dyn ServerCertVerifier> = match (&options.ca, options.skip_verification) {
        (_, true) => Arc::new(Anyone(provider)),
        (Some(path), false) => {
            let roots: Arc<RootCertStore> = authorities(path)?;
            WebPkiServerVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| format!("{}: {error}", path.display()))?
        }
        (None, false) if options.system_authorities => {
            WebPkiServerVerifier::builder_with_provider(system_authorities()?, provider)
                .build()
                .map_err(|error| format!("the system's authorities: {error}"))?
        }
        (None, false) => {
            return Err(
                "the authority that signs the servers' certificates is not given".to_owned(),
            );
        }
    };
    // The builder calls any verifier of one's own dangerous; the first of the two is the library's.
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some(KeyPairFiles { cert, key }) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| {
                let (cert, key) = (cert.display(), key.display());
                format!("the certificate {cert} with the key {key}: {error}")
            })?,
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Those that the system trusts, as far as they can be read: one that is of no use here does not spoil the others.
fn system_authorities() -> Result<Arc<RootCertStore>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let errors = found.errors.iter().map(|error| format!(": {error}"));
        return Err(format!(
            "the system has no authorities that can be used; install them, or name a file of them{}",
            errors.collect::<String>()
        ));
    }
    Ok(Arc::new(roots))
}

/// Takes any certificate; that the other side has its key is verified all the same.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
