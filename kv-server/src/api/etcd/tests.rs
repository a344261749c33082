use super::*;
use crate::api::testing::{FakeApi, FakeState, fake_api, fake_api_with};
use crate::pb::peer::{LeaseAnswer, LeaseCall, MemberAnswer, MemberCall, MemberError, lease_call};

fn block<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

fn put(key: &'static str, value: Bytes) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value,
        ..Default::default()
    }
}

#[test]
fn put_answers_with_complete_header() {
    let (api, _) = fake_api();
    let response = block(api.put(put("a", "1".into()))).unwrap();
    let header = response.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id), (5, 7));
    assert_eq!((header.revision, header.raft_term), (2, 3));
}

#[test]
fn host_errors_map_to_etcd_texts_and_codes() {
    let table = [
        (
            HostError::Busy,
            Code::ResourceExhausted,
            "etcdserver: too many requests",
        ),
        (
            HostError::NoSpace,
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        ),
        (
            HostError::NotLeader(None),
            Code::Unavailable,
            "etcdserver: no leader",
        ),
        (
            HostError::LeaderChanged,
            Code::Unavailable,
            "etcdserver: leader changed",
        ),
        (
            HostError::Stopped,
            Code::Unavailable,
            "etcdserver: server stopped",
        ),
        (
            HostError::OutcomeUnknown,
            Code::Unavailable,
            "etcdserver: request timed out, possibly due to previous leader failure",
        ),
    ];
    let (api, state) = fake_api();
    for (error, code, text) in table {
        *state.refuse.lock().unwrap() = Some(error);
        let refused = block(api.put(put("a", Bytes::new()))).unwrap_err();
        assert_eq!((refused.code(), refused.to_string().as_str()), (code, text));
    }
    assert_eq!(api.gauges().proposals_failed, 6);
    assert_eq!(api.gauges().proposals_pending, 0);
}

#[test]
fn command_above_limit_is_too_large_and_at_limit_is_written() {
    let (api, _) = fake_api();
    let above = block(api.put(put("a", vec![0; 3 << 19].into())));
    assert_eq!(above.unwrap_err(), ApiError::RequestTooLarge);
    let below = block(api.put(put("a", vec![0; (3 << 19) - 64].into())));
    assert_eq!(below.unwrap().header.unwrap().revision, 2);
}

#[test]
fn unknown_sort_values_are_invalid() {
    let (api, _) = fake_api();
    for (sort_order, sort_target) in [(3, 0), (0, 5), (-1, 0)] {
        let request = pb::RangeRequest {
            key: "a".into(),
            sort_order,
            sort_target,
            ..Default::default()
        };
        assert_eq!(
            block(api.range(request)).unwrap_err(),
            ApiError::InvalidSortOption
        );
    }
}

#[test]
fn read_without_leader_fails_unless_serializable() {
    let (api, state) = fake_api();
    state.no_leader.store(true, Ordering::SeqCst);
    let mut request = pb::RangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    assert_eq!(
        block(api.range(request.clone())).unwrap_err(),
        ApiError::NoLeader
    );
    request.serializable = true;
    assert_eq!(block(api.range(request)).unwrap().count, 0);
}

#[test]
fn status_without_leader_answers() {
    let (api, state) = fake_api();
    state.no_leader.store(true, Ordering::SeqCst);
    state.full.store(true, Ordering::SeqCst);
    let status = block(api.status(pb::StatusRequest {})).unwrap();
    assert_eq!(
        (status.leader, status.raft_term, status.raft_applied_index),
        (0, 3, 11)
    );
    assert_eq!(
        status.errors,
        ["etcdserver: no leader", "memberID:7 alarm:NOSPACE "]
    );
    assert_eq!(
        (status.version.as_str(), status.storage_version.as_str()),
        ("3.6.11", "3.6.0")
    );
}

