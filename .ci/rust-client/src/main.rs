//! The etcd-client crate against a server on 127.0.0.1; the port is the only argument.

use std::env;
use std::fmt::Debug;
use std::process::exit;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions,
    LeaseTimeToLiveOptions, LockOptions, PutOptions, ResignOptions, Txn, TxnOp, TxnOpResponse,
    WatchOptions,
};
use tokio::time::timeout;

fn same<T: PartialEq + Debug>(what: &str, expected: T, found: T) {
    if expected != found {
        eprintln!("FAILED: rust {what}: expected {expected:?}, found {found:?}");
        exit(1);
    }
    println!("ok: rust {what}");
}

async fn value(client: &mut Client, key: &str) -> Result<Option<String>, Error> {
    let found = client.get(key, None).await?;
    let first = found.kvs().first();
    first.map(|kv| Ok(kv.value_str()?.to_owned())).transpose()
}

async fn steps(client: &mut Client) -> Result<(), Error> {
    client.put("rs/a", "one", None).await?;
    same(
        "put and get",
        Some("one".to_owned()),
        value(client, "rs/a").await?,
    );
    same(
        "get of a missing key",
        None,
        value(client, "rs/none").await?,
    );
    let before = client
        .put("rs/a", "two", Some(PutOptions::new().with_prev_key()))
        .await?;
    same(
        "put with the previous value",
        Some("one"),
        before.prev_key().map(|kv| kv.value_str()).transpose()?,
    );
    client.put("rs/b", "1", None).await?;
    let found = client
        .get("rs/", Some(GetOptions::new().with_prefix().with_limit(1)))
        .await?;
    same(
        "get with a prefix and a limit",
        (1, 2, true),
        (found.kvs().len(), found.count(), found.more()),
    );

    let txn = Txn::new()
        .when([
            Compare::value("rs/a", CompareOp::Equal, "two"),
            Compare::version("rs/none", CompareOp::Equal, 0),
        ])
        .and_then([TxnOp::put("rs/c", "new", None), TxnOp::get("rs/c", None)])
        .or_else([TxnOp::delete("rs/c", None)]);
    let done = client.txn(txn).await?;
    let read = match done.op_responses().pop() {
        Some(TxnOpResponse::Get(found)) => found.kvs()[0].value().to_vec(),
        other => panic!("the second answer is that of a get: {other:?}"),
    };
    same(
        "transaction",
        (true, b"new".to_vec()),
        (done.succeeded(), read),
    );

    let options = WatchOptions::new().with_prefix().with_prev_key();
    let mut watch = client.watch("rs/w/", Some(options)).await?;
    client.put("rs/w/1", "x", None).await?;
    client.delete("rs/w/1", None).await?;
    let mut seen = Vec::new();
    let mut id = 0;
    while seen.len() < 2 {
        let answer = watch.message().await?.expect("the stream goes on");
        id = answer.watch_id();
        for event in answer.events() {
            let before = event.prev_kv().map(|kv| kv.value().to_vec());
            seen.push((event.event_type(), before));
        }
    }
    same(
        "watch",
        vec![
            (EventType::Put, None),
            (EventType::Delete, Some(b"x".to_vec())),
        ],
        seen,
    );
    watch.cancel(id).await?;
    same(
        "cancel",
        Some(true),
        watch.message().await?.map(|answer| answer.canceled()),
    );

    let lease = client.lease_grant(600, None).await?.id();
    client
        .put("rs/l", "x", Some(PutOptions::new().with_lease(lease)))
        .await?;
    let (mut keeper, mut kept) = client.lease_keep_alive(lease).await?;
    keeper.keep_alive().await?;
    same(
        "lease keepalive",
        Some(600),
        kept.message().await?.map(|answer| answer.ttl()),
    );
    let left = client
        .lease_time_to_live(lease, Some(LeaseTimeToLiveOptions::new().with_keys()))
        .await?;
    same(
        "lease keys",
        (600, vec![b"rs/l".to_vec()]),
        (left.granted_ttl(), left.keys().to_vec()),
    );
    client.lease_revoke(lease).await?;
    same("key of a revoked lease", None, value(client, "rs/l").await?);

    let mut leases = Vec::new();
    for _ in 0..2 {
        leases.push(client.lease_grant(600, None).await?.id());
    }
    let lock = |lease| Some(LockOptions::new().with_lease(lease));
    let held = client
        .lock("rs-lock", lock(leases[0]))
        .await?
        .key()
        .to_vec();
    let mut other = client.clone();
    let waiting = timeout(
        Duration::from_millis(200),
        other.lock("rs-lock", lock(leases[1])),
    );
    same("lock is not given twice", true, waiting.await.is_err());
    client.unlock(held).await?;
    let next = client
        .lock("rs-lock", lock(leases[1]))
        .await?
        .key()
        .to_vec();
    client.unlock(next).await?;

    let won = client.campaign("rs-election", "me", leases[0]).await?;
    same(
        "election",
        Some(b"me".to_vec()),
        client
            .leader("rs-election")
            .await?
            .kv()
            .map(|kv| kv.value().to_vec()),
    );
    let leader = won.leader().expect("it won").clone();
    client
        .resign(Some(ResignOptions::new().with_leader(leader)))
        .await?;
    for lease in leases {
        client.lease_revoke(lease).await?;
    }

    let put = client.put("rs/a", "three", None).await?;
    let revision = put.header().expect("an answer has a header").revision();
    client.compact(revision, None).await?;
    let mut late = client
        .watch("rs/a", Some(WatchOptions::new().with_start_revision(1)))
        .await?;
    let created = late.message().await?.expect("it is created");
    same("watch is created", true, created.created());
    let cancelled = late.message().await?.expect("it is told");
    same(
        "watch below the floor",
        (true, revision),
        (cancelled.canceled(), cancelled.compact_revision()),
    );
    let old = client
        .get("rs/a", Some(GetOptions::new().with_revision(1)))
        .await;
    let text = match old {
        Err(Error::GRpcStatus(status)) => status.message().to_owned(),
        other => panic!("what was compacted is refused: {other:?}"),
    };
    same(
        "get below the floor",
        "etcdserver: mvcc: required revision has been compacted",
        text.as_str(),
    );
    same("members", 1, client.member_list().await?.members().len());
    same("status", true, client.status().await?.leader() != 0);
    let gone = client
        .delete("rs/", Some(DeleteOptions::new().with_prefix()))
        .await?;
    same("delete", 3, gone.deleted());
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let port = env::args().nth(1).expect("the port is given");
    let connected = Client::connect([format!("127.0.0.1:{port}")], None).await;
    let mut client = connected.expect("the server is there");
    match timeout(Duration::from_secs(60), steps(&mut client)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            eprintln!("FAILED: rust: {error}");
            exit(1);
        }
        Err(_) => {
            eprintln!("FAILED: rust: the steps take too long");
            exit(1);
        }
    }
}
