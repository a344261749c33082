//! Whether all members have the same state: when to compare, and what to make of their hashes.
//!
//! The leader proposes an entry now and then; each member hashes its state as of that entry and reports to the leader,
//! which may have changed meanwhile: a new one judges what it hears. With a majority on one side, whoever reports
//! another hash is wrong. Without one nobody can say who is. Who was found wrong and has the majority's hash at a later
//! entry is right again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft_log::{Index, NodeId};

/// How long a leader waits for the hashes of all members. Large stores take their time.
const WAIT: Duration = Duration::from_secs(600);
/// Comparisons that are open at once; the oldest goes when there are more.
const OPEN_MAX: usize = 8;
/// Reports for one comparison.
const REPORTS_MAX: usize = 64;

/// What members reported of one entry.
#[derive(Clone, Debug, Default)]
struct Comparison {
    hashes: BTreeMap<NodeId, u64>,
    /// When it was looked at first.
    since: Option<Duration>,
    /// Those that were found wrong already; a disarmed alarm is not raised again by the same entry.
    found: BTreeSet<NodeId>,
    /// Those that were found right again.
    right: BTreeSet<NodeId>,
    /// It was judged for the last time, and stays for who asks for a verdict.
    is_over: bool,
}

/// What a comparison says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// All members that count have the same state.
    Equal(Index),
    /// These have another one than the majority.
    Minority(Index, Vec<NodeId>),
    /// These were found wrong before, and have the same as the majority.
    Recovered(Index, Vec<NodeId>),
    /// They differ, and no side has a majority.
    NoMajority(Index),
}

/// What is known of one member's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: the member has not reported, or nobody else has.
    Unknown,
    /// It is the majority's.
    Right,
    /// A majority has another one.
    Wrong,
    /// Somebody has another one, and no majority has one, so far.
    Differs,
}

impl Verdict {
    /// For an answer to a member.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Unknown => 0,
            Self::Right => 1,
            Self::Wrong => 2,
            Self::Differs => 3,
        }
    }

    /// From an answer; what a later version may say is not known.
    #[must_use]
    pub fn from_number(number: i64) -> Self {
        let all = [Self::Right, Self::Wrong, Self::Differs];
        let found = all.into_iter().find(|verdict| verdict.number() == number);
        found.unwrap_or(Self::Unknown)
    }
}

/// Keeps the comparisons of one group.
#[derive(Clone, Debug)]
pub struct StateChecks {
    /// None when it is off.
    interval: Option<Duration>,
    next: Duration,
    /// The index of the last entry that asked for a comparison.
    asked: Index,
    open: BTreeMap<Index, Comparison>,
    /// Where members were last found wrong.
    wrong_at: BTreeMap<NodeId, Index>,
    /// The last comparison found a difference, but not everybody reported.
    inconclusive: bool,
}

impl StateChecks {
    /// Compares so often; never without an interval.
    #[must_use]
    pub fn new(interval: Option<Duration>, now: Duration) -> Self {
        Self {
            interval,
            next: now + interval.unwrap_or_default(),
            asked: Index::ZERO,
            open: BTreeMap::new(),
            wrong_at: BTreeMap::new(),
            inconclusive: false,
        }
    }

    /// True when it is time to propose an entry. `applied` is the newest applied index: without anything new since the
    /// last time there is nothing to compare, and a group that sleeps is let sleep.
    pub fn is_due(&mut self, now: Duration, leads: bool, members: usize, applied: Index) -> bool {
        let Some(interval) = self.interval.filter(|_| now >= self.next) else {
            return false;
        };
        self.next = now + interval;
        leads && members > 1 && applied > self.asked
    }

    /// The proposed entry was applied, at this index or before.
    pub fn asked(&mut self, index: Index) {
        self.asked = index;
    }

    /// A member reports.
    pub fn report(&mut self, member: NodeId, index: Index, hash: u64) {
        let comparison = self.open.entry(index).or_default();
        if comparison.hashes.len() < REPORTS_MAX {
            comparison.hashes.insert(member, hash);
        }
        while self.open.len() > OPEN_MAX {
            self.open.pop_first();
        }
    }

    /// What the newest comparison above an index in which a member reported says of it.
    #[must_use]
    pub fn verdict(&self, member: NodeId, above: Index, voters: &[NodeId]) -> Verdict {
        let newer = self.open.range(above.next()..).rev();
        let found = newer
            .map(|(_, comparison)| comparison)
            .find_map(|comparison| {
                let own = comparison.hashes.get(&member)?;
                Some((comparison, *own))
            });
        let Some((comparison, own)) = found else {
            return Verdict::Unknown;
        };
        match comparison.majority(voters).0 {
            Some(right) if right == own => Verdict::Right,
            Some(_) => Verdict::Wrong,
            None if comparison.hashes.values().any(|hash| *hash != own) => Verdict::Differs,
            None => Verdict::Unknown,
        }
    }

