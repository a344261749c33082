//! The same random requests to etcd 3.5.1 and to this server: every answer and every event of a watch must be the same.
//!
//! `FLOTILLA_ETCD` names an etcd; without it the test says that it is skipped. `.ci/differential` downloads one.
//! `FLOTILLA_DIFF_REQUESTS` and `FLOTILLA_DIFF_SEED` say how much, and which; `FLOTILLA_DIFF_SHOW` how many differences
//! are gathered before the run stops, unless the servers no longer have the same revision.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

mod auth;
mod calls;
mod generate;
mod known;
mod scenes;
mod ties;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use flotilla_tests::pki::Authority;
use flotilla_tests::process::Setup;
use kv_server::pb::etcdserverpb as pb;
use multiraft::tls::{ClientTls, ClientTlsOptions};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tonic::Code;

use calls::{Answer, Call, Clients};
use generate::{Known, one_in, pick};
use watching::{Compared, Pair, Recorder};

const REQUESTS: u64 = 3_000;

const STREAMS: usize = 3;
const WATCHERS_MAX: usize = 12;
/// What a printed answer may have.
const SHOWN_CHARS: usize = 3_000;

/// Why the run ends before its time.
#[derive(Debug)]
pub(crate) struct Stop;

/// Both servers, and what is known of them.
pub(crate) struct Run {
    /// etcd first.
    pub(crate) servers: [Clients; 2],
    pub(crate) known: Known,
    asked: u64,
    /// Without it no watches are compared.
    recorder: Option<Recorder>,
    streams: Vec<Pair>,
    /// Leases that etcd renewed for who may not: it says that they have more left.
    renewed_by_etcd_alone: BTreeSet<i64>,
    pub(crate) learner_left: Option<Instant>,
    differences: Vec<String>,
    show: usize,
    reasons: BTreeMap<&'static str, u64>,
}

impl Run {
    async fn new(servers: [Clients; 2], show: usize) -> Self {
        let recorder = Some(Recorder::open(&servers).await);
        let streams = (0..STREAMS).map(|_| Pair::open(&servers)).collect();
        Self {
            recorder,
            streams,
            ..Self::without_watches(servers, show)
        }
    }

    fn without_watches(servers: [Clients; 2], show: usize) -> Self {
        Self {
            servers,
            known: Known {
                revision: 1,
                floor: -1,
                leases: Vec::new(),
            },
            asked: 0,
            recorder: None,
            streams: Vec::new(),
            renewed_by_etcd_alone: BTreeSet::new(),
            learner_left: None,
            differences: Vec::new(),
            show,
            reasons: BTreeMap::new(),
        }
    }

    /// Asks both servers the same.
    pub(crate) async fn ask(&mut self, call: Call) -> Result<(), Stop> {
        self.answer(call).await.map(drop)
    }

    /// As [`Self::ask`]; gives etcd's answer.
    pub(crate) async fn answer(&mut self, call: Call) -> Result<Answer, Stop> {
        if let Call::Txn(txn) = &call
            && known::is_refused_by_us_alone(txn)
        {
            *self
                .reasons
                .entry("left out: an inner transaction deletes what one beside it puts")
                .or_default() += 1;
            return Ok(Answer::Refused(Code::Ok, String::new()));
        }
        if let Call::Compact(_) = call {
            // What was compacted can no longer be told to those who watch.
            self.sync().await?;
        }
        self.ask_each([call.clone(), call]).await
    }

    /// Asks each server its own: requests that name ids.
    pub(crate) async fn ask_each(&mut self, [etcd, ours]: [Call; 2]) -> Result<Answer, Stop> {
        let call = etcd.clone();
        let [first, second] = &mut self.servers;
        let (etcd, ours) = tokio::join!(first.call(etcd), second.call(ours));
        self.compare(&call, etcd.clone(), ours)?;
        Ok(etcd)
    }

    /// Adds a learner to both; gives its ids.
    pub(crate) async fn add_learner(&mut self, url: &str) -> Result<[u64; 2], Stop> {
        let mut ids = [0; 2];
        let mut answers = Vec::new();
        let request = pb::MemberAddRequest {
            peer_ur_ls: vec![url.to_owned()],
            is_learner: true,
        };
        for (side, id) in self.servers.iter_mut().zip(&mut ids) {
            let mut client = pb::cluster_client::ClusterClient::new(side.channel.clone());
            let added = client
                .member_add(request.clone())
                .await
                .map(tonic::Response::into_inner);
            answers.push(match added {
                Ok(added) => {
                    *id = added.member.map_or(0, |member| member.id);
                    Answer::Refused(Code::Ok, format!("{} members", added.members.len()))
                }
                Err(status) => Answer::Refused(status.code(), status.message().to_owned()),
            });
        }
        let ours = answers.pop().unwrap();
        let etcd = answers.pop().unwrap();
        self.compare(&Call::MemberAdd(request), etcd, ours)?;
        Ok(ids)
    }

