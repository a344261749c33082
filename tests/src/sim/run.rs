//! How often a simulation runs, from which seeds, and how a failing run is run again.
//!
//! - `FLOTILLA_SIM_SEED`: only this seed;
//! - `FLOTILLA_SIM_POINT`: only this crash point, where a test walks through all of them;
//! - `FLOTILLA_SIM_RUNS`: so many times the default number of seeds.

use std::env;

const SEED: &str = "FLOTILLA_SIM_SEED";
const POINT: &str = "FLOTILLA_SIM_POINT";
const RUNS: &str = "FLOTILLA_SIM_RUNS";

/// Prints the line that runs a failing run again, when it is dropped in a panic.
struct Reproduce(String);

impl Drop for Reproduce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("reproduce: {}", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let parsed = text.parse();
    Some(parsed.unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// The test program and the test of a closure in it, from the closure's type, `program::test::{{closure}}`.
fn names<F>() -> (&'static str, String) {
    let full = std::any::type_name::<F>();
    let full = full.split("::{{closure}}").next().unwrap_or(full);
    full.split_once("::")
        .map_or(("", full.to_owned()), |(program, test)| {
            (program, test.to_owned())
        })
}

fn guard<F>(seed: u64, point: Option<u64>) -> Reproduce {
    let (program, test) = names::<F>();
    let point = point.map_or(String::new(), |point| format!(" {POINT}={point}"));
    Reproduce(format!(
        "{SEED}={seed}{point} cargo test -p flotilla-tests --test {program} -- --exact {test}"
    ))
}

fn seeds(first: u64, count: u64) -> impl Iterator<Item = u64> {
    let one = number(SEED);
    let count = count * number(RUNS).unwrap_or(1);
    let all = if one.is_some() {
        0..0
    } else {
        first..first + count
    };
    one.into_iter().chain(all)
}

/// True when the run was narrowed to one seed: then nothing can be said about what all runs together reached.
#[must_use]
pub fn is_narrowed() -> bool {
    number(SEED).is_some() || number(POINT).is_some()
}

/// Runs a closure of a test for `count` seeds from `first` on. The closure must stand in the test function itself.
pub fn each_seed<F: FnMut(u64)>(first: u64, count: u64, mut run: F) {
    for seed in seeds(first, count) {
        let _reproduce = guard::<F>(seed, None);
        run(seed);
    }
}

/// For each seed, runs with a crash after 0, 1, 2, ... operations of the disk until the closure says that the run
/// ended before the crash. Returns the number of runs.
pub fn each_point<F: FnMut(u64, u64) -> bool>(first: u64, count: u64, mut run: F) -> u64 {
    let mut runs = 0;
    for seed in seeds(first, count) {
        for point in number(POINT).map_or(0..u64::MAX, |point| point..point + 1) {
            let _reproduce = guard::<F>(seed, Some(point));
            runs += 1;
            if run(seed, point) {
                break;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closure_of_a_test_is_named_by_program_and_test() {
        fn named<F: Fn()>(_: F) -> (&'static str, String) {
            names::<F>()
        }
        let (program, test) = named(|| {});
        let here = "sim::run::tests::closure_of_a_test_is_named_by_program_and_test";
        assert_eq!((program, test.as_str()), ("flotilla_tests", here));
    }
}
