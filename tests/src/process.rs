//! A real server as a real process: start it, wait until it serves, `kill -9` it, start it again on the same data.
//!
//! For tests that must see what an operator sees: exit codes, log lines, what is there after a crash. Nothing here
//! sleeps: a thread collects the log and wakes who waits for a line, or for the end of the process.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Part of the line that a server logs when it serves.
pub const READY: &str = "ready to serve client requests";
/// How long a start, a stop or a log line may take before a test fails: far more than they need on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How to start a server; the same setup starts it again on the same data and port.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The program, followed by the arguments that come before the flags.
    pub program: Vec<String>,
    /// Where it keeps its data.
    pub data_dir: PathBuf,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    /// Where it listens for peers, if there are any.
    pub peer_port: u16,
    /// The member's name.
    pub name: String,
    /// What others are told to connect to; none for the port itself.
    pub peer_url: Option<String>,
    /// All members as name=url; none for this one alone.
    pub initial_cluster: Option<String>,
    /// Clients connect to an https URL.
    pub is_https: bool,
    /// Members do.
    pub is_peer_https: bool,
    /// More flags.
    pub flags: Vec<String>,
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
}

impl Setup {
    /// A server of the `flotilla` binary on a free port. `FLOTILLA_TEST_SERVER` names another program that takes
    /// etcd's flags, to check a test against a server that is known to be right.
    #[must_use]
    pub fn new(binary: &str, data_dir: &Path) -> Self {
        let program = match std::env::var("FLOTILLA_TEST_SERVER") {
            Ok(other) => vec![other],
            Err(_) => vec![binary.to_owned(), "server".to_owned()],
        };
        Self {
            program,
            data_dir: data_dir.to_owned(),
            port: free_port(),
            peer_port: free_port(),
            name: "default".to_owned(),
            peer_url: None,
            initial_cluster: None,
            is_https: false,
            is_peer_https: false,
            flags: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> String {
        url_at(self.port, self.is_https)
    }

    /// Starts the process, and returns without waiting for anything.
    ///
    /// # Panics
    /// When the program cannot be started at all.
    #[must_use]
    pub fn spawn(&self) -> Server {
        let url = self.url();
        let listen = url_at(self.peer_port, self.is_peer_https);
        let peer = self.peer_url.as_ref().unwrap_or(&listen);
        let alone = format!("{}={peer}", self.name);
        let cluster = self.initial_cluster.as_ref().unwrap_or(&alone);
        let mut child = Command::new(&self.program[0])
            .args(&self.program[1..])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args([
                "--name",
                &self.name,
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
                "--listen-peer-urls",
                &listen,
                "--initial-advertise-peer-urls",
                peer,
                "--initial-cluster",
                cluster,
            ])
            .args(&self.flags)
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {:?}: {error}", self.program));
        let stderr = child.stderr.take().expect("it was asked to be a pipe");
        let log = Arc::new(Log::default());
        let collector = log.clone();
        thread::Builder::new()
            .name("server-log".into())
            .spawn(move || collector.collect(stderr))
            .expect("a thread can be started");
        Server { child, log, url }
    }

    /// Starts the process and waits until it serves.
    ///
    /// # Panics
    /// When it does not serve in time; with its whole log.
    #[must_use]
    pub fn start(&self) -> Server {
        let server = self.spawn();
        server.wait_for_line(READY);
        server
    }
}

fn url_at(port: u16, is_https: bool) -> String {
    let scheme = if is_https { "https" } else { "http" };
    format!("{scheme}://127.0.0.1:{port}")
}

/// Below the ports that the system gives to connections: one of those could be in use when a server starts again.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A port that nobody listens on at this moment, and that no other test of this machine is given while this process lives.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ports = u32::from(PORTS.end - PORTS.start);
    // Processes that test at the same time begin at different places.
    let first = std::process::id().wrapping_mul(257);
    for _ in 0..ports {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u32::from(PORTS.start) + first.wrapping_add(step) % ports;
        let port = u16::try_from(port).expect("the range is one of ports");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && claim(port) {
            return port;
        }
    }
    panic!("no loopback port is free");
}

/// Keeps other test processes from being given a port, until this one ends: the name of a socket that is in no file system
/// belongs to one process at a time.
fn claim(port: u16) -> bool {
    let name = SocketAddr::from_abstract_name(format!("flotilla-test-port-{port}"))
        .expect("the name is short");
    let claimed = UnixDatagram::bind_addr(&name);
    // Held for as long as the process lives, which ends it.
    claimed.map(std::mem::forget).is_ok()
}

/// A file system of a few megabytes in memory, where this process may mount one.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// Mounts one of that size; none where that is not allowed.
    ///
    /// # Panics
    /// When there is no directory.
    #[must_use]
    pub fn mount(megabytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(dir.path())
            .output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        mounted.then_some(Self(dir))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server of a failed test may still be on it.
        drop(Command::new("umount").arg("-l").arg(self.0.path()).output());
    }
}

/// A running server. It is killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: Arc<Log>,
    url: String,
}

impl Server {
    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Everything it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a line that contains `part`.
    ///
    /// # Panics
    /// When it does not come in time, or the process ends before; with the whole log.
    pub fn wait_for_line(&self, part: &str) {
        let found = self
            .log
            .wait(|state| state.lines.iter().any(|line| line.contains(part)));
        assert!(found, "no line with {part:?} in the log:\n{self}");
    }

    /// `kill -9`, and waits until the process is gone.
    ///
    /// # Panics
    /// When the process cannot be killed.
    pub fn kill_9(mut self) {
        self.child
            .kill()
            .expect("the process is ours, and not waited for yet");
        self.child.wait().expect("a killed process ends");
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// When the process is already gone.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops the process as it is, or lets it go on.
    ///
    /// # Panics
    /// When the process is already gone.
    pub fn pause(&self, pause: bool) {
        self.signal(if pause { Signal::STOP } else { Signal::CONT });
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is ours");
    }

    /// The id of the process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the process ends by itself.
    ///
    /// # Panics
    /// When it does not end in time; with the whole log.
    pub fn wait_exit(&mut self) -> ExitStatus {
        // Its end closes the pipe, and the pipe's end wakes us.
        let ended = self.log.wait(|state| state.ended);
        assert!(ended, "the process still runs; its log:\n{self}");
        self.child.wait().expect("the process is ours")
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.log())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when the process is already gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

impl Log {
    fn collect(&self, stderr: ChildStderr) {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            self.update(|state| state.lines.push(line));
        }
        self.update(|state| state.ended = true);
    }

    fn update(&self, change: impl FnOnce(&mut LogState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until the condition holds; false when it does not in time, or can no longer.
    fn wait(&self, condition: impl Fn(&LogState) -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if condition(&state) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn text(&self) -> String {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .join("\n")
    }
}
