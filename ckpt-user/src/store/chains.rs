//! How the images of a folder hang together: who is an increment of whom, and which of them can be restarted.

use std::collections::HashMap;

use super::Entry;
use crate::ids::ImageId;

/// See the module.
#[derive(Debug)]
pub struct Chains<'a> {
    entries: &'a [Entry],
    /// For each entry what it stands on, or what is missing or damaged.
    links: Vec<Result<Link, String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    parent: Option<usize>,
    depth: usize,
}

impl<'a> Chains<'a> {
    /// By what the images say of themselves.
    pub fn of(entries: &'a [Entry]) -> Chains<'a> {
        Chains::with(entries, |_| None)
    }

    /// `fault`: what is known to be wrong with an image besides.
    pub fn with(entries: &'a [Entry], fault: impl Fn(&Entry) -> Option<String>) -> Chains<'a> {
        let mut older: HashMap<ImageId, usize> = HashMap::new();
        let mut links: Vec<Result<Link, String>> = Vec::with_capacity(entries.len());
        // Parents are older, so they come first.
        for (at, entry) in entries.iter().enumerate() {
            let link = match fault(entry) {
                Some(fault) => Err(fault),
                None => link(entries, &links, &older, entry),
            };
            links.push(link);
            if let Some(id) = entry.header.as_ref().ok().and_then(|header| header.image_id) {
                older.insert(id, at);
            }
        }
        Chains { entries, links }
    }

    /// The images that `entries[at]` needs, itself first and a whole one last. The error says what is missing or damaged.
    pub fn chain(&self, at: usize) -> Result<Vec<&'a Entry>, &str> {
        let mut link = self.links[at].as_ref().map_err(String::as_str)?;
        let mut chain = vec![&self.entries[at]];
        while let Some(parent) = link.parent {
            chain.push(&self.entries[parent]);
            link = self.links[parent].as_ref().map_err(String::as_str)?;
        }
        Ok(chain)
    }

    /// Can it be restarted, as far as is known?
    pub fn is_whole(&self, at: usize) -> bool {
        self.links[at].is_ok()
    }
}

fn link(
    entries: &[Entry],
    links: &[Result<Link, String>],
    older: &HashMap<ImageId, usize>,
    entry: &Entry,
) -> Result<Link, String> {
    let header = entry.header.as_ref().map_err(|error| format!("{}: {error}", entry.path.display()))?;
    let Some(wanted) = header.parent else { return Ok(Link { parent: None, depth: 1 }) };
    let Some(&parent) = older.get(&wanted.image_id) else {
        return Err(format!(
            "{} is an increment of image {}, which is not there or damaged",
            entry.path.display(),
            wanted.image_id
        ));
    };
    let found = &entries[parent];
    let is_other = |found: &Entry| {
        let (Ok(header), Some(ending)) = (&found.header, &found.ending) else { return false };
        header.as_parent(ending.trailer_checksum) != Some(wanted)
    };
    if is_other(found) {
        return Err(format!(
            "{} is an increment of another image {} than {}",
            entry.path.display(),
            wanted.image_id,
            found.path.display()
        ));
    }
    let below = links[parent].clone()?;
    Ok(Link { parent: Some(parent), depth: below.depth + 1 })
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::image::PageCounts;
    use crate::image::model::{Header, ParentRef};
    use crate::store::Ending;

    /// An image with the number, the id and the trailer checksum `number`, and perhaps a parent.
    pub fn entry(number: u64, parent: Option<u64>) -> Entry {
        let name = |number: u64| ParentRef { image_id: ImageId(number.into()), trailer_checksum: number };
        let header = Header { image_id: Some(name(number).image_id), parent: parent.map(name), ..Header::default() };
        let ending = Some(Ending { trailer_checksum: number, pages: PageCounts::default() });
        Entry { number, path: PathBuf::from(format!("{number:06}.ckpt")), header: Ok(header), bytes: 0, ending }
    }

    fn numbers(entries: &[Entry], at: usize) -> Result<Vec<u64>, String> {
        let chains = Chains::of(entries);
        let chain = chains.chain(at).map(|chain| chain.iter().map(|e| e.number).collect());
        chain.map_err(str::to_owned)
    }

    #[test]
    fn a_chain_ends_with_a_whole_image() {
        let entries = [entry(1, None), entry(2, Some(1)), entry(3, None), entry(4, Some(2)), entry(5, Some(99))];
        assert_eq!(numbers(&entries, 3), Ok(vec![4, 2, 1]));
        assert_eq!(numbers(&entries, 2), Ok(vec![3]));
        assert!(numbers(&entries, 4).unwrap_err().contains("000005.ckpt"));
    }

    #[test]
    fn what_builds_on_a_fault_has_it_too() {
        let entries = [entry(1, None), entry(2, Some(1)), entry(3, Some(2)), entry(4, None)];
        let chains = Chains::with(&entries, |entry| (entry.number == 2).then(|| "000002.ckpt is bad".to_owned()));
        let whole: Vec<bool> = (0..4).map(|at| chains.is_whole(at)).collect();
        assert_eq!(whole, [true, false, false, true]);
        assert_eq!(chains.chain(2).unwrap_err(), "000002.ckpt is bad");
    }

    #[test]
    fn a_parent_is_known_by_its_trailer_or_by_that_of_whom_it_stands_for() {
        let mut entries = [entry(1, None), entry(2, Some(1))];
        entries[0].ending = Some(Ending { trailer_checksum: 7, pages: PageCounts::default() });
        assert!(numbers(&entries, 1).unwrap_err().contains("another image"));
        entries[0].header.as_mut().unwrap().stands_for = Some(1);
        assert_eq!(numbers(&entries, 1), Ok(vec![2, 1]));
    }
}
