//! The Raft core alone: a leader of three voters, with small entries. An element is one call of `Core::step`; of a proposal
//! there are its own, two acknowledgements, the completion of its write, and its application.
//!
//! `cargo bench -p benches --bench core`
#![expect(clippy::unwrap_used, reason = "a failed setup is a failed benchmark")]

mod leader;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use leader::Leader;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("leader_of_three");
    for entries in [1, 16, 256] {
        let mut leader = Leader::new();
        group.throughput(Throughput::Elements(leader.batch(entries)));
        group.bench_function(format!("steps/batches_of_{entries}"), |b| {
            b.iter(|| leader.batch(entries));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
