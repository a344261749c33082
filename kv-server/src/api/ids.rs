//! Member and cluster ids, derived as etcd derives them, so that each node of a new cluster finds the same ones without
//! talking. Called when a data directory is new. Source: etcd's documented bootstrap rules.

use sha1::{Digest, Sha1};

/// The first eight bytes, big-endian, of the SHA-1 of the sorted peer URLs followed by the cluster token.
#[must_use]
pub fn member_id(peer_urls: &[String], token: &str) -> u64 {
    let mut sorted: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut hash = Sha1::new();
    for url in sorted {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    first_eight(hash)
}

/// The first eight bytes, big-endian, of the SHA-1 of the sorted member ids, each as eight big-endian bytes.
#[must_use]
pub fn cluster_id(members: &[u64]) -> u64 {
    let mut sorted = members.to_vec();
    sorted.sort_unstable();
    let mut hash = Sha1::new();
    for id in sorted {
        hash.update(id.to_be_bytes());
    }
    first_eight(hash)
}

/// The id of a cluster that begins with a backup: of its members as [`cluster_id`] has it, and of the backup's content,
/// so that it is another one than that of the cluster which made the backup.
#[must_use]
pub fn restored_cluster_id(cluster: u64, backup_hash: &[u8]) -> u64 {
    let mut hash = Sha1::new();
    hash.update(cluster.to_be_bytes());
    hash.update(backup_hash);
    first_eight(hash)
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    digest[..8]
        .iter()
        .fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids that a default single-node etcd prints at its first start.
    #[test]
    fn default_single_node_ids_equal_etcd() {
        let member = member_id(&["http://localhost:2380".into()], "etcd-cluster");
        assert_eq!(member, 0x8e9e_05c5_2164_694d);
        assert_eq!(cluster_id(&[member]), 0xcdf8_1819_4e3a_8c32);
    }

    #[test]
    fn order_of_urls_and_members_does_not_matter() {
        let (a, b) = ("http://a:1".to_owned(), "http://b:1".to_owned());
        assert_eq!(
            member_id(&[a.clone(), b.clone()], "t"),
            member_id(&[b, a], "t")
        );
        assert_eq!(cluster_id(&[1, 2]), cluster_id(&[2, 1]));
    }
}
