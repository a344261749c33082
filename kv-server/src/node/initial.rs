//! The first configuration of a cluster, from `--initial-cluster`: the same on every member, without talking.
//!
//! Counted only while a data directory is new. Source: etcd's documented bootstrap rules, and the texts of its errors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use raft_log::NodeId;

use crate::api::{cluster_id, member_id};

/// Members by name, each with its peer URLs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialCluster(BTreeMap<String, Vec<String>>);

/// Whether a new data directory begins a cluster or joins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialState {
    /// All members begin together.
    New,
    /// The cluster is there.
    Existing,
}

/// One member of the first configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InitialMember {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) peer_urls: Vec<String>,
}

/// The first configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FirstConfiguration {
    pub(super) cluster: u64,
    pub(super) me: NodeId,
    pub(super) members: Vec<InitialMember>,
}

impl InitialCluster {
    /// Reads `name=url,name=url`; a name may come more than once. What the URLs look like is not judged.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(value: &str) -> Result<Self, String> {
        let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in value.split(',').map(str::trim) {
            let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
            if url.is_empty() {
                return Err(format!("empty URL given for {name:?}"));
            }
            members
                .entry(name.to_owned())
                .or_default()
                .push(url.to_owned());
        }
        for urls in members.values_mut() {
            urls.sort_unstable();
        }
        Ok(Self(members))
    }

    /// This member alone.
    #[must_use]
    pub fn of_one(name: &str, peer_urls: &[String]) -> Self {
        let mut urls = peer_urls.to_vec();
        urls.sort_unstable();
        Self(BTreeMap::from([(name.to_owned(), urls)]))
    }

    /// The number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True without any member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All peer URLs.
    pub fn urls(&self) -> impl Iterator<Item = &String> {
        self.0.values().flatten()
    }

    /// The peer URLs of each member, sorted.
    pub(super) fn members(&self) -> impl Iterator<Item = &Vec<String>> {
        self.0.values()
    }

    /// The peer URLs of the member `name`, which advertises `advertised`.
    pub(super) fn check_mine(
        &self,
        name: &str,
        advertised: &[String],
    ) -> Result<&Vec<String>, String> {
        let Some(mine) = self.0.get(name) else {
            return Err(format!(
                "couldn't find local name {name:?} in the initial cluster configuration"
            ));
        };
        check_advertised(name, mine, advertised)?;
        let distinct: BTreeSet<_> = self.urls().collect();
        if distinct.len() != self.urls().count() {
            return Err(format!("initial cluster {self} has duplicated url"));
        }
        Ok(mine)
    }

    /// The configuration that the member `name`, which advertises `advertised`, begins with.
    pub(super) fn first(
        &self,
        name: &str,
        advertised: &[String],
        token: &str,
    ) -> Result<FirstConfiguration, String> {
        let mine = self.check_mine(name, advertised)?;
        let members: Vec<_> = self
            .0
            .iter()
            .map(|(name, urls)| InitialMember {
                id: NodeId(member_id(urls, token)),
                name: name.clone(),
                peer_urls: urls.clone(),
            })
            .collect();
        let ids: Vec<u64> = members.iter().map(|member| member.id.0).collect();
        Ok(FirstConfiguration {
            cluster: cluster_id(&ids),
            me: NodeId(member_id(mine, token)),
            members,
        })
    }
}

impl std::fmt::Display for InitialCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs = self
            .0
            .iter()
            .flat_map(|(name, urls)| urls.iter().map(move |url| (name, url)));
        for (at, (name, url)) in pairs.enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{name}={url}")?;
        }
        Ok(())
    }
}

