//! Many keyspaces in one process: each with its own listener, cluster id, revisions, history and users, on one log.
#![expect(
    clippy::unwrap_used,
    reason = "a failed expectation of a test harness is a failed test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flotilla_tests::cluster::{Client, Cluster};
use flotilla_tests::process::{PATIENCE, READY, Server, Setup, free_port};
use kv_server::pb::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use tonic::{Code, Status};

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");
const QUICK: [&str; 4] = ["--heartbeat-interval", "50", "--election-timeout", "400"];
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// A keyspace of one member, and where it is served.
struct Served {
    name: String,
    url: String,
}

impl Served {
    fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: format!("http://127.0.0.1:{}", free_port()),
        }
    }

    fn flags(&self) -> [String; 2] {
        [
            "--keyspace".to_owned(),
            format!("{}={}", self.name, self.url),
        ]
    }

    fn client(&self) -> Client {
        Client::new(&self.url, PATIENCE)
    }

    fn wait(&self, server: &Server) {
        server.wait_for_line(&format!("keyspace=\"{}\" cluster_id", self.name));
    }
}

fn revision(client: &Client) -> i64 {
    client.status().unwrap().header.unwrap().revision
}

fn at(client: &Client, key: &str, revision: i64) -> Result<i64, Status> {
    client.run(async |channel| {
        let request = pb::RangeRequest {
            key: key.as_bytes().to_vec().into(),
            revision,
            ..pb::RangeRequest::default()
        };
        let answer = KvClient::new(channel).range(request).await?;
        Ok(answer.into_inner().count)
    })
}

fn compact(client: &Client, revision: i64) {
    let compacted = client.run(async |channel| {
        let request = pb::CompactionRequest {
            revision,
            physical: true,
        };
        KvClient::new(channel).compact(request).await
    });
    compacted.unwrap();
}

/// Makes a user `root` and asks for tokens from now on.
fn enable_auth(client: &Client) {
    let enabled = client.run(async |channel| {
        let mut auth = AuthClient::new(channel);
        let user = pb::AuthUserAddRequest {
            name: "root".to_owned(),
            password: "secret".to_owned(),
            ..pb::AuthUserAddRequest::default()
        };
        auth.user_add(user).await?;
        let (user, role) = ("root".to_owned(), "root".to_owned());
        auth.user_grant_role(pb::AuthUserGrantRoleRequest { user, role })
            .await?;
        auth.auth_enable(pb::AuthEnableRequest {}).await
    });
    enabled.unwrap();
}

#[test]
fn hundred_keyspaces_keep_to_themselves_over_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    let all: Vec<_> = (0..100).map(|n| Served::new(format!("ks-{n}"))).collect();
    setup.flags = all.iter().flat_map(Served::flags).collect();
    setup
        .flags
        .extend(["--bcrypt-cost", "4"].map(str::to_owned));
    let server = setup.start();
    let puts = |n: usize| 1 + n % 4;
    let mut clusters = BTreeSet::new();
    for (n, one) in all.iter().enumerate() {
        one.wait(&server);
        let client = one.client();
        for put in 0..puts(n) {
            client.put("key", &format!("{n}-{put}")).unwrap();
        }
        let header = client.status().unwrap().header.unwrap();
        assert_eq!(header.revision, 1 + puts(n) as i64, "{}", one.name);
        clusters.insert(header.cluster_id);
    }
    let default = Client::new(&setup.url(), PATIENCE);
    assert_eq!(revision(&default), 1);
    clusters.insert(default.status().unwrap().header.unwrap().cluster_id);
    assert_eq!(clusters.len(), 101, "each has an id of its own");

    // History and users of one are nobody else's.
    compact(&all[3].client(), 5);
    let refused = at(&all[3].client(), "key", 2).unwrap_err();
    assert_eq!(refused.message(), COMPACTED);
    assert_eq!(at(&all[7].client(), "key", 2).unwrap(), 1);
    enable_auth(&all[5].client());
    let refused = all[5].client().get("key", false).unwrap_err();
    assert_eq!(refused.message(), "etcdserver: user name is empty");
    assert!(all[6].client().get("key", false).unwrap().is_some());

    server.kill_9();
    // Those that are not asked for stay, unserved.
    let every = setup.flags.clone();
    setup.flags = all[..1].iter().flat_map(Served::flags).collect();
    let server = setup.start();
    all[0].wait(&server);
    assert!(all[1].client().get("key", false).is_err());
    assert_eq!(all[0].client().get("key", false).unwrap().unwrap(), "0-0");
    server.kill_9();
    setup.flags = every;
    let server = setup.start();
    for (n, one) in all.iter().enumerate().filter(|(n, _)| *n != 5) {
        one.wait(&server);
        let last = format!("{n}-{}", puts(n) - 1);
        assert_eq!(one.client().get("key", false).unwrap().unwrap(), last);
        assert_eq!(revision(&one.client()), 1 + puts(n) as i64, "{}", one.name);
    }
    all[5].wait(&server);
    let refused = all[5].client().get("key", false).unwrap_err();
    assert_eq!(refused.message(), "etcdserver: user name is empty");
    let refused = at(&all[3].client(), "key", 2).unwrap_err();
    assert_eq!(refused.message(), COMPACTED);
}

