//! What was measured: samples of a quantity, and ratios between quantities.

use std::time::Duration;

use serde::Serialize;

/// What samples count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Nanoseconds.
    Ns,
    /// Mebibytes.
    MiB,
    /// Steps of a job in a second.
    #[serde(rename = "steps/s")]
    Steps,
    /// Requests that a server answers in a second.
    #[serde(rename = "requests/s")]
    Requests,
    /// Checkpoints in a second.
    #[serde(rename = "cuts/s")]
    Cuts,
}

impl Unit {
    /// As it stands behind a number.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Ms => "ms",
            Unit::Ns => "ns",
            Unit::MiB => "MiB",
            Unit::Steps => "steps/s",
            Unit::Requests => "requests/s",
            Unit::Cuts => "cuts/s",
        }
    }
}

/// One quantity, measured several times.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// Of the numbers below.
    pub unit: Unit,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// In the order in which they were taken.
    pub samples: Vec<f64>,
}

/// How many times one figure is another.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// The name of the figure.
    pub of: String,
    /// The name of the one it is divided by.
    pub to: String,
    /// Median by median.
    pub medians: f64,
    /// Least by least: what is left where other work on the machine disturbs least.
    pub minima: f64,
}

/// Figures as they come in, in the order of their first samples.
#[derive(Debug, Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// A sample of a time.
    pub fn time(&mut self, name: &str, time: Duration) {
        self.add(name, Unit::Ms, time.as_secs_f64() * 1e3);
    }

    /// A sample of a very short time.
    pub fn moment(&mut self, name: &str, time: Duration) {
        self.add(name, Unit::Ns, time.as_nanos() as f64);
    }

    /// A sample of a size.
    pub fn bytes(&mut self, name: &str, bytes: u64) {
        self.add(name, Unit::MiB, bytes as f64 / f64::from(1 << 20));
    }

    /// A sample of how much is done in a second: `unit` says of what.
    pub fn rate(&mut self, name: &str, unit: Unit, rate: f64) {
        self.add(name, unit, rate);
    }

    fn add(&mut self, name: &str, unit: Unit, sample: f64) {
        let at = self.0.iter().position(|figure| figure.name == name).unwrap_or_else(|| {
            self.0.push(Figure { name: name.to_owned(), unit, median: 0.0, min: 0.0, max: 0.0, samples: Vec::new() });
            self.0.len() - 1
        });
        self.0[at].take(sample);
    }

    /// The ratio of two figures. `None` unless both were measured, and the second is not 0.
    pub fn ratio(&self, of: &str, to: &str) -> Option<Ratio> {
        let find = |name: &str| self.0.iter().find(|figure| figure.name == name);
        let (a, b) = (find(of)?, find(to).filter(|b| b.min > 0.0)?);
        Some(Ratio { of: of.to_owned(), to: to.to_owned(), medians: a.median / b.median, minima: a.min / b.min })
    }

    /// All of them.
    pub fn into_vec(self) -> Vec<Figure> {
        self.0
    }
}

impl Figure {
    fn take(&mut self, sample: f64) {
        self.samples.push(sample);
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        self.median = f64::midpoint(low, high);
        (self.min, self.max) = (sorted[0], sorted[sorted.len() - 1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let mut figures = Figures::default();
        for ms in [30, 10, 20] {
            figures.time("a", Duration::from_millis(ms));
        }
        for ms in [4, 6] {
            figures.time("b", Duration::from_millis(ms));
        }
        let ratio = figures.ratio("a", "b").unwrap();
        assert_eq!((ratio.medians, ratio.minima), (4.0, 2.5));
        assert!(figures.ratio("a", "c").is_none());
        let figures = figures.into_vec();
        assert_eq!((figures[0].median, figures[0].min, figures[0].max), (20.0, 10.0, 30.0));
        assert_eq!(figures[1].median, 5.0);
    }
}
