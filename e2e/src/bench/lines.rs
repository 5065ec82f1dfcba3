//! Values over time, as SVG files that documents show.

use std::fmt::Write;

use super::plot::escape;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 250.0;
/// Where the axes are.
const LEFT: f64 = 62.0;
const RIGHT: f64 = WIDTH - 190.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = HEIGHT - 34.0;
/// One after the other for lines; those beyond begin again.
const COLOURS: [&str; 8] =
    ["#2563a8", "#c2620a", "#3f7f3a", "#9b2f63", "#6a55a3", "#5f6b76", "#0f7f86", "#8a6d1d"];

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Seconds since the beginning, and values.
    pub points: Vec<(f64, f64)>,
}

/// Lines of one unit over `seconds`, on one scale from zero. A line is broken where a point is missing for longer than `gap` seconds.
pub fn lines(title: &str, unit: &str, seconds: f64, gap: f64, lines: &[Line]) -> String {
    let values = lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
    let (top, tick) = scale(values.fold(0.0, f64::max), 4.0);
    let (_, pace) = scale(seconds, 6.0);
    let x = |time: f64| LEFT + time / seconds * (RIGHT - LEFT);
    let y = |value: f64| BOTTOM - value / top * (BOTTOM - TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    for value in steps(top, tick) {
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{0}</text>",
            number(value),
            y(value),
            LEFT - 6.0,
            y(value) + 4.0
        );
    }
    for time in steps(seconds, pace) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{} s</text>",
            x(time),
            BOTTOM + 18.0,
            number(time)
        );
    }
    let _ =
        writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" text-anchor=\"end\">{}</text>", TOP - 9.0, escape(unit));
    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut path = String::new();
        let mut last = f64::NEG_INFINITY;
        for (time, value) in &line.points {
            let command = if time - last > gap { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x(*time), y(*value));
            last = *time;
        }
        let at = TOP + 4.0 + 18.0 * index as f64;
        let (from, to, text) = (RIGHT + 12.0, RIGHT + 28.0, RIGHT + 34.0);
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" stroke-linejoin=\"round\"/>\
             <line x1=\"{from}\" x2=\"{to}\" y1=\"{at}\" y2=\"{at}\" stroke=\"{colour}\" stroke-width=\"3\"/>\
             <text x=\"{text}\" y=\"{}\">{}</text>",
            at + 4.0,
            escape(&line.name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The end of an axis that reaches `most`, and the distance of its marks: about `count` of them, 1, 2 or 5 of a power of ten.
fn scale(most: f64, count: f64) -> (f64, f64) {
    let most = if most > 0.0 { most } else { 1.0 };
    let rough = most / count;
    let power = 10f64.powf(rough.log10().floor());
    let tick = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|tick| *tick >= rough * 0.999);
    let tick = tick.unwrap_or(power * 10.0);
    ((most / tick - 1e-9).ceil() * tick, tick)
}

/// 0 and every further mark up to `end`.
fn steps(end: f64, tick: f64) -> impl Iterator<Item = f64> {
    (0..).map(move |n| f64::from(n) * tick).take_while(move |value| *value <= end * 1.000_001)
}

fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!(scale(0.0, 4.0), (1.0, 0.5));
        assert_eq!(scale(3.0, 4.0), (3.0, 1.0));
        assert_eq!(scale(41.0, 4.0), (60.0, 20.0));
        assert_eq!(scale(175.0, 6.0), (200.0, 50.0));
        assert_eq!([0.5, 20.0, 0.0].map(number), ["0.5", "20", "0"]);
        assert_eq!(steps(1.0, 0.5).collect::<Vec<_>>(), [0.0, 0.5, 1.0]);
    }

    #[test]
    fn a_line_is_broken_where_points_are_missing() {
        let line = Line { name: "a < b".to_owned(), points: vec![(0.0, 1.0), (1.0, 2.0), (9.0, 2.0)] };
        let svg = lines("Things", "MiB", 10.0, 3.0, &[line]);
        let path = svg.split("<path d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches(['M', 'L']).collect::<String>(), "MLM", "{path}");
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"), "{svg}");
    }
}
