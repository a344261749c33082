//! Handshakes of TLS over loopback: who is let in, who is trusted, and what happens when files change.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test is a failed test"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flotilla_tests::pki::Authority;
use multiraft::tls::{
    ClientTls, ClientTlsOptions, KeyPairFiles, NameRules, Protocol, ServerTls, ServerTlsOptions,
    ShownCertificate, Version, open, self_signed,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HOST: &str = "127.0.0.1";
const PATIENCE: Duration = Duration::from_secs(20);

fn server_of(identity: &KeyPairFiles) -> ServerTlsOptions {
    ServerTlsOptions {
        identity: identity.clone(),
        client_ca: None,
        revoked: None,
        names: NameRules::default(),
        check_address: false,
        protocol: Protocol::default(),
    }
}

fn client_of(authority: &Authority, identity: Option<&KeyPairFiles>) -> ClientTlsOptions {
    ClientTlsOptions {
        ca: Some(authority.file()),
        identity: identity.cloned(),
        ..ClientTlsOptions::default()
    }
}

/// What became of one connection, on which each side says a word.
struct Met {
    server: Result<Option<ShownCertificate>, String>,
    client: Result<(), String>,
}

impl Met {
    #[track_caller]
    fn well(self) -> Option<ShownCertificate> {
        self.client.unwrap();
        self.server.unwrap()
    }

    #[track_caller]
    fn refused(self, reason: &str) {
        let error = self.server.unwrap_err();
        assert!(error.contains(reason), "{error}");
        assert!(self.client.is_err(), "the client heard an answer");
    }

    #[track_caller]
    fn distrusted(self, reason: &str) {
        let error = self.client.unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

fn meet(server: &ServerTls, client: &ClientTls) -> Met {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind((HOST, 0)).await.unwrap();
        let uri = format!("https://{}", listener.local_addr().unwrap());
        let uri = uri.parse().unwrap();
        let serve = async {
            let (socket, from) = listener.accept().await.unwrap();
            let (mut stream, shown) = server.accept(socket, from).await?;
            let mut byte = [0];
            stream
                .read_exact(&mut byte)
                .await
                .map_err(|e| e.to_string())?;
            stream.write_all(&byte).await.map_err(|e| e.to_string())?;
            stream.shutdown().await.map_err(|e| e.to_string())?;
            Ok(shown)
        };
        let call = async {
            let mut stream = open(&uri, Some(client)).await.map_err(|e| e.to_string())?;
            stream.write_all(b"x").await.map_err(|e| e.to_string())?;
            let mut byte = [0];
            stream
                .read_exact(&mut byte)
                .await
                .map_err(|e| e.to_string())?;
            Ok(())
        };
        let (server, client) = tokio::join!(serve, call);
        Met { server, client }
    })
}

fn met(server: ServerTlsOptions, client: ClientTlsOptions) -> Met {
    meet(
        &ServerTls::open(server).unwrap(),
        &ClientTls::open(client).unwrap(),
    )
}

#[test]
fn server_is_trusted_when_the_authority_signed_it_for_that_host() {
    let dir = tempfile::tempdir().unwrap();
    let (good, other) = (
        Authority::new(dir.path(), "good"),
        Authority::new(dir.path(), "other"),
    );
    let here = good.issue("here", 1, &[HOST]);
    assert_eq!(met(server_of(&here), client_of(&good, None)).well(), None);
    met(server_of(&here), client_of(&other, None)).distrusted("UnknownIssuer");
    let elsewhere = good.issue("elsewhere", 2, &["db.example.org"]);
    met(server_of(&elsewhere), client_of(&good, None)).distrusted("not valid for name");
    let blind = ClientTlsOptions {
        skip_verification: true,
        ..ClientTlsOptions::default()
    };
    met(server_of(&elsewhere), blind).well();
    let names = NameRules {
        common_names: vec!["someone".to_owned()],
        ..NameRules::default()
    };
    let choosy = ClientTlsOptions {
        names,
        ..client_of(&good, None)
    };
    met(server_of(&here), choosy).distrusted("the certificate's common name is \"here\"");
}

#[test]
fn clients_are_let_in_by_authority_name_host_and_list() {
    let dir = tempfile::tempdir().unwrap();
    let (good, other) = (
        Authority::new(dir.path(), "good"),
        Authority::new(dir.path(), "other"),
    );
    let here = good.issue("here", 1, &[HOST]);
    let asking = ServerTlsOptions {
        client_ca: Some(good.file()),
        ..server_of(&here)
    };
    let alice = good.issue("alice", 2, &["alice.example.org"]);
    let shown = met(asking.clone(), client_of(&good, Some(&alice))).well();
    let shown = shown.unwrap();
    assert_eq!(shown.common_name, "alice");
    assert_eq!(shown.host_names, ["alice.example.org"]);
    met(asking.clone(), client_of(&good, None)).refused("it shows no certificate");
    let mallory = other.issue("mallory", 3, &[]);
    met(asking.clone(), client_of(&good, Some(&mallory))).refused("UnknownIssuer");

    let by_name = |name: &str| ServerTlsOptions {
        names: NameRules {
            common_names: vec![name.to_owned()],
            ..NameRules::default()
        },
        ..asking.clone()
    };
    met(by_name("alice"), client_of(&good, Some(&alice))).well();
    met(by_name("bob"), client_of(&good, Some(&alice))).refused("common name is \"alice\"");
    let by_host = |host: &str| ServerTlsOptions {
        names: NameRules {
            host_names: vec!["first.example.org".to_owned(), host.to_owned()],
            ..NameRules::default()
        },
        ..asking.clone()
    };
    met(by_host("alice.example.org"), client_of(&good, Some(&alice))).well();
    met(by_host("bob.example.org"), client_of(&good, Some(&alice)))
        .refused("for none of the allowed hosts");

    let listed = |numbers: &[u64]| ServerTlsOptions {
        revoked: Some(good.revoke(numbers)),
        ..asking.clone()
    };
    met(listed(&[7]), client_of(&good, Some(&alice))).well();
    met(listed(&[7, 2]), client_of(&good, Some(&alice))).refused("Revoked");

    let from_there = ServerTlsOptions {
        check_address: true,
        ..asking
    };
    for (hosts, is_well) in [
        (&[HOST][..], true),
        (&[], true),
        (&["localhost"], true),
        (&["10.1.2.3"], false),
    ] {
        let caller = good.issue("caller", 4, hosts);
        let met = met(from_there.clone(), client_of(&good, Some(&caller)));
        if is_well {
            met.well();
        } else {
            met.refused("it comes from 127.0.0.1, and its certificate is for 10.1.2.3");
        }
    }
}

#[test]
fn changed_files_are_used_and_unusable_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (
        Authority::new(dir.path(), "old"),
        Authority::new(dir.path(), "new"),
    );
    let files = old.issue("here", 1, &[HOST]);
    let server = ServerTls::open(server_of(&files)).unwrap();
    let of = |authority| ClientTls::open(client_of(authority, None)).unwrap();
    let (trusts_old, trusts_new) = (of(&old), of(&new));
    meet(&server, &trusts_old).well();
    meet(&server, &trusts_new).distrusted("UnknownIssuer");

    // A key that is no more that of the certificate, and garbage: what was good stays in use, however often it is asked.
    let (cert, key) = (
        fs::read(&files.cert).unwrap(),
        fs::read(&files.key).unwrap(),
    );
    for torn in [&cert[..cert.len() / 2], b"", b"garbage"] {
        fs::write(&files.cert, torn).unwrap();
        let until = Instant::now() + Duration::from_millis(1_200);
        while Instant::now() < until {
            meet(&server, &trusts_old).well();
        }
    }
    fs::write(&files.cert, &cert).unwrap();
    assert_eq!(fs::read(&files.key).unwrap(), key);

    let replaced = new.issue("here", 2, &[HOST]);
    assert_eq!(replaced, files);
    let until = Instant::now() + PATIENCE;
    while meet(&server, &trusts_new).client.is_err() {
        assert!(Instant::now() < until, "the new certificate is not used");
    }
    meet(&server, &trusts_old).distrusted("UnknownIssuer");
}

