//! Prometheus' text format from a source that is not trusted, summed over many such sources.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

/// Most series kept over all pods.
const MAX_SERIES: usize = 20_000;
/// Most bytes of one series' name and labels.
const MAX_NAME: usize = 512;
/// Most bytes of a family's explanation.
const MAX_HELP: usize = 256;
/// Labels that tell pods apart.
const POD_LABELS: [&str; 6] = ["namespace", "pod", "pod_id", "pod_uid", "sandbox", "container"];

/// Series summed so far.
#[derive(Debug, Default, Clone)]
pub struct Sum {
    /// By family.
    families: BTreeMap<String, Family>,
    series: usize,
}

#[derive(Debug, Default, Clone)]
struct Family {
    kind: &'static str,
    help: String,
    /// Full name with labels, and value, in the order in which they came: a histogram's buckets stay sorted.
    series: Vec<(String, f64)>,
    /// Where a series is.
    places: HashMap<String, usize>,
}

impl Sum {
    /// Adds one pod's page. With `pod`, its series stay apart under the labels given there (`a="b",c="d"`); else labels that
    /// tell pods apart are dropped. Lines that are none of ours or malformed are left out.
    pub fn add(&mut self, page: &str, pod: Option<&str>) {
        let mut kinds: BTreeMap<&str, &'static str> = BTreeMap::new();
        let mut helps: BTreeMap<&str, &str> = BTreeMap::new();
        for line in page.lines().filter(|line| line.len() <= 2 * MAX_NAME) {
            if let Some(comment) = line.strip_prefix("# TYPE ") {
                if let Some((name, kind)) = comment.split_once(' ')
                    && let Some(kind) =
                        ["counter", "gauge", "histogram"].iter().find(|known| **known == kind.trim())
                {
                    kinds.insert(name, kind);
                }
            } else if let Some(comment) = line.strip_prefix("# HELP ") {
                helps.extend(comment.split_once(' ').filter(|(_, help)| is_help(help)));
            } else if let Some((name, labels, value)) = parse(line) {
                self.put(&kinds, &helps, name, &labels, value, pod);
            }
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Self) {
        for (name, family) in &other.families {
            for (series, value) in &family.series {
                self.grow(name, family.kind, &family.help, series, *value);
            }
        }
    }

    /// What outlives a pod, and what is true at one moment only: counters, and gauges that stay at zero; gauges as they are.
    pub fn split(mut self) -> (Self, Self) {
        let mut gauges = Self::default();
        for (name, family) in self.families.iter_mut().filter(|(_, family)| family.kind == "gauge") {
            gauges.series += family.series.len();
            gauges.families.insert(name.clone(), family.clone());
            family.series.iter_mut().for_each(|(_, value)| *value = 0.0);
        }
        (self, gauges)
    }

    fn put(
        &mut self,
        kinds: &BTreeMap<&str, &'static str>,
        helps: &BTreeMap<&str, &str>,
        name: &str,
        labels: &[(&str, &str)],
        value: f64,
        pod: Option<&str>,
    ) {
        // The daemon's own names are not for pods.
        if !name.starts_with("cloister_") || name.starts_with("cloister_node_") {
            return;
        }
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end).filter(|base| kinds.get(base) == Some(&"histogram")))
            .unwrap_or(name);
        // What has no known type, or quantiles, cannot be summed.
        let Some(kind) = kinds.get(base).copied() else { return };
        let mut key = name.to_owned();
        let mut kept: Vec<String> = labels
            .iter()
            .filter(|(label, _)| !POD_LABELS.contains(label))
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        kept.extend(pod.map(str::to_owned));
        if !kept.is_empty() {
            let _ = write!(key, "{{{}}}", kept.join(","));
        }
        if key.len() > MAX_NAME {
            return;
        }
        self.grow(base, kind, helps.get(base).copied().unwrap_or_default(), &key, value);
    }

    fn grow(&mut self, name: &str, kind: &'static str, help: &str, key: &str, value: f64) {
        if !self.families.contains_key(name) {
            let family = Family { kind, help: help.to_owned(), ..Family::default() };
            self.families.insert(name.to_owned(), family);
        }
        let Some(family) = self.families.get_mut(name).filter(|family| family.kind == kind) else { return };
        if let Some((_, sum)) = family.places.get(key).and_then(|place| family.series.get_mut(*place)) {
            *sum += value;
        } else if self.series < MAX_SERIES {
            self.series += 1;
            family.places.insert(key.to_owned(), family.series.len());
            family.series.push((key.to_owned(), value));
        }
    }

    /// The sums as a page.
    pub fn page(&self) -> String {
        let mut page = String::new();
        for (name, family) in self.families.iter().filter(|(_, family)| !family.series.is_empty()) {
            if !family.help.is_empty() {
                let _ = writeln!(page, "# HELP {name} {}", family.help);
            }
            let _ = writeln!(page, "# TYPE {name} {}", family.kind);
            for (series, value) in &family.series {
                let _ = writeln!(page, "{series} {value}");
            }
        }
        page
    }
}

