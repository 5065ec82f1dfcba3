//! Bar charts of a report, as SVG files that documents show.

use std::fmt::Write;

use crate::stats::Series;

const WIDTH: f64 = 760.0;
const ROW: f64 = 30.0;
const LABEL: f64 = 360.0;

/// One horizontal bar per series, all of one unit, on one scale from zero.
pub fn bars(title: &str, series: &[&Series]) -> String {
    let height = 50.0 + ROW * series.len() as f64;
    let top = series.iter().map(|s| s.max()).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let scale = (WIDTH - LABEL - 110.0) / top;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    for (index, one) in series.iter().enumerate() {
        let y = 40.0 + ROW * index as f64;
        let ours = one.name.contains("cloister");
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABEL}\" y=\"{:.0}\" width=\"{:.1}\" height=\"18\" fill=\"{}\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.0}\" y2=\"{8:.0}\" stroke=\"#333\"/>\
             <text x=\"{:.1}\" y=\"{:.0}\">{:.3} {}</text>",
            LABEL - 8.0,
            y + 14.0,
            escape(&one.name),
            y,
            one.median() * scale,
            if ours { "#2563a8" } else { "#b8c0c8" },
            LABEL + one.min() * scale,
            LABEL + one.max() * scale,
            y + 9.0,
            LABEL + one.max() * scale + 6.0,
            y + 14.0,
            one.median(),
            one.unit
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// As text of an SVG.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