#[test]
fn lease_grant_raises_ttl_and_draws_id() {
    let (api, _) = fake_api();
    let short = block(api.lease_grant(pb::LeaseGrantRequest { ttl: 1, id: 0 })).unwrap();
    assert_eq!(short.ttl, 2);
    assert!(short.id > 0);
    let long = pb::LeaseGrantRequest {
        ttl: LEASE_TTL_MAX + 1,
        id: 0,
    };
    assert_eq!(
        block(api.lease_grant(long)).unwrap_err(),
        ApiError::LeaseTtlTooLarge
    );
    let missing = pb::LeaseTimeToLiveRequest { id: 9, keys: false };
    assert_eq!(block(api.lease_time_to_live(missing)).unwrap().ttl, -1);
}

#[test]
fn member_list_has_revision_zero() {
    let (api, _) = fake_api();
    let list = block(api.member_list(pb::MemberListRequest { linearizable: true })).unwrap();
    assert_eq!(list.header.unwrap().revision, 0);
    assert_eq!(list.members[0].id, 7);
}

#[test]
fn write_without_answer_has_unknown_outcome() {
    let (api, state) = fake_api();
    state.mute.store(true, Ordering::SeqCst);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime.block_on(async {
        let answer = api.put(put("a", Bytes::new()));
        let lose = async {
            // The host drops what it cannot answer: nobody knows what became of it.
            state.swallowed.lock().unwrap().clear();
        };
        tokio::join!(answer, lose).0.unwrap_err()
    });
    assert_eq!(error, ApiError::TimeoutDueToLeaderFail);
}

#[test]
fn read_only_txn_needs_no_proposal() {
    let (api, state) = fake_api();
    *state.refuse.lock().unwrap() = Some(HostError::Busy);
    let range = pb::RangeRequest {
        key: "a".into(),
        range_end: "b".into(),
        ..Default::default()
    };
    let op = pb::RequestOp {
        request: Some(OpKind::RequestRange(range)),
    };
    let txn = pb::TxnRequest {
        success: vec![op],
        ..Default::default()
    };
    assert!(block(api.txn(txn)).unwrap().succeeded);
}

fn lease(state: &FakeState, api: &FakeApi, id: i64, ttl: i64) {
    let granted = block(api.lease_grant(pb::LeaseGrantRequest { ttl, id })).unwrap();
    assert_eq!((granted.id, granted.ttl), (id, ttl));
    state.tick(1);
}

fn keep_alive(api: &FakeApi, id: i64) -> Result<i64, ApiError> {
    block(api.lease_keep_alive(pb::LeaseKeepAliveRequest { id })).map(|answer| answer.ttl)
}

#[test]
fn keep_alive_of_a_running_lease_needs_no_proposal() {
    let (api, state) = fake_api();
    lease(&state, &api, 5, 60);
    *state.refuse.lock().unwrap() = Some(HostError::Busy);
    let request = pb::LeaseKeepAliveRequest { id: 5 };
    let answer = block(api.lease_keep_alive(request)).unwrap();
    assert_eq!((answer.id, answer.ttl), (5, 60));
    let header = answer.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id), (5, 7));
    assert_eq!((header.revision, header.raft_term), (1, 3));
    assert_eq!(keep_alive(&api, 6), Ok(0), "no such lease");
}

#[test]
fn keep_alive_of_a_checkpointed_lease_commits_an_entry_first() {
    let (api, state) = fake_api();
    lease(&state, &api, 5, 60);
    state.ticks(1..3_200);
    *state.refuse.lock().unwrap() = Some(HostError::Busy);
    assert_eq!(keep_alive(&api, 5), Err(ApiError::TooManyRequests));
    *state.refuse.lock().unwrap() = None;
    assert_eq!(keep_alive(&api, 5), Ok(60));
    *state.refuse.lock().unwrap() = Some(HostError::Busy);
    assert_eq!(keep_alive(&api, 5), Ok(60), "cleared once is enough");
}

