//! The screens in `docs/INSPECTION.md` are what the commands print, numbers aside. `UPDATE=1` writes them anew.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{FLOTILLA, flip, segments, setup};
use crate::snapshot::with_snapshot;
use crate::verify::copy;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/INSPECTION.md");

/// What a command prints, errors behind the rest.
fn output(command: &str, dir: &Path) -> String {
    let bin = Path::new(FLOTILLA).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(dir)
        .env("PATH", format!("{}:{path}", bin.display()))
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).unwrap().trim_end().to_owned()
}

/// The text without what differs from run to run: numbers, and the width of columns.
fn shape(text: &str) -> String {
    let words = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    let blurred = words.map(|word| {
        let end = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let number = end.contains(|c: char| c.is_ascii_digit())
            || (end.len() >= 8 && end.chars().all(|c| c.is_ascii_hexdigit()));
        let rest = &word[end.len()..];
        if number {
            format!("N{rest}")
        } else {
            word.to_owned()
        }
    });
    let lines = blurred.collect::<String>();
    let lines = lines.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn page_of_screens_shows_what_the_commands_print() {
    let (_dir, mut setup) = setup();
    let dir = setup.data_dir.parent().unwrap().to_owned();
    setup.data_dir = dir.join("flotilla.data");
    with_snapshot(&setup);
    copy(&setup, &dir.join("backup.data"));
    let damaged = copy(&setup, &dir.join("damaged.data"));
    let path = segments(&damaged).remove(0);
    let content = fs::read(&path).unwrap();
    let mut values = content
        .windows(100)
        .enumerate()
        .filter(|(_, window)| window.iter().all(|byte| *byte == b'x'));
    flip(&path, values.nth(9).unwrap().0 as u64);

    let page = fs::read_to_string(PAGE).unwrap();
    let (mut written, mut commands) = (String::new(), 0);
    for (number, part) in page.split("```").enumerate() {
        if number > 0 {
            written.push_str("```");
        }
        let Some(block) = part.strip_prefix("console\n") else {
            written.push_str(part);
            continue;
        };
        written.push_str("console\n");
        for line in block.lines().filter(|line| line.starts_with("$ ")) {
            let command = line.strip_prefix("$ ").unwrap();
            assert!(command.starts_with("flotilla "), "{command}");
            written.push_str(&format!("{line}\n{}\n", output(command, &dir)));
            commands += 1;
        }
    }
    assert!(commands > 8, "{commands}");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(PAGE, written).unwrap();
    } else {
        let (expected, found) = (shape(&page), shape(&written));
        for (expected, found) in expected.lines().zip(found.lines()) {
            assert_eq!(expected, found, "UPDATE=1 writes the page anew");
        }
        assert_eq!(expected.len(), found.len());
    }
}
