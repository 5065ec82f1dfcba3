//! What happens in a build.

use std::time::Duration;

use serde::Serialize;

/// One thing that happened. Texts are printable and bounded.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Event {
    /// A step began. Steps are numbered from 1 in this order.
    Step {
        /// Its number.
        step: u32,
        /// Such as `[build 2/3] RUN make`.
        name: String,
    },
    /// A part of a step, such as a layer on its way, came further.
    Status {
        /// The step it belongs to.
        step: u32,
        /// What it is about.
        id: String,
        /// Bytes or items so far.
        current: u64,
        /// Bytes or items in all; 0 when that is not known.
        total: u64,
        /// How long it has been going on.
        #[serde(rename = "seconds", serialize_with = "seconds")]
        time: Duration,
        /// Whether it is complete.
        done: bool,
    },
    /// A line that a step wrote.
    Log {
        /// The step.
        step: u32,
        /// When, counted from the step's start.
        #[serde(rename = "seconds", serialize_with = "seconds")]
        time: Duration,
        /// 1 for standard output, 2 for standard error.
        stream: u8,
        /// The line without its end.
        line: String,
    },
    /// Something about the Dockerfile that is not an error.
    Warning {
        /// The step it was found in, if that is known.
        step: Option<u32>,
        /// One line.
        text: String,
        /// More about it.
        detail: Vec<String>,
        /// Where to read about it; may be empty.
        url: String,
    },
    /// A step ended.
    End {
        /// The step.
        step: u32,
        /// How it ended.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// Something was left out from here on.
    Note {
        /// The step, or none when it concerns the build.
        step: Option<u32>,
        /// What, and which bound was met.
        text: String,
    },
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// It was run.
    Done {
        /// How long that took.
        #[serde(rename = "seconds", serialize_with = "seconds")]
        time: Duration,
    },
    /// Its result was there already.
    Cached,
    /// It was given up because the build ended.
    Canceled,
    /// It failed.
    Error {
        /// Why.
        error: String,
    },
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((time.as_secs_f64() * 1000.0).round() / 1000.0)
}