/// Three members, each with its own URL of the keyspace.
fn three() -> (Cluster, Vec<Served>) {
    let mut cluster = Cluster::new(FLOTILLA, 3, &QUICK);
    let served: Vec<_> = (0..3).map(|_| Served::new("a")).collect();
    for (setup, one) in cluster.setups.iter_mut().zip(&served) {
        setup.flags.extend(one.flags());
    }
    cluster.start_all();
    for (member, one) in served.iter().enumerate() {
        one.wait(cluster.server(member));
    }
    (cluster, served)
}

/// The member that leads the keyspace, by what one of those that serve it says.
fn leader(cluster: &Cluster, among: &[&Served]) -> u64 {
    let mut leader = 0;
    cluster.wait("leader of the keyspace", || {
        let statuses = among.iter().filter_map(|one| one.client().status().ok());
        leader = statuses
            .map(|status| status.leader)
            .find(|id| *id != 0)
            .unwrap_or(0);
        leader != 0
    });
    leader
}

#[test]
fn keyspace_of_three_members_outlives_its_leader() {
    let (mut cluster, served) = three();
    served[0].client().put("key", "one").unwrap();
    let read = served[2].client().get("key", false).unwrap();
    assert_eq!(read.as_deref(), Some("one"));
    let ids: Vec<_> = (0..3).map(|member| cluster.id(member)).collect();
    cluster.wait("URLs of the keyspace", || {
        let members = served[1].client().members().unwrap();
        let urls = members.into_iter().flat_map(|member| member.client_ur_ls);
        let urls: BTreeSet<_> = urls.collect();
        urls == served.iter().map(|one| one.url.clone()).collect()
    });
    let leads = leader(&cluster, &served.iter().collect::<Vec<_>>());
    let dies = ids.iter().position(|id| *id == leads).unwrap();
    cluster.kill(dies);
    let left: Vec<_> = (0..3).filter(|member| *member != dies).collect();
    cluster.wait("write after the leader's death", || {
        served[left[0]].client().put("key", "two").is_ok()
    });
    let read = served[left[1]].client().get("key", false).unwrap();
    assert_eq!(read.as_deref(), Some("two"));
    cluster.start_all();
    served[dies].wait(cluster.server(dies));
    let read = served[dies].client().get("key", false).unwrap();
    assert_eq!(read.as_deref(), Some("two"));
}

#[test]
fn member_that_lost_its_log_gets_back_what_it_held_of_a_keyspace() {
    let (mut cluster, served) = three();
    for number in 0..20 {
        let client = served[number % 3].client();
        client.put(&format!("key-{number}"), "value").unwrap();
    }
    let lost = 2;
    cluster.kill(lost);
    for file in fs::read_dir(cluster.data_dir(lost).join("log")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "seg") {
            fs::remove_file(path).unwrap();
        }
    }
    served[0].client().put("key-0", "newer").unwrap();
    cluster.spawn(lost);
    for line in ["it was begun anew", READY] {
        cluster.server(lost).wait_for_line(line);
    }
    served[lost].wait(cluster.server(lost));
    let client = served[lost].client();
    let read = |key: &str| client.get(key, true).ok().flatten();
    cluster.wait("what it lost", || {
        read("key-0").as_deref() == Some("newer") && read("key-19").is_some()
    });
    // It votes in that group as well: with another one gone, two go on.
    cluster.wait("repaired group", || {
        cluster
            .server(lost)
            .log()
            .matches("repaired: the log has everything")
            .count()
            == 2
    });
    cluster.kill(0);
    cluster.wait("write with the member that was repaired", || {
        client.put("key-1", "newer").is_ok()
    });
}

