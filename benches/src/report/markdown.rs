//! The report for people.

use super::{Report, Section};
use crate::figure::{Figure, Ratio};
use crate::machine::Machine;

/// The whole report.
pub fn report(report: &Report) -> String {
    let sections: Vec<String> = report.workloads.iter().map(section).collect();
    format!("# What ckpt costs\n\n{}\n{}", machine(&report.machine), sections.join("\n"))
}

fn machine(machine: &Machine) -> String {
    let facts = [
        ("date", machine.date.clone()),
        ("ckpt", machine.ckpt.clone()),
        ("commit", machine.commit.clone().unwrap_or_else(|| "unknown".to_owned())),
        ("kernel", machine.kernel.clone()),
        ("processor", format!("{}, {} cores", machine.cpu, machine.cores)),
        ("memory", format!("{:.1} GiB", machine.memory_bytes as f64 / f64::from(1 << 30))),
        ("huge pages", machine.huge_pages.clone()),
        ("load average", format!("{:.2} before, {:.2} after", machine.load_before, machine.load_after)),
    ];
    facts.iter().fold("| machine | |\n|---|---|\n".to_owned(), |text, (key, value)| text + &format!("| {key} | {value} |\n"))
}

/// One workload.
pub fn section(section: &Section) -> String {
    let mut text = format!("## {}\n\n{}.\n", section.name, capitalized(section.about));
    if let Some(reason) = &section.skipped {
        text += &format!("\n**Skipped**: {reason}.\n");
        return text;
    }
    for note in &section.notes {
        text += &format!("\nNote: {note}.\n");
    }
    text += "\n| figure | median | min | max | runs |\n|---|---:|---:|---:|---:|\n";
    text.extend(section.figures.iter().map(figure));
    if !section.ratios.is_empty() {
        text += "\n| ratio | of medians | of minima |\n|---|---:|---:|\n";
        text.extend(section.ratios.iter().map(ratio));
    }
    text
}

fn figure(figure: &Figure) -> String {
    let Figure { name, median, min, max, samples, .. } = figure;
    let unit = figure.unit.name();
    format!("| {name} | {median:.1} {unit} | {min:.1} {unit} | {max:.1} {unit} | {} |\n", samples.len())
}

fn ratio(ratio: &Ratio) -> String {
    format!("| {} ÷ {} | {:.2} | {:.2} |\n", ratio.of, ratio.to, ratio.medians, ratio.minima)
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_workload_says_why() {
        let skipped = Some("no memory".to_owned());
        let of = Section { name: "x", about: "about x", skipped, notes: vec![], figures: vec![], ratios: vec![] };
        assert_eq!(section(&of), "## x\n\nAbout x.\n\n**Skipped**: no memory.\n");
    }
}
