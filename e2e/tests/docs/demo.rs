//! The first thing that a reader sees is what `make demo` prints.

use std::process::Command;

use cloister_e2e::lab::{checkout, guest, target_dir};

use crate::compare;
use crate::page::documents;

/// The demo's steps: a title, a command, what it printed.
fn steps(printed: &str) -> Vec<String> {
    let mut steps: Vec<String> = Vec::new();
    // Of a layer's progress the end is enough.
    for line in printed.lines().filter(|line| !line.starts_with("layer ") || line.contains(": done")) {
        match line.starts_with("# ") {
            true => steps.push(format!("{line}\n")),
            false => steps.last_mut().unwrap_or(&mut String::new()).extend([line, "\n"]),
        }
    }
    steps.iter().map(|step| step.trim_end().to_owned()).collect()
}

/// The command of a step, by which a page chooses it.
fn command(step: &str) -> &str {
    step.lines().find(|line| line.starts_with("$ ")).unwrap_or_default()
}

#[test]
fn the_readme_shows_what_the_demo_prints() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("{} 2>&1", checkout().join("scripts/demo.sh").display());
    let output = Command::new("bash")
        .args(["-c", &script])
        .env("CLOISTER_DEMO_ROOT", folder.path().join("demo"))
        .env("CLOISTER_BIN_DIR", target_dir())
        .env("CLOISTER_KERNEL", guest())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}");
    let made = steps(&printed);
    let mut shown = 0;
    for page in documents() {
        for block in page.blocks().iter().filter(|block| block.is_run("demo")) {
            let chosen: Vec<String> = steps(&block.text)
                .iter()
                .map(|step| {
                    let same = made.iter().find(|other| command(other) == command(step));
                    same.unwrap_or_else(|| panic!("the demo has no `{}`:\n{printed}", command(step))).clone()
                })
                .collect();
            compare::with(&page, block, &(chosen.join("\n\n") + "\n"));
            shown += chosen.len();
        }
    }
    assert!(shown >= 3, "{shown} steps");
}