/// Waits until one that runs has logged that a keyspace's members did so.
fn follows(cluster: &Cluster, step: &str, member: u64) {
    let step = format!("step={step}(NodeId({member}))");
    cluster.wait(&step, || {
        let logs = cluster.logs();
        let mut lines = logs.iter().flat_map(|log| log.lines());
        lines.any(|line| line.contains("the members of a keyspace follow") && line.contains(&step))
    });
}

#[test]
fn members_of_a_keyspace_follow_those_of_the_default_one() {
    let mut cluster = Cluster::new(FLOTILLA, 1, &QUICK);
    let mut served = vec![Served::new("a")];
    cluster.setups[0].flags.extend(served[0].flags());
    cluster.start_all();
    served[0].wait(cluster.server(0));
    served[0].client().put("key", "value").unwrap();
    for member in 1..3 {
        let one = Served::new("a");
        let [option, value] = one.flags();
        let flags: Vec<&str> = QUICK.into_iter().chain([&*option, &*value]).collect();
        assert_eq!(cluster.add_setup(FLOTILLA, &flags), member);
        let url = cluster.setups[member].peer_url.clone().unwrap();
        let mut added = None;
        cluster.wait("healthy cluster", || {
            added = cluster.client(0).member_add(&url, false).ok();
            added.is_some()
        });
        let (added, members) = added.unwrap();
        cluster.joins(member, &members);
        cluster.spawn(member);
        cluster.server(member).wait_for_line(READY);
        one.wait(cluster.server(member));
        served.push(one);
        follows(&cluster, "AddLearner", added.id);
        follows(&cluster, "Promote", added.id);
    }
    // The first one alone had it all; two of three go on without it.
    cluster.kill(0);
    cluster.wait("write without the first member", || {
        served[1].client().put("other", "value").is_ok()
    });
    let read = served[2].client().get("key", false).unwrap();
    assert_eq!(read.as_deref(), Some("value"));
    cluster.start_all();
    served[0].wait(cluster.server(0));
    let leaves = cluster.id(2);
    cluster.wait("healthy cluster", || {
        cluster.client(0).member_remove(leaves).is_ok()
    });
    follows(&cluster, "Remove", leaves);
    let members = served[0].client().members().unwrap();
    assert_eq!(members.len(), 2);
    served[0].client().put("key", "last").unwrap();
    let read = served[1].client().get("key", false).unwrap();
    assert_eq!(read.as_deref(), Some("last"));
}

#[test]
fn wrong_keyspace_is_refused_with_what_is_expected() {
    let dir = tempfile::tempdir().unwrap();
    let url = "http://127.0.0.1:1";
    for (given, text) in [
        ("a".to_owned(), "NAME=URL"),
        (format!("default={url}"), "no name of a keyspace"),
        (format!("Big={url}"), "no name of a keyspace"),
        (format!("={url}"), "no name of a keyspace"),
        ("a=127.0.0.1:1".to_owned(), "URLs such as"),
        ("a=http://name:1".to_owned(), "an IP address"),
    ] {
        let output = Command::new(FLOTILLA)
            .args(["server", "--keyspace", &given, "--data-dir"])
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{given}: {error}");
        assert!(
            error.contains("--keyspace") && error.contains(text),
            "{error}"
        );
    }
    assert!(!dir.path().join("data").exists());
}

/// What only the whole cluster can do is the default keyspace's.
#[test]
fn members_are_changed_through_the_default_keyspace_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    let one = Served::new("a");
    setup.flags = one.flags().to_vec();
    let server = setup.start();
    one.wait(&server);
    let refused = one
        .client()
        .member_add("http://127.0.0.1:1", true)
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.message(),
        "flotilla: members are changed through the default keyspace"
    );
}

const QUOTA: i64 = 2 << 20;