    /// Compares two answers and learns from them.
    pub(crate) fn compare(
        &mut self,
        call: &Call,
        etcd: Answer,
        mut ours: Answer,
    ) -> Result<(), Stop> {
        self.asked += 1;
        calls::forgive_time(&etcd, &mut ours, &self.renewed_by_etcd_alone);
        if etcd != ours {
            match known::reason(call, &etcd, &ours) {
                Some(reason) => *self.reasons.entry(reason).or_default() += 1,
                None => self.differ(
                    &format!("{call:?}"),
                    &format!("{etcd:?}"),
                    &format!("{ours:?}"),
                )?,
            }
        }
        let revisions =
            [&etcd, &ours].map(|answer| answer.header().map_or(0, |header| header.revision));
        if revisions[0] != revisions[1] && revisions.iter().all(|revision| *revision > 0) {
            return Err(Stop);
        }
        self.known.revision = self.known.revision.max(revisions[0]);
        match (call, &etcd) {
            (Call::Compact(request), Answer::Compact(_)) => {
                self.known.floor = request.revision;
                if let Some(recorder) = &mut self.recorder {
                    recorder.forget(request.revision);
                }
                for pair in &mut self.streams {
                    pair.compacted(request.revision);
                }
            }
            (Call::Grant(_), Answer::Grant(granted)) => {
                self.renewed_by_etcd_alone.remove(&granted.id);
                self.known.leases.push(granted.id);
            }
            (Call::KeepAlive(request), Answer::KeepAlive(_)) => {
                match ours {
                    Answer::Refused(..) => self.renewed_by_etcd_alone.insert(request.id),
                    _ => self.renewed_by_etcd_alone.remove(&request.id),
                };
            }
            (Call::Revoke(request), Answer::Revoke(_)) => {
                self.known.leases.retain(|id| *id != request.id);
            }
            _ => {}
        }
        Ok(())
    }

    fn differ(&mut self, what: &str, etcd: &str, ours: &str) -> Result<(), Stop> {
        let short = |text: &str| text.chars().take(SHOWN_CHARS).collect::<String>();
        let text = format!(
            "request {}: {}\n  etcd: {}\n  ours: {}\n  known: {:?}",
            self.asked,
            short(what),
            short(etcd),
            short(ours),
            self.known
        );
        self.differences.push(text);
        if self.differences.len() < self.show {
            Ok(())
        } else {
            Err(Stop)
        }
    }

    fn compared(&mut self, what: &str, compared: Compared) -> Result<(), Stop> {
        self.asked += 1;
        match compared {
            Ok(()) => Ok(()),
            Err((etcd, ours)) => self.differ(what, &etcd, &ours),
        }
    }

    /// A write behind which all watchers must have got everything before it.
    async fn sync(&mut self) -> Result<(), Stop> {
        let Some(mut recorder) = self.recorder.take() else {
            return Ok(());
        };
        let synced = self.sync_with(&mut recorder).await;
        self.recorder = Some(recorder);
        synced
    }

    async fn sync_with(&mut self, recorder: &mut Recorder) -> Result<(), Stop> {
        let barrier = pb::PutRequest {
            key: "zz barrier".into(),
            ..Default::default()
        };
        self.ask_each([Call::Put(barrier.clone()), Call::Put(barrier)])
            .await?;
        let revision = self.known.revision;
        let recorded = recorder.record(revision).await;
        self.compared("events of everything", recorded)?;
        for at in 0..self.streams.len() {
            let compared = self.streams[at].compare(&recorder.events, revision).await;
            self.compared(&format!("events of stream {at} up to {revision}"), compared)?;
            match self.streams[at].let_go().await {
                Ok(0) => {}
                Ok(count) => {
                    let reason = "etcd cancelled a watcher that it had not yet looked at when its start was compacted";
                    *self.reasons.entry(reason).or_default() += count;
                }
                Err((etcd, ours)) => self.differ("watchers that were compacted", &etcd, &ours)?,
            }
        }
        Ok(())
    }

