//! The cuts of a watch, many of them: their pauses, and what these are made of.

use std::time::Duration;

use ckpt_tests::watched::number;
use serde_json::Value;

use crate::figure::Figures;

/// What a watch has told, without its first checkpoint: that one holds the moment in which the tracker began.
#[derive(Debug)]
pub struct Cuts(Vec<Value>);

impl Cuts {
    /// Of everything that it has told, in the order of the pauses.
    pub fn of(told: Vec<Value>) -> Cuts {
        let mut cuts: Vec<Value> = told.into_iter().skip(1).collect();
        cuts.sort_by_key(pause_us);
        Cuts(cuts)
    }

    /// Adds all pauses.
    pub fn add_pauses(&self, name: &str, figures: &mut Figures) {
        self.0.iter().for_each(|cut| figures.time(name, Duration::from_micros(pause_us(cut))));
    }

    /// One sentence on them, for a note.
    pub fn describe(&self, name: &str) -> String {
        let copied_frozen = self.0.iter().filter(|cut| cut["live_fallback"].is_string()).count();
        let again = if copied_frozen > 0 { format!("; {copied_frozen} of them were tried live in vain") } else { String::new() };
        let at = |of_100| self.at(of_100).map_or(0, pause_us);
        let count = self.0.len();
        format!("{name}: {count} cuts, p50 {} us, p99 {} us, longest {} us{again}", at(50), at(99), at(100))
    }

    /// The share of the process that is written between two cuts, in most of them: percent.
    pub fn percent_written(&self) -> f64 {
        let mut shares: Vec<f64> = self.0.iter().map(share_written).collect();
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len() / 2).copied().unwrap_or_default()
    }

    /// What the pause of the cut in the middle is made of, the largest first, for a note.
    pub fn phases(&self) -> String {
        let Some(phases) = self.at(50).and_then(|cut| cut["phases"].as_object()) else { return String::new() };
        let mut parts: Vec<(&str, u64)> =
            phases.iter().map(|(key, us)| (key.trim_end_matches("_us"), us.as_u64().unwrap_or_default())).collect();
        parts.retain(|(_, us)| *us > 0);
        parts.sort_by_key(|(_, us)| std::cmp::Reverse(*us));
        parts.iter().map(|(key, us)| format!("{key} {us} us")).collect::<Vec<_>>().join(", ")
    }

    /// The one than which so many of 100 are not longer.
    fn at(&self, of_100: usize) -> Option<&Value> {
        self.0.get((self.0.len() * of_100 / 100).min(self.0.len().saturating_sub(1)))
    }
}

fn pause_us(cut: &Value) -> u64 {
    number(cut, "pause_us")
}

fn share_written(cut: &Value) -> f64 {
    100.0 * number(cut, "pages_written") as f64 / number(cut, "pages_total").max(1) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_one_does_not_count() {
        let cut = |us: u64| json!({"pause_us": us, "live_fallback": null, "pages_written": us, "pages_total": 1000, "phases": {"scan_us": us, "copy_us": 0, "thaw_us": us + 1}});
        let cuts = Cuts::of([5000, 30, 10, 20].into_iter().map(cut).collect());
        assert_eq!(cuts.describe("x"), "x: 3 cuts, p50 20 us, p99 30 us, longest 30 us");
        assert_eq!(cuts.phases(), "thaw 21 us, scan 20 us");
        assert_eq!(cuts.percent_written(), 2.0);
    }

    #[test]
    fn none() {
        let cuts = Cuts::of(Vec::new());
        assert_eq!((cuts.phases(), cuts.percent_written()), (String::new(), 0.0));
    }
}
