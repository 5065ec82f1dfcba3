//! Why a build failed: the step, its exit code, its last lines and the place in the Dockerfile.
//!
//! buildkitd adds details to its status as JSON, of types that `solver/errdefs` in its source names.

use std::fmt;
use std::time::Duration;

use bollard_buildkit_proto::google::rpc;
use cloister_image::base64;
use prost::Message;
use serde::Deserialize;
use tonic::Status;

use super::error::{Error, reason};
use crate::progress::{Tracker, printable};

/// Lines around the place in the Dockerfile.
const AROUND: usize = 2;
/// Lines of an excerpt, and bytes of each.
const MAX_LINES: usize = 24;
const MAX_LINE: usize = 400;
/// What buildkitd says, in lower case, when a step was killed for lack of memory. The exit code alone does not tell.
const MEMORY: [&str; 4] = ["out of memory", "cannot allocate memory", "oom-kill", "oom kill"];
/// What stands between a step's own words and why it failed.
const COMMAND_END: &str = "did not complete successfully: ";

/// A failed build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// What buildkitd says, on one line.
    pub message: String,
    /// The step that failed, such as `[build 2/3] RUN make`.
    pub step: Option<String>,
    /// What its process exited with.
    pub exit_code: Option<u32>,
    /// The last lines it wrote.
    pub log_tail: Vec<String>,
    /// How long it ran, if that is known; the guest says so.
    pub time: Option<Duration>,
    /// The place in the Dockerfile, as lines to show.
    pub excerpt: Vec<String>,
    /// The first of these lines that is meant, counted from 1.
    pub line: Option<usize>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.step, self.exit_code) {
            (Some(step), Some(code)) => write!(f, "{step}: exit code {code}"),
            (Some(step), None) => write!(f, "{step}: {}", self.message),
            _ => f.write_str(&self.message),
        }
    }
}

impl Failure {
    /// [`Self::message`] without the command that it quotes, which can have any words in it.
    pub fn reason(&self) -> &str {
        self.message.rsplit_once(COMMAND_END).map_or(&self.message, |(_, reason)| reason)
    }

    /// Everything there is to tell, over several lines: the step's last lines, the place in the Dockerfile, the message.
    pub fn report(&self) -> String {
        let mut lines = Vec::new();
        if let Some(step) = self.step.as_ref().filter(|_| !self.log_tail.is_empty()) {
            lines.push("------".to_owned());
            lines.push(format!(" > {step}:"));
            lines.extend(self.log_tail.iter().cloned());
            lines.push("------".to_owned());
        }
        lines.extend(self.excerpt.iter().cloned());
        lines.push(self.message.clone());
        lines.join("\n")
    }
}

/// Makes an error of what a build was answered with.
pub(super) fn failure(status: &Status, tracker: &Tracker) -> Error {
    let details = Details::of(status);
    let failed = tracker.failed(details.vertex.as_deref());
    let message = reason(status.message());
    let exit_code = exit_code(&message);
    let failure = Box::new(Failure {
        step: failed.as_ref().map(|failed| failed.name.clone()),
        exit_code,
        time: failed.as_ref().and_then(|failed| failed.time),
        log_tail: failed.map(|failed| failed.tail).unwrap_or_default(),
        excerpt: details.excerpt,
        line: details.line,
        message,
    });
    let words = failure.reason().to_ascii_lowercase();
    if MEMORY.iter().any(|word| words.contains(word)) {
        Error::OutOfMemory(failure)
    } else {
        Error::Failed(failure)
    }
}

