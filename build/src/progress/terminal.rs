//! The form for a terminal: a line for each step that has ended, and below them, rewritten in place, those at work.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::plain::{end, part};
use super::{Event, Outcome, Show};

/// Steps at work that are shown at once.
const MAX_OPEN: usize = 8;
/// Columns of a step's text; a line that wraps could not be rewritten.
const WIDTH: usize = 66;
/// The least time between two drawings.
const PAUSE: Duration = Duration::from_millis(50);

/// Draws events on a terminal.
pub struct Terminal<W> {
    out: W,
    open: BTreeMap<u32, Open>,
    names: BTreeMap<u32, String>,
    drawn: usize,
    last: Option<Instant>,
}

struct Open {
    now: String,
    began: Instant,
}

impl<W: Write> Terminal<W> {
    /// Onto `out`.
    pub fn new(out: W) -> Self {
        Self { out, open: BTreeMap::new(), names: BTreeMap::new(), drawn: 0, last: None }
    }

    /// Removes the lines of the steps at work.
    fn wipe(&mut self) -> io::Result<()> {
        if self.drawn > 0 {
            // Up to the first of them, and clear to the end of the screen.
            write!(self.out, "\x1b[{}A\x1b[J", self.drawn)?;
            self.drawn = 0;
        }
        Ok(())
    }

    fn draw(&mut self) -> io::Result<()> {
        self.wipe()?;
        for (step, open) in self.open.iter().take(MAX_OPEN) {
            let name = self.names.get(step).map_or("", String::as_str);
            let text = if open.now.is_empty() { name.to_owned() } else { format!("{name} | {}", open.now) };
            let time = format!("{:.1}s", open.began.elapsed().as_secs_f64());
            writeln!(self.out, " => {} {time:>7}", fit(&text, WIDTH))?;
            self.drawn += 1;
        }
        self.last = Some(Instant::now());
        self.out.flush()
    }

    fn now(&mut self, step: u32, text: String) {
        self.open.entry(step).or_insert_with(|| Open { now: String::new(), began: Instant::now() }).now =
            text;
    }

    /// Writes a line that stays.
    fn line(&mut self, text: &str) -> io::Result<()> {
        self.wipe()?;
        writeln!(self.out, "{text}")
    }
}

impl<W: Write + Send> Show for Terminal<W> {
    fn show(&mut self, event: &Event) -> io::Result<()> {
        let mut at_once = true;
        match event {
            Event::Step { step, name } => {
                self.names.insert(*step, name.clone());
                self.now(*step, String::new());
            }
            Event::Status { step, id, current, total, time, done } => {
                self.now(*step, format!("{id}{}", part(*current, *total, *time, *done)));
                at_once = false;
            }
            Event::Log { step, line, .. } => {
                self.now(*step, line.clone());
                at_once = false;
            }
            Event::End { step, outcome } => {
                self.open.remove(step);
                let name = self.names.get(step).map_or("", String::as_str);
                let end = match outcome {
                    Outcome::Done { time } => format!("{:.1}s", time.as_secs_f64()),
                    outcome => end(outcome),
                };
                self.line(&format!(" => {} {end:>7}", fit(name, WIDTH)))?;
            }
            Event::Warning { text, .. } => self.line(&format!(" WARN: {text}"))?,
            Event::Note { text, .. } => self.line(&format!(" [{text}]"))?,
        }
        if at_once || self.last.is_none_or(|last| last.elapsed() >= PAUSE) { self.draw() } else { Ok(()) }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.wipe()?;
        self.out.flush()
    }
}

/// Exactly this many characters.
fn fit(text: &str, width: usize) -> String {
    let mut chars = text.chars();
    let mut out: String = chars.by_ref().take(width).collect();
    if chars.next().is_some() {
        out.pop();
        out.push('…');
    }
    format!("{out:width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_steps_stay_and_open_ones_are_rewritten() {
        let mut terminal = Terminal::new(Vec::new());
        terminal.show(&Event::Step { step: 1, name: "RUN a".into() }).unwrap();
        let outcome = Outcome::Done { time: Duration::from_secs(2) };
        terminal.show(&Event::End { step: 1, outcome }).unwrap();
        terminal.finish().unwrap();
        let text = String::from_utf8(terminal.out).unwrap();
        assert!(text.contains("RUN a") && text.contains("\x1b[1A\x1b[J"), "{text:?}");
        assert!(text.ends_with("2.0s\n"), "{text:?}");
    }

    #[test]
    fn lines_never_wrap() {
        assert_eq!(fit("abc", 5), "abc  ");
        assert_eq!(fit("äbcdef", 4), "äbc…");
    }
}
