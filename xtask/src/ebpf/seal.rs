//! The seal of the committed object: hashes of what it was made from and of itself, in a file beside it. It finds the sources that
//! were changed without a new build, and the object that was committed without its seal or the other way around.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

const NAME: &str = "SOURCES.xxh3";

/// XXH3 with 128 bits, of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// What the object is made from (see `sources`).
    pub sources: u128,
    /// The object.
    pub object: u128,
}

impl Seal {
    /// Writes it to its file in the folder of the object.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let file = folder.join(NAME);
        fs::write(&file, self.to_text()).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Reads it from there.
    pub fn read(folder: &Path) -> Result<Seal> {
        let file = folder.join(NAME);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Seal::from_text(&text).with_context(|| format!("{} is damaged", file.display()))
    }

    /// What is not as it was when this was written, if anything.
    pub fn differs(&self, now: &Seal) -> Option<String> {
        if self.sources != now.sources {
            Some(format!("its sources have changed (they hash to {:032x}, at its build to {:032x})", now.sources, self.sources))
        } else if self.object != now.object {
            Some("it is not the object that was built from them".to_owned())
        } else {
            None
        }
    }

    fn to_text(self) -> String {
        format!("sources {:032x}\nobject {:032x}\n", self.sources, self.object)
    }

    fn from_text(text: &str) -> Result<Seal> {
        Ok(Seal { sources: field(text, "sources")?, object: field(text, "object")? })
    }
}

fn field(text: &str, name: &str) -> Result<u128> {
    for line in text.lines() {
        if let Some((key, value)) = line.split_once(' ')
            && key == name
        {
            return u128::from_str_radix(value.trim(), 16).with_context(|| format!("{value:?} is no hash"));
        }
    }
    bail!("it has no line that starts with `{name}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEAL: Seal = Seal { sources: 0x00ab << 100, object: 7 };

    #[test]
    fn text_comes_back() {
        assert_eq!(Seal::from_text(&SEAL.to_text()).unwrap(), SEAL);
    }

    #[test]
    fn damage_is_told() {
        for (text, message) in [
            ("", "no line that starts with `sources`"),
            ("sources 1\n", "no line that starts with `object`"),
            ("sources 1\nobject xyz\n", "\"xyz\" is no hash"),
            ("sources 1\nobject\n", "no line that starts with `object`"),
        ] {
            let error = Seal::from_text(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_change_of_either_side_is_found() {
        assert_eq!(SEAL.differs(&SEAL), None);
        assert!(SEAL.differs(&Seal { sources: 1, ..SEAL }).unwrap().contains("sources have changed"));
        assert!(SEAL.differs(&Seal { object: 1, ..SEAL }).unwrap().contains("not the object"));
    }
}
