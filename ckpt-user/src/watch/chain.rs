//! The images that the next one of a watch stands on, and whether they still are as they were made.
//!
//! Somebody else may remove or damage any of them while the watch goes on, and then nothing could be brought back from later increments. Merging
//! changes them, too: a whole image takes the place of one, and those before it go.

use crate::ids::ImageId;
use crate::store::{FileState, Folder};

/// See the module: the whole one first, the last one at the end.
#[derive(Debug, Default)]
pub struct Chain {
    links: Vec<Link>,
    /// Where the next look begins, of a chain that is too long for all of it to be looked at each time.
    next: usize,
}

/// So many links are looked at at once, and the last. Without merging there may be hundreds of thousands.
const AT_ONCE: usize = 64;

/// An image of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in the folder.
    pub number: u64,
    /// Which image it is.
    pub image_id: ImageId,
    /// Its file, when it was made. `None`: it was gone already.
    state: Option<FileState>,
}

impl Chain {
    /// There is a new image. `goes_on`: it is an increment of the last one.
    pub fn add(&mut self, folder: &Folder, (number, image_id): (u64, ImageId), goes_on: bool) {
        if !goes_on {
            self.links.clear();
        }
        self.links.push(Link { number, image_id, state: folder.state(number) });
    }

    /// The next image goes on from none of them.
    pub fn clear(&mut self) {
        self.links.clear();
    }

    /// An image that is lost, though the last one needs it. Contents are not read: what was changed shows in the size and the time of its file.
    pub fn lost(&mut self, folder: &Folder) -> Option<Link> {
        let last = self.links.last()?;
        let as_made = |link: &Link| link.state.is_some() && folder.state(link.number) == link.state;
        let first = if self.next < self.links.len() { self.next } else { 0 };
        let looked_at = &self.links[first..self.links.len().min(first + AT_ONCE)];
        self.next = first + AT_ONCE;
        if folder.whole_header(last.number, last.image_id).is_some() && as_made(last) && looked_at.iter().all(as_made) {
            return None;
        }
        // Those before may have been merged away while this looked for them; then the second look finds the one that has taken their place.
        let mut before = None;
        loop {
            let lost = self.look_closer(folder)?;
            if before == Some(lost) {
                return Some(lost);
            }
            before = Some(lost);
        }
    }

    /// The same by what the images say of themselves, from the last one back to one that is whole, be it made so or merged.
    fn look_closer(&mut self, folder: &Folder) -> Option<Link> {
        for at in (0..self.links.len()).rev() {
            let link = self.links[at];
            let now = folder.state(link.number);
            let header = folder.whole_header(link.number, link.image_id);
            let is_as_made = now.is_some() && now == link.state;
            match header {
                Some(header) if header.parent.is_none() && (is_as_made || header.stands_for.is_some()) => {
                    self.links.drain(..at);
                    self.links[0].state = now;
                    return None;
                }
                Some(_) if is_as_made => {}
                _ => return Some(link),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::time::SystemTime;

    use super::*;
    use crate::image::model::{Container, Header, ParentRef, TaskTable};
    use crate::image::{ImageWriter, RecordType, Records};

    fn write(folder: &Path, number: u64, parent: Option<u64>, stands_for: Option<u64>) {
        let id = |number: u64| ImageId(number.into());
        let parent = parent.map(|parent| ParentRef { image_id: id(parent), trailer_checksum: 0 });
        let header = Header { image_id: Some(id(number)), parent, stands_for, ..Header::default() };
        let path = folder.join(format!("{number:06}.ckpt"));
        let destination = crate::store::Destination::file(&path).unwrap();
        let mut writer = ImageWriter::to_file(destination.writer()).unwrap();
        let mut records = Records::default();
        records.push(RecordType::Container, &Container::default()).unwrap();
        records.push(RecordType::Tasks, &TaskTable::default()).unwrap();
        writer.metadata(&header, &records, None).unwrap();
        writer.finish().unwrap();
        destination.commit().unwrap();
    }

    /// A chain of four images.
    fn four(place: &Path) -> (Folder, Chain) {
        let (folder, mut chain) = (Folder::open(place), Chain::default());
        for number in 1..=4 {
            write(place, number, Some(number - 1).filter(|parent| *parent > 0), None);
            chain.add(&folder, (number, ImageId(number.into())), number > 1);
        }
        assert_eq!(chain.lost(&folder), None);
        (folder, chain)
    }

    fn lost(chain: &mut Chain, folder: &Folder) -> Option<u64> {
        chain.lost(folder).map(|link| link.number)
    }

    fn image(place: &Path, number: u64) -> std::path::PathBuf {
        place.join(format!("{number:06}.ckpt"))
    }

    #[test]
    fn whichever_is_removed_or_changed_is_lost() {
        for number in 1..=4 {
            let place = tempfile::tempdir().unwrap();
            let (folder, mut chain) = four(place.path());
            fs::remove_file(image(place.path(), number)).unwrap();
            assert_eq!(lost(&mut chain, &folder), Some(number));
            chain.clear();
            assert_eq!(lost(&mut chain, &folder), None, "nothing stands on it any more");

            let place = tempfile::tempdir().unwrap();
            let (folder, mut chain) = four(place.path());
            File::options().write(true).open(image(place.path(), number)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            assert_eq!(lost(&mut chain, &folder), Some(number));
        }
    }

    #[test]
    fn a_whole_image_needs_nothing_before_it() {
        let place = tempfile::tempdir().unwrap();
        let (folder, mut chain) = four(place.path());
        write(place.path(), 5, None, None);
        chain.add(&folder, (5, ImageId(5)), false);
        (1..=4).for_each(|number| fs::remove_file(image(place.path(), number)).unwrap());
        assert_eq!(lost(&mut chain, &folder), None);
    }

    #[test]
    fn what_is_merged_is_not_lost() {
        let place = tempfile::tempdir().unwrap();
        let (folder, mut chain) = four(place.path());
        write(place.path(), 3, None, Some(0));
        (1..=2).for_each(|number| fs::remove_file(image(place.path(), number)).unwrap());
        assert_eq!(lost(&mut chain, &folder), None);
        assert_eq!(chain.links.iter().map(|link| link.number).collect::<Vec<_>>(), [3, 4]);
        fs::remove_file(image(place.path(), 3)).unwrap();
        assert_eq!(lost(&mut chain, &folder), Some(3));
    }

    #[test]
    fn one_that_was_put_in_its_place_is_not_it() {
        let place = tempfile::tempdir().unwrap();
        let (folder, mut chain) = four(place.path());
        write(place.path(), 2, None, None);
        assert_eq!(lost(&mut chain, &folder), Some(2));
    }
}
