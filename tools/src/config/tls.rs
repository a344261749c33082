//! What protects the client and the peer address: two sets of options that mean the same, as etcd has them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use multiraft::tls::{
    ClientTls, ClientTlsOptions, KeyPairFiles, NameRules, Protocol, ServerTls, ServerTlsOptions,
    Version, self_signed,
};

use super::Reader;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
const YEARS_MAX: u64 = 100;

/// What protects the connections that are taken on one of the two addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Protection {
    /// Nothing was asked for.
    #[default]
    None,
    /// A certificate in files.
    Files(ServerTlsOptions),
    /// One of its own making.
    SelfSigned(SelfSigned),
}

/// A certificate of its own making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SelfSigned {
    /// Below the data directory.
    dir: PathBuf,
    hosts: Vec<String>,
    valid_for: Duration,
    protocol: Protocol,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsConfig {
    /// Of the client address.
    pub(crate) client: Protection,
    /// Of the peer address.
    pub(crate) peer: Protection,
    /// Of calls to other members.
    pub(crate) calls: Option<ClientTlsOptions>,
}

impl Protection {
    /// Reads the files, if there are some already.
    pub(crate) fn open(&self) -> Result<Option<ServerTls>, String> {
        match self {
            Self::Files(options) => ServerTls::open(options.clone()).map(Some),
            Self::None | Self::SelfSigned(_) => Ok(None),
        }
    }

    /// Reads the files, once the data directory is there, in which those of its own making are.
    pub(crate) fn open_in(&self, data_dir: &Path) -> Result<Option<ServerTls>, String> {
        let Self::SelfSigned(made) = self else {
            return self.open();
        };
        let dir = data_dir.join(&made.dir);
        ServerTls::open(ServerTlsOptions {
            identity: self_signed(&dir, &made.hosts, made.valid_for)?,
            client_ca: None,
            revoked: None,
            names: NameRules::default(),
            check_address: false,
            protocol: made.protocol.clone(),
        })
        .map(Some)
    }
}

impl TlsConfig {
    /// What the calls to other members need.
    pub(crate) fn open_calls(&self) -> Result<Option<ClientTls>, String> {
        self.calls.clone().map(ClientTls::open).transpose()
    }
}

/// The names of the options of one address.
struct Side {
    cert: &'static str,
    key: &'static str,
    ca: &'static str,
    auth: &'static str,
    crl: &'static str,
    host_names: &'static str,
    auto: &'static str,
    /// Where certificates of its own making are.
    dir: &'static str,
}

const CLIENT: Side = Side {
    cert: "cert-file",
    key: "key-file",
    ca: "trusted-ca-file",
    auth: "client-cert-auth",
    crl: "client-crl-file",
    host_names: "client-cert-allowed-hostname",
    auto: "auto-tls",
    dir: "fixtures/client",
};

const PEER: Side = Side {
    cert: "peer-cert-file",
    key: "peer-key-file",
    ca: "peer-trusted-ca-file",
    auth: "peer-client-cert-auth",
    crl: "peer-crl-file",
    host_names: "peer-cert-allowed-hostname",
    auto: "peer-auto-tls",
    dir: "fixtures/peer",
};

/// The URLs that the two addresses have, and those of the first members.
pub(super) struct Urls<'a> {
    pub(super) listen_client: &'a [String],
    pub(super) listen_peer: &'a [String],
    /// Own and others'.
    pub(super) members: &'a [String],
}

