//! From reports to events: what is known about each step, and how much of it is passed on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{
    StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning,
};

use super::event::{Event, Outcome};
use super::lines::{MAX_LINE, Partial};
use super::text::{lossy, printable};
use super::time::Moment;

/// Steps of one build.
const MAX_STEPS: usize = 10_000;
/// Parts of one step that are told of.
const MAX_PARTS: usize = 1_000;
/// Warnings of one build.
const MAX_WARNINGS: usize = 1_000;
/// Output of one step, in bytes: twice what buildkitd itself lets through.
const MAX_STEP_LOG: u64 = 4 << 20;
/// Output of all steps, in bytes.
const MAX_LOG: u64 = 64 << 20;
/// Longest name, error or warning, in bytes.
const MAX_TEXT: usize = 2048;
/// Longest digest that is looked at, in bytes.
const MAX_DIGEST: usize = 256;
/// Last lines of a step that are remembered, for the error.
const TAIL: usize = 20;
/// A part that goes on is told of when it came further by a twentieth, or when this has passed.
const PART_PAUSE: Duration = Duration::from_secs(5);

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedStep {
    /// Its number.
    pub step: u32,
    /// Its name.
    pub name: String,
    /// The last lines it wrote.
    pub tail: Vec<String>,
    /// How long it ran, if that is known.
    pub time: Option<Duration>,
}

/// What is known of a build so far.
#[derive(Debug, Default)]
pub struct Tracker {
    steps: Vec<Step>,
    by_digest: HashMap<String, usize>,
    next_number: u32,
    log_bytes: u64,
    warnings: HashSet<String>,
    noted: HashSet<&'static str>,
}

#[derive(Debug, Default)]
struct Step {
    /// 0 until it has begun.
    number: u32,
    name: String,
    started: Option<Moment>,
    ended: Option<Outcome>,
    completed: Option<Moment>,
    parts: HashMap<String, Part>,
    streams: [Partial; 2],
    log_bytes: u64,
    tail: VecDeque<String>,
}

#[derive(Debug, Default)]
struct Part {
    told: Option<Moment>,
    current: u64,
    done: bool,
}

impl Tracker {
    /// Takes in a report and gives what is new.
    pub fn update(&mut self, report: StatusResponse) -> Vec<Event> {
        let mut events = Vec::new();
        for vertex in &report.vertexes {
            self.begin(vertex, &mut events);
        }
        for status in &report.statuses {
            self.part(status, &mut events);
        }
        for log in &report.logs {
            self.log(log, &mut events);
        }
        for warning in &report.warnings {
            self.warning(warning, &mut events);
        }
        // A report may hold a step's last lines and its end, in any order.
        for vertex in &report.vertexes {
            self.end(vertex, &mut events);
        }
        events
    }

    /// Nothing more comes: gives the lines that were not complete.
    pub fn finish(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for index in 0..self.steps.len() {
            self.flush(index, None, &mut events);
        }
        events
    }

    /// The step with this digest, or else the first one that failed.
    pub fn failed(&self, digest: Option<&str>) -> Option<FailedStep> {
        let known = digest.and_then(|digest| self.by_digest.get(digest)).map(|&index| &self.steps[index]);
        let failed = |step: &&Step| matches!(step.ended, Some(Outcome::Error { .. }));
        let step = known.filter(|step| step.number > 0).or_else(|| self.steps.iter().find(failed))?;
        let tail = step.tail.iter().cloned().collect();
        let time = step.started.zip(step.completed).map(|(start, end)| end.since(start));
        Some(FailedStep { step: step.number, name: step.name.clone(), tail, time })
    }

    /// The place of a step, made when it is new and there is room.
    fn index(&mut self, digest: &str, events: &mut Vec<Event>) -> Option<usize> {
        if let Some(&index) = self.by_digest.get(digest) {
            return Some(index);
        }
        if self.steps.len() >= MAX_STEPS || digest.len() > MAX_DIGEST {
            self.note("more steps than are shown", None, events);
            return None;
        }
        self.steps.push(Step::default());
        self.by_digest.insert(digest.to_owned(), self.steps.len() - 1);
        Some(self.steps.len() - 1)
    }

    fn begin(&mut self, vertex: &Vertex, events: &mut Vec<Event>) {
        let Some(index) = self.index(&vertex.digest, events) else { return };
        let step = &mut self.steps[index];
        if step.name.is_empty() {
            step.name = printable(&vertex.name, MAX_TEXT);
        }
        let Some(started) = vertex.started.map(Moment::new) else { return };
        // A step is looked up in the cache and then run: begun twice, it counts from the second time.
        if step.started.is_none_or(|before| started > before) {
            step.started = Some(started);
            if vertex.completed.is_none() {
                step.ended = None;
            }
        }
        self.number(index, events);
    }

    /// A step's number, given to it when it has none.
    fn number(&mut self, index: usize, events: &mut Vec<Event>) -> u32 {
        let step = &mut self.steps[index];
        if step.number == 0 {
            self.next_number += 1;
            step.number = self.next_number;
            events.push(Event::Step { step: step.number, name: step.name.clone() });
        }
        step.number
    }