    /// This member does not lead: what it heard as a leader says nothing without what others may have heard since.
    pub fn abandon(&mut self) {
        self.open.clear();
        self.wrong_at.clear();
        self.inconclusive = false;
    }

    /// What can be said now of the comparisons that are open. `doubted` were found wrong by an earlier one.
    pub fn judge(
        &mut self,
        now: Duration,
        voters: &[NodeId],
        learners: &[NodeId],
        doubted: &[NodeId],
    ) -> Vec<Finding> {
        let Self {
            open,
            wrong_at,
            inconclusive,
            asked,
            ..
        } = self;
        let is_member = |member: &NodeId| voters.contains(member) || learners.contains(member);
        wrong_at.retain(|member, _| is_member(member));
        let mut findings = Vec::new();
        open.retain(|index, comparison| {
            if comparison.is_over {
                return true;
            }
            let since = *comparison.since.get_or_insert(now);
            let reported = |member: &NodeId| comparison.hashes.contains_key(member);
            let is_complete = voters.iter().chain(learners).all(reported);
            let is_over = is_complete || now.saturating_sub(since) >= WAIT;
            let found = comparison.judge(*index, voters, is_complete, is_over);
            match &found {
                Some(Finding::NoMajority(_)) if !is_complete && !*inconclusive => {
                    // Who is missing may have reported to another leader: everybody is asked once more.
                    *inconclusive = true;
                    *asked = Index::ZERO;
                    return false;
                }
                _ if is_complete => *inconclusive = false,
                _ => {}
            }
            if let Some(Finding::Minority(_, members)) = &found {
                wrong_at.extend(members.iter().map(|member| (*member, *index)));
            }
            findings.extend(found);
            let right: Vec<_> = (doubted.iter().copied())
                .filter(|member| wrong_at.get(member).is_none_or(|at| at < index))
                .filter(|member| comparison.is_right(*member, voters))
                .collect();
            if !right.is_empty() {
                findings.push(Finding::Recovered(*index, right));
            }
            comparison.is_over = is_over;
            true
        });
        findings
    }
}

impl Comparison {
    /// The hash that a majority has.
    fn majority(&self, voters: &[NodeId]) -> (Option<u64>, usize) {
        let mut sides: BTreeMap<u64, usize> = BTreeMap::new();
        for (_, hash) in self
            .hashes
            .iter()
            .filter(|(member, _)| voters.contains(member))
        {
            *sides.entry(*hash).or_default() += 1;
        }
        let majority = sides.iter().find(|(_, count)| **count * 2 > voters.len());
        (majority.map(|(hash, _)| *hash), sides.len())
    }

    /// True once, when the member has the majority's hash.
    fn is_right(&mut self, member: NodeId, voters: &[NodeId]) -> bool {
        let right = self.majority(voters).0;
        let is_right = right.is_some() && self.hashes.get(&member).copied() == right;
        is_right && self.right.insert(member)
    }

