//! Three members.

use std::fs;
use std::path::Path;
use std::time::Instant;

use flotilla_tests::cluster::{Client, Cluster};
use flotilla_tests::process::{PATIENCE, READY};
use kv_server::pb::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::{FLOTILLA, by, enable, get, log_in, put, refused};

/// Logins are cheap, elections quick, and a member that was away for long gets a snapshot.
const FLAGS: [&str; 8] = [
    "--heartbeat-interval",
    "50",
    "--election-timeout",
    "400",
    "--snapshot-count",
    "500",
    "--bcrypt-cost",
    "4",
];
/// More than the log of a member that lags is kept for.
const MISSED: usize = 8_000;

fn status(client: &Client, token: &str) -> Result<pb::StatusResponse, Status> {
    let request = by(token, pb::StatusRequest {});
    let call = client.run(async |channel| MaintenanceClient::new(channel).status(request).await);
    call.map(tonic::Response::into_inner)
}

fn state_hash(client: &Client, token: &str) -> Option<u32> {
    let request = by(token, pb::HashRequest {});
    let call = client.run(async |channel| MaintenanceClient::new(channel).hash(request).await);
    call.ok().map(|answer| answer.into_inner().hash)
}

/// Logs in where that may have to wait for a leader.
fn log_in_when_led(cluster: &Cluster, member: usize, name: &str, password: &str) -> String {
    let mut token = String::new();
    cluster.wait("login", || {
        let asked = log_in(&cluster.client(member), name, password);
        asked.map(|found| token = found).is_ok()
    });
    token
}

fn leader(cluster: &Cluster, among: &[usize], token: &str) -> usize {
    let mut found = None;
    cluster.wait("leader", || {
        let leads = |member: &&usize| {
            let status = status(&cluster.client(**member), token).ok();
            status.is_some_and(|status| status.leader == status.header.unwrap().member_id)
        };
        found = among.iter().find(leads).copied();
        found.is_some()
    });
    found.unwrap()
}

/// The oldest segment of a member's log.
fn first_segment(data_dir: &Path) -> Option<String> {
    let files = fs::read_dir(data_dir.join("log")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".seg")).min()
}

/// As many log entries of a user, many at a time.
fn write_many(client: &Client, token: &str, puts: usize) {
    let written = client.run(async |channel| {
        let mut writers = JoinSet::new();
        for writer in 0..64 {
            let (mut kv, token) = (KvClient::new(channel.clone()), token.to_owned());
            writers.spawn(async move {
                for _ in 0..puts.div_ceil(64) {
                    let put = pb::PutRequest {
                        key: format!("b{writer}").into(),
                        // What is purged is whole segments.
                        value: vec![b'x'; 1_024].into(),
                        ..Default::default()
                    };
                    kv.put(by(&token, put)).await?;
                }
                Ok::<_, Status>(())
            });
        }
        while let Some(done) = writers.join_next().await {
            done.unwrap()?;
        }
        Ok(())
    });
    written.unwrap();
}

