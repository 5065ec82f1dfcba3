//! Commands by their words: programs, subcommands, flags, targets and tests that a document names exist.

use std::fs;
use std::sync::OnceLock;

use cloister_e2e::lab::checkout;

use crate::help::{command, flag, has_subcommand, help};
use crate::names;
use crate::page::{all, documents, spans};
use crate::shell::commands;

/// Programs whose words are nobody's but theirs.
const OTHERS: &str = " bash cat command date dmesg do done echo exit export for grep gzip journalctl ln mkfs.erofs perf seq sh sha256sum skopeo wc ";

/// Subcommands that no help text lists.
const HIDDEN: [&str; 1] = ["kube"];

/// What is wrong with a command's words.
pub fn check(words: &[String]) -> Result<(), String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (&program, rest) = words.split_first().ok_or("no words")?;
    match program {
        "kubectl" if rest.first() == Some(&"cloister") => ours("kubectl cloister", &rest[1..]),
        "kubectl" => kubectl(rest),
        "cloister" | "cloister-node" | "cloister-operator" => ours(program, rest),
        "helm" => helm(rest),
        "make" => rest.iter().filter(|word| !word.contains('=')).try_for_each(|target| make(target)),
        "cargo" => cargo(rest),
        path if path.contains('/') => match checkout().join(path).exists() {
            true => Ok(()),
            false => Err(format!("there is no {path}")),
        },
        other if OTHERS.contains(&format!(" {other} ")) => Ok(()),
        other => Err(format!("what is {other}?")),
    }
}

/// A program that describes itself as clap does.
fn ours(program: &str, words: &[&str]) -> Result<(), String> {
    let mut path: Vec<&str> = Vec::new();
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        // Placeholders, and what may be left out.
        let word = word.trim_matches(['[', ']', '…']);
        let text = help(program, &path);
        if word == "--" {
            return Ok(());
        } else if let Some(name) = word.strip_prefix("--") {
            let name = name.split('=').next().unwrap_or_default();
            let value =
                flag(&text, &format!("--{name}")).ok_or(format!("{program} {path:?} has no --{name}"))?;
            if value && !word.contains('=') {
                words.next();
            }
        } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            for letter in letters.chars() {
                let value = flag(&text, &format!("-{letter}"))
                    .ok_or(format!("{program} {path:?} has no -{letter}"))?;
                if value {
                    words.next();
                }
            }
        } else if text.lines().any(|line| line == "Commands:") {
            let names: Vec<&str> = word.split('|').map(|name| name.trim_end_matches('\\')).collect();
            if let Some(unknown) = names
                .iter()
                .find(|name| !name.is_empty() && !HIDDEN.contains(name) && !has_subcommand(&text, name))
            {
                return Err(format!("{program} {path:?} has no {unknown}"));
            }
            path.extend(names.first().filter(|name| !name.is_empty()));
        } else if matches!(path[..], ["run" | "exec"]) {
            // The rest is the container's.
            return Ok(());
        }
    }
    Ok(())
}

fn kubectl(words: &[&str]) -> Result<(), String> {
    let words: Vec<&str> = words.iter().copied().take_while(|&word| word != "--").collect();
    let mut path: Vec<&str> = Vec::new();
    for word in words.iter().filter(|word| !word.starts_with('-')) {
        if has_subcommand(&help("kubectl", &path), word) {
            path.push(word);
        }
    }
    if path.is_empty() {
        return Err(format!("kubectl has no {words:?}"));
    }
    let text = help("kubectl", &path);
    for word in words.iter().filter(|word| word.starts_with('-')) {
        let name = word.split('=').next().unwrap_or_default();
        if flag(&text, name).or(flag(common_flags(), name)).is_none() {
            return Err(format!("kubectl {path:?} has no {name}"));
        }
    }
    Ok(())
}

