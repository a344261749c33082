//! Which watchers of a stream want a key: a map for single keys, and an interval tree for ranges.
//!
//! The tree is a sorted array in which each middle element knows the greatest end below it. Ranges added since it was
//! built are few (about the square root) and looked at one by one, so that adding many costs little on average; a
//! range that many watchers share is in it once.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::watcher::{End, KeyRange};

/// Ranges that may be outside the array however small that is.
const RECENT_MIN: usize = 16;

/// Names a watcher within its stream; never used again.
pub(super) type Token = u64;

#[derive(Debug, Default)]
pub(super) struct Index {
    points: HashMap<Bytes, Vec<Token>>,
    ranges: Ranges,
    len: usize,
}

impl Index {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn insert(&mut self, range: &KeyRange, token: Token) {
        self.len += 1;
        match range {
            KeyRange::Point(key) => self.points.entry(key.clone()).or_default().push(token),
            KeyRange::Range(start, end) => self.ranges.insert(start, end, token),
        }
    }

    pub(super) fn remove(&mut self, range: &KeyRange, token: Token) {
        self.len -= 1;
        match range {
            KeyRange::Point(key) => {
                let tokens = self.points.get_mut(key).expect("it was inserted");
                take(tokens, token);
                if tokens.is_empty() {
                    self.points.remove(key);
                }
            }
            KeyRange::Range(start, end) => self.ranges.remove(start, end, token),
        }
    }

    /// Calls `visit` with each watcher that wants the key.
    pub(super) fn matches(&self, key: &Bytes, visit: &mut impl FnMut(Token)) {
        for token in self.points.get(key).into_iter().flatten() {
            visit(*token);
        }
        self.ranges.matches(key, visit);
    }
}

fn take(tokens: &mut Vec<Token>, token: Token) {
    let at = tokens.iter().position(|found| *found == token);
    tokens.swap_remove(at.expect("it was inserted"));
}

#[derive(Debug)]
struct Node {
    start: Bytes,
    end: End,
    /// The greatest end in the half-open stretch of the array whose middle this is.
    end_max: End,
    slot: usize,
}

#[derive(Debug, Default)]
struct Ranges {
    slots: Vec<Vec<Token>>,
    by_range: BTreeMap<(Bytes, End), usize>,
    sorted: Vec<Node>,
    recent: Vec<(Bytes, End, usize)>,
    /// Slots without watchers.
    vacant: usize,
}

impl Ranges {
    fn insert(&mut self, start: &Bytes, end: &End, token: Token) {
        let range = (start.clone(), end.clone());
        if let Some(slot) = self.by_range.get(&range) {
            let tokens = &mut self.slots[*slot];
            self.vacant -= usize::from(tokens.is_empty());
            return tokens.push(token);
        }
        let slot = self.slots.len();
        self.slots.push(vec![token]);
        self.by_range.insert(range, slot);
        self.recent.push((start.clone(), end.clone(), slot));
        if self.recent.len() > RECENT_MIN.max(self.sorted.len().isqrt()) {
            self.rebuild();
        }
    }

    fn remove(&mut self, start: &Bytes, end: &End, token: Token) {
        let slot = self.by_range[&(start.clone(), end.clone())];
        take(&mut self.slots[slot], token);
        self.vacant += usize::from(self.slots[slot].is_empty());
        if self.vacant > RECENT_MIN.max(self.slots.len() / 2) {
            self.rebuild();
        }
    }

    fn rebuild(&mut self) {
        let mut slots = Vec::with_capacity(self.slots.len() - self.vacant);
        self.sorted.clear();
        self.recent.clear();
        self.vacant = 0;
        self.by_range.retain(|(start, end), slot| {
            let tokens = std::mem::take(&mut self.slots[*slot]);
            if tokens.is_empty() {
                return false;
            }
            *slot = slots.len();
            slots.push(tokens);
            self.sorted.push(Node {
                start: start.clone(),
                end: end.clone(),
                end_max: end.clone(),
                slot: *slot,
            });
            true
        });
        self.slots = slots;
        set_end_max(&mut self.sorted);
    }

    fn matches(&self, key: &Bytes, visit: &mut impl FnMut(Token)) {
        let mut hit = |slot: usize| self.slots[slot].iter().for_each(|token| visit(*token));
        stab(&self.sorted, key, &mut hit);
        for (start, end, slot) in &self.recent {
            if start <= key && end.is_after(key) {
                hit(*slot);
            }
        }
    }
}

fn set_end_max(nodes: &mut [Node]) -> Option<End> {
    if nodes.is_empty() {
        return None;
    }
    let (left, rest) = nodes.split_at_mut(nodes.len() / 2);
    let (middle, right) = rest.split_first_mut().expect("not empty");
    let below = set_end_max(left).max(set_end_max(right));
    middle.end_max = below.into_iter().fold(middle.end.clone(), |a, b| a.max(b));
    Some(middle.end_max.clone())
}

fn stab(nodes: &[Node], key: &Bytes, hit: &mut impl FnMut(usize)) {
    let (left, rest) = nodes.split_at(nodes.len() / 2);
    let Some((middle, right)) = rest.split_first() else {
        return;
    };
    if !middle.end_max.is_after(key) {
        return;
    }
    stab(left, key, hit);
    if middle.start <= *key {
        if middle.end.is_after(key) {
            hit(middle.slot);
        }
        stab(right, key, hit);
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn random_range(rng: &mut StdRng) -> KeyRange {
        let mut key = || {
            Bytes::from(vec![
                b'a' + rng.random_range(0..20u8),
                b'0' + rng.random_range(0..10u8),
            ])
        };
        let (a, b) = (key(), key());
        match rng.random_range(0..5) {
            0 => KeyRange::Point(a),
            1 => KeyRange::Range(a, End::Open),
            _ if a < b => KeyRange::Range(a, End::Before(b)),
            _ => KeyRange::Point(a),
        }
    }

    #[test]
    fn random_ranges_come_and_go_matches_equal_a_linear_search() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut index, mut all) = (Index::default(), BTreeMap::new());
            for token in 0..600 {
                let range = random_range(&mut rng);
                index.insert(&range, token);
                all.insert(token, range);
                if rng.random_bool(0.45) {
                    let nth = rng.random_range(0..all.len());
                    let (token, range) = all.iter().nth(nth).unwrap();
                    index.remove(range, *token);
                    let token = *token;
                    all.remove(&token);
                }
                let key = Bytes::from(vec![
                    b'a' + rng.random_range(0..20u8),
                    b'0' + rng.random_range(0..10u8),
                ]);
                let mut found = Vec::new();
                index.matches(&key, &mut |token| found.push(token));
                found.sort_unstable();
                let expected: Vec<_> = all
                    .iter()
                    .filter(|(_, range)| range.contains(&key))
                    .map(|(token, _)| *token)
                    .collect();
                assert_eq!(found, expected, "seed {seed}, key {key:?}");
            }
            assert_eq!(index.is_empty(), all.is_empty());
        }
    }

    #[test]
    fn ten_thousand_ranges_few_are_looked_at_one_by_one() {
        let mut index = Index::default();
        for token in 0..10_000u64 {
            let start = format!("{token:06}/");
            let end = End::Before(format!("{token:06}0").into());
            index.insert(&KeyRange::Range(start.into(), end), token);
        }
        assert!(index.ranges.recent.len() <= 100);
        let mut found = Vec::new();
        index.matches(&"004321/x".into(), &mut |token| found.push(token));
        assert_eq!(found, [4_321]);
    }
}
