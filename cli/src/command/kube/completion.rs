//! Completion of `kubectl cloister …`: kubectl runs `kubectl_complete-cloister` with the words so far, and reads one
//! candidate a line and a directive (cobra's `ShellCompDirective`) from its output.
//! <https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/>

use std::ffi::OsString;

use clap::{Arg, Command, CommandFactory};

use crate::args::kube::KubeCli;
use crate::output;

/// Files complete what is no option and no command.
const DEFAULT: u8 = 0;
/// Nothing else does.
const NO_FILES: u8 = 4;

/// Prints what may follow `words`, of which the last is being typed; returns what to exit with.
pub fn complete(words: impl Iterator<Item = OsString>) -> u8 {
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    match output::print(&candidates(&words)) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn candidates(words: &[String]) -> String {
    let (typed, before) =
        words.split_last().map_or(("", [].as_slice()), |(last, before)| (last.as_str(), before));
    let mut root = KubeCli::command();
    root.build();
    let command = before.iter().find_map(|word| root.find_subcommand(word));
    let (mut found, directive) = match command {
        _ if typed.starts_with('-') => (options(command.unwrap_or(&root)), NO_FILES),
        None => (commands(&root), NO_FILES),
        Some(_) => (Vec::new(), DEFAULT),
    };
    found.retain(|(name, _)| name.starts_with(typed));
    let mut text: String = found.iter().map(|(name, help)| format!("{name}\t{help}\n")).collect();
    text.push_str(&format!(":{directive}\n"));
    text
}

fn commands(root: &Command) -> Vec<(String, String)> {
    let one = |command: &Command| {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        (command.get_name().to_owned(), about)
    };
    root.get_subcommands().map(one).collect()
}

fn options(command: &Command) -> Vec<(String, String)> {
    let one = |arg: &Arg| {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        Some((format!("--{}", arg.get_long()?), help.lines().next().unwrap_or_default().to_owned()))
    };
    command.get_arguments().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(words: &[&str]) -> String {
        candidates(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn commands_come_first_then_their_options_and_files() {
        let all = after(&[""]);
        assert!(all.starts_with("build\tSend a folder") && all.ends_with(":4\n"), "{all}");
        assert_eq!(after(&["ret"]), "retry\tBuild again, also what has failed or was canceled\n:4\n");
        let options = after(&["build", "--cache"]);
        assert!(options.starts_with("--cache-key\t"), "{options}");
        assert!(after(&["-n", "team", "logs", "--f"]).starts_with("--follow\t"));
        assert_eq!(after(&["build", ""]), ":0\n");
    }
}
