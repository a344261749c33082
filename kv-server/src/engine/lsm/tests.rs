use super::super::conformance::{self, Setup};
use super::*;

struct Lsm {
    dir: tempfile::TempDir,
    options: LsmOptions,
}

impl Setup for Lsm {
    type Engine = LsmEngine;

    fn open(&self) -> LsmEngine {
        LsmEngine::open(self.dir.path(), self.options.clone()).unwrap()
    }

    fn reopen(&self, engine: LsmEngine) -> LsmEngine {
        drop(engine);
        self.open()
    }
}

fn with(options: LsmOptions) -> Lsm {
    Lsm {
        dir: tempfile::tempdir().unwrap(),
        options,
    }
}

mod defaults {
    use super::*;
    conformance::suite!(with(LsmOptions::default()));
}