    /// Something about watches.
    async fn watch(&mut self, rng: &mut SmallRng) -> Result<(), Stop> {
        let at = rng.random_range(0..self.streams.len());
        let watchers = self.streams[at].watchers();
        match rng.random_range(0..20) {
            0 => {
                self.sync().await?;
                self.streams[at] = Pair::open(&self.servers);
                Ok(())
            }
            1..6 if !watchers.is_empty() => {
                self.sync().await?;
                let id = if one_in(rng, 5) {
                    1_000
                } else {
                    pick(rng, &watchers)
                };
                let compared = self.streams[at].cancel(id).await;
                self.compared(&format!("cancel of watcher {id}"), compared)
            }
            6..9 if !watchers.is_empty() => {
                self.sync().await?;
                let stream = &mut self.streams[at];
                if stream.waits_for_the_future(self.known.revision) || !stream.gone.is_empty() {
                    return Ok(());
                }
                let compared = stream.progress().await;
                self.compared("progress", compared)
            }
            _ if watchers.len() < WATCHERS_MAX => {
                let create = self.create_request(rng, at);
                // The recorder must have what the watcher may ask for.
                self.sync().await?;
                if self.streams[at].chooses_apart {
                    self.streams[at] = Pair::open(&self.servers);
                }
                let (revision, floor) = (self.known.revision, self.known.floor);
                let compared = self.streams[at].create(&create, revision, floor).await;
                self.compared(&format!("{create:?}"), compared)
            }
            _ => self.sync().await,
        }
    }

    fn create_request(&self, rng: &mut SmallRng, stream: usize) -> pb::WatchCreateRequest {
        let key = generate::key(rng);
        let start_revision = match rng.random_range(0..10) {
            0..4 => 0,
            4 => self.known.revision + rng.random_range(1..30),
            5 => self.known.floor,
            _ => generate::revision(rng, &self.known),
        };
        let watch_id = match rng.random_range(0..8) {
            0 => pick(rng, &[1, 2, 3, -5, i64::MAX, i64::MIN, 50]),
            _ => 0,
        };
        let filters = match rng.random_range(0..8) {
            0 => vec![0],
            1 => vec![1],
            2 => vec![0, 1],
            3 => vec![7],
            _ => Vec::new(),
        };
        pb::WatchCreateRequest {
            range_end: generate::range_end(rng, &key),
            key,
            start_revision: start_revision.clamp(0, self.known.revision + 1_000),
            prev_kv: one_in(rng, 2),
            fragment: one_in(rng, 3),
            progress_notify: one_in(rng, 4),
            filters,
            // See `known`.
            watch_id: if self.streams[stream].gone.contains(&watch_id) {
                0
            } else {
                watch_id
            },
        }
    }

    async fn step(&mut self, rng: &mut SmallRng) -> Result<(), Stop> {
        match rng.random_range(0..1_000) {
            0..860 => {
                let call = generate::kv(rng, &self.known);
                self.ask(call).await
            }
            860..970 => {
                let call = generate::leases(rng, &self.known);
                self.ask(call).await
            }
            970..985 => self.watch(rng).await,
            985..995 => {
                let played = scenes::play(self, rng).await;
                scenes::tidy(&mut self.known);
                played
            }
            _ => self.sync().await,
        }
    }
}

fn from_env(name: &str, otherwise: u64) -> u64 {
    let value = std::env::var(name);
    value.map_or(otherwise, |value| value.parse().expect(name))
}

fn of_users(all: u64) -> u64 {
    all / 8
}

fn of_certificates(all: u64) -> u64 {
    all / 40
}

/// What a run is made of.
struct Plan {
    etcd: String,
    seed: u64,
    requests: u64,
    show: usize,
    dir: TempDir,
}