#[test]
fn keep_alive_of_an_expiring_lease_waits_for_its_end() {
    let (api, state) = fake_api();
    lease(&state, &api, 5, 2);
    state.ticks(1..400);
    let asked = pb::LeaseTimeToLiveRequest { id: 5, keys: false };
    let left = block(api.lease_time_to_live(asked)).unwrap();
    assert_eq!((left.ttl, left.granted_ttl), (0, 2), "it is still there");
    assert_eq!(keep_alive(&api, 5), Ok(0));
    assert_eq!(block(api.lease_time_to_live(asked)).unwrap().ttl, -1);
}

#[test]
fn keep_alive_without_leader_fails_and_of_a_new_leader_waits_for_its_lessor() {
    let (api, state) = fake_api();
    lease(&state, &api, 5, 60);
    state.no_leader.store(true, Ordering::SeqCst);
    state.tick(2);
    assert_eq!(keep_alive(&api, 5), Err(ApiError::NoLeader));
    state.no_leader.store(false, Ordering::SeqCst);
    let request = pb::LeaseKeepAliveRequest { id: 5 };
    let answer = block(async {
        let tick = async {
            tokio::task::yield_now().await;
            state.tick(3);
        };
        tokio::join!(api.lease_keep_alive(request), tick).0
    });
    assert_eq!(answer.unwrap().ttl, 60);
}

/// The lessor of a store without leases is not ticked, and may not know that it leads: the answer came after a timeout.
#[test]
fn keep_alive_of_a_missing_lease_does_not_wait_for_the_lessor() {
    let (api, _) = fake_api();
    assert_eq!(keep_alive(&api, 6), Ok(0));
}

#[test]
fn keep_alive_at_a_follower_is_what_the_leader_answers() {
    let (api, state) = fake_api();
    lease(&state, &api, 5, 60);
    state.follows.store(true, Ordering::SeqCst);
    state.tick(3);
    assert_eq!(keep_alive(&api, 5), Err(ApiError::Timeout));
    let answer = |ttl| Bytes::from(LeaseAnswer { ttl }.encode_to_vec());
    *state.leader_answers.lock().unwrap() = Some(answer(42));
    assert_eq!(keep_alive(&api, 5), Ok(42));
    *state.leader_answers.lock().unwrap() = Some(Bytes::from_static(b"\xff"));
    assert!(matches!(keep_alive(&api, 5), Err(ApiError::Other(..))));
    let calls = state.calls.lock().unwrap();
    let last = LeaseCall::decode(calls.last().unwrap().clone()).unwrap();
    assert_eq!(last.op, Some(lease_call::Op::KeepAlive(5)));
}

#[test]
fn time_to_live_at_a_follower_is_what_the_leader_counts() {
    let (api, state) = fake_api();
    lease(&state, &api, 5, 60);
    state.follows.store(true, Ordering::SeqCst);
    state.tick(3);
    let asked = pb::LeaseTimeToLiveRequest { id: 5, keys: false };
    for (left, ttl) in [(42, 42), (-1, 60)] {
        let answer = LeaseAnswer { ttl: left }.encode_to_vec();
        *state.leader_answers.lock().unwrap() = Some(answer.into());
        assert_eq!(block(api.lease_time_to_live(asked)).unwrap().ttl, ttl);
    }
}

#[test]
fn lease_grant_of_odd_numbers_follows_etcd() {
    let (api, _) = fake_api();
    let grant = |ttl, id| block(api.lease_grant(pb::LeaseGrantRequest { ttl, id }));
    assert_eq!(grant(-5, 3).unwrap().ttl, 2);
    assert_eq!(grant(0, -4).unwrap().id, -4);
    assert_eq!(grant(9, 3).unwrap_err(), ApiError::LeaseExists);
    assert_eq!(grant(LEASE_TTL_MAX, 8).unwrap().ttl, LEASE_TTL_MAX);
}

