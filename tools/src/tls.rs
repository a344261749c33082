//! Flags of the commands that call servers, named as etcdctl's.

use std::path::PathBuf;

use clap::Args;
use multiraft::tls::{ClientTls, ClientTlsOptions, KeyPairFiles};

use crate::failure::Failure;

/// What protects a call to an https endpoint.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TlsArgs {
    /// Authorities of the server's certificate, in PEM, for https endpoints [default: those of the system]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Certificate to show to the server, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Take any certificate of the server. Whoever is in between can read and change everything
    #[arg(long, conflicts_with = "cacert")]
    insecure_skip_tls_verify: bool,
}

impl TlsArgs {
    /// Reads the files; nothing where no endpoint is protected and none of the flags is given.
    pub(crate) fn open<'a>(
        &self,
        endpoints: impl IntoIterator<Item = &'a String>,
    ) -> Result<Option<ClientTls>, Failure> {
        let is_given =
            self.cacert.is_some() || self.cert.is_some() || self.insecure_skip_tls_verify;
        let mut endpoints = endpoints.into_iter();
        if !is_given && !endpoints.any(|url| url.starts_with("https://")) {
            return Ok(None);
        }
        let identity = self.cert.clone().zip(self.key.clone());
        ClientTls::open(ClientTlsOptions {
            ca: self.cacert.clone(),
            system_authorities: true,
            identity: identity.map(|(cert, key)| KeyPairFiles { cert, key }),
            skip_verification: self.insecure_skip_tls_verify,
            ..ClientTlsOptions::default()
        })
        .map(Some)
        .map_err(|error| Failure::failed("setting up TLS", error))
    }
}
