//! How each row is measured.

use std::io::Write;
use std::time::Duration;

use super::table::{Aim, Line, Table};
use super::{Row, SuiteArgs};
use crate::bench::args::{Kind, LoadArgs};
use crate::bench::compare::{Figure, median, of_side, ratios};
use crate::bench::procs;
use crate::bench::report::Round;
use crate::bench::run::{Servers, judge};
use crate::failure::Failure;
use crate::user::User;

/// The part of the peer's maximum at which latencies are compared.
const OPEN_PART: f64 = 0.7;
/// A list of 100 MB may take longer than other answers.
const LIST_TIMEOUT: Duration = Duration::from_mins(2);
const LIST_VALUE_BYTES: usize = 1_024;
/// Puts under way while watchers are measured: enough to keep a server at it.
const WATCH_CLIENTS: u32 = 16;
/// Clients that find a maximum, by workload.
const PUT_CLIENTS: u32 = 256;
const TXN_CLIENTS: u32 = 64;
const RANGE_CLIENTS: u32 = 16;

const PER_SECOND: Figure = |round| Some(round.per_second);
const P50: Figure = |round| Some(round.latency_ms.p50);

/// A suite that is being measured.
pub(super) struct Suite<'a> {
    pub(super) args: &'a SuiteArgs,
    pub(super) user: Option<User>,
    pub(super) table: Table,
    /// What the peer does per second in a closed loop, by workload.
    pub(super) maxima: Vec<(Kind, f64)>,
}

