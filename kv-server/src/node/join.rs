//! A new member of a cluster that is there: which one it is, told by the others.
//!
//! It was added before it starts (MemberAdd). Its flags name all members with their peer URLs, as those know them; its own
//! among them say which member it is. It begins with an empty log, under the first configuration without itself, so that it
//! decides nothing before its log says that it may.

use std::time::{Duration, Instant};

use multiraft::tls::ClientTls;
use multiraft::transport::{ClusterView, ListedMember, ask_members};
use raft_log::NodeId;
use tracing::info;

use super::initial::InitialCluster;

/// How long the others are asked, again and again: whoever answers may not have heard of this member yet.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one answer may take.
const ONE_ANSWER: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(200);

/// Who a new member is, and among whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Joining {
    pub(super) me: NodeId,
    pub(super) view: ClusterView,
}

/// Asks the others.
///
/// # Errors
/// Why this cannot be a member of that cluster.
#[expect(
    clippy::disallowed_methods,
    reason = "a start that waits for others has to end some time"
)]
pub(super) fn ask(
    initial: &InitialCluster,
    name: &str,
    advertised: &[String],
    tls: Option<&ClientTls>,
) -> Result<Joining, String> {
    let mine = initial.check_mine(name, advertised)?;
    let others: Vec<_> = initial.urls().filter(|url| !mine.contains(url)).collect();
    if others.is_empty() {
        return Err(format!(
            "--initial-cluster-state existing: --initial-cluster={initial} names nobody but this member, so there is nobody \
             to ask; name all members of the cluster, as `member add` prints them"
        ));
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let mut reasons = Vec::new();
        for url in &others {
            let joining =
                ask_members(url, tls, ONE_ANSWER).and_then(|view| judge(initial, mine, view));
            match joining {
                Ok(joining) => {
                    info!(url, member = %joining.me, "the members know this one");
                    return Ok(joining);
                }
                Err(reason) => reasons.push(format!("{url}: {reason}")),
            }
        }
        if Instant::now() >= until {
            return Err(format!(
                "--initial-cluster-state existing: no member of the cluster lets this one in: {}",
                reasons.join("; ")
            ));
        }
        std::thread::park_timeout(PAUSE);
    }
}

/// Who the member with the URLs `mine` is in a cluster, if the flags fit to that.
fn judge(initial: &InitialCluster, mine: &[String], view: ClusterView) -> Result<Joining, String> {
    if view.members.is_empty() {
        return Err("it is catching up itself".to_owned());
    }
    let same = |member: &ListedMember, urls: &[String]| {
        let mut listed = member.peer_urls.clone();
        listed.sort_unstable();
        listed == urls
    };
    let me = view.members.iter().find(|member| same(member, mine));
    let Some(me) = me else {
        let listed = view.members.iter().map(|member| member.peer_urls.join(","));
        return Err(format!(
            "no member has the peer URLs {}; add it first (the members have {})",
            mine.join(","),
            listed.collect::<Vec<_>>().join(" ")
        ));
    };
    if initial.len() != view.members.len() {
        return Err(format!(
            "member count is unequal: --initial-cluster={initial} names {}, the cluster has {}",
            initial.len(),
            view.members.len()
        ));
    }
    for urls in initial.members() {
        if !view.members.iter().any(|member| same(member, urls)) {
            return Err(format!(
                "unmatched member while checking PeerURLs: no member has {}",
                urls.join(",")
            ));
        }
    }
    if let Some(store) = me.store {
        return Err(format!(
            "member {:x} has run with the data directory {store}, and this one is empty: what it voted and acknowledged is \
             lost; remove the member and add it again",
            me.id.0
        ));
    }
    let me = me.id;
    Ok(Joining { me, view })
}

#[cfg(test)]
mod tests {
    use raft_log::{Index, StoreId};

    use super::*;

    fn member(id: u64, url: &str, store: Option<u64>) -> ListedMember {
        ListedMember {
            id: NodeId(id),
            peer_urls: vec![url.to_owned()],
            store: store.map(StoreId),
            ..ListedMember::default()
        }
    }

    fn judge_with(initial: &str, members: Vec<ListedMember>) -> Result<NodeId, String> {
        let initial = InitialCluster::parse(initial).unwrap();
        let view = ClusterView {
            cluster: 9,
            creation: 9,
            index: Index(1),
            members,
        };
        let mine = ["http://b:1".to_owned()];
        judge(&initial, &mine, view).map(|joining| joining.me)
    }

    #[test]
    fn member_is_the_one_with_its_urls() {
        let members = vec![
            member(1, "http://a:1", Some(10)),
            member(2, "http://b:1", None),
        ];
        let found = judge_with("a=http://a:1,b=http://b:1", members);
        assert_eq!(found, Ok(NodeId(2)));
    }

    #[test]
    fn flags_that_do_not_fit_and_members_that_ran_are_refused() {
        let a = || member(1, "http://a:1", Some(10));
        let both = "a=http://a:1,b=http://b:1";
        let cases = [
            (both, vec![a()], "no member has the peer URLs http://b:1"),
            (
                "b=http://b:1",
                vec![a(), member(2, "http://b:1", None)],
                "member count is unequal",
            ),
            (
                "x=http://x:1,b=http://b:1",
                vec![a(), member(2, "http://b:1", None)],
                "unmatched member while checking PeerURLs: no member has http://x:1",
            ),
            (
                both,
                vec![a(), member(2, "http://b:1", Some(20))],
                "remove the member and add it again",
            ),
        ];
        for (initial, members, reason) in cases {
            let error = judge_with(initial, members).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
