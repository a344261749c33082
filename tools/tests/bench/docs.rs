//! The commands of docs/BENCHMARKS.md, section "The load generator", run as they are shown.

use std::path::Path;

use super::*;

#[test]
fn commands_of_the_documentation_run_as_they_are_shown() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/BENCHMARKS.md")).unwrap();
    let section = page.split("\n## The load generator\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut commands = Vec::new();
    for block in section.split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap();
        if !block.starts_with("# long:") {
            commands.extend(block.lines().filter(|line| line.starts_with("flotilla ")));
        }
    }
    assert!(commands.len() >= 8, "{commands:?}");
    with_server(|server| {
        with_server(|other| {
            let dir = tempfile::tempdir().unwrap();
            for command in commands {
                let shown = command.split('#').next().unwrap().split_whitespace();
                let args: Vec<String> = shown
                    .skip(1)
                    .map(|arg| match arg {
                        "URL" => server.url().to_owned(),
                        "OTHER" => other.url().to_owned(),
                        "PID" => server.pid().to_string(),
                        "OTHER_PID" => other.pid().to_string(),
                        _ => arg.to_owned(),
                    })
                    .collect();
                let output = Command::new(FLOTILLA)
                    .args(&args)
                    .current_dir(dir.path())
                    .output()
                    .unwrap();
                let told = text(&output.stdout) + &text(&output.stderr);
                assert_eq!(output.status.code(), Some(0), "{command}: {told}");
            }
        });
    });
}