#[test]
fn leader_lost_ends_without_a_leader_only() {
    let (api, state) = fake_api_with(1);
    block(async {
        let patience = Duration::from_millis(20);
        assert!(timeout(patience, api.leader_lost()).await.is_err());
        state.no_leader.store(true, Ordering::SeqCst);
        api.leader_lost().await;
    });
}

#[test]
fn without_space_what_grows_is_refused_and_what_shrinks_is_proposed() {
    let (api, state) = fake_api();
    state.full.store(true, Ordering::SeqCst);
    let refused = |result: Result<(), ApiError>| assert_eq!(result, Err(ApiError::NoSpace));
    refused(block(api.put(put("a", Bytes::new()))).map(drop));
    refused(block(api.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 })).map(drop));
    let op = |request| pb::RequestOp {
        request: Some(request),
    };
    let nested = pb::TxnRequest {
        failure: vec![op(OpKind::RequestPut(put("a", Bytes::new())))],
        ..Default::default()
    };
    let txn = pb::TxnRequest {
        success: vec![op(OpKind::RequestTxn(nested))],
        ..Default::default()
    };
    refused(block(api.txn(txn)).map(drop));
    // What the fake answers shows that these were proposed.
    let revoke = block(api.lease_revoke(pb::LeaseRevokeRequest { id: 9 }));
    assert_eq!(revoke.map(drop), Err(ApiError::LeaseNotFound));
    let compact = pb::CompactionRequest {
        revision: 9,
        physical: false,
    };
    assert_eq!(
        block(api.compact(compact)).map(drop),
        Err(ApiError::FutureRevision)
    );
}

#[test]
fn move_leader_is_refused_as_in_etcd_and_to_who_leads_is_done_already() {
    let (api, state) = fake_api();
    let to = |target_id| block(api.move_leader(pb::MoveLeaderRequest { target_id }));
    assert!(to(7).is_ok());
    assert_eq!(to(8).unwrap_err(), ApiError::BadLeaderTransferee);
    state.follows.store(true, Ordering::SeqCst);
    assert_eq!(to(7).unwrap_err(), ApiError::NotLeader);
    state.no_leader.store(true, Ordering::SeqCst);
    assert_eq!(to(7).unwrap_err(), ApiError::NotLeader);
}

fn alarm(action: pb::alarm_request::AlarmAction, alarm: pb::AlarmType) -> pb::AlarmRequest {
    pb::AlarmRequest {
        action: action.into(),
        member_id: 7,
        alarm: alarm.into(),
    }
}