/// The number in `… did not complete successfully: exit code: 2`.
fn exit_code(message: &str) -> Option<u32> {
    let (_, rest) = message.rsplit_once("exit code: ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[derive(Debug, Default)]
struct Details {
    vertex: Option<String>,
    excerpt: Vec<String>,
    line: Option<usize>,
}

impl Details {
    fn of(status: &Status) -> Self {
        let mut details = Self::default();
        let Ok(status) = rpc::Status::decode(status.details()) else { return details };
        for detail in &status.details {
            if detail.type_url.ends_with("errdefs.Vertex+json") {
                #[derive(Deserialize)]
                struct Vertex {
                    digest: String,
                }
                let vertex = serde_json::from_slice::<Vertex>(&detail.value);
                details.vertex = vertex.ok().map(|vertex| vertex.digest).or(details.vertex);
            } else if detail.type_url.ends_with("errdefs.Source+json") && details.excerpt.is_empty() {
                let source = serde_json::from_slice::<Source>(&detail.value);
                let Ok(source) = source else { continue };
                details.excerpt = source.excerpt();
                details.line = source.ranges.iter().map(|range| range.start.line).min();
            }
        }
        details
    }
}

#[derive(Deserialize)]
struct Source {
    info: Info,
    #[serde(default)]
    ranges: Vec<Range>,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    filename: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    start: Position,
    #[serde(default)]
    end: Position,
}

#[derive(Default, Deserialize)]
struct Position {
    #[serde(default)]
    line: usize,
}

impl Source {
    /// The lines meant, marked, and some around them.
    fn excerpt(&self) -> Vec<String> {
        let Some(text) = base64::decode(&self.info.data) else { return Vec::new() };
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = |range: &Range| range.end.line.max(range.start.line);
        let first = self.ranges.iter().map(|range| range.start.line).min().unwrap_or(0);
        let last = self.ranges.iter().map(end).max().unwrap_or(0).min(lines.len());
        if first == 0 || first > last {
            return Vec::new();
        }
        let rule = "-".repeat(20);
        let mut out = vec![format!("{}:{first}", printable(&self.info.filename, MAX_LINE)), rule.clone()];
        let from = first.saturating_sub(AROUND).max(1);
        for number in (from..=lines.len().min(last + AROUND)).take(MAX_LINES) {
            let meant = self.ranges.iter().any(|range| (range.start.line..=end(range)).contains(&number));
            let mark = if meant { ">>>" } else { "   " };
            out.push(
                format!(" {number:>3} | {mark} {}", printable(lines[number - 1], MAX_LINE))
                    .trim_end()
                    .to_owned(),
            );
        }
        out.push(rule);
        out
    }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::google::protobuf::Any;
    use tonic::Code;

    use super::*;

    fn status(message: &str, details: &[(&str, String)]) -> Status {
        let details = details.iter().map(|(kind, json)| Any {
            type_url: format!("github.com/moby/buildkit/errdefs.{kind}+json"),
            value: json.clone().into_bytes(),
        });
        let details = rpc::Status { details: details.collect(), ..Default::default() };
        Status::with_details(Code::Unknown, message, details.encode_to_vec().into())
    }

    fn source(dockerfile: &str, first: usize, last: usize) -> (&'static str, String) {
        let data = base64::encode(dockerfile.as_bytes());
        let json = format!(
            r#"{{"info":{{"filename":"Dockerfile","data":"{data}"}},"ranges":[{{"start":{{"line":{first}}},"end":{{"line":{last}}}}}]}}"#
        );
        ("Source", json)
    }

    #[test]
    fn exit_code_and_place_are_found() {
        let message =
            "failed to solve: process \"/bin/sh -c exit 3\" did not complete successfully: exit code: 3";
        let error =
            failure(&status(message, &[source("FROM x\nRUN a\nRUN exit 3\n", 3, 3)]), &Tracker::default());
        let failure = error.failure().unwrap();
        assert_eq!((failure.exit_code, failure.line), (Some(3), Some(3)));
        assert_eq!(
            failure.excerpt,
            [
                "Dockerfile:3",
                "--------------------",
                "   1 |     FROM x",
                "   2 |     RUN a",
                "   3 | >>> RUN exit 3",
                "--------------------"
            ]
        );
        assert!(matches!(error, Error::Failed(_)) && !error.is_retryable());
    }

    #[test]
    fn memory_ran_out_when_buildkitd_says_so_and_not_when_a_command_does() {
        let step = |command: &str, reason: &str| {
            let message = format!("process \"{command}\" did not complete successfully: {reason}");
            failure(&status(&message, &[]), &Tracker::default())
        };
        let error = step("make", "exit code: 137: cannot allocate memory");
        assert!(matches!(error, Error::OutOfMemory(_)) && error.failure().unwrap().exit_code == Some(137));
        for (command, code) in [("kill -9 $$", 137), ("echo out of memory; exit 3", 3)] {
            let error = step(command, &format!("exit code: {code}"));
            assert!(matches!(error, Error::Failed(_)), "{command}");
            assert_eq!(error.failure().unwrap().exit_code, Some(code));
        }
    }

    #[test]
    fn lying_details_do_no_harm() {
        for (first, last) in [(0, 0), (5, 2), (9, 9), (1, usize::MAX), (usize::MAX, 1)] {
            let error = failure(&status("x", &[source("FROM x\nRUN y\n", first, last)]), &Tracker::default());
            assert!(error.failure().unwrap().excerpt.len() < 10);
        }
        let long = "RUN y\n".repeat(10_000);
        let error = failure(&status("x", &[source(&long, 1, 9_000)]), &Tracker::default());
        assert_eq!(error.failure().unwrap().excerpt.len(), MAX_LINES + 3);
        let bad = status("x", &[("Source", "[".to_owned()), ("Vertex", "{}".to_owned())]);
        assert!(failure(&bad, &Tracker::default()).failure().unwrap().excerpt.is_empty());
    }
}
