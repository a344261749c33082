//! Authorities and the certificates that they sign, as files.

use std::fs;
use std::path::{Path, PathBuf};

use multiraft::tls::KeyPairFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};

/// Who signs.
pub struct Authority {
    dir: PathBuf,
    name: &'static str,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, whose certificate is in `dir`.
    ///
    /// # Panics
    /// When that cannot be written.
    #[must_use]
    pub fn new(dir: &Path, name: &'static str) -> Self {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new(Vec::new()).expect("it has no host");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("a key signs itself");
        let authority = Self {
            dir: dir.to_owned(),
            name,
            issuer: Issuer::new(params, key),
        };
        fs::write(authority.file(), certificate.pem()).expect("a file can be written");
        authority
    }

    /// Its certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join(format!("{}.pem", self.name))
    }

    /// A certificate with that common name and number for `hosts`, written in the place of any other of that name.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn issue(&self, common_name: &str, number: u64, hosts: &[&str]) -> KeyPairFiles {
        self.issue_until(common_name, number, hosts, (2100, 1, 1))
    }

    /// The same, of a certificate that is good until the beginning of a day: year, month and day.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn issue_until(
        &self,
        common_name: &str,
        number: u64,
        hosts: &[&str],
        (year, month, day): (i32, u8, u8),
    ) -> KeyPairFiles {
        let key = KeyPair::generate().expect("a key can be made");
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("the hosts are some");
        params.serial_number = Some(SerialNumber::from(number));
        params.not_after = date_time_ymd(year, month, day);
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).expect("it signs");
        let files = KeyPairFiles {
            cert: self.dir.join(format!("{common_name}.pem")),
            key: self.dir.join(format!("{common_name}.key")),
        };
        fs::write(&files.key, key.serialize_pem()).expect("a file can be written");
        fs::write(&files.cert, certificate.pem()).expect("a file can be written");
        files
    }

    /// A list of the certificates, by number, that are good no more.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn revoke(&self, numbers: &[u64]) -> PathBuf {
        let (past, future) = (date_time_ymd(2020, 1, 1), date_time_ymd(2100, 1, 1));
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: past,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: past,
            next_update: future,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("it signs");
        let file = self.dir.join(format!("{}.crl", self.name));
        fs::write(&file, list.pem().expect("it has a text form")).expect("a file can be written");
        file
    }
}
