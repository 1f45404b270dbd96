//! The report: gathered here, written as Markdown for people and as JSON for programs.

mod markdown;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::figure::{Figure, Ratio};
use crate::machine::Machine;
use crate::workloads::{Outcome, Workload};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// On what.
    pub machine: Machine,
    /// What.
    pub workloads: Vec<Section>,
}

/// A workload in the report.
#[derive(Debug, Serialize)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// Why it was not run.
    pub skipped: Option<String>,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// What that is in proportion.
    pub ratios: Vec<Ratio>,
}

impl Report {
    /// Adds what became of a workload, and says so.
    pub fn add(&mut self, workload: &Workload, outcome: Outcome) {
        let Workload { name, about, .. } = workload;
        let section = match outcome {
            Outcome::Measured { notes, figures, ratios } => Section { name, about, skipped: None, notes, figures, ratios },
            Outcome::Skipped(reason) => {
                let (notes, figures, ratios) = (Vec::new(), Vec::new(), Vec::new());
                Section { name, about, skipped: Some(reason), notes, figures, ratios }
            }
        };
        eprintln!("{}", markdown::section(&section));
        self.workloads.push(section);
    }

    /// Writes `report.md` and `report.json` into the folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("cannot write the report as JSON")? + "\n";
        for (name, text) in [("report.md", markdown::report(self)), ("report.json", json)] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
