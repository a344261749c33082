//! What a certificate says of who shows it. The handshake has verified it; here it is only read.

use std::net::IpAddr;
use std::time::Duration;

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// The certificate of the other side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShownCertificate {
    /// Of its subject; empty without one.
    pub common_name: String,
    /// Addresses that it is for.
    pub addresses: Vec<IpAddr>,
    /// Host names that it is for; the first label may be `*`.
    pub host_names: Vec<String>,
}

impl ShownCertificate {
    pub(super) fn parse(der: &CertificateDer<'_>) -> Result<Self, String> {
        let certificate = Certificate::from_der(der)
            .map_err(|error| format!("a certificate that cannot be read: {error}"))?;
        let certificate = certificate.tbs_certificate();
        let common_name = certificate
            .subject()
            .common_name()
            .map_err(|error| format!("a common name that cannot be read: {error}"))?;
        let mut shown = Self {
            common_name: common_name.map_or_else(String::new, |name| name.value().into_owned()),
            ..Self::default()
        };
        let names = certificate
            .get_extension::<SubjectAltName>()
            .map_err(|error| format!("alternative names that cannot be read: {error}"))?;
        for name in names.map_or_else(Vec::new, |(_, names)| names.0) {
            match name {
                GeneralName::DnsName(name) => shown.host_names.push(name.to_string()),
                GeneralName::IpAddress(address) => {
                    shown.addresses.extend(ip_address(address.as_bytes()));
                }
                _ => {}
            }
        }
        Ok(shown)
    }
}

/// When a certificate ends: time since 1970.
pub(super) fn end_of(der: &CertificateDer<'_>) -> Result<Duration, String> {
    let certificate = Certificate::from_der(der)
        .map_err(|error| format!("a certificate that cannot be read: {error}"))?;
    let validity = certificate.tbs_certificate().validity();
    Ok(validity.not_after.to_unix_duration())
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// Which certificates are let in, of those that an authority has signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameRules {
    /// One of these common names; empty for any.
    pub common_names: Vec<String>,
    /// For one of these host names or addresses; empty for any.
    pub host_names: Vec<String>,
}

impl NameRules {
    pub(super) fn are_given(&self) -> bool {
        !self.common_names.is_empty() || !self.host_names.is_empty()
    }

    pub(super) fn check(
        &self,
        der: &CertificateDer<'_>,
        shown: &ShownCertificate,
    ) -> Result<(), String> {
        let name = &shown.common_name;
        if !self.common_names.is_empty() && !self.common_names.contains(name) {
            return Err(format!(
                "the certificate's common name is {name:?}, allowed are {}",
                self.common_names.join(", ")
            ));
        }
        if self.host_names.is_empty() {
            return Ok(());
        }
        let parsed = ParsedCertificate::try_from(der).map_err(|error| error.to_string())?;
        let is_for = |host: &String| {
            ServerName::try_from(host.as_str())
                .is_ok_and(|host| verify_server_name(&parsed, &host).is_ok())
        };
        if self.host_names.iter().any(is_for) {
            return Ok(());
        }
        Err(format!(
            "the certificate is for none of the allowed hosts {}",
            self.host_names.join(", ")
        ))
    }
}
