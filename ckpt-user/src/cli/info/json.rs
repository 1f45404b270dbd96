//! An image as one JSON object, for scripts.

use std::collections::BTreeMap;

use ckpt::image::RecordType;
use ckpt::image::model::{Section, ThreadState};
use serde_json::{Map, Value, json};

use super::super::generic;
use super::Contents;

/// Everything but the records, or with them.
pub fn describe(contents: &Contents, records: bool) -> Value {
    let Contents { name, metadata, changes, unresolved, vmas, pages, pages_shared, bytes, summary } = contents;
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for object in &metadata.objects {
        *kinds.entry(&object.section.kind).or_default() += 1;
    }
    let mut all = json!({
        "file": name,
        "header": metadata.header,
        "container": metadata.container,
        "tasks": metadata.tasks.tasks,
        "objects": kinds,
        "mappings": vmas.len(),
        "mapped_bytes": super::text::mapped(vmas),
        "pages_data": pages.data,
        "pages_zero": pages.zero,
        "pages_hole": pages.hole,
        "pages_shared": pages_shared,
        "bytes": bytes,
        "metadata_changes_bytes": changes,
        "unresolved": unresolved,
        "verified": summary.is_some(),
    });
    let mut add = |key: &str, value: Value| all.as_object_mut().map(|map| map.insert(key.to_owned(), value));
    if let Some(summary) = summary {
        let counts: BTreeMap<String, u64> = summary.records.iter().map(|(t, n): (&RecordType, _)| (t.to_string(), *n)).collect();
        add("records", json!(counts));
        add("unknown_records", json!(summary.unknown_records));
        add("bytes_raw", json!(summary.bytes_raw));
        add("bytes_stored", json!(summary.bytes_stored));
        add("trailer_checksum", json!(format!("{:016x}", summary.trailer_checksum)));
    }
    if records {
        let object = |o: &ckpt::image::model::Object| json!({ "objref": o.objref, "kind": o.section.kind, "record": generic::section(&o.section) });
        let thread = |t: &ThreadState| json!({ "tid": t.tid, "sections": sections(&t.sections) });
        let states = metadata.task_states.iter().map(|state| {
            let threads: Vec<Value> = state.threads.iter().map(thread).collect();
            json!({ "pid": state.pid, "sections": sections(&state.sections), "threads": threads })
        });
        add("object_table", metadata.objects.iter().map(object).collect());
        add("task_states", states.collect());
        add("vmas", json!(vmas));
    }
    all
}

/// Sections by the name of their kind.
pub fn sections(sections: &[Section]) -> Value {
    sections.iter().map(|s| (s.kind.clone(), generic::section(s))).collect::<Map<_, _>>().into()
}
