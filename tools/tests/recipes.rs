//! The Lock and Election services of a real server: who gets in, in which order, and what is left behind.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use flotilla_tests::process::{Server, Setup};
use kv_server::pb::etcdserverpb as pb;
use kv_server::pb::mvccpb::KeyValue;
use kv_server::pb::v3electionpb::election_client::ElectionClient;
use kv_server::pb::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use kv_server::pb::v3lockpb::lock_client::LockClient;
use kv_server::pb::v3lockpb::{LockRequest, UnlockRequest};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Each client has a connection of its own, as different processes have.
async fn channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(server.url().to_owned()).unwrap();
    endpoint.connect().await.unwrap()
}

fn with_server(run: impl AsyncFnOnce(&Server)) {
    let dir: TempDir = tempfile::tempdir().unwrap();
    let setup = Setup::new(env!("CARGO_BIN_EXE_flotilla"), &dir.path().join("data"));
    let mut server = setup.start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(&server));
    drop(runtime);
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{server}");
}

async fn grant(server: &Server, id: i64) -> i64 {
    let mut lease = LeaseClient::new(channel(server).await);
    let grant = pb::LeaseGrantRequest { ttl: 600, id };
    lease.lease_grant(grant).await.unwrap().into_inner().id
}

async fn keys(server: &Server, prefix: &str) -> Vec<String> {
    let mut kv = KvClient::new(channel(server).await);
    let range = pb::RangeRequest {
        key: format!("{prefix}/").into(),
        range_end: format!("{prefix}0").into(),
        ..Default::default()
    };
    let found = kv.range(range).await.unwrap().into_inner().kvs;
    let name = |kv: KeyValue| String::from_utf8(kv.key.to_vec()).unwrap();
    found.into_iter().map(name).collect()
}

async fn wait_for_keys(server: &Server, prefix: &str, count: usize) {
    while keys(server, prefix).await.len() != count {
        tokio::task::yield_now().await;
    }
}

fn lock_of(name: &'static str, lease: i64) -> LockRequest {
    LockRequest {
        name: name.into(),
        lease,
    }
}