#[test]
fn files_and_options_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let (one, two) = (
        authority.issue("one", 1, &[HOST]),
        authority.issue("two", 2, &[HOST]),
    );
    let good = server_of(&one);
    let mixed = KeyPairFiles {
        key: two.key.clone(),
        ..one.clone()
    };
    let swapped = KeyPairFiles {
        cert: one.key.clone(),
        key: one.cert.clone(),
    };
    let missing = KeyPairFiles {
        cert: dir.path().join("nowhere.pem"),
        ..one.clone()
    };
    let protocol = |protocol| ServerTlsOptions {
        protocol,
        ..good.clone()
    };
    let cases = [
        (server_of(&mixed), "two.key"),
        (
            server_of(&swapped),
            "expected a certificate in PEM, found none",
        ),
        (server_of(&missing), "nowhere.pem"),
        (
            ServerTlsOptions {
                client_ca: Some(one.key.clone()),
                ..good.clone()
            },
            "expected a certificate in PEM",
        ),
        (
            ServerTlsOptions {
                revoked: Some(authority.revoke(&[])),
                ..good.clone()
            },
            "need the authority",
        ),
        (
            protocol(Protocol {
                cipher_suites: vec!["TLS_RSA_WITH_RC4_128_SHA".to_owned()],
                ..Protocol::default()
            }),
            "unknown or not safe; there are TLS_",
        ),
        (
            protocol(Protocol {
                min: Some(Version::V13),
                max: Some(Version::V12),
                ..Protocol::default()
            }),
            "newer than the newest",
        ),
    ];
    for (options, reason) in cases {
        let error = ServerTls::open(options).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let error = ClientTls::open(ClientTlsOptions::default()).unwrap_err();
    assert!(error.contains("authority"), "{error}");
}

