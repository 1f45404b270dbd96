//! What the eBPF object is made from, as one hash: the files of its package, and the exact versions of the packages that it is built with.
//!
//! The compiler is not part of it: any that builds the sources will do, and CI tests the object that its own compiler makes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::PACKAGE;
use crate::command::root;

/// The packages that the programs use; the lock file tells which versions, and what those depend on in turn.
const DEPENDENCIES: &[&str] = &["aya-ebpf", "aya-log-ebpf", "bytemuck"];

/// The hash of the sources as they are now.
pub fn hash() -> Result<u128> {
    let package = root().join(PACKAGE);
    let mut files = BTreeMap::new();
    for name in ["Cargo.toml", "src"] {
        collect(&package, Path::new(name), &mut files)?;
    }
    let lock_file = root().join("Cargo.lock");
    let lock = fs::read_to_string(&lock_file).with_context(|| format!("cannot read {}", lock_file.display()))?;
    Ok(hash_parts(&files, &locked(&lock, DEPENDENCIES)))
}

/// The hash of some bytes.
pub fn hash_of(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}

/// Adds the file at `path` within `base`, or all files below it.
fn collect(base: &Path, path: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let whole = base.join(path);
    if !whole.is_dir() {
        let contents = fs::read(&whole).with_context(|| format!("cannot read {}", whole.display()))?;
        files.insert(path.to_owned(), contents);
        return Ok(());
    }
    for entry in fs::read_dir(&whole).with_context(|| format!("cannot list {}", whole.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", whole.display()))?;
        collect(base, &path.join(entry.file_name()), files)?;
    }
    Ok(())
}

fn hash_parts(files: &BTreeMap<PathBuf, Vec<u8>>, packages: &BTreeMap<&str, &str>) -> u128 {
    let mut hash = Xxh3::new();
    // Lengths keep what belongs to one part from passing for the start of the next.
    let mut add = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for (path, contents) in files {
        add(path.as_os_str().as_encoded_bytes());
        add(contents);
    }
    for (id, entry) in packages {
        add(id.as_bytes());
        add(entry.as_bytes());
    }
    hash.digest128()
}

/// The entries of a lock file for these packages and all that they need, by what the lock file calls them: the name, with the
/// version behind it if there are several of that name.
fn locked<'a>(lock: &'a str, roots: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    let entries: Vec<&str> = lock.split("[[package]]").skip(1).map(str::trim).collect();
    let mut found = BTreeMap::new();
    let mut wanted = roots.to_vec();
    while let Some(id) = wanted.pop() {
        if found.contains_key(id) {
            continue;
        }
        let mut words = id.split(' ');
        let (name, version) = (words.next(), words.next());
        let matches = |entry: &&&str| value(entry, "name") == name && (version.is_none() || value(entry, "version") == version);
        for entry in entries.iter().filter(matches) {
            found.insert(id, *entry);
            wanted.extend(dependencies(entry));
        }
    }
    found
}

/// The value of a line `key = "value"`.
fn value<'a>(entry: &'a str, key: &str) -> Option<&'a str> {
    entry.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
}

/// The lines of `dependencies = [ ... ]`.
fn dependencies(entry: &str) -> impl Iterator<Item = &str> {
    let lines = entry.lines().skip_while(|line| *line != "dependencies = [").skip(1);
    lines.take_while(|line| *line != "]").map(|line| line.trim_matches([' ', '"', ',']))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"version = 4

[[package]]
name = "aya"
version = "0.14.0"
dependencies = [
 "libc",
]

[[package]]
name = "aya-ebpf"
version = "0.2.1"
checksum = "e1"
dependencies = [
 "macros",
 "quote 1.0.0",
]

[[package]]
name = "libc"
version = "0.2.1"

[[package]]
name = "macros"
version = "0.2.0"
dependencies = [
 "aya-ebpf",
]

[[package]]
name = "quote"
version = "0.9.0"
checksum = "q0"

[[package]]
name = "quote"
version = "1.0.0"
checksum = "q1"
"#;

    fn files(contents: &[(&str, &str)]) -> BTreeMap<PathBuf, Vec<u8>> {
        contents.iter().map(|(path, text)| (PathBuf::from(path), text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn the_packages_in_use_are_found_in_the_lock_file() {
        let found = locked(LOCK, &["aya-ebpf"]);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), ["aya-ebpf", "macros", "quote 1.0.0"]);
        assert!(found["quote 1.0.0"].contains("q1"));
    }

    #[test]
    fn other_packages_do_not_count() {
        let hash = |lock: &str| hash_parts(&files(&[]), &locked(lock, &["aya-ebpf"]));
        let now = hash(LOCK);
        assert_eq!(hash(&LOCK.replace("0.14.0", "0.14.1")), now);
        assert_eq!(hash(&LOCK.replace("\"q0\"", "\"q2\"")), now);
        assert_ne!(hash(&LOCK.replace("\"q1\"", "\"q2\"")), now);
        assert_ne!(hash(&LOCK.replace("0.2.1\"\nchecksum", "0.2.2\"\nchecksum")), now);
    }

    #[test]
    fn every_change_of_a_file_counts() {
        let hash = |contents: &[(&str, &str)]| hash_parts(&files(contents), &BTreeMap::new());
        let now = hash(&[("src/a.rs", "aa"), ("src/b.rs", "b")]);
        assert_eq!(hash(&[("src/b.rs", "b"), ("src/a.rs", "aa")]), now);
        for other in [
            &[("src/a.rs", "ab"), ("src/b.rs", "b")][..],
            &[("src/a.rs", "aa"), ("src/c.rs", "b")],
            &[("src/a.rs", "a"), ("src/b.rs", "ab")],
            &[("src/a.rs", "aa")],
        ] {
            assert_ne!(hash(other), now, "{other:?}");
        }
    }

    #[test]
    fn files_are_found_in_every_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["src/programs/main.rs", "src/lib.rs", "tests/faults.rs"] {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, name).unwrap();
        }
        let mut files = BTreeMap::new();
        collect(folder.path(), Path::new("src"), &mut files).unwrap();
        let names: Vec<_> = files.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(names, ["src/lib.rs", "src/programs/main.rs"]);
    }
}