/// Flags of every command of kubectl.
fn common_flags() -> &'static str {
    static FLAGS: OnceLock<String> = OnceLock::new();
    FLAGS.get_or_init(|| {
        let output = command("kubectl").arg("options").output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

fn helm(words: &[&str]) -> Result<(), String> {
    let text = help("helm", &[]);
    let command = words.first().copied().unwrap_or_default();
    if !text.contains(&format!("{command} ")) {
        return Err(format!("helm.py knows no {command}"));
    }
    let flags = words
        .iter()
        .filter(|word| word.starts_with('-'))
        .map(|word| word.split('=').next().unwrap_or_default());
    match flags.into_iter().find(|name| flag(&text, name).is_none()) {
        Some(name) => Err(format!("helm.py knows no {name}")),
        None => Ok(()),
    }
}

/// A target of the Makefile.
pub fn make(target: &str) -> Result<(), String> {
    let makefile = fs::read_to_string(checkout().join("Makefile")).unwrap();
    match makefile.lines().any(|line| line.starts_with(&format!("{target}:"))) {
        true => Ok(()),
        false => Err(format!("the Makefile has no {target}")),
    }
}

fn cargo(words: &[&str]) -> Result<(), String> {
    for pair in words.windows(2) {
        match pair {
            ["-p", package] => {
                let known = fs::read_to_string(checkout().join("Cargo.lock")).unwrap();
                if !known.contains(&format!("name = \"{package}\"\n")) {
                    return Err(format!("there is no package {package}"));
                }
            }
            ["-E", filter] => names::filter(filter)?,
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn what_commands_name_exists() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in all() {
        for block in page.blocks().iter().filter(|block| block.language == "sh") {
            for command in commands(&block.text) {
                count += 1;
                wrong.extend(check(&command).err().map(|why| format!("{}: {why}", block.place)));
            }
        }
        let mut last = String::new();
        for (number, line) in page.prose() {
            if let Some(span) = spans(line).first().filter(|span| is_command(span)) {
                let is_name = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase());
                last = span.split(' ').take_while(is_name).collect::<Vec<_>>().join(" ");
            }
            for span in spans(line) {
                // "…" stands for the last command that a line began with.
                let span = match span.strip_prefix("… ") {
                    Some(rest) => format!("{last} {rest}"),
                    None => alternatives(span),
                };
                if !is_command(&span) {
                    continue;
                }
                for command in commands(&span) {
                    let command: Vec<String> =
                        command.iter().map(|word| word.replace('\u{1}', "|")).collect();
                    count += 1;
                    wrong.extend(check(&command).err().map(|why| format!("{}:{number}: {why}", page.path)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 100, "{count} commands");
}

/// `a|b` of a sentence is a choice of words, and no pipe.
fn alternatives(span: &str) -> String {
    let words = span.replace("\\|", "|");
    words
        .split(' ')
        .map(|word| if word == "|" { word.to_owned() } else { word.replace('|', "\u{1}") })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether code in a sentence is a command and not just a name.
fn is_command(span: &str) -> bool {
    let programs = [
        "cloister ",
        "cloister-node ",
        "cloister-operator ",
        "kubectl ",
        "helm ",
        "make ",
        "cargo ",
        "scripts/",
    ];
    programs.iter().any(|program| span.starts_with(program))
}

#[test]
fn usages_have_flags_of_their_programs() {
    let mut count = 0;
    for page in documents() {
        for block in page.blocks().iter().filter(|block| block.language == "text") {
            let first: Vec<&str> = block.text.split_whitespace().take(2).collect();
            let [program, subcommand] = first[..] else { panic!("{}: no command", block.place) };
            let text = help(program, &[subcommand]);
            let shown = block
                .text
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .filter(|word| word.starts_with("--"));
            for name in shown {
                assert!(flag(&text, name).is_some(), "{}: {program} {subcommand} has no {name}", block.place);
                count += 1;
            }
        }
    }
    assert!(count > 10, "{count} flags");
}

#[test]
fn every_block_says_who_runs_it() {
    let ways = ["machine", "machine, long", "cluster", "demo", "words"];
    let mut wrong = Vec::new();
    for page in documents() {
        for block in page.blocks() {
            let why = match (block.language.as_str(), block.run.as_deref()) {
                ("sh" | "console", None) => Some("nobody runs it".to_owned()),
                ("sh" | "console", Some(way)) if ways.contains(&way) => None,
                ("sh", Some(test)) => names::check(test).err(),
                ("yaml" | "text" | "mermaid" | "toml" | "rust", None) => None,
                (language, run) => Some(format!("a block of {language:?} that is run by {run:?}")),
            };
            wrong.extend(why.map(|why| format!("{}: {why}", block.place)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
