//! Compiles the .proto files with protox, so that a fresh machine needs no `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        [
            "kv.proto",
            "rpc.proto",
            "lock.proto",
            "election.proto",
            "health.proto",
            "command.proto",
            "peer.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(files)?;
    Ok(())
}
