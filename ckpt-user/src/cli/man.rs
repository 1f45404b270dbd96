//! `ckpt man`.

use std::process::ExitCode;

use clap::CommandFactory;

use super::{Failure, output};

/// Print a page of the manual, for `man -l -`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The page of this subcommand, instead of the one of ckpt
    #[arg(value_name = "SUBCOMMAND")]
    subcommand: Option<String>,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let mut root = super::Args::command();
        // Fills in what the subcommands inherit, and their full names.
        root.build();
        let command = match &self.subcommand {
            None => root,
            Some(name) => {
                let found = root.find_subcommand(name).cloned();
                found.ok_or_else(|| Failure::Usage(format!("ckpt has no subcommand '{name}'")))?
            }
        };
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        output::print(&String::from_utf8_lossy(&page))?;
        Ok(ExitCode::SUCCESS)
    }
}
