//! A TCP proxy in front of each member, on loopback, so that the network between members goes wrong on command.
//!
//! Every member advertises its proxy's address, and who calls is told by the process that owns the calling socket. So a
//! fault has a direction: what member A sends to member B, whichever of them opened the connection. Bytes are held,
//! delayed or slowed down, and connections closed; nothing is dropped out of the middle of a stream, as TCP would not
//! either.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes that are forwarded at once.
const CHUNK_BYTES: usize = 16 << 10;

/// What happens to bytes on their way from one member to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They wait until the fault is over; then they arrive late.
    Hold,
    /// Connections are closed, and new ones as well.
    Cut,
    /// Each piece takes that much longer.
    Delay(Duration),
    /// So many bytes a second pass.
    Slow(u32),
}

/// A direction: from one member to another.
type Way = (usize, usize);

#[derive(Default)]
struct State {
    faults: BTreeMap<Way, Fault>,
    /// The process of each member that runs.
    pids: BTreeMap<usize, u32>,
    /// Both ends of each connection, by who called whom.
    open: Vec<(Way, TcpStream, TcpStream)>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The network between members.
#[derive(Clone, Default)]
pub struct Net(Arc<Shared>);

impl Net {
    /// Puts a proxy in front of member `to`, which listens on `port`. Returns the proxy's address.
    ///
    /// # Panics
    /// When there is no socket or no thread.
    #[must_use]
    pub fn add(&self, to: usize, port: u16) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let address = listener.local_addr().expect("it is bound");
        let net = self.clone();
        spawn("proxy-accept", move || {
            for caller in listener.incoming().map_while(Result::ok) {
                net.connect(to, port, caller);
            }
        });
        address
    }

    /// Says which process a member is.
    pub fn is_process(&self, member: usize, pid: Option<u32>) {
        let mut state = self.0.lock();
        match pid {
            Some(pid) => state.pids.insert(member, pid),
            None => state.pids.remove(&member),
        };
    }

    /// Lets something go wrong, or not any more, on the way from one member to another.
    pub fn set(&self, from: usize, to: usize, fault: Option<Fault>) {
        let mut state = self.0.lock();
        match fault {
            Some(fault) => state.faults.insert((from, to), fault),
            None => state.faults.remove(&(from, to)),
        };
        if fault == Some(Fault::Cut) {
            state.open.retain(|((caller, called), near, far)| {
                let is_hit = [(from, to), (to, from)].contains(&(*caller, *called));
                if is_hit {
                    // One that is closed already is what is wanted.
                    let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
                }
                !is_hit
            });
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Cuts a member off from all others of `members`, or joins it again.
    pub fn isolate(&self, member: usize, members: usize, fault: Option<Fault>) {
        for other in (0..members).filter(|other| *other != member) {
            self.set(member, other, fault);
            self.set(other, member, fault);
        }
    }

    fn connect(&self, to: usize, port: u16, caller: TcpStream) {
        let Ok(address) = caller.peer_addr() else {
            return;
        };
        let pids = self.0.lock().pids.clone();
        // Nobody else connects to a proxy; a process that has ended meanwhile does not count.
        let Some(from) = owner(address.port(), &pids) else {
            return;
        };
        let Ok(called) = TcpStream::connect(("127.0.0.1", port)) else {
            return;
        };
        let is_cut = {
            let state = self.0.lock();
            let cut = Some(&Fault::Cut);
            state.faults.get(&(from, to)) == cut || state.faults.get(&(to, from)) == cut
        };
        if is_cut {
            return;
        }
        for socket in [&caller, &called] {
            // Only slower without it.
            let _ = socket.set_nodelay(true);
        }
        let copy = |socket: &TcpStream| socket.try_clone().expect("descriptors are left");
        let (near, far) = (copy(&caller), copy(&called));
        let (read_near, read_far) = (copy(&caller), copy(&called));
        self.0.lock().open.push(((from, to), near, far));
        let (there, back) = (self.clone(), self.clone());
        spawn("proxy-there", move || {
            there.pump((from, to), read_near, called)
        });
        spawn("proxy-back", move || {
            back.pump((to, from), read_far, caller)
        });
    }

    /// Forwards what comes, as the faults of that way allow.
    fn pump(&self, way: Way, mut from: TcpStream, mut to: TcpStream) {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = match from.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(read) => read,
            };
            self.wait(way, read);
            if to.write_all(&chunk[..read]).is_err() {
                break;
            }
        }
        // What is closed on one side is closed on the other.
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    /// Waits for as long as the fault of that way wants it.
    fn wait(&self, way: Way, bytes: usize) {
        let shared = &self.0;
        let mut state = shared.lock();
        loop {
            let pause = match state.faults.get(&way) {
                None | Some(Fault::Cut) => return,
                Some(Fault::Hold) => {
                    let waited = shared.changed.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                Some(Fault::Delay(pause)) => *pause,
                Some(Fault::Slow(rate)) => Duration::from_secs(bytes as u64) / *rate,
            };
            drop(state);
            return thread::park_timeout(pause);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    // They end with their connections, and with the process.
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .expect("a thread can be started");
}

/// Which member's process has the socket that is bound to a port of loopback.
fn owner(port: u16, pids: &BTreeMap<usize, u32>) -> Option<usize> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{port:04X}");
    let line = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.get(1) == Some(&local.as_str()))?;
    let socket = format!("socket:[{}]", line.get(9)?);
    let has = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| target.to_str() == Some(&socket))
    };
    let found = pids.iter().find(|(_, pid)| has(pid));
    found.map(|(member, _)| *member)
}

