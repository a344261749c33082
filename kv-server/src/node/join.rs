//! A new member of a cluster that is there: which one it is, told by the others.
//!
//! It was added before it starts (MemberAdd). Its flags name all members with their peer URLs, as those know them; its own
//! among them say which member it is. It begins with an empty log, under the first configuration without itself, so that it
//! decides nothing before its log says that it may.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use multiraft::tls::ClientTls;
use multiraft::transport::{ClusterView, ListedMember, ask_members};
use raft_log::NodeId;
use tracing::{info, warn};

use super::NodeError;
use super::initial::InitialCluster;

/// How long the others are asked, again and again: they may be about to start, and whoever answers may not have heard of
/// this member yet.
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

/// Why one of the others did not say who this is.
#[derive(Debug)]
pub(super) enum Why {
    /// It cannot say, or is not there.
    Silent(String),
    /// It can, and this is no member of its cluster.
    Refused(String),
}

/// Asks the others.
///
/// # Errors
/// [`NodeError::Initial`] where one of them says that this is no member of its cluster, and why; [`NodeError::NoAnswer`]
/// where none can say.
#[expect(
    clippy::disallowed_methods,
    reason = "a start that waits for others has to end some time"
)]
pub(super) fn ask(
    initial: &InitialCluster,
    name: &str,
    advertised: &[String],
    tls: Option<&ClientTls>,
) -> Result<Joining, NodeError> {
    let mine = initial.check_mine(name, advertised);
    let mine = mine.map_err(NodeError::Initial)?;
    let others: Vec<_> = initial.urls().filter(|url| !mine.contains(url)).collect();
    if others.is_empty() {
        return Err(NodeError::Initial(format!(
            "--initial-cluster-state existing: --initial-cluster={initial} names nobody but this member, so there is nobody \
             to ask; name all members of the cluster, as `member add` prints them"
        )));
    }
    let urls: Vec<_> = others.iter().map(|url| url.as_str()).collect();
    info!(
        urls = urls.join(","),
        seconds = PATIENCE.as_secs(),
        "--initial-cluster-state existing: asking the members of the cluster for this one, until one of them knows it"
    );
    let until = Instant::now() + PATIENCE;
    let mut told = BTreeMap::new();
    loop {
        let (mut reasons, mut refused) = (Vec::new(), false);
        for url in &others {
            let asked = ask_members(url, tls, ONE_ANSWER).map_err(Why::Silent);
            let reason = match asked.and_then(|view| judge(initial, mine, view)) {
                Ok(joining) => {
                    info!(url, member = %joining.me, "the members know this one");
                    return Ok(joining);
                }
                Err(Why::Silent(reason)) => reason,
                Err(Why::Refused(reason)) => {
                    refused = true;
                    reason
                }
            };
            let left = until.saturating_duration_since(Instant::now());
            if told.insert(*url, reason.clone()).as_ref() != Some(&reason) && !left.is_zero() {
                let seconds_left = left.as_secs();
                warn!(
                    url,
                    reason, seconds_left, "a member does not let this one in; it is asked again"
                );
            }
            reasons.push(format!("{url}: {reason}"));
        }
        if Instant::now() >= until {
            let reasons = reasons.join("; ");
            return Err(if refused {
                NodeError::Initial(format!(
                    "--initial-cluster-state existing: no member of the cluster lets this one in: {reasons}"
                ))
            } else {
                NodeError::NoAnswer(format!(
                    "--initial-cluster-state existing: no member of the cluster could be asked in {} s: {reasons}; start \
                     them, or correct --initial-cluster",
                    PATIENCE.as_secs()
                ))
            });
        }
        std::thread::park_timeout(PAUSE);
    }
}

/// Who the member with the URLs `mine` is in a cluster, if the flags fit to that.
pub(super) fn judge(
    initial: &InitialCluster,
    mine: &[String],
    view: ClusterView,
) -> Result<Joining, Why> {
    if view.members.is_empty() {
        return Err(Why::Silent("it is catching up itself".to_owned()));
    }
    let same = |member: &ListedMember, urls: &[String]| {
        let mut listed = member.peer_urls.clone();
        listed.sort_unstable();
        listed == urls
    };
    let me = view.members.iter().find(|member| same(member, mine));
    let Some(me) = me else {
        let listed = view.members.iter().map(|member| member.peer_urls.join(","));
        return Err(Why::Refused(format!(
            "no member has the peer URLs {}; add it first (the members have {})",
            mine.join(","),
            listed.collect::<Vec<_>>().join(" ")
        )));
    };
    if initial.len() != view.members.len() {
        return Err(Why::Refused(format!(
            "member count is unequal: --initial-cluster={initial} names {}, the cluster has {}",
            initial.len(),
            view.members.len()
        )));
    }
    for urls in initial.members() {
        if !view.members.iter().any(|member| same(member, urls)) {
            return Err(Why::Refused(format!(
                "unmatched member while checking PeerURLs: no member has {}",
                urls.join(",")
            )));
        }
    }
    if let Some(store) = me.store {
        return Err(Why::Refused(format!(
            "member {:x} has run with the data directory {store}, and this one is empty: what it voted and acknowledged is \
             lost; remove the member and add it again",
            me.id.0
        )));
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
        let judged = judge(&initial, &mine, view).map(|joining| joining.me);
        judged.map_err(|why| match why {
            Why::Silent(reason) => format!("silent: {reason}"),
            Why::Refused(reason) => format!("refused: {reason}"),
        })
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
            assert!(
                error.starts_with("refused: ") && error.contains(reason),
                "{error}"
            );
        }
        let behind = judge_with(both, Vec::new());
        assert_eq!(behind, Err("silent: it is catching up itself".to_owned()));
    }
}