impl Suite<'_> {
    /// Measures one row, which may become several lines.
    pub(super) fn measure(&mut self, row: Row) -> Result<(), Failure> {
        // Who waits wants to know for what; nobody who listens is no failure.
        let _ = writeln!(std::io::stderr(), "suite: {row:?}");
        let cluster = self.args.is_cluster();
        let per_second = |least| ("/s", PER_SECOND, Aim::AtLeast(least));
        match row {
            Row::Put1 => {
                let shown = ("ms", P50, Aim::AtMost(1.0));
                self.closed("put, 1 client, p50", Kind::Put, 1, shown)?;
            }
            Row::Put64 => {
                let rounds = self.closed("put, 64 clients", Kind::Put, 64, per_second(1.9))?;
                self.server_cpu(&rounds);
            }
            Row::Put256 => {
                self.closed("put, 256 clients", Kind::Put, PUT_CLIENTS, per_second(1.9))?;
            }
            Row::Get => {
                let least = if cluster { 1.8 } else { 1.2 };
                self.closed(
                    "get, linearizable, 64 clients",
                    Kind::Get,
                    64,
                    per_second(least),
                )?;
            }
            Row::Txn => {
                self.closed("txn, 64 clients", Kind::Txn, TXN_CLIENTS, per_second(1.8))?;
            }
            Row::Range => {
                let work = "range of 100 keys, 16 clients";
                self.closed(work, Kind::Range, RANGE_CLIENTS, per_second(3.0))?;
            }
            Row::Tails => {
                for kind in [Kind::Put, Kind::Txn, Kind::Range] {
                    self.tails(kind)?;
                }
            }
            Row::Memory => self.memory()?,
            Row::List => self.list()?,
            Row::Watch => self.watch()?,
            Row::Gap => self.gap()?,
        }
        Ok(())
    }

    /// All rounds of a workload, and what they wrote read back.
    fn rounds(&self, load: &LoadArgs) -> Result<Vec<Round>, Failure> {
        load.check()?;
        let servers = Servers::new(load, self.user.as_ref())?;
        servers.fill(load)?;
        let (rounds, _) = servers.rounds(load, None, |_| Ok(()))?;
        judge(&servers.read_back(load)?)?;
        Ok(rounds)
    }

    fn push(
        &mut self,
        work: &str,
        rounds: &[Round],
        (unit, figure, aim): (&'static str, Figure, Aim),
    ) {
        let client: Figure = |round| Some(round.client_cpu_us_per_request);
        let client = [0, 1].map(|side| median(&of_side(rounds, side, client)));
        self.table.lines.push(Line {
            work: work.to_owned(),
            peer: of_side(rounds, 0, figure),
            ours: of_side(rounds, 1, figure),
            unit,
            ratios: ratios(rounds, figure),
            aim,
            client_us: Some((client[0], client[1])),
            faults: rounds.iter().map(Round::faults).sum(),
        });
    }

    fn closed(
        &mut self,
        work: &str,
        kind: Kind,
        clients: u32,
        shown: (&'static str, Figure, Aim),
    ) -> Result<Vec<Round>, Failure> {
        let load = self.closed_load(kind, clients);
        let rounds = self.rounds(&load)?;
        self.push(work, &rounds, shown);
        if clients > 1 {
            let maximum = median(&of_side(&rounds, 0, PER_SECOND));
            self.maxima.push((kind, maximum));
        }
        Ok(rounds)
    }

    fn closed_load(&self, kind: Kind, clients: u32) -> LoadArgs {
        LoadArgs {
            clients,
            conns: self.args.conns.min(clients),
            ..self.args.load(kind)
        }
    }

    fn server_cpu(&mut self, rounds: &[Round]) {
        if self.args.pids.is_empty() || self.args.peer_pids.is_empty() {
            let why = "server CPU per put, which needs --pids and --peer-pids";
            self.table.left_out.push(why.to_owned());
            return;
        }
        let cpu: Figure = |round| {
            round
                .server
                .as_ref()
                .map(|server| server.cpu_us_per_request)
        };
        let work = "server CPU per put, 64 clients";
        self.push(work, rounds, ("us", cpu, Aim::AtMost(0.55)));
    }

    /// An open loop's rate: a part of the most that the peer did, which is measured if no row did.
    fn open_rate(&mut self, kind: Kind) -> Result<u64, Failure> {
        let known = |maxima: &[(Kind, f64)]| {
            let of_kind = maxima.iter().filter(|(of, _)| *of == kind);
            of_kind.map(|(_, most)| *most).reduce(f64::max)
        };
        if known(&self.maxima).is_none() {
            let clients = match kind {
                Kind::Put => PUT_CLIENTS,
                Kind::Txn => TXN_CLIENTS,
                _ => RANGE_CLIENTS,
            };
            let load = LoadArgs {
                compare: None,
                compare_pids: Vec::new(),
                ..self.closed_load(kind, clients)
            };
            let rounds = self.rounds(&load)?;
            let most = median(&of_side(&rounds, 0, PER_SECOND));
            self.maxima.push((kind, most));
        }
        let most = known(&self.maxima).unwrap_or(1.0);
        Ok(((most * OPEN_PART) as u64).max(1))
    }

    fn tails(&mut self, kind: Kind) -> Result<(), Failure> {
        let rate = self.open_rate(kind)?;
        let load = LoadArgs {
            rate: Some(rate),
            ..self.args.load(kind)
        };
        let rounds = self.rounds(&load)?;
        let figures: [(&str, Figure); 2] = [
            ("p99", |round| Some(round.latency_ms.p99)),
            ("p99.9", |round| Some(round.latency_ms.p99_9)),
        ];
        for (name, figure) in figures {
            let work = format!("{} at {rate}/s, {name}", kind.name());
            self.push(&work, &rounds, ("ms", figure, Aim::AtMost(0.6)));
        }
        Ok(())
    }

    fn memory(&mut self) -> Result<(), Failure> {
        if self.args.pids.is_empty() || self.args.peer_pids.is_empty() {
            let why = "peak memory, which needs --pids and --peer-pids";
            self.table.left_out.push(why.to_owned());
            return Ok(());
        }
        let peak = |pids: &[u32]| -> Result<f64, Failure> {
            Ok(procs::memory(pids)?.peak_kib as f64 / 1024.0)
        };
        let (peer, ours) = (peak(&self.args.peer_pids)?, peak(&self.args.pids)?);
        let ratios = crate::bench::compare::Ratios::new(vec![ours / peer]);
        self.table.lines.push(Line {
            work: "peak memory since the servers' start".to_owned(),
            peer: vec![peer],
            ours: vec![ours],
            unit: "MiB",
            ratios: Some(ratios),
            aim: Aim::AtMost(0.6),
            client_us: None,
            faults: 0,
        });
        Ok(())
    }

    fn list(&mut self) -> Result<(), Failure> {
        let keys = self.args.list_keys;
        let load = LoadArgs {
            prefix: "list/".to_owned(),
            clients: 1,
            conns: 1,
            key_space: keys,
            val_size: LIST_VALUE_BYTES,
            limit: 0,
            total: Some(self.args.lists),
            warm_up: None,
            timeout: LIST_TIMEOUT,
            ..self.args.load(Kind::Range)
        };
        let rounds = self.rounds(&load)?;
        let work = format!("list of {keys} keys of 1 KiB in one answer, p50");
        self.push(&work, &rounds, ("ms", P50, Aim::AtMost(0.5)));

        let streamed = LoadArgs {
            endpoint: self.args.endpoint.clone(),
            compare: None,
            pids: self.args.pids.clone(),
            compare_pids: Vec::new(),
            stream: true,
            no_fill: true,
            ..load
        };
        let pids = &streamed.pids;
        // What is resident between is not what one answer left behind: that is given back or used again.
        let before = if pids.is_empty() {
            None
        } else {
            procs::forget_peaks(pids)?;
            Some(procs::memory(pids)?.resident_kib)
        };
        let rounds = self.rounds(&streamed)?;
        let ours = |figure: Figure| of_side(&rounds, 0, figure);
        let client = median(&ours(|round| Some(round.client_cpu_us_per_request)));
        let faults = rounds.iter().map(Round::faults).sum();
        let line = |work: String, ours: Vec<f64>, unit, aim| Line {
            work,
            peer: Vec::new(),
            ours,
            unit,
            ratios: None,
            aim,
            client_us: None,
            faults,
        };
        let work = format!("the same by RangeStream, p50 (client: {client:.0} us of CPU)");
        let mut lines = vec![line(work, ours(P50), "ms", Aim::None)];
        match before {
            None => {
                let why = "memory of a stream above idle, which needs --pids";
                self.table.left_out.push(why.to_owned());
            }
            Some(before) => {
                let peak = procs::memory(pids)?.peak_kib;
                let above = peak.saturating_sub(before) as f64 / 1024.0;
                let work = "memory above idle meanwhile".to_owned();
                lines.push(line(work, vec![above], "MiB", Aim::Below(64.0, "MiB")));
            }
        }
        self.table.lines.extend(lines);
        Ok(())
    }

    fn watch(&mut self) -> Result<(), Failure> {
        let load = LoadArgs {
            clients: WATCH_CLIENTS,
            watchers: self.args.watchers,
            watch_conns: self.args.conns,
            total: Some(self.args.watched_puts),
            warm_up: None,
            timeout: LIST_TIMEOUT,
            ..self.args.load(Kind::Watch)
        };
        let rounds = self.rounds(&load)?;
        let events: Figure = |round| round.events.as_ref().map(|events| events.per_second);
        let work = format!("events to {} watchers of one prefix", self.args.watchers);
        self.push(&work, &rounds, ("/s", events, Aim::AtLeast(2.0)));
        Ok(())
    }

    fn gap(&mut self) -> Result<(), Failure> {
        let rate = self.open_rate(Kind::Put)?;
        let load = LoadArgs {
            rate: Some(rate),
            rounds: Some(1),
            duration: self.args.gap_duration,
            compact_every: Some(self.args.compact_every),
            ..self.args.load(Kind::Put)
        };
        let rounds = self.rounds(&load)?;
        let work = format!(
            "longest gap between two acknowledgements in {:?} of puts at {rate}/s, compaction every {:?}",
            self.args.gap_duration, self.args.compact_every
        );
        let gap: Figure = |round| Some(round.gap_ms_max);
        self.push(&work, &rounds, ("ms", gap, Aim::Below(50.0, "ms")));
        Ok(())
    }
}
