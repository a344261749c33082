//! A certificate that nobody else signed: traffic is encrypted, and nobody is who he says.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::{KeyPairFiles, certificates, private_key};

/// What a certificate is made again for in the last hours of its life, at a start.
const LEFT_MIN: Duration = Duration::from_secs(24 * 3_600);
/// Clocks differ.
const BEFORE: Duration = Duration::from_secs(3_600);

/// The certificate in `dir` for `hosts`, names or addresses. It is made when there is none, when it cannot be used, or when
/// it soon ends; a client may keep it as the authority that it trusts, so otherwise it stays.
///
/// # Errors
/// When it cannot be made or written.
pub fn self_signed(
    dir: &Path,
    hosts: &[String],
    valid_for: Duration,
) -> Result<KeyPairFiles, String> {
    let files = KeyPairFiles {
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
    };
    if is_good(&files) {
        return Ok(files);
    }
    make(dir, &files, hosts, valid_for)
        .map_err(|error| format!("cannot make a certificate in {}: {error}", dir.display()))?;
    Ok(files)
}

fn is_good(files: &KeyPairFiles) -> bool {
    let Ok((chain, _)) = certificates(&files.cert).and_then(|c| Ok((c, private_key(&files.key)?)))
    else {
        return false;
    };
    let ends = Certificate::from_der(&chain[0])
        .map(|certificate| certificate.tbs_certificate().validity().not_after);
    ends.is_ok_and(|ends| ends.to_system_time() > now() + LEFT_MIN)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the life of a certificate is counted in calendar time"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "certificates are no data of the store: no simulator and no recovery knows them"
)]
fn make(
    dir: &Path,
    files: &KeyPairFiles,
    hosts: &[String],
    valid_for: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(hosts.to_vec())?;
    params.not_before = (now() - BEFORE).into();
    params.not_after = (now() + valid_for).into();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "flotilla");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.self_signed(&key)?;
    fs::create_dir_all(dir)?;
    // The key first: a certificate without its key is made anew at the next start.
    write(&files.key, &key.serialize_pem(), 0o600)?;
    write(&files.cert, &certificate.pem(), 0o644)?;
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "certificates are no data of the store: no simulator and no recovery knows them"
)]
fn write(path: &Path, pem: &str, mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()
}
