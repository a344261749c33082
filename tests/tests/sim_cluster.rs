//! Three members: they agree whatever crashes and whatever the network does, and no acknowledged write is lost.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use flotilla_tests::sim::cluster::Cluster;
use flotilla_tests::sim::node::{GROUP, Node};
use flotilla_tests::sim::run::{each_point, each_seed, is_narrowed};
use flotilla_tests::sim::sinks::Observed;
use flotilla_tests::sim::solo::Coverage;
use kv_server::ApiError;
use kv_server::api::{Api, ApiOptions, EtcdApi, Replica, ScanPool};
use kv_server::mvcc::CommandOutput;
use kv_server::node::NodeView;
use kv_server::pb::etcdserverpb as pb;
use multiraft::{GroupStatus, HostHandle, Reply};
use raft_log::vfs::sim::CrashKind;

#[test]
fn three_members_elect_replicate_and_agree() {
    each_seed(1, 4, |seed| {
        let mut cluster = Cluster::new(seed, 0, 3);
        cluster.ticks(60);
        assert!(cluster.leader().is_some(), "nobody leads after 60 ticks");
        cluster.ticks(200);
        cluster.agree();
        assert!(cluster.oracle.get().acks() > 100, "clients are served");
    });
}

#[test]
fn bad_network_and_slow_disks_lose_nothing_acknowledged() {
    each_seed(1_000, 30, |seed| {
        let mut cluster = Cluster::new(seed, 0, 3);
        {
            let mut network = cluster.network.get();
            (network.loss_percent, network.delay_ticks_max) = (seed % 4 * 5, seed % 5);
        }
        cluster.slow_disk_percent = seed % 3 * 30;
        for _ in 0..4 {
            cluster.ticks(80);
            cluster.isolate(&[(seed % 3) as usize]);
            cluster.ticks(120);
            cluster.heal();
        }
        cluster.agree();
    });
}

#[test]
fn crashes_of_any_member_lose_nothing_acknowledged() {
    let mut total = Coverage::new();
    each_seed(2_000, 36, |seed| {
        let mut cluster = Cluster::new(seed, 0, 3);
        {
            let mut network = cluster.network.get();
            (network.loss_percent, network.delay_ticks_max) = (seed % 3 * 2, seed % 3);
        }
        cluster.slow_disk_percent = seed % 2 * 30;
        cluster.havoc(1_500);
        cluster.agree();
        assert!(cluster.oracle.get().acks() > 50, "clients are served");
        for (what, count) in &cluster.coverage {
            *total.entry(what).or_default() += count;
        }
    });
    eprintln!("{total:?}");
    for what in ["crashes", "partitions", "power losses of all"] {
        assert!(is_narrowed() || total.contains_key(what), "never: {what}");
    }
}

#[test]
fn crash_of_one_member_at_every_operation_loses_nothing_acknowledged() {
    let runs = each_point(3_000, 9, |seed, point| {
        let mut cluster = Cluster::new(seed, point, 3);
        let at = (seed % 3) as usize;
        cluster.slow_disk_percent = 20;
        cluster.nodes[at].fs.fail_after(point);
        cluster.ticks(60);
        let finished = !cluster.coverage.contains_key("crashes");
        cluster.agree();
        finished
    });
    assert!(is_narrowed() || runs > 100, "the run has many crash points");
}

#[test]
fn same_seed_gives_the_same_run() {
    each_seed(4_000, 2, |seed| {
        let run = || {
            let mut cluster = Cluster::new(seed, 0, 3);
            cluster.network.get().loss_percent = 5;
            cluster.havoc(600);
            let digest = cluster.oracle.get().digest();
            (digest, cluster.coverage)
        };
        assert_eq!(run(), run());
    });
}

struct Handle(HostHandle<Observed>);

impl Replica for Handle {
    fn propose(&self, payload: Bytes, reply: Reply<CommandOutput>) {
        self.0.propose(GROUP, payload, reply);
    }

    fn read_barrier(&self, done: Reply<()>) {
        self.0.read_barrier(GROUP, done);
    }

    fn read_now(&self) -> bool {
        self.0.read_now(GROUP)
    }

    fn status(&self) -> GroupStatus {
        self.0.status(GROUP).expect("the host has the group")
    }
}

