//! What a list of 100 MiB costs the server in memory, beyond what it has when idle. The numbers are the kernel's.

use std::fs;

use super::*;

const KEYS: usize = 100_000;
const VALUE_BYTES: usize = 1_024;
const LIST_KIB: usize = KEYS * VALUE_BYTES / 1_024;
/// What the engine may fill meanwhile: its cache of blocks.
const CACHE_KIB: usize = 32 << 10;

/// A field of `/proc/PID/status`, in KiB.
fn memory_kib(server: &Server, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.expect("the kernel tells it").parse().unwrap()
}

/// How much more the server had at its worst while `run` ran than before it.
async fn peak_above_idle_kib(server: &Server, run: impl AsyncFnOnce()) -> usize {
    // Forgets the former peak.
    fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").unwrap();
    let idle = memory_kib(server, "VmRSS");
    run().await;
    memory_kib(server, "VmHWM").saturating_sub(idle)
}

#[test]
fn a_stream_costs_a_few_parts_and_a_list_itself_once() {
    with_server(async |server| {
        let mut kv = client(server).await;
        fill(&mut kv, KEYS, |_| VALUE_BYTES).await;

        let streamed = peak_above_idle_kib(server, async || {
            let mut stream = kv.range_stream(all()).await.unwrap().into_inner();
            let mut keys = 0;
            while let Some(part) = stream.message().await.unwrap() {
                keys += part.range_response.unwrap().kvs.len();
            }
            assert_eq!(keys, KEYS);
        });
        let streamed = streamed.await;

        // Streams that nobody reads: each holds what it has made, and makes no more.
        const UNREAD: usize = 8;
        let mut unread = Vec::new();
        let held = peak_above_idle_kib(server, async || {
            for _ in 0..UNREAD {
                let mut slow = client(server).await;
                let stream = slow.range_stream(all()).await.unwrap().into_inner();
                unread.push((slow, stream));
            }
            for _ in 0..50 {
                let counted = pb::RangeRequest {
                    limit: 100,
                    ..all()
                };
                assert_eq!(kv.range(counted).await.unwrap().into_inner().kvs.len(), 100);
            }
        });
        let held = held.await;
        drop(unread);

        let listed = peak_above_idle_kib(server, async || {
            let answer = kv.range(all()).await.unwrap().into_inner();
            assert_eq!(answer.kvs.len(), KEYS);
        });
        let listed = listed.await;
        println!(
            "KiB above idle: {streamed} streamed, {held} for {UNREAD} unread streams, {listed} for {LIST_KIB} in one answer"
        );
        assert!(streamed < 64 << 10, "{streamed} KiB");
        assert!(held < CACHE_KIB + UNREAD * (9 << 10), "{held} KiB");
        assert!(listed < LIST_KIB * 3 / 2 + CACHE_KIB, "{listed} KiB");
    });
}