#[test]
fn versions_and_cipher_suites_are_those_that_were_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let here = authority.issue("here", 1, &[HOST]);
    let client = |protocol| ClientTlsOptions {
        protocol,
        ..client_of(&authority, None)
    };
    let of = |min, max, suites: &[&str]| Protocol {
        min,
        max,
        cipher_suites: suites.iter().map(|name| (*name).to_owned()).collect(),
    };
    let new_only = ServerTlsOptions {
        protocol: of(Some(Version::V13), None, &[]),
        ..server_of(&here)
    };
    met(new_only.clone(), client(of(None, Some(Version::V12), &[])))
        .refused("Tls12NotOfferedOrEnabled");
    met(new_only, client(of(Some(Version::V13), None, &[]))).well();
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
    let old_only = ServerTlsOptions {
        protocol: of(None, Some(Version::V12), &[suite]),
        ..server_of(&here)
    };
    met(old_only, client(of(None, None, &[suite]))).well();
}

#[test]
fn plain_text_and_silence_are_told_apart_from_tls() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let server = ServerTls::open(server_of(&authority.issue("here", 1, &[HOST]))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind((HOST, 0)).await.unwrap();
        let mut plain = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let (socket, from) = listener.accept().await.unwrap();
        let error = server.accept(socket, from).await.unwrap_err();
        assert!(error.contains("use https://"), "{error}");
        let uri = format!("https://{}", listener.local_addr().unwrap());
        let error = match open(&uri.parse().unwrap(), None).await {
            Ok(_) => panic!("it was opened without an authority"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("needs the authority"), "{error}");
    });
}

#[test]
fn self_signed_certificate_is_kept_until_it_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("fixtures");
    let (hosts, day) = ([HOST.to_owned()], Duration::from_secs(86_400));
    let made = |valid_for| {
        let files = self_signed(&dir, &hosts, valid_for).unwrap();
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        (read(&files.cert), files)
    };
    let (first, files) = made(30 * day);
    assert_eq!(made(30 * day).0, first);
    let trusting = ClientTlsOptions {
        ca: Some(files.cert.clone()),
        ..ClientTlsOptions::default()
    };
    met(server_of(&files), trusting).well();
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(&files.key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Cut short by a crash, or about to end: made anew.
    fs::write(&files.key, "").unwrap();
    let (second, _) = made(day / 2);
    assert_ne!(second, first);
    let (third, _) = made(30 * day);
    assert_ne!(third, second);
    assert_eq!(made(30 * day).0, third);
}
