//! The command that the virtual machine runs.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::{self, cargo};

/// The tests of soft-dirty bits.
const TESTS: &str = "soft_dirty";

/// Words, and which of them are files of this machine that the other must have.
#[derive(Debug)]
pub struct CommandLine {
    words: Vec<String>,
    files: Vec<PathBuf>,
}

impl CommandLine {
    /// Whatever names a file, from the folder `here`, is meant to be there, too: at the same place.
    pub fn new(words: &[String], here: &Path) -> CommandLine {
        let mut files = Vec::new();
        let mut word = |word: &String| {
            let path = here.join(word);
            // A bare name is a program that it has.
            if !word.contains('/') || !path.is_file() {
                return word.clone();
            }
            files.push(path.clone());
            path.to_string_lossy().into_owned()
        };
        let words = words.iter().map(&mut word).collect();
        CommandLine { words, files }
    }

    /// These files.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter()
    }

    /// As a shell understands it.
    pub fn script(&self) -> String {
        let quoted = self.words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
        format!("exec {}\n", quoted.collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join(" "))
    }
}

/// All tests of soft-dirty bits, built now: one at a time, as the machine is slow.
pub fn of_all_tests() -> Result<Vec<String>> {
    let mut build = cargo();
    build.args(["test", "--release", "--package", "ckpt-tests", "--test", TESTS, "--no-run", "--message-format", "json"]);
    let line = command::line(&build);
    let output = build.stderr(std::process::Stdio::inherit()).output().with_context(|| format!("cannot run `{line}`"))?;
    ensure!(output.status.success(), "`{line}` failed ({})", output.status);
    let program = executable(&String::from_utf8_lossy(&output.stdout)).with_context(|| format!("`{line}` names no program"))?;
    Ok([&program, "--test-threads", "1"].map(str::to_owned).to_vec())
}

/// The program of the tests among those that cargo says it has built: `"executable":"/path/deps/soft_dirty-0123456789abcdef"`.
fn executable(messages: &str) -> Option<String> {
    let paths = messages.split(r#""executable":""#).skip(1).filter_map(|rest| rest.split_once('"'));
    let of_tests = |path: &&str| path.rsplit_once('/').is_some_and(|(_, name)| name.starts_with(&format!("{TESTS}-")));
    paths.map(|(path, _)| path).find(of_tests).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_taken_along_and_words_arrive_as_they_are() {
        let words = ["./src/main.rs", "main.rs", "--name=it's", "/nonexistent/file", "a b"].map(str::to_owned);
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let command = CommandLine::new(&words, here);
        let main = here.join("./src/main.rs");
        assert_eq!(command.files().collect::<Vec<_>>(), [&main]);
        let script = format!("exec '{}' 'main.rs' '--name=it'\\''s' '/nonexistent/file' 'a b'\n", main.display());
        assert_eq!(command.script(), script);
    }

    #[test]
    fn the_program_is_found_in_what_cargo_says() {
        let said = "{\"executable\":null,\"name\":\"a\"}\n{\"executable\":\"/t/lapper\"}\n{\"executable\":\"/t/deps/soft_dirty-1f\",\"fresh\":true}\n{\"executable\":\"/t/lapper\"}\n{\"reason\":\"build-finished\"}\n";
        assert_eq!(executable(said).as_deref(), Some("/t/deps/soft_dirty-1f"));
        assert_eq!(executable("{\"executable\":null}\n{\"executable\":\"/t/lapper\"}"), None);
    }
}
