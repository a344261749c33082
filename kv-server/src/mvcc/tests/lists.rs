//! Lists in parts against lists in one piece.

use super::*;
use crate::pb::etcdserverpb::RangeResponse;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::mvccpb::KeyValue;

/// A range as it is answered in parts of about so many bytes, put together again.
fn in_parts(
    rig: &Rig,
    request: &RangeRequest,
    bytes_max: usize,
) -> Result<(bool, RangeResponse), ApiError> {
    let mut written = Vec::new();
    let mut write = |mut kvs| written.append(&mut kvs);
    let mut answer = rig.store.range_in_parts(request, bytes_max, &mut write)?;
    let is_long = !written.is_empty();
    assert!(!is_long || answer.kvs.is_empty(), "keys are in one place");
    if is_long {
        answer.kvs = written;
    }
    Ok((is_long, answer))
}

/// The same by asking for each part by itself.
fn by_steps(
    rig: &Rig,
    request: &RangeRequest,
    keys_max: usize,
    bytes_max: usize,
) -> Result<Vec<KeyValue>, ApiError> {
    let (mut rest, mut found) = (request.clone(), Vec::new());
    loop {
        let part = rig.store.range_part(&rest, keys_max, bytes_max)?;
        assert!(part.kvs.len() <= keys_max);
        found.extend(part.kvs);
        let Some(last) = found.last().filter(|_| part.more) else {
            return Ok(found);
        };
        rest.key = [last.key.as_ref(), &[0]].concat().into();
    }
}

#[test]
fn lists_in_parts_are_the_lists_themselves() {
    let (mut long, mut refused) = (0, 0);
    for seed in 0..15 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rig = Rig::new();
        for _ in 0..80 {
            let op = random_op(&mut rng, rig.store.revision());
            drop(rig.one(op));
        }
        for _ in 0..200 {
            let newest = rig.store.revision();
            let request = RangeRequest {
                revision: [0, rng.random_range(1..newest + 2)][rng.random_range(0..2)],
                limit: rng.random_range(-1..6),
                keys_only: rng.random(),
                count_only: rng.random_range(0..8) == 0,
                sort_order: [SortOrder::None, SortOrder::Ascend, SortOrder::Descend]
                    [rng.random_range(0..3)]
                .into(),
                sort_target: [SortTarget::Key, SortTarget::Mod][rng.random_range(0..2)].into(),
                min_mod_revision: [0, newest / 2][rng.random_range(0..2)],
                range_end: ["", "\0", "b", "e"][rng.random_range(0..4)].into(),
                key: ["\0", "a", "b"][rng.random_range(0..3)].into(),
                ..Default::default()
            };
            let bytes_max = rng.random_range(1..12);
            let whole = rig.store.range(&request);
            let parts = in_parts(&rig, &request, bytes_max);
            long += i32::from(parts.as_ref().is_ok_and(|(is_long, _)| *is_long));
            refused += i32::from(parts.is_err());
            let parts = parts.map(|(_, answer)| answer);
            assert_eq!(
                parts, whole,
                "seed {seed}: {request:?} in parts of {bytes_max} bytes"
            );
            if !request.range_end.is_empty() {
                let plain = RangeRequest {
                    limit: 0,
                    count_only: false,
                    sort_order: 0,
                    sort_target: 0,
                    min_mod_revision: 0,
                    ..request
                };
                let keys_max = rng.random_range(1..5);
                let stepped = by_steps(&rig, &plain, keys_max, bytes_max);
                let whole = rig.store.range(&plain).map(|answer| answer.kvs);
                assert_eq!(stepped, whole, "seed {seed}: {plain:?} by steps");
            }
        }
    }
    assert!(
        long > 40 && refused > 100,
        "{long} in parts, {refused} refused"
    );
}