impl Reader<'_> {
    pub(super) fn tls(&self, urls: &Urls<'_>) -> Result<TlsConfig, String> {
        let protocol = self.protocol()?;
        let client = self.protection(&CLIENT, &[], urls.listen_client, &protocol)?;
        let common_names = self.list("peer-cert-allowed-cn");
        let peer = self.protection(&PEER, &common_names, urls.listen_peer, &protocol)?;
        for (side, protection, option, listen) in [
            (&CLIENT, &client, "listen-client-urls", urls.listen_client),
            (&PEER, &peer, "listen-peer-urls", urls.listen_peer),
        ] {
            if listen.iter().any(|url| is_https(url)) && *protection == Protection::None {
                return Err(format!(
                    "--{option}: an https URL needs --{} and --{}, or --{}",
                    side.cert, side.key, side.auto
                ));
            }
        }
        let calls = self.calls(&peer, protocol)?;
        if calls.is_none() && urls.members.iter().any(|url| is_https(url)) {
            return Err(format!(
                "members with https URLs need --{}, or --{}",
                PEER.ca, PEER.auto
            ));
        }
        Ok(TlsConfig {
            client,
            peer,
            calls,
        })
    }

    fn protection(
        &self,
        side: &Side,
        common_names: &[String],
        listen: &[String],
        protocol: &Protocol,
    ) -> Result<Protection, String> {
        let client_ca = self.path(side.ca);
        if self.flag(side.auth)? && client_ca.is_none() {
            return Err(self.wrong(side.auth, &format!("--{} beside it", side.ca)));
        }
        let rules = [side.crl, side.host_names];
        let rules = rules.iter().any(|option| self.path(option).is_some());
        if (rules || !common_names.is_empty()) && client_ca.is_none() {
            return Err(format!(
                "rules for certificates (--{}, --{}{}) need --{}",
                side.crl,
                side.host_names,
                if side.dir == PEER.dir {
                    ", --peer-cert-allowed-cn"
                } else {
                    ""
                },
                side.ca
            ));
        }
        let Some(identity) = self.key_pair(side.cert, side.key)? else {
            if !self.flag(side.auto)? {
                return Ok(Protection::None);
            }
            if client_ca.is_some() {
                return Err(self.wrong(
                    side.auto,
                    &format!("--{} for certificates that an authority signs", side.cert),
                ));
            }
            let years = self.number("self-signed-cert-validity", 1, YEARS_MAX)?;
            let years = u32::try_from(years).expect("at most a hundred");
            return Ok(Protection::SelfSigned(SelfSigned {
                dir: PathBuf::from(side.dir),
                hosts: hosts(listen),
                valid_for: YEAR * years,
                protocol: protocol.clone(),
            }));
        };
        Ok(Protection::Files(ServerTlsOptions {
            identity,
            client_ca,
            revoked: self.path(side.crl),
            names: NameRules {
                common_names: common_names.to_vec(),
                host_names: self.list(side.host_names),
            },
            check_address: side.dir == PEER.dir
                && !self.flag("peer-skip-client-san-verification")?,
            protocol: protocol.clone(),
        }))
    }

    /// How other members are called.
    fn calls(
        &self,
        peer: &Protection,
        protocol: Protocol,
    ) -> Result<Option<ClientTlsOptions>, String> {
        let ca = self.path(PEER.ca);
        let own = self.key_pair("peer-client-cert-file", "peer-client-key-file")?;
        let skip_verification = ca.is_none() && self.flag(PEER.auto)?;
        if ca.is_none() && !skip_verification {
            return Ok(None);
        }
        let mut options = ClientTlsOptions {
            ca,
            identity: own,
            system_authorities: false,
            skip_verification,
            names: NameRules::default(),
            protocol,
        };
        if let Protection::Files(files) = peer {
            let shared = || files.identity.clone();
            options.identity = options.identity.or_else(|| Some(shared()));
            options.names = files.names.clone();
        }
        Ok(Some(options))
    }

    fn key_pair(&self, cert: &str, key: &str) -> Result<Option<KeyPairFiles>, String> {
        match (self.path(cert), self.path(key)) {
            (Some(cert), Some(key)) => Ok(Some(KeyPairFiles { cert, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.wrong(cert, &format!("--{key} beside it"))),
            (None, Some(_)) => Err(self.wrong(key, &format!("--{cert} beside it"))),
        }
    }

    fn path(&self, option: &str) -> Option<PathBuf> {
        let value = self.settings.get(option).value.as_str();
        (!value.is_empty()).then(|| PathBuf::from(value))
    }

    fn list(&self, option: &str) -> Vec<String> {
        let names = self.settings.get(option).value.split(',').map(str::trim);
        let names = names.filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    }

    fn protocol(&self) -> Result<Protocol, String> {
        let version = |option: &str| match self.settings.get(option).value.as_str() {
            "" => Ok(None),
            "TLS1.2" => Ok(Some(Version::V12)),
            "TLS1.3" => Ok(Some(Version::V13)),
            _ => Err(self.wrong(option, "TLS1.2 or TLS1.3")),
        };
        let (min, max) = (version("tls-min-version")?, version("tls-max-version")?);
        if max.is_some_and(|max| min.is_some_and(|min| min > max)) {
            return Err(self.wrong("tls-max-version", "one that --tls-min-version allows"));
        }
        Ok(Protocol {
            min,
            max,
            cipher_suites: self.list("cipher-suites"),
        })
    }
}

pub(super) fn is_https(url: &str) -> bool {
    url.starts_with("https://")
}

/// Whom a certificate of its own making is for: those who reach the address, and those on the machine.
fn hosts(listen: &[String]) -> Vec<String> {
    let mut hosts = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    for url in listen {
        let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if !hosts.iter().any(|known| known == host) {
            hosts.push(host.to_owned());
        }
    }
    hosts
}