impl Plan {
    /// With a share of all requests; none without an etcd.
    fn of(share: impl Fn(u64) -> u64) -> Option<Self> {
        let Ok(etcd) = std::env::var("FLOTILLA_ETCD") else {
            eprintln!(
                "skipped: FLOTILLA_ETCD names no etcd to compare with; .ci/differential downloads one"
            );
            return None;
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let show = from_env("FLOTILLA_DIFF_SHOW", 1).max(1);
        Some(Self {
            etcd,
            seed: from_env("FLOTILLA_DIFF_SEED", now.as_millis() as u64),
            requests: share(from_env("FLOTILLA_DIFF_REQUESTS", REQUESTS)),
            show: show as usize,
            dir: tempfile::tempdir().unwrap(),
        })
    }

    /// Both servers, etcd first, with the same flags.
    fn setups(&self, flags: &[String]) -> [Setup; 2] {
        let dir = self.dir.path();
        let mut ours = Setup::new(env!("CARGO_BIN_EXE_flotilla"), &dir.join("ours"));
        let mut theirs = Setup::new(&self.etcd, &dir.join("etcd"));
        theirs.program = vec![self.etcd.clone()];
        // Nothing is compared that needs its disk.
        theirs.flags = vec!["--unsafe-no-fsync".to_owned()];
        for setup in [&mut theirs, &mut ours] {
            setup.flags.extend_from_slice(flags);
        }
        [theirs, ours]
    }

    /// Runs, and judges.
    fn run(&self, what: &str, asking: impl Future<Output = (Run, Result<(), Stop>)>) {
        let Self { seed, requests, .. } = self;
        eprintln!("{what}: seed {seed}, {requests} requests");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (run, outcome) = runtime.block_on(asking);
        for (reason, count) in &run.reasons {
            eprintln!("{what}: {count} times: {reason}");
        }
        eprintln!(
            "{what}: {} requests, {} differences",
            run.asked,
            run.differences.len()
        );
        assert!(
            run.differences.is_empty() && outcome.is_ok(),
            "{}\nreproduce: FLOTILLA_ETCD={} FLOTILLA_DIFF_SEED={seed} FLOTILLA_DIFF_REQUESTS={} \
             cargo test --workspace --test differential -- --nocapture",
            run.differences.join("\n"),
            self.etcd,
            from_env("FLOTILLA_DIFF_REQUESTS", REQUESTS),
        );
    }
}

#[test]
fn random_requests_have_the_same_answers_as_etcd() {
    let Some(plan) = Plan::of(|all| all - of_users(all) - of_certificates(all)) else {
        return;
    };
    let setups = plan.setups(&[]);
    let processes = setups.each_ref().map(Setup::start);
    plan.run("everybody", async {
        let servers = [
            Clients::connect(&processes[0], setups[0].peer_port).await,
            Clients::connect(&processes[1], setups[1].peer_port).await,
        ];
        let mut run = Run::new(servers, plan.show).await;
        let mut rng = SmallRng::seed_from_u64(plan.seed);
        let mut outcome = Ok(());
        while run.asked < plan.requests && outcome.is_ok() {
            outcome = run.step(&mut rng).await;
        }
        if outcome.is_ok() {
            outcome = run.sync().await;
        }
        (run, outcome)
    });
}

#[test]
fn random_requests_of_users_have_the_same_answers_as_etcd() {
    let Some(plan) = Plan::of(of_users) else {
        return;
    };
    let setups = plan.setups(&auth::FLAGS.map(str::to_owned));
    let processes = setups.each_ref().map(Setup::start);
    plan.run("users", async {
        let servers = [
            Clients::connect(&processes[0], setups[0].peer_port).await,
            Clients::connect(&processes[1], setups[1].peer_port).await,
        ];
        auth::ask(&plan, servers, Vec::new()).await
    });
}

/// Those that show no certificate are not let in, so everybody is somebody.
#[test]
fn random_requests_of_users_by_their_certificates_have_the_same_answers_as_etcd() {
    let Some(plan) = Plan::of(of_certificates) else {
        return;
    };
    let authority = Authority::new(plan.dir.path(), "authority");
    let server = authority.issue("server", 1, &["127.0.0.1"]);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let mut flags = auth::FLAGS.map(str::to_owned).to_vec();
    flags.extend([
        "--client-cert-auth".to_owned(),
        "--cert-file".to_owned(),
        path(&server.cert),
        "--key-file".to_owned(),
        path(&server.key),
        "--trusted-ca-file".to_owned(),
        path(&authority.file()),
    ]);
    let mut setups = plan.setups(&flags);
    for setup in &mut setups {
        setup.is_https = true;
    }
    let processes = setups.each_ref().map(Setup::start);
    plan.run("certificates", async {
        let mut by_name = Vec::new();
        for (number, name) in (2..).zip(auth::USERS) {
            let tls = ClientTls::open(ClientTlsOptions {
                ca: Some(authority.file()),
                identity: Some(authority.issue(name, number, &[])),
                ..ClientTlsOptions::default()
            });
            let tls = Some(tls.unwrap());
            let servers = [
                Clients::connect_over(&processes[0], setups[0].peer_port, tls.as_ref()).await,
                Clients::connect_over(&processes[1], setups[1].peer_port, tls.as_ref()).await,
            ];
            by_name.push((name, servers));
        }
        let first = by_name[0].1.clone();
        auth::ask(&plan, first, by_name).await
    });
}
