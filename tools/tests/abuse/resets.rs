//! Calls that are cancelled as soon as they are made: a flood of them costs the one who makes it the connection, or is
//! served; it costs nobody else anything.

use std::io::Write;

use tokio::task::spawn_blocking;

use super::frames::{self, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM};
use super::run;

const RESETS: u32 = 33_000;

#[test]
fn thousands_of_calls_that_are_reset_at_once_cost_neither_memory_nor_others_their_answers() {
    run(async |world| {
        let mut socket = frames::connect(&world.server);
        let flood = spawn_blocking(move || {
            let headers = frames::call("/etcdserverpb.KV/Range");
            let body = frames::message(&[0x0a, 1, b'a']);
            for n in 0..RESETS {
                let stream = 2 * n + 1;
                let frames = [
                    frames::frame(HEADERS, END_HEADERS, stream, &headers),
                    frames::frame(DATA, END_STREAM, stream, &body),
                    frames::frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()),
                ];
                if socket.write_all(&frames.concat()).is_err() {
                    // The server has enough.
                    return n;
                }
            }
            // Whatever comes, it is no silence: answers, or the end.
            let ends = |kind| kind == GOAWAY;
            while let Some((kind, ..)) = frames::read_frame(&mut socket) {
                if ends(kind) {
                    break;
                }
                let ping = frames::frame(6, 0, 0, &[1; 8]);
                if kind == 6 || socket.write_all(&ping).is_err() {
                    break;
                }
            }
            RESETS
        });
        while !flood.is_finished() {
            world.serves().await;
        }
        let made = flood.await.unwrap();
        println!(
            "{made} calls were reset; {} MiB at the peak",
            world.peak_mib()
        );
        world.stayed_small();
    });
}