/// Writes 32 KiB until it is refused; says how often it was not.
fn fill(client: &Client) -> i64 {
    let value = "v".repeat(32 << 10);
    for written in 0.. {
        assert!(written < 100, "the quota is not looked at");
        if let Err(refused) = client.put(&format!("key-{written}"), &value) {
            assert_eq!(refused.code(), Code::ResourceExhausted);
            let text = "etcdserver: mvcc: database space exceeded";
            assert_eq!(refused.message(), text);
            return written;
        }
    }
    unreachable!("a range without an end")
}

/// A number of the metrics at a keyspace's URL.
fn metric(one: &Served, name: &str) -> i64 {
    let mut socket = TcpStream::connect(one.url.strip_prefix("http://").unwrap()).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    socket.read_to_string(&mut page).unwrap();
    let number = page.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.strip_prefix(' ')
    });
    number.unwrap().parse().unwrap()
}

fn is_full(client: &Client) -> bool {
    let errors = client.status().unwrap().errors;
    errors.iter().any(|error| error.contains("alarm:NOSPACE"))
}

#[test]
fn full_keyspace_refuses_its_own_writes_alone_until_it_has_room_over_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(FLOTILLA, &dir.path().join("data"));
    let (full, other) = (Served::new("full"), Served::new("other"));
    setup.flags = [full.flags(), other.flags()].concat();
    let quota = ["--quota-backend-bytes".to_owned(), QUOTA.to_string()];
    setup.flags.extend(quota);
    let start = || {
        let server = setup.start();
        full.wait(&server);
        other.wait(&server);
        let clients = [full.client(), other.client()];
        (server, clients, Client::new(&setup.url(), PATIENCE))
    };
    let wait = |server: &Server, what: &str, met: &mut dyn FnMut() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !met() {
            assert!(Instant::now() < deadline, "no {what}:\n{}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let (server, [a, b], default) = start();
    let written = fill(&a);
    assert!((50..64).contains(&written), "{written} of 32 KiB fit");
    wait(&server, "alarm", &mut || is_full(&a));
    let before = a.status().unwrap();
    assert_eq!(before.db_size_quota, QUOTA);
    assert!(before.db_size_in_use > QUOTA * 9 / 10, "{before:?}");
    assert!(before.db_size >= before.db_size_in_use, "{before:?}");
    for client in [&b, &default] {
        client.put("key", "value").unwrap();
        assert!(!is_full(client));
        let status = client.status().unwrap();
        assert!(status.db_size_in_use < 10_000, "{status:?}");
        assert!(status.db_size < QUOTA / 2, "{status:?}");
    }

    server.kill_9();
    let (server, [a, b], default) = start();
    let after = a.status().unwrap();
    // What is replayed may lie in fewer batches, which have a record each.
    let lost = before.db_size_in_use - after.db_size_in_use;
    assert!((0..10_000).contains(&lost), "{before:?} {after:?}");
    // It would fit, but the alarm is for everything that grows.
    assert!(is_full(&a) && a.put("small", "1").is_err());
    b.put("key", "value").unwrap();
    default.put("key", "value").unwrap();
    let in_use = "etcd_mvcc_db_total_size_in_use_in_bytes";
    assert_eq!(metric(&full, in_use), after.db_size_in_use);
    assert!(metric(&other, in_use) < 10_000);
    for one in [&full, &other] {
        let bytes = metric(one, "etcd_mvcc_db_total_size_in_bytes");
        assert!(bytes >= metric(one, in_use));
        assert_eq!(metric(one, "etcd_server_quota_backend_bytes"), QUOTA);
    }

    let deleted = a.run(async |channel| {
        let request = pb::DeleteRangeRequest {
            key: "key-".into(),
            range_end: "key.".into(),
            ..pb::DeleteRangeRequest::default()
        };
        KvClient::new(channel).delete_range(request).await
    });
    let answer = deleted.unwrap().into_inner();
    assert_eq!(answer.deleted, written);
    assert!(is_full(&a), "its history is there");
    compact(&a, answer.header.unwrap().revision);
    wait(&server, "room", &mut || !is_full(&a));
    a.put("small", "1").unwrap();
    assert!(a.status().unwrap().db_size_in_use < 100_000);
}