#[test]
fn alarms_are_set_through_the_log_and_listed_by_kind() {
    use pb::AlarmType::{Corrupt, None, Nospace};
    use pb::alarm_request::AlarmAction::{Activate, Deactivate, Get};
    let (api, _) = fake_api();
    let kinds = |request: pb::AlarmRequest| {
        let response = block(api.alarm(request)).unwrap();
        assert_eq!(response.header.unwrap().cluster_id, 5);
        let kinds = response.alarms.iter().map(pb::AlarmMember::alarm);
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(kinds(alarm(Get, None)), []);
    assert_eq!(kinds(alarm(Activate, Nospace)), [Nospace]);
    assert_eq!(kinds(alarm(Activate, Corrupt)), [Corrupt]);
    assert_eq!(kinds(alarm(Get, None)), [Nospace, Corrupt]);
    assert_eq!(kinds(alarm(Get, Nospace)), [Nospace]);
    assert_eq!(kinds(alarm(Get, Corrupt)), [Corrupt]);
    let status = block(api.status(pb::StatusRequest {})).unwrap();
    assert_eq!(
        status.errors,
        ["memberID:7 alarm:NOSPACE ", "memberID:7 alarm:CORRUPT "]
    );
    assert_eq!(kinds(alarm(Deactivate, Nospace)), [Nospace]);
    assert_eq!(kinds(alarm(Deactivate, Corrupt)), [Corrupt]);
    assert_eq!(kinds(alarm(Get, None)), []);
}

/// The list is linearizable, as etcd's, whose request for it goes through the log; the pages about health are not.
#[test]
fn alarms_without_a_leader_are_for_the_pages_only() {
    use pb::alarm_request::AlarmAction::Get;
    let (api, state) = fake_api();
    state.full.store(true, Ordering::SeqCst);
    state.no_leader.store(true, Ordering::SeqCst);
    let listed = block(api.alarm(alarm(Get, pb::AlarmType::None)));
    assert_eq!(listed.map(drop), Err(ApiError::NoLeader));
    assert_eq!(api.alarms().len(), 1);
}

#[test]
fn corrupt_member_refuses_reads_and_writes_and_can_be_looked_at() {
    let (api, state) = fake_api();
    block(api.put(put("a", "1".into()))).unwrap();
    state.corrupt.store(true, Ordering::SeqCst);
    let refused = |name: &str, result: Result<(), ApiError>| {
        assert_eq!(result, Err(ApiError::Corrupt), "{name}");
    };
    let range = pb::RangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    let stale = pb::RangeRequest {
        serializable: true,
        ..range.clone()
    };
    let read = pb::TxnRequest {
        success: vec![pb::RequestOp {
            request: Some(OpKind::RequestRange(range.clone())),
        }],
        ..Default::default()
    };
    let delete = pb::DeleteRangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    refused("put", block(api.put(put("a", "2".into()))).map(drop));
    refused("range", block(api.range(range)).map(drop));
    refused("stale range", block(api.range(stale)).map(drop));
    refused("txn", block(api.txn(read)).map(drop));
    refused("delete", block(api.delete_range(delete)).map(drop));
    refused("compact", block(api.compact(Default::default())).map(drop));
    refused(
        "grant",
        block(api.lease_grant(Default::default())).map(drop),
    );
    refused(
        "revoke",
        block(api.lease_revoke(Default::default())).map(drop),
    );
    refused("snapshot", block(api.snapshot()).map(drop));
    assert!(block(api.status(Default::default())).is_ok());
    assert!(block(api.hash_kv(Default::default())).is_ok());
    assert!(block(api.member_list(Default::default())).is_ok());
}

#[test]
fn hash_counts_both_halves_of_the_hash_of_the_state() {
    let (api, _) = fake_api();
    let response = block(api.hash(pb::HashRequest {})).unwrap();
    assert_eq!(response.hash, 6);
    assert_eq!(response.header.unwrap().member_id, 7);
}

#[test]
fn downgrade_is_refused_after_a_read_of_the_leader() {
    let (api, state) = fake_api();
    let downgrade = |version: &str| {
        let request = pb::DowngradeRequest {
            version: version.to_owned(),
            ..Default::default()
        };
        block(api.downgrade(request)).unwrap_err()
    };
    assert_eq!(downgrade("3.5.0"), ApiError::InvalidDowngradeTargetVersion);
    assert_eq!(downgrade("x"), ApiError::WrongDowngradeVersionFormat);
    state.no_leader.store(true, Ordering::SeqCst);
    assert_eq!(downgrade("3.5.0"), ApiError::NoLeader);
}

#[test]
fn backup_that_may_lack_what_was_acknowledged_is_refused() {
    let (api, state) = fake_api();
    state.no_leader.store(true, Ordering::SeqCst);
    let refused = block(api.snapshot()).map(drop).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    let text = refused.to_string();
    assert!(
        text.contains("ends with entry 13, and it has applied 11"),
        "{text}"
    );
}

#[test]
fn backup_that_fails_says_so_and_only_two_are_made_at_a_time() {
    let (api, _) = fake_api();
    let mut first = block(api.snapshot()).unwrap();
    // The thread has answered, but whether it has ended is not known.
    assert_eq!(
        first.blocking_recv().unwrap().map(drop),
        Err(ApiError::Timeout)
    );
    assert!(first.blocking_recv().is_none());

    let streams = snapshot::Streams::default();
    let source = BackupSource {
        cluster: 5,
        member: 7,
    };
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let start = || {
        let wait = Arc::clone(&wait);
        let take = move || {
            wait.lock().unwrap().recv().unwrap();
            Err(ApiError::Stopped)
        };
        streams.start(take, source, 1)
    };
    let (one, two) = (start().unwrap(), start().unwrap());
    assert_eq!(start().map(drop), Err(ApiError::TooManyRequests));
    // Either thread may take either word.
    go.send(()).unwrap();
    go.send(()).unwrap();
    for mut parts in [one, two] {
        assert_eq!(
            parts.blocking_recv().unwrap().map(drop),
            Err(ApiError::Stopped)
        );
        // The end of the stream comes with the end of the thread, its permit included.
        assert!(parts.blocking_recv().is_none());
    }
}

#[test]
fn change_of_the_members_is_what_the_leader_answers() {
    let (api, state) = fake_api();
    let add = |url: &str| {
        block(api.member_add(pb::MemberAddRequest {
            peer_ur_ls: vec![url.to_owned()],
            is_learner: true,
        }))
    };
    assert_eq!(add("nowhere").unwrap_err(), ApiError::BadMemberUrls);
    assert!(state.calls.lock().unwrap().is_empty());
    assert_eq!(add("http://a:1").unwrap_err(), ApiError::Timeout);
    let refusal = MemberError {
        code: Code::Unavailable as u32,
        text: ApiError::Unhealthy.to_string(),
    };
    let answer = MemberAnswer {
        error: Some(refusal),
        members: Vec::new(),
    };
    *state.leader_answers.lock().unwrap() = Some(answer.encode_to_vec().into());
    let refused = add("http://a:1").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.to_string(), "etcdserver: unhealthy cluster");

    let left = pb::Member {
        id: 7,
        ..Default::default()
    };
    let answer = MemberAnswer {
        error: None,
        members: vec![left.clone()],
    };
    *state.leader_answers.lock().unwrap() = Some(answer.encode_to_vec().into());
    let removed = block(api.member_remove(pb::MemberRemoveRequest { id: 9 })).unwrap();
    assert_eq!(removed.members, [left]);
    assert_eq!(removed.header.unwrap().revision, 0);
    let promote = pb::MemberPromoteRequest { id: 9 };
    assert!(block(api.member_promote(promote)).is_ok());
    let calls = state.calls.lock().unwrap();
    let calls: Vec<_> = calls
        .iter()
        .map(|call| MemberCall::decode(call.clone()).unwrap())
        .collect();
    let requests: std::collections::BTreeSet<_> = calls.iter().map(|call| call.request).collect();
    assert_eq!(requests.len(), calls.len(), "each has a number of its own");
    match &calls[0].op {
        Some(member_call::Op::Add(add)) => {
            assert!(add.is_learner && add.id != 0);
            assert_eq!(add.peer_urls, ["http://a:1"]);
        }
        other => panic!("unexpected: {other:?}"),
    }
    assert_eq!(calls[2].op, Some(member_call::Op::Remove(9)));
    assert_eq!(calls[3].op, Some(member_call::Op::Promote(9)));
}

#[test]
fn update_of_a_member_is_proposed_where_nobody_has_the_urls() {
    let (api, state) = fake_api();
    let update = |id, url: &str| {
        block(api.member_update(pb::MemberUpdateRequest {
            id,
            peer_ur_ls: vec![url.to_owned()],
        }))
    };
    assert_eq!(update(7, "x").unwrap_err(), ApiError::BadMemberUrls);
    assert_eq!(
        update(8, "http://a:1").unwrap_err(),
        ApiError::MemberNotFound
    );
    assert_eq!(update(7, "http://a:1").unwrap().members.len(), 1);
    let expected = (7, vec!["http://a:1".to_owned()]);
    assert_eq!(*state.updates.lock().unwrap(), [expected]);
}