fn api(node: &Node) -> EtcdApi<Handle, NodeView> {
    let up = node.up();
    EtcdApi::new(
        Handle(up.handle.clone()),
        Arc::new(NodeView::new(
            Arc::clone(&up.store),
            Arc::default(),
            Arc::new(node.engine.clone()),
            up.log.clone(),
        )),
        Arc::new(ScanPool::start(1, 1).expect("a thread starts")),
        ApiOptions::new(1, node.id.0),
    )
}

fn get(serializable: bool) -> pb::RangeRequest {
    pb::RangeRequest {
        key: Bytes::from_static(b"k/a"),
        serializable,
        ..pb::RangeRequest::default()
    }
}

/// Polls a call once; nothing here waits for real time.
fn poll<F: Future + ?Sized>(call: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    call.poll(&mut Context::from_waker(Waker::noop()))
}

/// Three members with a leader, and what the timeouts of the API need; the runtime is never run, so none of them ends.
fn led() -> (Cluster, usize, tokio::runtime::Runtime) {
    let mut cluster = Cluster::new(7, 0, 3);
    for _ in 0..100 {
        cluster.tick();
    }
    let leader = cluster.leader().expect("somebody leads after 100 ticks");
    let timers = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime can be made");
    (cluster, leader, timers)
}

#[test]
fn quorum_lost_serializable_read_answers_and_linearizable_read_does_not() {
    let (mut cluster, leader, timers) = led();
    let _timers = timers.enter();
    cluster.ticks(40);
    cluster.agree();
    let expected = cluster.nodes[leader].up().store.revision();
    cluster.restarts = false;
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    for at in &others {
        cluster.crash(*at, CrashKind::Power);
    }
    let api = api(&cluster.nodes[leader]);
    let mut linearizable = pin!(api.range(get(false)));
    // The leader steps down within an election timeout, and says so to who waits.
    let mut ended = None;
    for _ in 0..300 {
        if ended.is_none()
            && let Poll::Ready(result) = poll(linearizable.as_mut())
        {
            ended = Some(result.expect_err("without a quorum nothing is read"));
        }
        cluster.tick();
    }
    assert_eq!(ended, Some(ApiError::LeaderChanged));
    let mut serializable = pin!(api.range(get(true)));
    let Poll::Ready(Ok(response)) = poll(serializable.as_mut()) else {
        panic!("a serializable read needs no quorum");
    };
    assert_eq!(response.header.unwrap().revision, expected);

    for at in others {
        cluster.start(at);
    }
    cluster.agree();
    let leader = cluster.leader().expect("somebody leads again");
    let leading = self::api(&cluster.nodes[leader]);
    let mut again = pin!(leading.range(get(false)));
    let mut answer = poll(again.as_mut());
    for _ in 0..20 {
        if answer.is_pending() {
            cluster.tick();
            answer = poll(again.as_mut());
        }
    }
    let Poll::Ready(Ok(response)) = answer else {
        panic!("with a quorum it is answered: {answer:?}");
    };
    assert!(response.header.unwrap().revision >= expected);
}

#[test]
fn leader_cut_off_serializable_read_is_stale_and_linearizable_read_fails() {
    let (mut cluster, old, timers) = led();
    let _timers = timers.enter();
    cluster.ticks(40);
    cluster.agree();
    let before = cluster.nodes[old].up().store.revision();
    cluster.isolate(&[old]);
    cluster.ticks(200);
    let new = cluster.leader().expect("the others elect one of them");
    assert_ne!(new, old, "the old leader has an older term");
    let acked = cluster.oracle.get().acked();
    let acked = cluster.oracle.get().mark(acked).revision;
    assert!(acked > before, "the others go on");

    let api = api(&cluster.nodes[old]);
    let mut serializable = pin!(api.range(get(true)));
    let Poll::Ready(Ok(response)) = poll(serializable.as_mut()) else {
        panic!("a serializable read needs no quorum");
    };
    assert_eq!(response.header.unwrap().revision, before);

    // It has stepped down by now: a read that needs the leader ends with an error, never with the old value.
    let mut linearizable = pin!(api.range(get(false)));
    let mut ended = None;
    for _ in 0..200 {
        if ended.is_none()
            && let Poll::Ready(result) = poll(linearizable.as_mut())
        {
            ended = Some(result.expect_err("it may not answer"));
        }
        cluster.ticks(1);
    }
    assert_eq!(ended, Some(ApiError::NoLeader));
    cluster.agree();
}