#[test]
fn what_one_member_is_told_counts_on_all_through_fail_over_restart_and_snapshot() {
    let mut cluster = Cluster::start(FLOTILLA, 3, &FLAGS);
    enable(&cluster.client(0));
    let members = [0, 1, 2];
    for member in members {
        let client = cluster.client(member);
        refused(
            put(&client, "", "b"),
            Code::InvalidArgument,
            "user name is empty",
        );
        refused(
            get(&client, "", "b", false),
            Code::InvalidArgument,
            "user name is empty",
        );
    }
    // A token of one member counts at once on the others.
    let alice = log_in(&cluster.client(1), "alice", "secret").unwrap();
    let root = log_in(&cluster.client(2), "root", "top").unwrap();
    for member in members {
        let client = cluster.client(member);
        put(&client, &alice, "b").unwrap();
        get(&client, &alice, "b", true).unwrap();
        refused(
            put(&client, &alice, "d"),
            Code::PermissionDenied,
            "permission denied",
        );
        refused(
            get(&client, &alice, "d", true),
            Code::PermissionDenied,
            "permission denied",
        );
        put(&client, &root, "z").unwrap();
        let wrong = log_in(&client, "alice", "wrong");
        let text = "authentication failed, invalid user ID or password";
        refused(wrong, Code::InvalidArgument, text);
    }

    // Whoever leads next knows the token as well.
    let led = leader(&cluster, &members, &root);
    cluster.kill(led);
    let others: Vec<_> = members
        .into_iter()
        .filter(|member| *member != led)
        .collect();
    leader(&cluster, &others, &root);
    for member in &others {
        let client = cluster.client(*member);
        cluster.wait("write by the new leader", || {
            put(&client, &alice, "b").is_ok()
        });
        refused(
            put(&client, &alice, "d"),
            Code::PermissionDenied,
            "permission denied",
        );
    }

    // It missed more than the log has: what it knows of users comes with a snapshot, tokens do not.
    let mut client = cluster.client(others[0]);
    client.patience *= 4;
    let change = pb::AuthUserAddRequest {
        name: "bob".to_owned(),
        password: "new".to_owned(),
        ..Default::default()
    };
    let added = client.run(async |channel| {
        let mut auth = pb::auth_client::AuthClient::new(channel);
        auth.user_add(by(&root, change)).await
    });
    added.unwrap();
    // What can go is looked at once in a second, and goes by whole segments.
    let until = Instant::now() + PATIENCE;
    let firsts = |cluster: &Cluster| -> Vec<_> {
        let dirs = others.iter().map(|member| cluster.data_dir(*member));
        dirs.map(first_segment).collect()
    };
    let before = firsts(&cluster);
    write_many(&client, &alice, MISSED);
    while firsts(&cluster)
        .iter()
        .zip(&before)
        .any(|(now, then)| now == then)
    {
        assert!(Instant::now() < until, "nothing goes of {before:?}");
        write_many(&client, &alice, MISSED / 8);
    }
    cluster.spawn(led);
    cluster.server(led).wait_for_line(READY);
    cluster
        .server(led)
        .wait_for_line("a snapshot comes from a member");
    let back = cluster.client(led);
    cluster.wait("equal state", || {
        let bob = get(&back, "", "b", true);
        let refused = bob.is_err_and(|status| status.message() == "etcdserver: user name is empty");
        refused && {
            let token = log_in_when_led(&cluster, led, "root", "top");
            let hashes = members.map(|member| state_hash(&cluster.client(member), &token));
            hashes[0].is_some() && hashes.iter().all(|hash| *hash == hashes[0])
        }
    });
    let bob = log_in_when_led(&cluster, led, "bob", "new");
    refused(
        get(&back, &bob, "b", true),
        Code::PermissionDenied,
        "permission denied",
    );
    let token = log_in_when_led(&cluster, led, "alice", "secret");
    for member in members {
        put(&cluster.client(member), &token, "b").unwrap();
    }

    // All of them at once: nobody remembers a token for ever, everybody remembers the users.
    for member in members {
        cluster.kill(member);
    }
    cluster.start_all();
    let former = token;
    let token = log_in_when_led(&cluster, 0, "alice", "secret");
    for member in members {
        let client = cluster.client(member);
        put(&client, &token, "b").unwrap();
        refused(
            put(&client, &token, "d"),
            Code::PermissionDenied,
            "permission denied",
        );
        refused(
            put(&client, "", "b"),
            Code::InvalidArgument,
            "user name is empty",
        );
        refused(
            put(&client, &former, "b"),
            Code::Unauthenticated,
            "invalid auth token",
        );
        refused(
            put(&client, "abcdefgh.1", "b"),
            Code::Unauthenticated,
            "invalid auth token",
        );
    }
    for log in cluster.logs() {
        for secret in ["secret", token.split('.').next().unwrap(), "$2b$"] {
            assert!(!log.contains(secret), "a secret in the log:\n{log}");
        }
    }
}
