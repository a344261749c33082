//! The network: each message may be lost, late, doubled, overtaken, or kept by a partition.

use std::collections::BTreeMap;

use raft_log::vfs::sim::Rng;

use super::fault::Net;

/// Ticks that a stray message comes late, at most.
const STRAY_TICKS_MAX: u64 = 300;

/// All links.
#[derive(Debug)]
pub struct Network {
    rng: Rng,
    net: Net,
    /// Ticks that messages to each member take at most besides.
    late: Vec<u64>,
    /// How many partitions cut each direction.
    cut: BTreeMap<(usize, usize), u32>,
}

impl Network {
    /// A good network.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            net: Net::default(),
            late: Vec::new(),
            cut: BTreeMap::new(),
        }
    }

    /// Behaves in this way from now on.
    pub fn set(&mut self, net: Net) {
        self.net = net;
    }

    /// What each member is sent comes later by up to so many ticks.
    pub fn set_late(&mut self, late: Vec<u64>) {
        self.late = late;
    }

    /// A partition begins.
    pub fn cut(&mut self, links: &[(usize, usize)]) {
        for link in links {
            *self.cut.entry(*link).or_default() += 1;
        }
    }

    /// A partition ends.
    pub fn join(&mut self, links: &[(usize, usize)]) {
        for link in links {
            if let Some(count) = self.cut.get_mut(link) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Everything is well again.
    pub fn heal(&mut self) {
        self.net = Net::default();
        self.late.clear();
        self.cut.clear();
    }

    /// True when a direction carries something.
    #[must_use]
    pub fn carries(&self, from: usize, to: usize) -> bool {
        self.cut.get(&(from, to)).is_none_or(|count| *count == 0)
    }

    /// In how many ticks a message arrives, each time that it does.
    pub fn send(&mut self, from: usize, to: usize) -> impl Iterator<Item = u64> + use<> {
        let Net {
            loss,
            duplicates,
            strays,
            delay,
        } = self.net;
        let lost = !self.carries(from, to) || (loss > 0 && self.rng.chance(loss, 100));
        let delay = delay + self.late.get(to).copied().unwrap_or(0);
        let late = |rng: &mut Rng| {
            let stray = strays > 0 && rng.chance(strays, 100);
            1 + rng.below(1 + if stray { STRAY_TICKS_MAX } else { delay })
        };
        let first = (!lost).then(|| late(&mut self.rng));
        let again = first.filter(|_| duplicates > 0 && self.rng.chance(duplicates, 100));
        let second = again.map(|_| late(&mut self.rng));
        first.into_iter().chain(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_direction_carries_nothing_until_the_last_partition_ends() {
        let mut network = Network::new(Rng::new(1));
        network.cut(&[(0, 1)]);
        network.cut(&[(0, 1), (1, 2)]);
        network.join(&[(0, 1)]);
        assert_eq!(network.send(0, 1).count(), 0);
        assert_eq!(network.send(1, 0).count(), 1);
        network.join(&[(0, 1), (1, 2)]);
        assert_eq!(network.send(0, 1).count(), 1);
    }

    #[test]
    fn bad_network_loses_doubles_and_reorders() {
        let mut network = Network::new(Rng::new(1));
        network.set(Net {
            loss: 20,
            duplicates: 20,
            strays: 5,
            delay: 3,
        });
        let arrivals: Vec<Vec<u64>> = (0..1_000).map(|_| network.send(0, 1).collect()).collect();
        assert!(arrivals.iter().any(Vec::is_empty));
        assert!(arrivals.iter().any(|times| times.len() == 2));
        assert!(arrivals.concat().iter().any(|late| *late > 10));
    }
}
