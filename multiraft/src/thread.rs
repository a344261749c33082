//! Runs a [`HostCore`] on a thread of its own, with the real clock.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the driver that turns real time into ticks and owns the host thread"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use raft_log::{ErrorKind, Log};
use raft_node::StateMachine;
use raft_node::driver::{Group, GroupError};
use tracing::error;

use crate::TICK_MS;
use crate::handle::HostHandle;
use crate::host::{HostCore, HostOptions, Outbox, Turn};
use crate::writer::Writer;

/// How long a stopping host waits for what is under way.
const DRAIN_MS: u64 = 5_000;
/// How long an idle host sleeps at most; nothing depends on it.
const SLEEP_MS_MAX: u64 = 1_000;

/// The pause of a host whose log waits for space.
const FULL_PAUSE: Duration = Duration::from_millis(TICK_MS);
/// How long the host stays awake for the next request when requests come that close to each other. Waking a thread, and
/// the core that went to sleep with it, takes 30 to 60 us, twice per write that is alone; past this gap it would be paid
/// for with a core that does nothing else.
const SPIN_MAX: Duration = Duration::from_micros(200);

/// Wakes the host thread when it sleeps.
#[derive(Default)]
struct Waker {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Waker {
    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

/// A host that runs.
pub struct Host<S: StateMachine> {
    handle: HostHandle<S>,
    thread: JoinHandle<Result<(), String>>,
}

impl<S: StateMachine> Host<S> {
    /// Starts the thread. `on_failure` is called on it, once, when the host cannot go on; what was acknowledged is on
    /// disk, and the process should end.
    pub fn start(
        log: Log,
        groups: Vec<Group<S>>,
        options: HostOptions,
        outbox: Box<dyn Outbox>,
        on_failure: Box<dyn FnOnce(&str) + Send>,
    ) -> std::io::Result<Self> {
        Self::start_with(log, groups, options, outbox, |_, _| {}, on_failure)
    }

    /// As [`Host::start`]; `setup` prepares the host before its thread runs.
    pub fn start_with(
        log: Log,
        groups: Vec<Group<S>>,
        options: HostOptions,
        outbox: Box<dyn Outbox>,
        setup: impl FnOnce(&mut HostCore<S>, &HostHandle<S>),
        on_failure: Box<dyn FnOnce(&str) + Send>,
    ) -> std::io::Result<Self> {
        let waker = Arc::new(Waker::default());
        let for_log = Arc::clone(&waker);
        log.on_progress(Box::new(move || for_log.wake()));
        let for_inbox = Arc::clone(&waker);
        let wake = Box::new(move || for_inbox.wake());
        let (mut core, handle) = HostCore::new(log.clone(), groups, options, outbox, wake);
        setup(&mut core, &handle);
        let writer = Writer::start(log.clone())?;
        let thread = std::thread::Builder::new()
            .name("flotilla-host".to_owned())
            .spawn(move || {
                let result = run(core, &log, writer, &waker);
                if let Err(message) = &result {
                    error!(error = %message, "the host stopped");
                    on_failure(message);
                }
                result
            })?;
        Ok(Self { handle, thread })
    }

    /// The way in from other threads.
    #[must_use]
    pub fn handle(&self) -> HostHandle<S> {
        self.handle.clone()
    }

    /// Finishes what is under way, within a bound, and ends the thread.
    pub fn stop(self) -> Result<(), String> {
        self.handle.stop();
        self.thread
            .join()
            .unwrap_or_else(|_| Err("the host thread panicked".to_owned()))
    }
}

fn run<S: StateMachine>(
    mut core: HostCore<S>,
    log: &Log,
    mut writer: Writer,
    waker: &Waker,
) -> Result<(), String> {
    waker
        .thread
        .set(std::thread::current())
        .expect("one thread runs this");
    let result = catch_unwind(AssertUnwindSafe(|| {
        turns(&mut core, log, &mut writer, waker)
    }));
    core.fail();
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "unknown".to_owned());
            Err(format!("the host panicked: {text}"))
        }
    }
}

fn turns<S: StateMachine>(
    core: &mut HostCore<S>,
    log: &Log,
    writer: &mut Writer,
    waker: &Waker,
) -> Result<(), GroupError> {
    let start = Instant::now();
    let mut stop_at = None;
    let mut spin = false;
    loop {
        let now = elapsed_ticks(start);
        // Marked before the look at the inbox: what arrives after that look wakes the thread.
        waker.asleep.store(true, Ordering::SeqCst);
        let turn = core.turn(now)?;
        if core.is_stopping() {
            let stop_at = *stop_at.get_or_insert(now + DRAIN_MS / TICK_MS);
            if (core.is_drained() && turn.unsynced.is_none()) || now >= stop_at {
                return Ok(());
            }
        }
        if !turn.busy {
            spin = rest(&turn, log, writer, waker, start, spin)?;
        } else if let Some(ticket) = turn.unsynced {
            // This thread has more to step while the other one syncs.
            writer.write(ticket);
        }
    }
}

/// Waits for something to do: on the disk itself when nobody else needs this thread, else for a wake-up. With `spin` it
/// stays awake for a while first. Returns whether the next wait should: whether this one was short.
fn rest(
    turn: &Turn,
    log: &Log,
    writer: &mut Writer,
    waker: &Waker,
    start: Instant,
    spin: bool,
) -> Result<bool, GroupError> {
    if let Some(ticket) = turn.unsynced
        && turn.sole_voter
    {
        // A turn follows in any case, so nobody needs to wake this thread.
        waker.asleep.store(false, Ordering::SeqCst);
        match log.wait(ticket) {
            // The log tries again by itself. Turns go on, so that new work is refused rather than left waiting.
            Err(error) if error.kind() == ErrorKind::Full => {
                std::thread::park_timeout(FULL_PAUSE);
                return Ok(false);
            }
            result => return result.map(|()| spin).map_err(Into::into),
        }
    }
    match turn.unsynced {
        Some(ticket) => writer.write(ticket),
        None => log.wake(),
    }
    let resting = Instant::now();
    while spin && resting.elapsed() < SPIN_MAX {
        if !waker.asleep.load(Ordering::SeqCst) {
            return Ok(true);
        }
        std::thread::yield_now();
    }
    let now_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let due_ms = turn
        .deadline
        .map_or(u64::MAX, |tick| tick.saturating_mul(TICK_MS));
    let sleep_ms = due_ms.saturating_sub(now_ms).clamp(1, SLEEP_MS_MAX);
    std::thread::park_timeout(Duration::from_millis(sleep_ms));
    Ok(resting.elapsed() < SPIN_MAX)
}

fn elapsed_ticks(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX) / TICK_MS
}
