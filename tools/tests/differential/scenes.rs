//! Short scenes whose requests belong together: locks and elections with a second client that waits, leases of odd
//! lengths, changes of the members that are refused, requests around the size limit.

use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_server::pb::etcdserverpb as pb;
use kv_server::pb::v3electionpb as election;
use kv_server::pb::v3lockpb as lock;
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::task::yield_now;

use super::calls::{Answer, Call, Clients, ITSELF};
use super::generate::{self, Known, one_in, pick};
use super::{Run, Stop};

/// Leases for scenes; nobody else uses them.
const FIRST: i64 = 1_000_001;
const SECOND: i64 = -1_000_002;
/// Never granted.
const NEVER: i64 = 1_000_003;
/// The time within which a member that left and comes again could get the same id on one of the servers.
const SAME_ID: Duration = Duration::from_secs(2);
/// What a request may have at most, beside its frame.
const REQUEST_BYTES_MAX: usize = 3 << 19;

/// Plays one scene.
pub(crate) async fn play(run: &mut Run, rng: &mut SmallRng) -> Result<(), Stop> {
    match rng.random_range(0..40) {
        0..8 => locks(run, rng).await,
        8..16 => elections(run, rng).await,
        16..20 => short_leases(run, rng).await,
        20..22 => learner(run).await,
        22..24 => large(run, rng).await,
        24..30 => refused_members(run, rng).await,
        30..34 => maintenance(run, rng).await,
        _ => {
            let revision = generate::revision(rng, &run.known);
            run.ask(Call::HashKv(pb::HashKvRequest { revision })).await
        }
    }
}

fn name(rng: &mut SmallRng) -> Bytes {
    let names: [&[u8]; 5] = [b"m", b"m/n", b"\xff", b"m\0", b""];
    Bytes::from_static(pick(rng, &names))
}

fn grant(id: i64) -> Call {
    Call::Grant(pb::LeaseGrantRequest { ttl: 30_000, id })
}

fn revoke(id: i64) -> Call {
    Call::Revoke(pb::LeaseRevokeRequest { id })
}

/// How many keys there are below a name.
async fn count_below(side: &mut Clients, name: &Bytes) -> i64 {
    let mut key = name.to_vec();
    key.push(b'/');
    let mut range_end = name.to_vec();
    range_end.push(b'/' + 1);
    let request = pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        count_only: true,
        ..Default::default()
    };
    match side.call(Call::Range(request)).await {
        Answer::Range(found) => found.count,
        other => panic!("counting keys: {other:?}"),
    }
}

/// One call that waits for its turn, on one server: it is let go on by `release` once its key is there.
async fn waits(side: &Clients, waiter: Call, name: &Bytes, release: Call) -> (Answer, Answer) {
    let (mut other, mut looks) = (side.clone(), side.clone());
    let before = count_below(&mut looks, name).await;
    let mut waiting = pin!(other.call(waiter));
    loop {
        let count = count_below(&mut looks, name);
        tokio::select! {
            biased;
            answer = &mut waiting => return (answer, Answer::Refused(tonic::Code::Ok, "it did not wait".to_owned())),
            count = count => if count > before { break },
        }
        yield_now().await;
    }
    let released = looks.call(release).await;
    (waiting.await, released)
}

/// The same on both servers, in both of which nobody else waits.
async fn both_wait(
    run: &mut Run,
    waiter: Call,
    name: &Bytes,
    release: Call,
) -> Result<Answer, Stop> {
    let [etcd, ours] = &run.servers;
    let (etcd, ours) = tokio::join!(
        waits(etcd, waiter.clone(), name, release.clone()),
        waits(ours, waiter.clone(), name, release.clone())
    );
    run.compare(&release, etcd.1, ours.1)?;
    run.compare(&waiter, etcd.0.clone(), ours.0)?;
    Ok(etcd.0)
}

