//! The restart points of a folder, for people and for scripts.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use ckpt::image::model::Header;
use ckpt::image::{ImageError, ImageReader, verify_stored};
use ckpt::store::{Chains, Ending, Entry, Folder};
use serde_json::{Value, json};

use super::super::Failure;
use super::super::output::{bytes, clean, count, row, table};
use super::text::time;

/// See the module.
#[derive(Debug)]
pub struct Points {
    folder: PathBuf,
    points: Vec<Point>,
    verified: bool,
}

#[derive(Debug)]
struct Point {
    entry: Entry,
    /// The number of its parent, if that is there.
    parent: Option<u64>,
    /// How many images it needs, itself included; or what is missing or damaged.
    depth: Result<usize, String>,
}

impl Points {
    /// Reads the beginning and the end of each image; with `all`, everything, and checks it.
    pub fn read(folder: &Path, all: bool) -> Result<Points, Failure> {
        let mut entries = Folder::open(folder).scan()?;
        let mut faults = HashMap::new();
        if all {
            for entry in &mut entries {
                match verified(&entry.path) {
                    Ok(ending) => entry.ending = Some(ending),
                    Err(error) => drop(faults.insert(entry.number, format!("{}: {error}", entry.path.display()))),
                }
            }
        }
        let chains = Chains::with(&entries, |entry| faults.get(&entry.number).cloned());
        let depths = (0..entries.len()).map(|at| chains.chain(at).map(|chain| chain.len()).map_err(str::to_owned));
        let depths: Vec<Result<usize, String>> = depths.collect();
        let by_id: HashMap<_, u64> = entries.iter().filter_map(|entry| Some((header(entry)?.image_id?, entry.number))).collect();
        let parent = |entry: &Entry| header(entry)?.parent.and_then(|parent| by_id.get(&parent.image_id).copied());
        let parents: Vec<Option<u64>> = entries.iter().map(parent).collect();
        let points = entries.into_iter().zip(parents).zip(depths);
        let points = points.map(|((entry, parent), depth)| Point { entry, parent, depth }).collect();
        Ok(Points { folder: folder.to_owned(), points, verified: all })
    }

    /// The number of the newest point that can be restarted.
    pub fn newest(&self) -> Option<u64> {
        self.points.iter().rev().find(|point| point.depth.is_ok()).map(|point| point.entry.number)
    }

    fn bytes(&self) -> u64 {
        self.points.iter().map(|point| point.entry.bytes).fold(0, u64::saturating_add)
    }

    /// A table, and a sentence.
    pub fn text(&self) -> String {
        let mut rows = vec![row([&"NUMBER", &"ID", &"TAKEN", &"KIND", &"PARENT", &"PAGES", &"SIZE", &"CHAIN", &"RESTART"])];
        rows.extend(self.points.iter().map(Point::row));
        let usable = self.points.iter().filter(|point| point.depth.is_ok()).count();
        let how = if self.verified { "every checksum was checked" } else { "checksums were not checked (--verify does it)" };
        format!(
            "{}\n{}\n{} in {}, of which {usable} can be restarted; {how}\n",
            clean(&self.folder.display().to_string()),
            table(&rows),
            count(self.points.len() as u64, "image"),
            bytes(self.bytes()),
        )
    }

    /// One object.
    pub fn json(&self) -> Value {
        json!({
            "folder": self.folder.display().to_string(),
            "images": self.points.iter().map(Point::json).collect::<Vec<_>>(),
            "newest": self.newest(),
            "bytes": self.bytes(),
            "verified": self.verified,
        })
    }
}

impl Point {
    fn kind(&self) -> &'static str {
        match header(&self.entry) {
            None => "unreadable",
            Some(header) if header.parent.is_some() => "increment",
            Some(header) if header.stands_for.is_some() => "merged",
            Some(_) => "full",
        }
    }

    fn row(&self) -> [String; 9] {
        let none = || "-".to_owned();
        let header = header(&self.entry);
        let id = header.and_then(|header| header.image_id).map(|id| id.to_string()[..12].to_owned());
        let wanted = header.and_then(|header| header.parent).map(|parent| parent.image_id.to_string()[..12].to_owned());
        let parent = self.parent.map(|number| number.to_string()).or(wanted);
        let pages = self.entry.ending.map(|ending| ending.pages.data.to_string());
        let (depth, restart) = match &self.depth {
            Ok(depth) => (depth.to_string(), "yes".to_owned()),
            Err(why) => (none(), format!("no: {why}")),
        };
        row([
            &self.entry.number,
            &id.unwrap_or_else(none),
            &header.and_then(time).unwrap_or_else(none),
            &self.kind(),
            &parent.unwrap_or_else(none),
            &pages.unwrap_or_else(none),
            &bytes(self.entry.bytes),
            &depth,
            &restart,
        ])
    }

    fn json(&self) -> Value {
        let header = header(&self.entry);
        let pages = self.entry.ending.map(|ending| ending.pages);
        json!({
            "number": self.entry.number,
            "file": self.entry.path.display().to_string(),
            "image_id": header.and_then(|header| header.image_id),
            "time": header.and_then(time),
            "kind": self.kind(),
            "parent": self.parent,
            "parent_id": header.and_then(|header| header.parent).map(|parent| parent.image_id),
            "pages_data": pages.map(|pages| pages.data),
            "pages_zero": pages.map(|pages| pages.zero),
            "pages_hole": pages.map(|pages| pages.hole),
            "bytes": self.entry.bytes,
            "chain": self.depth.as_ref().ok(),
            "restartable": self.depth.is_ok(),
            "fault": self.depth.as_ref().err(),
        })
    }
}

fn header(entry: &Entry) -> Option<&Header> {
    entry.header.as_ref().ok()
}

/// Reads and checks all of an image.
fn verified(path: &Path) -> Result<Ending, ImageError> {
    let file = File::open(path).map_err(|source| ImageError::Read { offset: 0, source })?;
    let (_, summary) = verify_stored(&mut ImageReader::new(file)?)?;
    Ok(Ending { trailer_checksum: summary.trailer_checksum, pages: summary.pages })
}
