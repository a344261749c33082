#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _decoded = raft_log::fuzzing::snapshot::header(data);
});
