//! A build's progress: what buildkitd reports, bounded and cleaned, as events, and three ways to show them.
//!
//! buildkitd reports changes of steps ("vertexes"), of their parts ("statuses"), output and warnings, each of them any
//! number of times and in any order. [`Tracker`] makes [`Event`]s of that; [`Plain`], [`Json`] and [`Terminal`] show events.

mod event;
mod json;
mod lines;
mod plain;
mod terminal;
mod text;
mod time;
mod tracker;

use std::io::{self, IsTerminal, Write};

pub use event::{Event, Outcome};
pub use json::Json;
pub use plain::Plain;
pub use terminal::Terminal;
pub(crate) use text::printable;
pub use tracker::{FailedStep, Tracker};

/// How to show progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// The terminal's form on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// Lines as `docker build --progress=plain` writes them.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Something that shows events.
pub trait Show: Send {
    /// Shows one event.
    fn show(&mut self, event: &Event) -> io::Result<()>;

    /// Nothing more comes.
    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What shows events on `out` in this style.
pub fn show<W: Write + IsTerminal + Send + 'static>(style: Style, out: W) -> Box<dyn Show> {
    match style {
        Style::Json => Box::new(Json::new(out)),
        Style::Auto if out.is_terminal() => Box::new(Terminal::new(out)),
        Style::Auto | Style::Plain => Box::new(Plain::new(out)),
    }
}
