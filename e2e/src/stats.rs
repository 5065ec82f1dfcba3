//! Medians and plain tables for benchmark figures.

use serde::Serialize;

/// Several runs of one measurement, in one unit.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// What was measured, for example `import of a 600 MB gzip layer`.
    pub name: String,
    /// The unit of the values: `s`, `MB/s`, `MiB`, `ratio`.
    pub unit: &'static str,
    /// Every run, in the order they were made.
    pub runs: Vec<f64>,
}

impl Series {
    /// A named series without runs yet.
    pub fn new(name: &str, unit: &'static str) -> Series {
        Series { name: name.to_owned(), unit, runs: Vec::new() }
    }

    /// The middle run; of an even number the mean of the two middle ones. `NaN` without runs.
    pub fn median(&self) -> f64 {
        let mut sorted = self.runs.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    /// The smallest run.
    pub fn min(&self) -> f64 {
        self.runs.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The largest run.
    pub fn max(&self) -> f64 {
        self.runs.iter().copied().fold(f64::NAN, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::Series;

    #[test]
    fn median_of_even_and_odd_counts() {
        let mut series = Series::new("x", "s");
        series.runs = vec![3.0, 1.0, 2.0];
        assert_eq!(series.median(), 2.0);
        series.runs.push(10.0);
        assert_eq!(series.median(), 2.5);
        assert_eq!((series.min(), series.max()), (1.0, 10.0));
    }
}
