//! `flotilla bench`: loads an etcd v3 endpoint over gRPC and says how it held up; with `--compare`, two of them in one
//! run; `suite` does that for everything that a table asks for.
//!
//! `workload` makes requests, `load` sends them by `client` and takes the time, `collect` gathers what was `recorded`,
//! `report`, `compare`, `hdr` and `html` turn it into figures. `ledger` knows what was acknowledged, and reads it back.
//! It deliberately does not start or stop servers: whoever measures decides how those run.

mod args;
mod client;
mod collect;
mod compare;
mod find_max;
mod hdr;
mod html;
mod keys;
mod ledger;
mod load;
mod machine;
mod procs;
mod recorded;
mod report;
mod run;
mod suite;
mod svg;
mod watch;
mod wire;
mod workload;

use crate::failure::Failure;
pub(crate) use args::{BenchArgs, parse_duration};
use args::{Kind, What};

/// Runs what the flags ask for. An error that a server returned makes it fail, after the report.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let (kind, load) = match &args.what {
        What::Put(load) => (Kind::Put, load),
        What::Get(load) => (Kind::Get, load),
        What::Range(load) => (Kind::Range, load),
        What::Txn(load) => (Kind::Txn, load),
        What::Mixed(load) => (Kind::Mixed, load),
        What::Watch(load) => (Kind::Watch, load),
        What::Lease(load) => (Kind::Lease, load),
        What::Suite(suite) => return suite::run(suite),
    };
    run::run(&args::LoadArgs {
        kind,
        ..(**load).clone()
    })
}
