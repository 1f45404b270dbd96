//! `ckpt check`.

use std::process::ExitCode;

use ckpt::Refusal;
use ckpt::check::{self, Facility};
use ckpt::checkpoint::{self, Options};
use ckpt::ids::Pid;
use serde_json::json;

use super::{Failure, output, parse_pid};

/// Tell what this machine offers to ckpt, or what stands in the way of a checkpoint of a process.
///
/// Without PID: every facility of the kernel that ckpt uses, whether it is there for you, and what is lost without it. With PID: every
/// reason why that process could not be checkpointed, found without touching it; the exit code is 1 if there is one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The process
    #[arg(value_name = "PID", value_parser = parse_pid)]
    pid: Option<Pid>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self.pid {
            None => self.machine(),
            Some(pid) => self.process(pid),
        }
    }

    fn machine(&self) -> Result<ExitCode, Failure> {
        let facilities = check::machine()?;
        if self.json {
            output::print_json(&json!({ "facilities": facilities }))?;
        } else {
            output::print(&show(&facilities))?;
        }
        let broken = facilities.iter().any(|f| f.essential && !f.available);
        Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn process(&self, pid: Pid) -> Result<ExitCode, Failure> {
        let refusals = checkpoint::preflight(pid, &Options::default())?;
        if self.json {
            let refusals: Vec<_> = refusals.iter().map(refusal_json).collect();
            output::print_json(&json!({ "pid": pid, "refusals": refusals }))?;
        } else if refusals.is_empty() {
            output::print(&format!("nothing stands in the way of a checkpoint of pid {pid}\n"))?;
        } else {
            let lines: String = refusals.iter().map(|refusal| output::clean(&refusal.to_string()) + "\n").collect();
            output::print(&lines)?;
        }
        Ok(if refusals.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn refusal_json(refusal: &Refusal) -> serde_json::Value {
    json!({
        "object": refusal.object,
        "reason": refusal.reason,
        "advice": refusal.advice,
        "message": refusal.to_string(),
    })
}

fn show(facilities: &[Facility]) -> String {
    let (there, missing): (Vec<&Facility>, Vec<&Facility>) = facilities.iter().partition(|f| f.available);
    let mut text = "There:\n".to_owned();
    text.push_str(&output::table(&there.iter().map(|f| output::row([&f.name, &f.detail])).collect::<Vec<_>>()));
    if missing.is_empty() {
        text.push_str("\nNothing is missing.\n");
        return text;
    }
    text.push_str("\nMissing:\n");
    for facility in missing {
        let weight = if facility.essential { " (ckpt cannot work without it)" } else { "" };
        text.push_str(&format!("  {}{weight}\n    {}\n    lost: {}\n", facility.name, facility.detail, facility.lost));
    }
    text
}