async fn locks(run: &mut Run, rng: &mut SmallRng) -> Result<(), Stop> {
    let name = name(rng);
    let wanted = |lease| {
        Call::Lock(lock::LockRequest {
            name: name.clone(),
            lease,
        })
    };
    if one_in(rng, 4) {
        // Of a lease that does not exist.
        return run.ask(wanted(NEVER)).await;
    }
    run.ask(grant(FIRST)).await?;
    run.ask(grant(SECOND)).await?;
    let held = run.answer(wanted(FIRST)).await?;
    run.ask(wanted(FIRST)).await?;
    if let (Answer::Lock(held), true) = (held, !name.is_empty()) {
        let release = match rng.random_range(0..3) {
            0 => revoke(FIRST),
            _ => Call::Unlock(lock::UnlockRequest { key: held.key }),
        };
        let next = both_wait(run, wanted(SECOND), &name, release).await?;
        if let (Answer::Lock(next), true) = (next, one_in(rng, 2)) {
            run.ask(Call::Unlock(lock::UnlockRequest {
                key: next.key.clone(),
            }))
            .await?;
            run.ask(Call::Unlock(lock::UnlockRequest { key: next.key }))
                .await?;
        }
    }
    if one_in(rng, 3) {
        run.ask(Call::Unlock(lock::UnlockRequest {
            key: generate::key(rng),
        }))
        .await?;
    }
    run.ask(revoke(FIRST)).await?;
    run.ask(revoke(SECOND)).await
}

async fn elections(run: &mut Run, rng: &mut SmallRng) -> Result<(), Stop> {
    let name = name(rng);
    let campaign = |lease, value: &'static str| {
        let (name, value) = (name.clone(), value.into());
        Call::Campaign(election::CampaignRequest { name, lease, value })
    };
    let leader = || Call::Leader(election::LeaderRequest { name: name.clone() });
    run.ask(leader()).await?;
    if one_in(rng, 4) {
        return run.ask(campaign(NEVER, "x")).await;
    }
    if one_in(rng, 4) {
        run.ask(Call::Proclaim(election::ProclaimRequest::default()))
            .await?;
        run.ask(Call::Resign(election::ResignRequest::default()))
            .await?;
    }
    run.ask(grant(FIRST)).await?;
    run.ask(grant(SECOND)).await?;
    let held = run.answer(campaign(FIRST, "one")).await?;
    run.ask(campaign(FIRST, "one more")).await?;
    run.ask(leader()).await?;
    if let Answer::Campaign(election::CampaignResponse {
        leader: Some(held), ..
    }) = held
    {
        let proclaim = |held: &election::LeaderKey, value: &'static str| {
            let (leader, value) = (Some(held.clone()), value.into());
            Call::Proclaim(election::ProclaimRequest { leader, value })
        };
        let resign = |held: &election::LeaderKey| {
            Call::Resign(election::ResignRequest {
                leader: Some(held.clone()),
            })
        };
        run.ask(proclaim(&held, "two")).await?;
        run.ask(Call::Observe(election::LeaderRequest {
            name: name.clone(),
        }))
        .await?;
        let stranger = election::LeaderKey {
            rev: held.rev + 1,
            ..held.clone()
        };
        run.ask(proclaim(&stranger, "three")).await?;
        run.ask(resign(&stranger)).await?;
        if name.is_empty() {
            run.ask(resign(&held)).await?;
        } else {
            let release = if one_in(rng, 3) {
                revoke(FIRST)
            } else {
                resign(&held)
            };
            let next = both_wait(run, campaign(SECOND, "next"), &name, release).await?;
            run.ask(leader()).await?;
            run.ask(proclaim(&held, "too late")).await?;
            if let Answer::Campaign(election::CampaignResponse {
                leader: Some(next), ..
            }) = next
            {
                run.ask(resign(&next)).await?;
                run.ask(resign(&next)).await?;
            }
        }
        run.ask(leader()).await?;
    }
    run.ask(revoke(FIRST)).await?;
    run.ask(revoke(SECOND)).await
}

/// Time to live that is raised to the least there is; the lease is gone before that is over.
async fn short_leases(run: &mut Run, rng: &mut SmallRng) -> Result<(), Stop> {
    let ttl = pick(rng, &[0, -1, 1, 2, 3, i64::MIN]);
    run.ask(Call::Grant(pb::LeaseGrantRequest { ttl, id: FIRST }))
        .await?;
    run.ask(Call::KeepAlive(pb::LeaseKeepAliveRequest { id: FIRST }))
        .await?;
    run.ask(Call::TimeToLive(pb::LeaseTimeToLiveRequest {
        id: FIRST,
        keys: true,
    }))
    .await?;
    run.ask(revoke(FIRST)).await?;
    run.ask(Call::TimeToLive(pb::LeaseTimeToLiveRequest {
        id: FIRST,
        keys: true,
    }))
    .await?;
    run.ask(Call::KeepAlive(pb::LeaseKeepAliveRequest { id: FIRST }))
        .await
}

/// Waits until both are done with the last change of the members. 3.5.1 answers a change before its Raft has taken note of it, and
/// drops one that comes before that: it never answers.
async fn settled_members(run: &mut Run) -> Result<(), Stop> {
    let linearizable = true;
    run.ask(Call::MemberList(pb::MemberListRequest { linearizable }))
        .await
}