    fn judge(
        &mut self,
        index: Index,
        voters: &[NodeId],
        is_complete: bool,
        is_over: bool,
    ) -> Option<Finding> {
        let (majority, sides) = self.majority(voters);
        let Some(right) = majority else {
            return (is_over && sides > 1).then_some(Finding::NoMajority(index));
        };
        let others = self.hashes.iter().filter(|(_, hash)| **hash != right);
        let wrong: Vec<NodeId> = others
            .map(|(member, _)| *member)
            .filter(|member| !self.found.contains(member))
            .collect();
        if wrong.is_empty() {
            return (is_complete && self.found.is_empty()).then_some(Finding::Equal(index));
        }
        self.found.extend(&wrong);
        Some(Finding::Minority(index, wrong))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Index = Index(9);

    fn ids(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    /// Reports in order, all at once; the findings at once, and those once the wait is over.
    fn judged(voters: &[u64], learners: &[u64], hashes: &[(u64, u64)]) -> [Vec<Finding>; 2] {
        let mut checks = StateChecks::new(None, Duration::ZERO);
        for (member, hash) in hashes {
            checks.report(NodeId(*member), AT, *hash);
        }
        let (voters, learners) = (ids(voters), ids(learners));
        let first = checks.judge(Duration::ZERO, &voters, &learners, &[]);
        [first, checks.judge(WAIT, &voters, &learners, &[])]
    }

    #[test]
    fn side_without_majority_is_wrong_and_without_any_nobody_is_right() {
        let (equal, none) = (vec![Finding::Equal(AT)], vec![]);
        let wrong = |members: &[u64]| vec![Finding::Minority(AT, ids(members))];
        let no_majority = vec![Finding::NoMajority(AT)];
        let three = [1, 2, 3];
        for (voters, learners, hashes, expected) in [
            (
                &three[..],
                &[][..],
                &[(1, 7), (2, 7), (3, 7)][..],
                [&equal, &none],
            ),
            (
                &three,
                &[],
                &[(1, 7), (2, 8), (3, 7)],
                [&wrong(&[2]), &none],
            ),
            // A member that is away is waited for, but no longer than that.
            (&three, &[], &[(1, 7), (2, 7)], [&none, &none]),
            (&three, &[], &[(1, 7), (2, 8)], [&none, &none]),
            (
                &three,
                &[],
                &[(1, 7), (2, 8), (3, 9)],
                [&no_majority, &none],
            ),
            (&three, &[], &[(1, 7)], [&none, &none]),
            // Found as soon as there is a majority; one that is away does not hide it.
            (
                &[1, 2, 3, 4, 5],
                &[],
                &[(1, 7), (2, 7), (3, 7), (4, 8)],
                [&wrong(&[4]), &none],
            ),
            (
                &[1, 2, 3, 4, 5],
                &[],
                &[(1, 7), (2, 7), (3, 8), (4, 8), (5, 9)],
                [&no_majority, &none],
            ),
            // Two members cannot outvote each other.
            (&[1, 2], &[], &[(1, 7), (2, 8)], [&no_majority, &none]),
            // A learner has no vote, and can be wrong all the same.
            (&[1], &[5], &[(1, 7), (5, 8)], [&wrong(&[5]), &none]),
            (
                &[1, 2],
                &[5, 6],
                &[(1, 7), (2, 8), (5, 7), (6, 7)],
                [&no_majority, &none],
            ),
        ] {
            let found = judged(voters, learners, hashes);
            assert_eq!([&found[0], &found[1]], expected, "{voters:?} {hashes:?}");
        }
    }

    #[test]
    fn difference_without_all_reports_counts_when_it_comes_twice() {
        let voters = ids(&[1, 2, 3]);
        let mut checks = StateChecks::new(Some(WAIT), Duration::ZERO);
        let differ = |checks: &mut StateChecks, index, at| {
            checks.report(NodeId(1), index, 7);
            checks.report(NodeId(2), index, 8);
            assert_eq!(checks.judge(at, &voters, &[], &[]), []);
        };
        checks.asked(AT);
        differ(&mut checks, AT, Duration::ZERO);
        assert_eq!(checks.judge(WAIT, &voters, &[], &[]), []);
        assert!(
            checks.is_due(2 * WAIT, true, 3, AT),
            "asked again, with nothing new"
        );
        let next = AT.next();
        differ(&mut checks, next, 2 * WAIT);
        let found = [Finding::NoMajority(next)];
        assert_eq!(checks.judge(3 * WAIT, &voters, &[], &[]), found);

        // Another leader begins anew.
        let mut checks = StateChecks::new(None, Duration::ZERO);
        differ(&mut checks, AT, Duration::ZERO);
        assert_eq!(checks.judge(WAIT, &voters, &[], &[]), []);
        checks.abandon();
        differ(&mut checks, next, WAIT);
        assert_eq!(checks.judge(2 * WAIT, &voters, &[], &[]), []);
    }

    #[test]
    fn late_report_is_judged_and_nobody_is_found_twice() {
        let voters = ids(&[1, 2, 3, 4]);
        let mut checks = StateChecks::new(None, Duration::ZERO);
        for (member, hash) in [(1, 7), (2, 7), (3, 7)] {
            checks.report(NodeId(member), AT, hash);
        }
        assert_eq!(checks.judge(Duration::ZERO, &voters, &ids(&[9]), &[]), []);
        checks.report(NodeId(4), AT, 8);
        let found = [Finding::Minority(AT, ids(&[4]))];
        assert_eq!(
            checks.judge(Duration::ZERO, &voters, &ids(&[9]), &[]),
            found
        );
        assert_eq!(checks.judge(Duration::ZERO, &voters, &ids(&[9]), &[]), []);
        checks.report(NodeId(9), AT, 6);
        let found = [Finding::Minority(AT, ids(&[9]))];
        assert_eq!(
            checks.judge(Duration::ZERO, &voters, &ids(&[9]), &[]),
            found
        );
    }

    #[test]
    fn verdict_is_of_the_newest_comparison_in_which_the_member_reported() {
        let voters = ids(&[1, 2, 3]);
        let mut checks = StateChecks::new(None, Duration::ZERO);
        let verdict = |checks: &StateChecks, member| checks.verdict(NodeId(member), AT, &voters);
        // What it had before it asked does not count.
        checks.report(NodeId(3), AT, 7);
        assert_eq!(verdict(&checks, 3), Verdict::Unknown);
        checks.report(NodeId(3), Index(20), 7);
        assert_eq!(verdict(&checks, 3), Verdict::Unknown);
        checks.report(NodeId(1), Index(20), 8);
        assert_eq!(verdict(&checks, 3), Verdict::Differs);
        assert_eq!(verdict(&checks, 1), Verdict::Differs);
        checks.report(NodeId(2), Index(20), 8);
        assert_eq!(verdict(&checks, 3), Verdict::Wrong);
        assert_eq!(verdict(&checks, 1), Verdict::Right);
        // It is there for whoever asks after the judgement.
        let wrong = vec![Finding::Minority(Index(20), ids(&[3]))];
        assert_eq!(checks.judge(Duration::ZERO, &voters, &[], &[]), wrong);
        assert_eq!(checks.judge(Duration::ZERO, &voters, &[], &[]), []);
        assert_eq!(verdict(&checks, 3), Verdict::Wrong);
        checks.report(NodeId(1), Index(21), 5);
        assert_eq!(verdict(&checks, 3), Verdict::Wrong, "of its newest");
        for verdict in [
            Verdict::Unknown,
            Verdict::Right,
            Verdict::Wrong,
            Verdict::Differs,
        ] {
            assert_eq!(Verdict::from_number(verdict.number()), verdict);
        }
        assert_eq!(Verdict::from_number(-1), Verdict::Unknown);
    }

    #[test]
    fn member_that_was_wrong_is_right_again_by_a_later_comparison_only() {
        let voters = ids(&[1, 2, 3]);
        let doubted = ids(&[3]);
        let mut checks = StateChecks::new(None, Duration::ZERO);
        let mut compare = |index, hashes: [Option<u64>; 3], doubted: &[NodeId]| {
            for (member, hash) in [1, 2, 3].into_iter().zip(hashes) {
                if let Some(hash) = hash {
                    checks.report(NodeId(member), Index(index), hash);
                }
            }
            checks.judge(Duration::ZERO, &voters, &[], doubted)
        };
        let all = |hash| [Some(hash); 3];
        let wrong = vec![Finding::Minority(Index(5), doubted.clone())];
        assert_eq!(compare(5, [Some(7), Some(7), Some(8)], &[]), wrong);
        assert_eq!(compare(4, all(7), &doubted), [Finding::Equal(Index(4))]);
        // No majority yet, then one; and it is said once.
        assert_eq!(compare(6, [Some(7), None, None], &doubted), []);
        assert_eq!(
            compare(6, [None, None, Some(7)], &doubted),
            [Finding::Recovered(Index(6), doubted.clone())]
        );
        assert_eq!(compare(6, [None, None, None], &doubted), []);
        assert_eq!(compare(7, all(7), &[]), [Finding::Equal(Index(7))]);
        // A leader that does not know where it was found wrong.
        let mut next = StateChecks::new(None, Duration::ZERO);
        for member in [1, 2, 3] {
            next.report(NodeId(member), Index(8), 7);
        }
        let found = next.judge(Duration::ZERO, &voters, &[], &doubted);
        let recovered = Finding::Recovered(Index(8), doubted.clone());
        assert_eq!(found, [Finding::Equal(Index(8)), recovered]);
    }

    #[test]
    fn comparison_is_due_in_its_interval_at_a_leader_with_something_new() {
        let minute = Duration::from_secs(60);
        let mut checks = StateChecks::new(Some(minute), Duration::ZERO);
        assert!(!checks.is_due(minute / 2, true, 3, Index(4)), "too early");
        assert!(checks.is_due(minute, true, 3, Index(4)));
        checks.asked(Index(5));
        assert!(!checks.is_due(2 * minute, true, 3, Index(5)), "nothing new");
        assert!(
            !checks.is_due(3 * minute, false, 3, Index(6)),
            "does not lead"
        );
        assert!(!checks.is_due(4 * minute, true, 1, Index(6)), "is alone");
        assert!(checks.is_due(5 * minute, true, 3, Index(6)));
        let mut off = StateChecks::new(None, Duration::ZERO);
        assert!(!off.is_due(1_000 * minute, true, 3, Index(6)));
    }

    #[test]
    fn reports_without_end_take_a_bounded_room() {
        let mut checks = StateChecks::new(None, Duration::ZERO);
        for index in 0..1_000 {
            checks.report(NodeId(index), Index(index), 7);
            checks.report(NodeId(index), Index(999), 7);
        }
        assert!(checks.open.len() <= OPEN_MAX);
        assert!(
            checks
                .open
                .values()
                .all(|one| one.hashes.len() <= REPORTS_MAX)
        );
    }
}