/// Whether an explanation is short, printable and escaped.
fn is_help(help: &str) -> bool {
    help.len() <= MAX_HELP && !help.contains(|c: char| c.is_control() || c == '\\')
}

/// Name, labels with their values still escaped, value.
type Sample<'l> = (&'l str, Vec<(&'l str, &'l str)>, f64);

/// Reads one line; `None` for anything unusual.
fn parse(line: &str) -> Option<Sample<'_>> {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))?;
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() {
        return None;
    }
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            if label.is_empty() || !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return None;
            }
            let close = closing_quote(after)?;
            labels.push((label, &after[..close]));
            rest = &after[close + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = &rest[1..];
    }
    let mut words = rest.split_ascii_whitespace();
    let value: f64 = words.next()?.parse().ok()?;
    // At most a time stamp may follow.
    let tail = words.next().is_none_or(|time| time.parse::<i64>().is_ok()) && words.next().is_none();
    (value.is_finite() && tail).then_some((name, labels, value))
}

/// Where the quote that is not escaped is; control characters end the search.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if byte.is_ascii_control() => return None,
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP cloister_x text\n# TYPE cloister_x counter\ncloister_x{pod=\"a\",op=\"read\"} 2\n\
        # TYPE cloister_h histogram\ncloister_h_bucket{le=\"1\"} 1\ncloister_h_bucket{le=\"+Inf\"} 2\ncloister_h_sum 1.5\ncloister_h_count 2\n\
        # TYPE cloister_q summary\ncloister_q{quantile=\"0.5\"} 1\ncloister_untyped 1\n";

    #[test]
    fn pods_are_summed_without_their_names() {
        let mut sum = Sum::default();
        sum.add(PAGE, None);
        sum.add(&PAGE.replace("\"a\"", "\"b\""), None);
        assert_eq!(
            sum.page(),
            "# TYPE cloister_h histogram\ncloister_h_bucket{le=\"1\"} 2\ncloister_h_bucket{le=\"+Inf\"} 4\ncloister_h_sum 3\n\
             cloister_h_count 4\n# HELP cloister_x text\n# TYPE cloister_x counter\ncloister_x{op=\"read\"} 4\n"
        );
    }

    #[test]
    fn sums_are_split_and_merged() {
        let mut sum = Sum::default();
        sum.add(&format!("{PAGE}# TYPE cloister_g gauge\ncloister_g 5\n"), None);
        let (counters, gauges) = sum.clone().split();
        assert_eq!(gauges.page(), "# TYPE cloister_g gauge\ncloister_g 5\n");
        sum.merge(&counters);
        assert!(sum.page().contains("cloister_g 5\n") && sum.page().contains("cloister_h_sum 3\n"));
    }

    #[test]
    fn pods_stay_apart_when_asked() {
        let mut sum = Sum::default();
        sum.add(PAGE, Some("namespace=\"n\",pod_id=\"1\""));
        sum.add(PAGE, Some("namespace=\"n\",pod_id=\"2\""));
        assert!(
            sum.page().contains("cloister_x{op=\"read\",namespace=\"n\",pod_id=\"2\"} 2\n"),
            "{}",
            sum.page()
        );
    }

    #[test]
    fn what_is_malformed_or_not_ours_is_left_out() {
        let mut sum = Sum::default();
        for line in [
            "",
            "{",
            "x",
            "up 1",
            "cloister_node_x 1",
            "cloister_x{ 1",
            "cloister_x{a=\"b} 1",
            "cloister_x{a=b} 1",
            "cloister_x NaN",
            "cloister_x inf",
            "cloister_x 1 2 3",
            "cloister_x{a=\"\\\"} 1",
            "cloister_x{a=\"\u{1}\"} 1",
            "cloister_x{a\n=\"b\"} 1",
            "cloister_x{=\"\"} 1",
        ] {
            sum.add(
                &format!(
                    "# TYPE cloister_x counter\n# TYPE cloister_node_x counter\n# TYPE up gauge\n{line}\n"
                ),
                None,
            );
        }
        sum.add(&format!("# TYPE cloister_x counter\ncloister_x{{a=\"{}\"}} 1\n", "x".repeat(5000)), None);
        assert_eq!(sum.page(), "");
        // A pod cannot change the type others gave.
        sum.add("# TYPE cloister_x counter\ncloister_x 1\n", None);
        sum.add("# TYPE cloister_x gauge\ncloister_x 5\n", None);
        assert_eq!(sum.page(), "# TYPE cloister_x counter\ncloister_x 1\n");
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let mut sum = Sum::default();
        let mut page = String::from("# TYPE cloister_x gauge\n");
        for i in 0..MAX_SERIES + 100 {
            let _ = writeln!(page, "cloister_x{{i=\"{i}\"}} 1");
        }
        sum.add(&page, None);
        assert_eq!(sum.page().lines().count(), MAX_SERIES + 1);
    }
}
