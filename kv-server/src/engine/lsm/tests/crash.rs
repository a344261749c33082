//! Restarts at any moment: what is found is the state after some batch, not older than what was durable.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// The state after each batch.
type Model = Vec<BTreeMap<String, String>>;

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(u8, Option<u8>)>),
    Persist,
    Request,
    Hold,
    Release,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = (0..24_u8, proptest::option::weighted(0.8, 0..=255_u8));
    let step = prop_oneof![
        40 => proptest::collection::vec(change, 1..8).prop_map(Step::Write),
        2 => Just(Step::Persist),
        3 => Just(Step::Request),
        3 => Just(Step::Hold),
        2 => Just(Step::Release),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..400)
}

fn check(snapshot: &dyn Snapshot, model: &BTreeMap<String, String>) {
    let expected: Vec<_> = model.clone().into_iter().collect();
    assert_eq!(contents(snapshot), expected);
    for key in 0..24 {
        let key = format!("k{key}");
        let found = snapshot.get(key.as_bytes()).unwrap();
        assert_eq!(
            found.as_deref(),
            model.get(&key).map(|value| value.as_bytes())
        );
    }
}

fn run(steps: Vec<Step>) {
    let setup = with(LsmOptions {
        memtable_bytes: 2048,
        table_bytes: 1024,
        ..small()
    });
    let mut engine = setup.open();
    let mut model: Model = vec![BTreeMap::new()];
    let mut held: Vec<(Arc<dyn Snapshot>, BTreeMap<String, String>)> = Vec::new();
    let last = [Step::Persist, Step::Crash];
    for step in steps.into_iter().chain(last) {
        let newest = model.last().unwrap();
        match step {
            Step::Write(changes) => {
                let index = model.len();
                let mut next = newest.clone();
                let mut written = BTreeMap::new();
                for (key, value) in changes {
                    let key = format!("k{key}");
                    let (change, value) = match value {
                        Some(value) => {
                            let value = format!("{value:0>60}");
                            (put(&key, &value), Some(value))
                        }
                        None => (delete(&key), None),
                    };
                    written.extend([change]);
                    match value {
                        Some(value) => next.insert(key, value),
                        None => next.remove(&key),
                    };
                }
                next.insert("~applied".to_owned(), index.to_string());
                engine.write(batch(index as u64, written)).unwrap();
                model.push(next);
            }
            Step::Persist => {
                engine.persist().unwrap();
                assert_eq!(engine.durable_index(GROUP), Index(model.len() as u64 - 1));
            }
            Step::Request => engine.request_persist().unwrap(),
            Step::Hold => held.push((engine.snapshot(), newest.clone())),
            Step::Release => {
                if !held.is_empty() {
                    let (snapshot, expected) = held.remove(0);
                    check(snapshot.as_ref(), &expected);
                }
            }
            Step::Crash => {
                check(engine.snapshot().as_ref(), newest);
                for (snapshot, expected) in held.drain(..) {
                    check(snapshot.as_ref(), &expected);
                }
                let floor = engine.durable_index(GROUP);
                engine = setup.reopen(engine);
                let found = engine.durable_index(GROUP);
                assert!(found >= floor, "{floor:?} was durable, {found:?} was found");
                model.truncate(found.0 as usize + 1);
                check(engine.snapshot().as_ref(), &model[found.0 as usize]);
            }
        }
    }
    assert_eq!(engine.durable_index(GROUP), Index(model.len() as u64 - 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn random_steps_match_the_model_before_and_after_crashes(steps in steps()) {
        run(steps);
    }
}

/// What batch `index` of the killed process writes.
fn changes_of(index: u64) -> Vec<(String, Option<String>)> {
    let key = |factor: u64| format!("k{:03}", index * factor % 500);
    let removed = (index.is_multiple_of(5)).then(|| (key(13), None));
    let filler = "f".repeat((index % 200) as usize);
    let put = |factor| (key(factor), Some(format!("{index} {filler}")));
    [put(7), put(11)].into_iter().chain(removed).collect()
}

const CHILD: &str = "FLOTILLA_TEST_ENGINE_DIR";

/// The process that is killed: it writes as fast as it can and says what is durable.
fn child(dir: PathBuf) {
    let engine = LsmEngine::open(&dir, small()).unwrap();
    let first = engine.durable_index(GROUP).0 + 1;
    for index in first.. {
        let changes = changes_of(index)
            .into_iter()
            .map(|(key, value)| match value {
                Some(value) => put(&key, &value),
                None => delete(&key),
            });
        engine.write(batch(index, changes)).unwrap();
        if index % 16 == 0 {
            let durable = engine.durable_index(GROUP).0;
            writeln!(std::io::stdout(), "durable {durable}").unwrap();
        }
    }
}

/// Runs itself as a child, and kills that after some lines of output.
#[test]
fn killed_process_leaves_the_state_of_one_batch() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return child(dir.into());
    }
    let setup = with(small());
    let mut reached = 0;
    for round in 0..8_usize {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg("engine::lsm::tests::crash::killed_process_leaves_the_state_of_one_batch")
            .env(CHILD, setup.dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let durable = lines
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("durable ")?.parse::<u64>().ok())
            .nth(17 + round * 7)
            .expect("the child writes until it is killed");
        process.kill().unwrap();
        process.wait().unwrap();

        let engine = setup.open();
        let found = engine.durable_index(GROUP).0;
        assert!(
            found >= durable,
            "round {round}: {durable} was durable, {found} was found"
        );
        assert!(found >= reached);
        reached = found;
        let mut model = BTreeMap::new();
        for index in 1..=found {
            for (key, value) in changes_of(index) {
                match value {
                    Some(value) => model.insert(key, value),
                    None => model.remove(&key),
                };
            }
            model.insert("~applied".to_owned(), index.to_string());
        }
        let expected: Vec<_> = model.into_iter().collect();
        assert_eq!(
            contents(engine.snapshot().as_ref()),
            expected,
            "round {round}"
        );
    }
    assert!(reached > 500, "only {reached} batches");
}
