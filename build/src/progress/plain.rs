//! Lines as `docker build --progress=plain` writes them: each begins with the number of its step, and a step that comes up
//! again is named again.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use super::{Event, Outcome, Show};

/// Shortest time worth telling.
const WORTH: Duration = Duration::from_millis(10);

/// Writes events as plain lines.
pub struct Plain<W> {
    out: W,
    names: HashMap<u32, String>,
    current: Option<u32>,
    written: bool,
}

impl<W: Write> Plain<W> {
    /// Onto `out`.
    pub fn new(out: W) -> Self {
        Self { out, names: HashMap::new(), current: None, written: false }
    }

    /// What it writes onto.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes one line of a step, after its name when another step was at work.
    fn line(&mut self, step: u32, text: &str) -> io::Result<()> {
        self.enter(step)?;
        writeln!(self.out, "#{step} {text}")
    }

    fn enter(&mut self, step: u32) -> io::Result<()> {
        if self.current == Some(step) {
            return Ok(());
        }
        if let Some(left) = self.current.replace(step) {
            writeln!(self.out, "#{left} ...")?;
        }
        if self.written {
            writeln!(self.out)?;
        }
        self.written = true;
        let name = self.names.get(&step).map_or("", String::as_str);
        writeln!(self.out, "#{step} {name}")
    }
}

impl<W: Write + Send> Show for Plain<W> {
    fn show(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Step { step, name } => {
                self.names.insert(*step, name.clone());
                self.enter(*step)?;
            }
            Event::Status { step, id, current, total, time, done } => {
                self.line(*step, &format!("{id}{}", part(*current, *total, *time, *done)))?;
            }
            Event::Log { step, time, line, .. } => {
                self.line(*step, &format!("{:.3} {line}", time.as_secs_f64()))?;
            }
            Event::Warning { step, text, detail, url } => {
                let mut lines = vec![format!("WARN: {text}")];
                lines.extend(detail.iter().cloned());
                lines.extend(Some(url.clone()).filter(|url| !url.is_empty()));
                for line in lines {
                    match step {
                        Some(step) => self.line(*step, &line)?,
                        None => writeln!(self.out, "{line}")?,
                    }
                }
            }
            Event::End { step, outcome } => {
                self.line(*step, &end(outcome))?;
                self.current = None;
            }
            Event::Note { step: Some(step), text } => self.line(*step, &format!("[{text}]"))?,
            Event::Note { step: None, text } => writeln!(self.out, "[{text}]")?,
        }
        self.out.flush()
    }
}

/// How a step ended, in a few words.
pub(super) fn end(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done { time } => format!("DONE {:.1}s", time.as_secs_f64()),
        Outcome::Cached => "CACHED".to_owned(),
        Outcome::Canceled => "CANCELED".to_owned(),
        Outcome::Error { error } => format!("ERROR: {error}"),
    }
}

/// How far a part is.
pub(super) fn part(current: u64, total: u64, time: Duration, done: bool) -> String {
    let amount = match (current, total) {
        (0, 0) => String::new(),
        (current, 0) => format!(" {}", bytes(current)),
        (current, total) => format!(" {} / {}", bytes(current), bytes(total)),
    };
    let time = if time > WORTH { format!(" {:.1}s", time.as_secs_f64()) } else { String::new() };
    format!("{amount}{time}{}", if done { " done" } else { "" })
}

/// A number of bytes in decimal units, as docker's tools give it.
fn bytes(count: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.into_iter().find(|(size, _)| count >= *size) {
        Some((size, unit)) => format!("{:.2}{unit}", count as f64 / size as f64),
        None => format!("{count}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_as_dockers() {
        let mut plain = Plain::new(Vec::new());
        let time = Duration::from_millis(1234);
        let id = "transferring dockerfile:".to_owned();
        for event in [
            Event::Step { step: 1, name: "[internal] load build definition from Dockerfile".into() },
            Event::Status { step: 1, id, current: 120, total: 0, time, done: true },
            Event::End { step: 1, outcome: Outcome::Done { time: Duration::ZERO } },
            Event::Step { step: 2, name: "[a 1/2] RUN x".into() },
            Event::Log { step: 2, time, stream: 1, line: "hello".into() },
            Event::Step { step: 3, name: "[b 1/2] RUN y".into() },
            Event::Log { step: 2, time, stream: 1, line: "again".into() },
            Event::End { step: 2, outcome: Outcome::Cached },
            Event::End { step: 3, outcome: Outcome::Error { error: "exit code: 1".into() } },
        ] {
            plain.show(&event).unwrap();
        }
        let expected = "\
#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 120B 1.2s done
#1 DONE 0.0s

#2 [a 1/2] RUN x
#2 1.234 hello
#2 ...

#3 [b 1/2] RUN y
#3 ...

#2 [a 1/2] RUN x
#2 1.234 again
#2 CACHED

#3 [b 1/2] RUN y
#3 ERROR: exit code: 1
";
        assert_eq!(String::from_utf8(plain.out).unwrap(), expected);
    }

    #[test]
    fn amounts_are_in_decimal_units() {
        assert_eq!(part(1_500_000, 3_000_000, Duration::ZERO, false), " 1.50MB / 3.00MB");
        assert_eq!(part(999, 0, Duration::from_secs(2), true), " 999B 2.0s done");
        assert_eq!(part(0, 0, Duration::ZERO, true), " done");
    }
}
