//! Flags of the commands that call servers, named as etcdctl's.

use std::path::PathBuf;

use clap::Args;
use multiraft::tls::{ClientTls, ClientTlsOptions, KeyPairFiles};

use crate::failure::Failure;

/// What protects a call to an https endpoint.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TlsArgs {
    /// Authorities of the server's certificate, in PEM, for https endpoints
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
    /// Reads the files; nothing without any of the flags.
    pub(crate) fn open(&self) -> Result<Option<ClientTls>, Failure> {
        if self.cacert.is_none() && !self.insecure_skip_tls_verify {
            if self.cert.is_some() {
                return Err(Failure::Usage(
                    "--cert needs --cacert, the authority of the server's certificate, or --insecure-skip-tls-verify"
                        .to_owned(),
                ));
            }
            return Ok(None);
        }
        let identity = self.cert.clone().zip(self.key.clone());
        ClientTls::open(ClientTlsOptions {
            ca: self.cacert.clone(),
            identity: identity.map(|(cert, key)| KeyPairFiles { cert, key }),
            skip_verification: self.insecure_skip_tls_verify,
            ..ClientTlsOptions::default()
        })
        .map(Some)
        .map_err(|error| Failure::failed("setting up TLS", error))
    }
}
