//! Compiles the .proto files with protox, so that a fresh machine needs no `protoc`.
#![expect(
    clippy::disallowed_methods,
    reason = "what a build writes is in no data directory"
)]

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        [
            "auth.proto",
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
    // What must not be shown by whoever prints a request or a record; `src/pb.rs` says what is shown instead.
    let secret = [
        ".authpb.User",
        ".etcdserverpb.AuthenticateRequest",
        ".etcdserverpb.AuthenticateResponse",
        ".etcdserverpb.AuthUserAddRequest",
        ".etcdserverpb.AuthUserChangePasswordRequest",
        ".flotilla.AssignToken",
    ];
    // For the JSON gateway, which translates by what the files say.
    let descriptors = Path::new(&env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(descriptors, files.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .skip_debug(secret)
        .codec_path("crate::codec::SizedCodec")
        .compile_fds(files)?;
    Ok(())
}
