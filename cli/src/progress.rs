//! Progress of long work with images: bars on a terminal, plain lines otherwise; always on standard error.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use cloister_image::progress::{LayerProgress, Phase, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output;

/// Shows what happens to each layer.
pub struct Shown {
    bars: Option<MultiProgress>,
    layers: Mutex<HashMap<String, Layer>>,
}

struct Layer {
    bar: Option<ProgressBar>,
    phase: Option<Phase>,
}

impl Shown {
    /// Bars when standard error is a terminal.
    pub fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, layers: Mutex::default() }
    }

    fn bar(&self, state: &LayerProgress<'_>) -> Option<ProgressBar> {
        let bars = self.bars.as_ref()?;
        let style = ProgressStyle::with_template(
            "{prefix} {bar:30} {binary_bytes:>10}/{binary_total_bytes:10} {msg}",
        );
        let bar = bars.add(ProgressBar::new(state.total.unwrap_or(0)));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(state.id.to_owned());
        Some(bar)
    }
}

impl Progress for Shown {
    fn layer(&self, state: &LayerProgress<'_>) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let layer =
            layers.entry(state.id.to_owned()).or_insert_with(|| Layer { bar: self.bar(state), phase: None });
        let words = match state.phase {
            Phase::Waiting => "waiting",
            Phase::Converting => "converting",
            Phase::Exists => "already here",
            Phase::Done => "done",
        };
        if let Some(bar) = &layer.bar {
            if let Some(total) = state.total {
                bar.set_length(total);
            }
            bar.set_position(state.done);
            bar.set_message(words);
            if matches!(state.phase, Phase::Done | Phase::Exists) {
                bar.finish();
            }
        } else if layer.phase != Some(state.phase) {
            let size = state.total.map(|total| format!(" ({})", output::bytes(total))).unwrap_or_default();
            eprintln!("layer {}: {words}{size}", state.id);
        }
        layer.phase = Some(state.phase);
    }

    fn message(&self, line: &str) {
        match &self.bars {
            // A terminal that is gone shows nothing.
            Some(bars) => drop(bars.println(line)),
            None => eprintln!("{line}"),
        }
    }
}
