//! Several real servers as one cluster, on loopback, with a network between them that goes wrong on command.
//!
//! Clients reach members directly; members reach each other through [`Net`]. Everything ends in time or panics with the
//! logs.

mod client;
mod history;
mod net;
mod watching;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use kv_server::pb::etcdserverpb::Member;
use tempfile::TempDir;

pub use client::Client;
pub use history::Load;
pub use net::{Fault, Net};

use crate::process::{PATIENCE, READY, Server, Setup};

/// How often something is looked at that tells nobody when it changes.
const LOOK: Duration = Duration::from_millis(10);

/// Members, running or not.
pub struct Cluster {
    /// How each is started.
    pub setups: Vec<Setup>,
    /// The network between them.
    pub net: Net,
    servers: Vec<Option<Server>>,
    dir: TempDir,
}

impl Cluster {
    /// Makes `members` members of the `flotilla` binary, all with these flags, and starts none.
    ///
    /// # Panics
    /// When there is no directory or no port.
    #[must_use]
    pub fn new(binary: &str, members: usize, flags: &[&str]) -> Self {
        let mut cluster = Self {
            setups: Vec::new(),
            net: Net::default(),
            servers: Vec::new(),
            dir: tempfile::tempdir().expect("a directory can be made"),
        };
        for _ in 0..members {
            cluster.add_setup(binary, flags);
        }
        let pairs = cluster
            .setups
            .iter()
            .map(|setup| format!("{}={}", setup.name, setup.peer_url.as_deref().unwrap_or("")));
        let initial = pairs.collect::<Vec<_>>().join(",");
        for setup in &mut cluster.setups {
            setup.initial_cluster = Some(initial.clone());
        }
        cluster
    }

    /// Turns the URLs between members into https ones, before anything is started.
    pub fn use_https_between(&mut self) {
        let protect = |urls: &mut Option<String>| {
            *urls = urls.take().map(|urls| urls.replace("http://", "https://"));
        };
        for setup in &mut self.setups {
            setup.is_peer_https = true;
            protect(&mut setup.peer_url);
            protect(&mut setup.initial_cluster);
        }
    }

    /// Makes one more process that could become a member, with an empty directory. Returns its number.
    ///
    /// # Panics
    /// When there is no port.
    pub fn add_setup(&mut self, binary: &str, flags: &[&str]) -> usize {
        let member = self.setups.len();
        let mut setup = Setup::new(binary, &self.dir.path().join(format!("m{member}")));
        setup.name = format!("m{member}");
        setup.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let address = self.net.add(member, setup.peer_port);
        setup.peer_url = Some(format!("http://{address}"));
        self.setups.push(setup);
        self.servers.push(None);
        member
    }

    /// Lets a process join the cluster when it starts: its flags name all members, as `member add` prints them.
    pub fn joins(&mut self, member: usize, members: &[Member]) {
        let setup = &mut self.setups[member];
        let urls = |one: &Member| one.peer_ur_ls.clone();
        let pairs = members.iter().flat_map(|one| {
            let is_new = urls(one).first() == setup.peer_url.as_ref();
            let name = if is_new { &setup.name } else { &one.name };
            let named = |url| format!("{name}={url}");
            urls(one).into_iter().map(named).collect::<Vec<_>>()
        });
        setup.initial_cluster = Some(pairs.collect::<Vec<_>>().join(","));
        let state = ["--initial-cluster-state", "existing"].map(str::to_owned);
        if !setup.flags.contains(&state[0]) {
            setup.flags.extend(state);
        }
    }