/// A learner that never starts, from its addition to its removal.
async fn learner(run: &mut Run) -> Result<(), Stop> {
    let add = |url: &str| {
        Call::MemberAdd(pb::MemberAddRequest {
            peer_ur_ls: vec![url.to_owned()],
            is_learner: true,
        })
    };
    // The id of a member follows from its URL and the second, and is never given out again.
    if run
        .learner_left
        .is_some_and(|left| left.elapsed() < SAME_ID)
    {
        return Ok(());
    }
    settled_members(run).await?;
    let ids = run.add_learner("http://127.0.0.1:1").await?;
    settled_members(run).await?;
    if ids.contains(&0) {
        return Ok(());
    }
    run.ask(add("http://127.0.0.1:2")).await?;
    settled_members(run).await?;
    run.ask(add("http://127.0.0.1:1")).await?;
    settled_members(run).await?;
    run.ask_each(ids.map(|id| Call::MemberPromote(pb::MemberPromoteRequest { id })))
        .await?;
    settled_members(run).await?;
    run.ask_each(ids.map(|id| Call::MemberRemove(pb::MemberRemoveRequest { id })))
        .await?;
    settled_members(run).await?;
    run.learner_left = Some(Instant::now());
    run.ask_each(ids.map(|id| Call::MemberRemove(pb::MemberRemoveRequest { id })))
        .await?;
    run.ask(Call::MemberList(pb::MemberListRequest {
        linearizable: false,
    }))
    .await
}

async fn refused_members(run: &mut Run, rng: &mut SmallRng) -> Result<(), Stop> {
    let urls = [
        ITSELF,
        "",
        "nonsense",
        "http://127.0.0.1",
        "ftp://127.0.0.1:1",
        "http://127.0.0.1:1/path",
    ];
    let peer_ur_ls = vec![pick(rng, &urls).to_owned()];
    let id = pick(rng, &[0, 1, u64::MAX]);
    let call = match rng.random_range(0..5) {
        0 => Call::MemberAdd(pb::MemberAddRequest {
            peer_ur_ls,
            is_learner: one_in(rng, 2),
        }),
        1 => Call::MemberAdd(pb::MemberAddRequest {
            peer_ur_ls: Vec::new(),
            is_learner: false,
        }),
        2 => Call::MemberRemove(pb::MemberRemoveRequest { id }),
        3 => Call::MemberUpdate(pb::MemberUpdateRequest {
            id,
            peer_ur_ls: vec!["http://127.0.0.1:9".to_owned()],
        }),
        _ => Call::MemberPromote(pb::MemberPromoteRequest { id }),
    };
    settled_members(run).await?;
    run.ask(call).await
}

async fn maintenance(run: &mut Run, rng: &mut SmallRng) -> Result<(), Stop> {
    let call = match rng.random_range(0..6) {
        0 => Call::MemberList(pb::MemberListRequest {
            linearizable: one_in(rng, 2),
        }),
        1 => {
            let alarm = pick(rng, &[0, 1, 2, 3, -1]);
            Call::Alarm(pb::AlarmRequest {
                action: 0,
                member_id: 0,
                alarm,
            })
        }
        2 => Call::Status(pb::StatusRequest {}),
        3 => Call::Hash(pb::HashRequest {}),
        4 => Call::MoveLeader(pb::MoveLeaderRequest { target_id: 77 }),
        _ => Call::Defragment(pb::DefragmentRequest {}),
    };
    run.ask(call).await
}

/// Around the limit of a request: one that fits, one that the server refuses, one that the transport does.
async fn large(run: &mut Run, rng: &mut SmallRng) -> Result<(), Stop> {
    let bytes = pick(
        rng,
        &[
            REQUEST_BYTES_MAX - 1_000,
            REQUEST_BYTES_MAX + 1_000,
            2 << 20,
        ],
    );
    let key = Bytes::from_static(b"large");
    let value = Bytes::from(vec![b'x'; bytes]);
    run.ask(Call::Put(pb::PutRequest {
        key: key.clone(),
        value,
        ..Default::default()
    }))
    .await?;
    run.ask(Call::DeleteRange(pb::DeleteRangeRequest {
        key,
        ..Default::default()
    }))
    .await
}

/// What the scenes leave behind at most.
pub(crate) fn tidy(known: &mut Known) {
    known.leases.retain(|id| ![FIRST, SECOND].contains(id));
}