/// What a member says of itself must be what the others are told of it.
fn check_advertised(name: &str, initial: &[String], advertised: &[String]) -> Result<(), String> {
    let missing = |from: &[String], other: &[String]| -> Vec<String> {
        let missing = from.iter().filter(|url| !other.contains(url));
        missing.cloned().collect()
    };
    let not_advertised = missing(initial, advertised);
    if !not_advertised.is_empty() {
        let mut named = String::new();
        for (at, url) in not_advertised.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(named, "{comma}{name}={url}").expect("writing to a string does not fail");
        }
        return Err(format!(
            "--initial-cluster has {named} but missing from --initial-advertise-peer-urls={}",
            advertised.join(",")
        ));
    }
    let not_initial = missing(advertised, initial);
    if !not_initial.is_empty() {
        return Err(format!(
            "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
            not_initial.join(","),
            InitialCluster::of_one(name, initial)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: &str =
        "infra0=http://10.0.1.10:2380,infra1=http://10.0.1.11:2380,infra2=http://10.0.1.12:2380";

    fn urls(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| (*url).to_owned()).collect()
    }

    fn first(value: &str, name: &str, advertised: &[&str]) -> Result<FirstConfiguration, String> {
        InitialCluster::parse(value)?.first(name, &urls(advertised), "etcd-cluster")
    }

    /// The ids that etcd's documentation shows for the members and the cluster of its Procfile.
    #[test]
    fn ids_of_three_members_equal_etcd() {
        let value = "m1=http://127.0.0.1:12380,m2=http://127.0.0.1:22380,m3=http://127.0.0.1:32380";
        let cluster = InitialCluster::parse(value).unwrap();
        let first = cluster
            .first("m2", &urls(&["http://127.0.0.1:22380"]), "etcd-cluster-1")
            .unwrap();
        let ids: Vec<u64> = first.members.iter().map(|member| member.id.0).collect();
        let expected = [
            0x8211_f1d0_f64f_3269_u64,
            0x91bc_3c39_8fb3_c146,
            0xfd42_2379_fda5_0e48,
        ];
        assert_eq!(ids, expected);
        assert_eq!(first.cluster, 0xef37_ad9d_c622_a7c4);
        assert_eq!(first.me.0, 0x91bc_3c39_8fb3_c146);
    }

    #[test]
    fn every_member_finds_the_same_configuration_in_whatever_order_it_is_named() {
        let reversed: Vec<_> = THREE.split(',').rev().collect();
        let one = first(THREE, "infra1", &["http://10.0.1.11:2380"]).unwrap();
        let two = first(&reversed.join(","), "infra2", &["http://10.0.1.12:2380"]).unwrap();
        assert_eq!(one.members, two.members);
        assert_eq!(one.cluster, two.cluster);
        assert_ne!(one.me, two.me);
    }

    #[test]
    fn flags_that_do_not_fit_are_refused_in_the_words_of_etcd() {
        let cases = [
            (
                THREE,
                "infra9",
                vec!["http://10.0.1.10:2380"],
                "couldn't find local name \"infra9\" in the initial cluster configuration",
            ),
            (
                THREE,
                "infra0",
                vec!["http://10.0.1.11:2380"],
                "--initial-cluster has infra0=http://10.0.1.10:2380 but missing from \
                 --initial-advertise-peer-urls=http://10.0.1.11:2380",
            ),
            (
                THREE,
                "infra0",
                vec!["http://10.0.1.10:2380", "http://10.0.1.13:2380"],
                "--initial-advertise-peer-urls has http://10.0.1.13:2380 but missing from \
                 --initial-cluster=infra0=http://10.0.1.10:2380",
            ),
            (
                "a=http://x:1,b=http://x:1",
                "a",
                vec!["http://x:1"],
                "initial cluster a=http://x:1,b=http://x:1 has duplicated url",
            ),
            (
                "a=http://x:1,b=",
                "a",
                vec!["http://x:1"],
                "empty URL given for \"b\"",
            ),
            ("a", "a", vec!["http://x:1"], "empty URL given for \"a\""),
        ];
        for (value, name, advertised, expected) in cases {
            assert_eq!(first(value, name, &advertised).unwrap_err(), expected);
        }
    }
}
