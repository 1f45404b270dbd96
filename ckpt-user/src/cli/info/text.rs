//! An image as a person wants to see it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use ckpt::ids::PAGE_SIZE;
use ckpt::image::model::{Header, Section, TaskEntry, TaskKind};
use ckpt::resources::vma::{Backing, VmaRecord};
use serde_json::Value;

use super::super::generic;
use super::super::output::{bytes, clean, count, row, table};
use super::Contents;

/// The image on a page; with `records`, all of it.
pub fn describe(contents: &Contents, records: bool) -> String {
    let metadata = &contents.metadata;
    let mut text = header(contents, &metadata.header);
    if let Some(why) = &contents.unresolved {
        let _ = writeln!(text, "\nThe rest is told as changes to the parent, which cannot be read: {}", clean(why));
        return text;
    }
    text.push_str("\nTasks\n");
    let mut rows = vec![row([&"PID", &"PPID", &"PGID", &"SID", &"THREADS", &"STATE", &"NAME"])];
    rows.extend(metadata.tasks.tasks.iter().map(task));
    text.push_str(&table(&rows));
    text.push_str("\nObjects\n");
    text.push_str(&objects(contents));
    text.push_str("\nMemory\n");
    text.push_str(&memory(contents));
    if records {
        text.push_str(&details(contents));
    }
    text
}

fn header(contents: &Contents, header: &Header) -> String {
    let unknown = || "unknown".to_owned();
    let kernel = &header.kernel;
    let mut rows = vec![
        row([&"image", &header.image_id.map_or_else(unknown, |id| id.to_string())]),
        row([&"parent", &header.parent.map_or_else(|| "none: it is complete".to_owned(), |p| p.image_id.to_string())]),
        row([&"taken", &time(header).unwrap_or_else(unknown)]),
        row([&"on", &format!("{}: {} {} {}", kernel.nodename, kernel.sysname, kernel.release, kernel.machine)]),
        row([&"by", &format!("ckpt {}", header.ckpt_version)]),
        row([&"codec", &header.codec]),
    ];
    if let Some(size) = contents.bytes {
        rows.push(row([&"size", &bytes(size)]));
    }
    if let Some(changes) = contents.changes {
        rows.push(row([&"metadata", &format!("{} of changes to the parent's", bytes(changes))]));
    }
    let whole = match &contents.summary {
        Some(summary) => {
            let all: u64 = summary.records.values().sum();
            format!("yes: the checksums of all {} are right", count(all, "record"))
        }
        None => "not checked (--verify does it)".to_owned(),
    };
    rows.push(row([&"whole", &whole]));
    format!("{}\n{}", clean(&contents.name), table(&rows))
}

/// When the image was taken, if that is a time.
pub fn time(header: &Header) -> Option<String> {
    let time = u64::try_from(header.time.0).ok().and_then(|s| UNIX_EPOCH.checked_add(Duration::new(s, 0)));
    // The formatter knows four digits of a year.
    time.filter(|_| header.time.0 < 253_402_300_800).map(|t| humantime::format_rfc3339_seconds(t).to_string())
}

fn task(task: &TaskEntry) -> [String; 7] {
    let state = match (task.kind, task.stopped_by) {
        (TaskKind::Alive, None) => "running".to_owned(),
        (TaskKind::Alive, Some(signal)) => format!("stopped by signal {signal}"),
        (TaskKind::Zombie(status), _) => format!("ended (wait status {status:#x})"),
        (TaskKind::Ghost, _) => "placeholder".to_owned(),
    };
    row([&task.pid, &task.ppid, &task.pgid, &task.sid, &task.threads.len(), &state, &task.comm])
}

fn objects(contents: &Contents) -> String {
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for object in &contents.metadata.objects {
        *kinds.entry(&object.section.kind).or_default() += 1;
    }
    table(&kinds.iter().map(|(kind, n)| row([n, kind])).collect::<Vec<_>>())
}

/// Bytes of addresses in the mappings.
pub fn mapped(vmas: &[VmaRecord]) -> u64 {
    vmas.iter().map(size).fold(0, u64::saturating_add)
}

fn size(vma: &VmaRecord) -> u64 {
    vma.end.0.saturating_sub(vma.start.0)
}

fn memory(contents: &Contents) -> String {
    let pages = contents.pages;
    let in_bytes = |pages: u64| bytes(pages.saturating_mul(PAGE_SIZE));
    let mut data = format!("pages with contents: {}", in_bytes(pages.data));
    if let Some(summary) = &contents.summary {
        let _ = write!(data, ", which take up {}", bytes(summary.bytes_stored));
    }
    let shared = contents.pages_shared;
    table(&[
        row([&contents.vmas.len(), &format!("mappings: {} of addresses", bytes(mapped(&contents.vmas)))]),
        row([&pages.data, &data]),
        row([&pages.zero, &format!("pages of zeros: {}", in_bytes(pages.zero))]),
        row([&pages.hole, &"pages that are not there"]),
        row([&shared, &format!("pages that processes share, stored once: {}", in_bytes(shared))]),
    ])
}

fn details(contents: &Contents) -> String {
    let metadata = &contents.metadata;
    let mut text = "\nObject table\n".to_owned();
    for object in &metadata.objects {
        let record = generic::section(&object.section);
        text.push_str(&line(&format!("{} {}", object.objref, object.section.kind), &record));
    }
    for state in &metadata.task_states {
        let _ = writeln!(text, "\nProcess {}", state.pid);
        text.push_str(&sections(&state.sections));
        for thread in &state.threads {
            let _ = writeln!(text, "\nThread {}", thread.tid);
            text.push_str(&sections(&thread.sections));
        }
    }
    text.push_str("\nMappings\n");
    let rows: Vec<_> = contents.vmas.iter().map(mapping).collect();
    text + &table(&rows)
}

fn sections(sections: &[Section]) -> String {
    sections.iter().map(|section| line(&section.kind, &generic::section(section))).collect()
}

fn line(name: &str, record: &Value) -> String {
    format!("  {} {}\n", clean(name), clean(&record.to_string()))
}

fn mapping(vma: &VmaRecord) -> [String; 4] {
    let backing = match vma.backing {
        Backing::Anonymous => String::new(),
        Backing::File { file, offset } => format!("{file} from {offset:#x}"),
        Backing::SysV { segment, offset } => format!("System V shared memory (object {segment}) from {offset:#x}"),
        Backing::SharedAnonymous { id, offset } => format!("shared memory {id} from {offset:#x}"),
        Backing::Vdso => "[vdso]".to_owned(),
        Backing::Vvar => "[vvar]".to_owned(),
    };
    // As in /proc/PID/maps.
    let letter = |on: bool, letter: char| if on { letter } else { '-' };
    let (prot, sharing) = (vma.prot, if vma.shared { 's' } else { 'p' });
    let prot = [letter(prot.read, 'r'), letter(prot.write, 'w'), letter(prot.exec, 'x'), sharing];
    let range = format!("{}-{}", vma.start, vma.end);
    row([&range, &prot.iter().collect::<String>(), &bytes(size(vma)), &backing])
}