/// True if the future is not done yet.
async fn waits<T>(future: &mut std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

#[test]
fn locks_of_one_name_are_held_one_after_the_other_in_the_order_of_their_keys() {
    with_server(async |server| {
        for id in [10, 11, 12] {
            grant(server, id).await;
        }
        let mut first = LockClient::new(channel(server).await);
        let held = first.lock(lock_of("m", 10)).await.unwrap().into_inner();
        assert_eq!(held.key, "m/a");
        assert_eq!(held.header.unwrap().revision, 2);
        // The same session again holds it still.
        let again = first.lock(lock_of("m", 10)).await.unwrap().into_inner();
        assert_eq!(again.key, "m/a");

        let mut second = LockClient::new(channel(server).await);
        let mut waiting = pin!(second.lock(lock_of("m", 11)));
        assert!(waits(&mut waiting).await);
        wait_for_keys(server, "m", 2).await;
        let mut third = LockClient::new(channel(server).await);
        let mut last = pin!(third.lock(lock_of("m", 12)));
        assert!(waits(&mut last).await);
        wait_for_keys(server, "m", 3).await;

        first.unlock(UnlockRequest { key: held.key }).await.unwrap();
        assert_eq!(waiting.await.unwrap().into_inner().key, "m/b");
        assert!(waits(&mut last).await);
        // A session that ends gives the lock back.
        let mut lease = LeaseClient::new(channel(server).await);
        lease
            .lease_revoke(pb::LeaseRevokeRequest { id: 11 })
            .await
            .unwrap();
        assert_eq!(last.await.unwrap().into_inner().key, "m/c");
    });
}

#[test]
fn lock_without_a_lease_gets_one_of_a_minute() {
    with_server(async |server| {
        let mut lock = LockClient::new(channel(server).await);
        let held = lock.lock(lock_of("m", 0)).await.unwrap().into_inner();
        let name = String::from_utf8(held.key.to_vec()).unwrap();
        let id = i64::from_str_radix(name.strip_prefix("m/").unwrap(), 16).unwrap();
        let mut lease = LeaseClient::new(channel(server).await);
        let left = pb::LeaseTimeToLiveRequest { id, keys: true };
        let left = lease.lease_time_to_live(left).await.unwrap().into_inner();
        assert_eq!((left.granted_ttl, &left.keys[..]), (60, &[held.key][..]));
    });
}

#[test]
fn lock_whose_caller_leaves_or_whose_lease_ends_while_it_waits_leaves_no_key() {
    with_server(async |server| {
        for id in [10, 11, 12] {
            grant(server, id).await;
        }
        let mut first = LockClient::new(channel(server).await);
        first.lock(lock_of("m", 10)).await.unwrap();
        {
            let mut second = LockClient::new(channel(server).await);
            let mut waiting = pin!(second.lock(lock_of("m", 11)));
            assert!(waits(&mut waiting).await);
            wait_for_keys(server, "m", 2).await;
        }
        wait_for_keys(server, "m", 1).await;

        let mut third = LockClient::new(channel(server).await);
        let mut waiting = pin!(third.lock(lock_of("m", 12)));
        assert!(waits(&mut waiting).await);
        wait_for_keys(server, "m", 2).await;
        let mut lease = LeaseClient::new(channel(server).await);
        lease
            .lease_revoke(pb::LeaseRevokeRequest { id: 12 })
            .await
            .unwrap();
        let ended = waiting.await.unwrap_err();
        assert_eq!(
            (ended.code(), ended.message()),
            (Code::Unknown, "mutex: session is expired")
        );
        assert_eq!(keys(server, "m").await, ["m/a"]);
        let missing = first.lock(lock_of("m", 99)).await.unwrap_err();
        is_unknown(&missing, "etcdserver: requested lease not found");
    });
}

fn campaign_of(lease: i64, value: &'static str) -> CampaignRequest {
    CampaignRequest {
        name: "e".into(),
        lease,
        value: value.into(),
    }
}

fn proclamation(leader: &LeaderKey, value: &'static str) -> ProclaimRequest {
    ProclaimRequest {
        leader: Some(leader.clone()),
        value: value.into(),
    }
}

fn is_unknown(status: &Status, text: &str) {
    assert_eq!((status.code(), status.message()), (Code::Unknown, text));
}

#[test]
fn election_passes_from_leader_to_leader_and_observers_hear_each_proclamation() {
    with_server(async |server| {
        for id in [10, 11] {
            grant(server, id).await;
        }
        let name = LeaderRequest { name: "e".into() };
        let mut one = ElectionClient::new(channel(server).await);
        is_unknown(
            &one.leader(name.clone()).await.unwrap_err(),
            "election: no leader",
        );
        let mut observer = ElectionClient::new(channel(server).await);
        let mut seen = observer.observe(name.clone()).await.unwrap().into_inner();
        let mut hear = async || {
            let answer = seen.message().await.unwrap().unwrap();
            let (header, kv) = (answer.header.unwrap(), answer.kv.unwrap());
            assert!(header.revision >= kv.mod_revision && header.member_id != 0);
            (kv.key.to_vec(), kv.value.to_vec())
        };

        let won = one.campaign(campaign_of(10, "x")).await.unwrap();
        let leader = won.into_inner().leader.unwrap();
        assert_eq!((&leader.key[..], leader.lease), (&b"e/a"[..], 10));
        assert_eq!(hear().await, (b"e/a".to_vec(), b"x".to_vec()));
        one.proclaim(proclamation(&leader, "y")).await.unwrap();
        assert_eq!(hear().await, (b"e/a".to_vec(), b"y".to_vec()));
        // Who campaigns again leads still, with the new value.
        let again = one.campaign(campaign_of(10, "z")).await.unwrap();
        let again = again.into_inner();
        assert_eq!(again.leader, Some(leader.clone()));
        assert_eq!(hear().await, (b"e/a".to_vec(), b"z".to_vec()));
        // Its header is that of the look whether it leads, before the proclamation.
        let looked = again.header.unwrap().revision;
        let now = one.leader(name.clone()).await.unwrap().into_inner();
        assert_eq!(now.kv.unwrap().mod_revision, looked + 1);

        let mut two = ElectionClient::new(channel(server).await);
        let mut waiting = pin!(two.campaign(campaign_of(11, "other")));
        assert!(waits(&mut waiting).await);
        wait_for_keys(server, "e", 2).await;
        let now = one.leader(name.clone()).await.unwrap().into_inner();
        assert_eq!(now.kv.unwrap().value, "z");

        one.resign(ResignRequest {
            leader: Some(leader.clone()),
        })
        .await
        .unwrap();
        let next = waiting.await.unwrap().into_inner().leader.unwrap();
        assert_eq!(&next.key[..], b"e/b");
        assert_eq!(hear().await, (b"e/b".to_vec(), b"other".to_vec()));
        is_unknown(
            &one.proclaim(proclamation(&leader, "late"))
                .await
                .unwrap_err(),
            "election: not leader",
        );
        // Resigning from what is over changes nothing.
        one.resign(ResignRequest {
            leader: Some(leader),
        })
        .await
        .unwrap();
        let now = one.leader(name).await.unwrap().into_inner();
        assert_eq!(now.kv.unwrap().value, "other");
    });
}

/// The name of the key was that of the number without a sign.
#[test]
fn lease_below_zero_names_its_key_with_a_sign() {
    with_server(async |server| {
        grant(server, -26).await;
        let mut lock = LockClient::new(channel(server).await);
        let held = lock.lock(lock_of("m", -26)).await.unwrap().into_inner();
        assert_eq!(held.key, "m/-1a");
    });
}

#[test]
fn election_calls_without_a_leader_key_are_refused() {
    with_server(async |server| {
        let mut election = ElectionClient::new(channel(server).await);
        let text = "\"leader\" field must be provided";
        let resign = ResignRequest { leader: None };
        is_unknown(&election.resign(resign).await.unwrap_err(), text);
        let proclaim = ProclaimRequest {
            leader: None,
            value: "x".into(),
        };
        is_unknown(&election.proclaim(proclaim).await.unwrap_err(), text);
    });
}