#[cfg(test)]
mod tests {
    use std::process::id;

    use super::*;

    /// A server that sends back what it gets, behind a proxy that knows this process as member 0.
    fn echo() -> (Net, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        spawn("echo", move || {
            for mut socket in listener.incoming().map_while(Result::ok) {
                spawn("echo-one", move || {
                    let mut out = socket.try_clone().unwrap();
                    let _ = std::io::copy(&mut socket, &mut out);
                });
            }
        });
        let net = Net::default();
        net.is_process(0, Some(id()));
        let address = net.add(1, port);
        (net, address)
    }

    fn read(socket: &mut TcpStream, patience_ms: u64) -> Option<u8> {
        let patience = Some(Duration::from_millis(patience_ms));
        socket.set_read_timeout(patience).unwrap();
        let mut byte = [0];
        match socket.read(&mut byte) {
            Ok(1) => Some(byte[0]),
            _ => None,
        }
    }

    #[test]
    fn held_bytes_arrive_when_the_fault_is_over() {
        let (net, address) = echo();
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(b"a").unwrap();
        assert_eq!(read(&mut socket, 20_000), Some(b'a'));
        for (from, to) in [(0, 1), (1, 0)] {
            net.set(from, to, Some(Fault::Hold));
            socket.write_all(b"b").unwrap();
            assert_eq!(read(&mut socket, 50), None);
            net.set(from, to, None);
            assert_eq!(read(&mut socket, 20_000), Some(b'b'));
        }
        net.set(0, 1, Some(Fault::Delay(Duration::from_millis(1))));
        net.set(1, 0, Some(Fault::Slow(1_000)));
        socket.write_all(b"c").unwrap();
        assert_eq!(read(&mut socket, 20_000), Some(b'c'));
    }

    #[test]
    fn cut_connections_end_and_new_ones_do_not_begin() {
        let (net, address) = echo();
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(b"a").unwrap();
        assert_eq!(read(&mut socket, 20_000), Some(b'a'));
        net.isolate(1, 2, Some(Fault::Cut));
        assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0);
        let mut socket = TcpStream::connect(address).unwrap();
        assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0);
        net.isolate(1, 2, None);
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(b"a").unwrap();
        assert_eq!(read(&mut socket, 20_000), Some(b'a'));
    }
}
