//! What is counted, and how it is shown.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

/// Of one mode.
#[derive(Debug, Default)]
pub struct Tally {
    /// Checkpoints that were made.
    pub cuts: u64,
    /// Of these, those whose pages were copied while the job ran.
    pub live: u64,
    /// Of these, those that hold a page which was saved before it was written.
    pub preserving: u64,
    /// Pages that were saved so.
    pub preserved: u64,
    /// Of those that were live, those whose scan in the pause has passed over the most of the memory.
    pub unscanned: u64,
    /// Cuts for which that was tried in vain.
    pub unseen: u64,
    /// Those that were taken again with the job stopped, by reason.
    pub void: BTreeMap<String, u64>,
    /// Reasons for which others were not made.
    pub refused: BTreeMap<String, u64>,
    /// Restarts, after each of which all pages were verified.
    pub restarts: u64,
    /// Pages that were verified.
    pub pages: u64,
    /// The image that was restarted last.
    pub last: PathBuf,
}

impl Tally {
    /// Counts what ckpt says of a checkpoint.
    pub fn count(&mut self, checkpoint: &Value) {
        self.cuts += 1;
        self.unseen += u64::from(checkpoint["scan_fallback"].is_string());
        if let Some(why) = checkpoint["live_fallback"].as_str() {
            *self.void.entry(without_numbers(why)).or_default() += 1;
        } else if checkpoint["tracker"] == "live" {
            self.live += 1;
            let preserved = checkpoint["pages_preserved"].as_u64().unwrap_or(0);
            self.preserving += u64::from(preserved > 0);
            self.preserved += preserved;
            self.unscanned += u64::from(checkpoint["pages_unscanned"].as_u64().unwrap_or(0) > 0);
        }
    }

    /// Counts what ckpt says of one that was not made. It may have several reasons.
    pub fn refuse(&mut self, why: &str) {
        for line in why.lines() {
            let (_, reason) = line.split_once(": cannot ").unwrap_or(("", line));
            *self.refused.entry(without_numbers(reason)).or_default() += 1;
        }
    }
}

/// One mode.
#[derive(Debug)]
pub struct Row {
    pub mode: String,
    pub words: String,
    pub seconds: f64,
    pub tally: Tally,
    /// Where what failed is to be seen.
    pub failure: Option<PathBuf>,
}

/// Numbers make no reason another one.
fn without_numbers(why: &str) -> String {
    let words = why.split(' ').map(|word| if word.contains(|c: char| c.is_ascii_digit()) { "N" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

fn sum(reasons: &BTreeMap<String, u64>) -> u64 {
    reasons.values().sum()
}

/// In Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| mode | seconds | cuts | live | with pages saved before a write | by the log (not all was in it) | void | refused | restarts | pages verified | |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut reasons: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for row in rows {
        let t = &row.tally;
        let verdict = if row.failure.is_some() { "**wrong**" } else { "right" };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {:.0} | {} | {} | {} ({} pages) | {} ({}) | {} | {} | {} | {} | {verdict} |",
            row.mode,
            row.seconds,
            t.cuts,
            t.live,
            t.preserving,
            t.preserved,
            t.unscanned,
            t.unseen,
            sum(&t.void),
            sum(&t.refused),
            t.restarts,
            t.pages
        );
        for (kind, all) in [("void", &t.void), ("refused", &t.refused)] {
            all.iter().for_each(|(why, count)| *reasons.entry((kind, why)).or_default() += count);
        }
    }
    for ((kind, why), count) in reasons {
        let _ = writeln!(text, "- {count} {kind}: {why}");
    }
    text
}

/// The same for programs.
pub fn json(rows: &[Row], seed: u64) -> Value {
    let rows = rows.iter().map(|row| {
        let t = &row.tally;
        json!({
            "mode": row.mode, "words": row.words, "seconds": row.seconds, "cuts": t.cuts, "live": t.live, "preserving": t.preserving,
            "pages_preserved": t.preserved, "by_log": t.unscanned, "not_all_in_log": t.unseen, "void": t.void, "refused": t.refused, "restarts": t.restarts, "pages_verified": t.pages,
            "failure": row.failure,
        })
    });
    json!({ "seed": seed, "modes": rows.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_differ_by_numbers_are_one() {
        let mut tally = Tally::default();
        for page in ["0x1000", "0x2000"] {
            tally.count(&json!({ "live_fallback": format!("the page at {page} was written") }));
        }
        assert_eq!(tally.void, BTreeMap::from([("the page at N was written".to_owned(), 2)]));
        assert_eq!((tally.cuts, tally.live), (2, 0));
    }
}
