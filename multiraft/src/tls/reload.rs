//! Something that was made from files, and is made again when they change.
//!
//! The files are looked at when somebody asks, at most once a second: no thread, no watch of a directory. While new ones
//! do not fit together, such as a certificate whose key is still to be copied, the last good ones stay in use.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

/// How long a change may go unnoticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells one content of a file from the next, as far as can be seen without reading it.
type Stamp = Option<(SystemTime, u64)>;

type Make<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// See the module.
pub(super) struct Reloaded<T> {
    files: Vec<PathBuf>,
    make: Make<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    made: Arc<T>,
    /// Of what it was made from.
    stamps: Vec<Stamp>,
    looked: Instant,
    /// The last failure that was told.
    told: Option<String>,
}

impl<T> Reloaded<T> {
    /// Makes it for the first time; the files that matter are `files`.
    #[expect(
        clippy::disallowed_methods,
        reason = "the age of a look at files is nothing that a simulation sees"
    )]
    pub(super) fn new(files: Vec<PathBuf>, make: Make<T>) -> Result<Self, String> {
        // Before they are read: what changes meanwhile is seen at the next look.
        let stamps = stamps(&files);
        let state = State {
            made: Arc::new(make()?),
            stamps,
            looked: Instant::now(),
            told: None,
        };
        Ok(Self {
            files,
            make,
            state: Mutex::new(state),
        })
    }

    /// The newest that could be made.
    #[expect(
        clippy::disallowed_methods,
        reason = "the age of a look at files is nothing that a simulation sees"
    )]
    pub(super) fn get(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            self.look(&mut state);
        }
        Arc::clone(&state.made)
    }

    fn look(&self, state: &mut State<T>) {
        let stamps = stamps(&self.files);
        if stamps == state.stamps {
            return;
        }
        match (self.make)() {
            Ok(made) => {
                info!(files = ?self.files, "certificates changed and were read again");
                state.made = Arc::new(made);
                state.stamps = stamps;
                state.told = None;
            }
            // Tried again at the next look: the stamps still differ.
            Err(error) => {
                if state.told.as_ref() != Some(&error) {
                    warn!(
                        error,
                        "certificates changed, and cannot be used; the ones of before stay in use"
                    );
                    state.told = Some(error);
                }
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "certificates are no data of the store: no simulator and no recovery knows them"
)]
fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.iter().map(stamp).collect()
}