    fn end(&mut self, vertex: &Vertex, events: &mut Vec<Event>) {
        let Some(&index) = self.by_digest.get(&vertex.digest) else { return };
        let Some(completed) = vertex.completed.map(Moment::new) else { return };
        let step = &self.steps[index];
        if step.ended.is_some() {
            return;
        }
        let outcome = if vertex.error.ends_with("context canceled") {
            Outcome::Canceled
        } else if !vertex.error.is_empty() {
            Outcome::Error { error: printable(&vertex.error, MAX_TEXT) }
        } else if vertex.cached {
            Outcome::Cached
        } else {
            Outcome::Done { time: step.started.map_or(Duration::ZERO, |start| completed.since(start)) }
        };
        let step = self.number(index, events);
        self.flush(index, Some(completed), events);
        self.steps[index].ended = Some(outcome.clone());
        self.steps[index].completed = Some(completed);
        events.push(Event::End { step, outcome });
    }

    fn part(&mut self, status: &VertexStatus, events: &mut Vec<Event>) {
        let Some(index) = self.index(&status.vertex, events) else { return };
        if status.id.len() > MAX_TEXT {
            return;
        }
        let step = self.number(index, events);
        let parts = &mut self.steps[index].parts;
        if parts.len() >= MAX_PARTS && !parts.contains_key(&status.id) {
            return self.note("more parts of a step than are shown", Some(step), events);
        }
        let known = parts.entry(status.id.clone()).or_default();
        let now = status.completed.or(status.timestamp).map(Moment::new);
        let current = u64::try_from(status.current).unwrap_or(0);
        let total = u64::try_from(status.total).unwrap_or(0);
        let done = status.completed.is_some();
        let waited = match (known.told, now) {
            (Some(told), Some(now)) => now.since(told) >= PART_PAUSE,
            (told, _) => told.is_none(),
        };
        let further = total > 0 && current.saturating_sub(known.current) >= (total / 20).max(1);
        if known.done || !(waited || further || done) {
            return;
        }
        *known = Part { told: now.or(known.told), current, done };
        let start = status.started.map(Moment::new);
        let time = start.zip(now).map_or(Duration::ZERO, |(start, now)| now.since(start));
        events.push(Event::Status { step, id: printable(&status.id, MAX_TEXT), current, total, time, done });
    }

    fn log(&mut self, log: &VertexLog, events: &mut Vec<Event>) {
        let Some(index) = self.index(&log.vertex, events) else { return };
        let number = self.number(index, events);
        let step = &mut self.steps[index];
        let bytes = log.msg.len() as u64;
        let before = step.log_bytes;
        step.log_bytes = before.saturating_add(bytes);
        if step.log_bytes > MAX_STEP_LOG {
            if before <= MAX_STEP_LOG {
                let text = format!("more than {} MiB of output; the rest is left out", MAX_STEP_LOG >> 20);
                events.push(Event::Note { step: Some(number), text });
            }
            return;
        }
        self.log_bytes = self.log_bytes.saturating_add(bytes);
        if self.log_bytes > MAX_LOG {
            return self.note("more output of the build than is shown", None, events);
        }
        let time = step.elapsed(log.timestamp.map(Moment::new));
        let stream = if log.stream == 2 { 2 } else { 1 };
        let tail = &mut step.tail;
        step.streams[usize::from(stream - 1)]
            .push(&log.msg, |line, cut| emit(events, tail, (number, time, stream), line, cut));
    }

    /// Gives a step's incomplete lines.
    fn flush(&mut self, index: usize, now: Option<Moment>, events: &mut Vec<Event>) {
        let step = &mut self.steps[index];
        let (number, time) = (step.number, step.elapsed(now));
        let tail = &mut step.tail;
        for (partial, stream) in step.streams.iter_mut().zip(1..) {
            partial.finish(|line, cut| emit(events, tail, (number, time, stream), line, cut));
        }
    }

    fn warning(&mut self, warning: &VertexWarning, events: &mut Vec<Event>) {
        let text = printable(&lossy(&warning.short), MAX_TEXT);
        let step = self.by_digest.get(&warning.vertex).map(|&index| self.steps[index].number);
        let step = step.filter(|&step| step > 0);
        if self.warnings.len() >= MAX_WARNINGS {
            return self.note("more warnings than are shown", None, events);
        }
        if !self.warnings.insert(format!("{step:?} {text}")) {
            return;
        }
        let detail = warning.detail.iter().take(TAIL).map(|line| printable(&lossy(line), MAX_TEXT)).collect();
        events.push(Event::Warning { step, text, detail, url: printable(&warning.url, MAX_TEXT) });
    }

    /// Tells once that something is left out.
    fn note(&mut self, what: &'static str, step: Option<u32>, events: &mut Vec<Event>) {
        if self.noted.insert(what) {
            events.push(Event::Note { step, text: what.to_owned() });
        }
    }
}

impl Step {
    fn elapsed(&self, now: Option<Moment>) -> Duration {
        self.started.zip(now).map_or(Duration::ZERO, |(start, now)| now.since(start))
    }
}

fn emit(
    events: &mut Vec<Event>,
    tail: &mut VecDeque<String>,
    (step, time, stream): (u32, Duration, u8),
    line: &[u8],
    cut: usize,
) {
    let mut line = printable(&lossy(line), MAX_LINE);
    if cut > 0 {
        line.push_str(&format!(" [{cut} more bytes in this line]"));
    }
    if tail.len() >= TAIL {
        tail.pop_front();
    }
    tail.push_back(line.clone());
    events.push(Event::Log { step, time, stream, line });
}

#[cfg(test)]
#[path = "tracker_tests.rs"]
mod tests;