    /// A member's id, as it says itself.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn id(&self, member: usize) -> u64 {
        let status = self.client(member).status().expect("it says who it is");
        status.header.expect("every answer has a header").member_id
    }

    /// Makes members and starts all of them.
    ///
    /// # Panics
    /// When they do not serve in time.
    #[must_use]
    pub fn start(binary: &str, members: usize, flags: &[&str]) -> Self {
        let mut cluster = Self::new(binary, members, flags);
        cluster.start_all();
        cluster
    }

    /// Starts all members that do not run, and waits until they serve.
    ///
    /// # Panics
    /// When they do not in time.
    pub fn start_all(&mut self) {
        for member in 0..self.setups.len() {
            if self.servers[member].is_none() {
                self.spawn(member);
            }
        }
        for server in self.servers.iter().flatten() {
            server.wait_for_line(READY);
        }
    }

    /// As [`Cluster::start_all`], without one of them.
    ///
    /// # Panics
    /// When they do not in time.
    pub fn start_all_but(&mut self, out: usize) {
        for member in (0..self.setups.len()).filter(|member| *member != out) {
            if self.servers[member].is_none() {
                self.spawn(member);
            }
        }
        for server in self.servers.iter().flatten() {
            server.wait_for_line(READY);
        }
    }

    /// What each process that runs has logged.
    #[must_use]
    pub fn logs(&self) -> Vec<String> {
        self.servers.iter().flatten().map(Server::log).collect()
    }

    /// Starts a member, and waits for nothing.
    ///
    /// # Panics
    /// When it cannot be started at all.
    pub fn spawn(&mut self, member: usize) {
        let server = self.setups[member].spawn();
        self.net.is_process(member, Some(server.pid()));
        self.servers[member] = Some(server);
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self, member: usize) {
        let server = self.servers[member].take();
        self.net.is_process(member, None);
        server.expect("the member runs").kill_9();
    }

    /// The running member.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn server(&self, member: usize) -> &Server {
        self.servers[member].as_ref().expect("the member runs")
    }

    /// Takes a member's process, to wait for its end.
    ///
    /// # Panics
    /// When it does not run.
    pub fn take(&mut self, member: usize) -> Server {
        self.servers[member].take().expect("the member runs")
    }

    /// Where clients reach each member.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.setups.iter().map(Setup::url).collect()
    }

    /// A client of a member.
    #[must_use]
    pub fn client(&self, member: usize) -> Client {
        Client::new(&self.setups[member].url(), PATIENCE)
    }

    /// A member's data directory.
    #[must_use]
    pub fn data_dir(&self, member: usize) -> &Path {
        &self.setups[member].data_dir
    }

    /// Where a member's data lies as a path of its own.
    #[must_use]
    pub fn data_path(&self, member: usize) -> PathBuf {
        self.data_dir(member).to_owned()
    }

    /// Waits until a member among `among` leads, and each of them knows.
    ///
    /// # Panics
    /// When there is none in time.
    #[must_use]
    pub fn leader_among(&self, among: &[usize]) -> usize {
        let clients: Vec<_> = among.iter().map(|member| self.client(*member)).collect();
        let mut found = None;
        self.wait("a leader", || {
            let seen = clients.iter().map(|client| client.status().ok());
            let Some(seen) = seen.collect::<Option<Vec<_>>>() else {
                return false;
            };
            let id = |status: &kv_server::pb::etcdserverpb::StatusResponse| {
                status.header.as_ref().map_or(0, |header| header.member_id)
            };
            found = seen.iter().position(|status| status.leader == id(status));
            let leader = seen[0].leader;
            leader != 0 && found.is_some() && seen.iter().all(|status| status.leader == leader)
        });
        among[found.expect("the wait ended with a leader")]
    }

    /// Waits until one of all members leads, and each of them knows.
    ///
    /// # Panics
    /// When there is none in time.
    #[must_use]
    pub fn leader(&self) -> usize {
        self.leader_among(&(0..self.setups.len()).collect::<Vec<_>>())
    }

    /// Waits until all members have the same content.
    ///
    /// # Panics
    /// When they do not in time.
    pub fn wait_for_equal_state(&self) {
        self.wait_for_equal_state_among(&(0..self.setups.len()).collect::<Vec<_>>());
    }

    /// Waits until these members have the same content.
    ///
    /// # Panics
    /// When they do not in time.
    pub fn wait_for_equal_state_among(&self, members: &[usize]) {
        let clients: Vec<_> = members.iter().map(|member| self.client(*member)).collect();
        self.wait("equal state everywhere", || {
            let state = |client: &Client| {
                let revision = client.status().ok()?.header?.revision;
                Some((revision, client.hash(revision).ok()?))
            };
            let all: Vec<_> = clients.iter().map(state).collect();
            all[0].is_some() && all.iter().all(|one| *one == all[0])
        });
    }

    /// Looks again and again until something is so.
    ///
    /// # Panics
    /// When it is not in time; with all logs.
    pub fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            if Instant::now() > deadline {
                panic!(
                    "no {what} in time; the logs:\n{}",
                    self.logs().join("\n---\n")
                );
            }
            thread::park_timeout(LOOK);
        }
    }
}
