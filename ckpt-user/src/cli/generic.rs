//! Records of any kind as JSON: what `ckpt info` shows without knowing what it is.

use ckpt::image::model::Section;
use rmpv::Value;
use serde_json::{Map, Number, Value as Json};

/// Bytes that are shown of a longer string of bytes.
const BYTES_SHOWN: usize = 32;

/// The record of a section.
pub fn section(section: &Section) -> Json {
    record(&section.body)
}

/// Any MessagePack value; what is none is shown as bytes.
pub fn record(bytes: &[u8]) -> Json {
    let mut rest = bytes;
    match rmpv::decode::read_value(&mut rest) {
        Ok(value) if rest.is_empty() => json(&value),
        _ => hex(bytes),
    }
}

fn json(value: &Value) -> Json {
    match value {
        Value::Nil => Json::Null,
        Value::Boolean(b) => Json::Bool(*b),
        Value::Integer(n) => match (n.as_u64(), n.as_i64()) {
            (Some(n), _) => n.into(),
            (None, Some(n)) => n.into(),
            (None, None) => Json::Null,
        },
        Value::F32(n) => number(f64::from(*n)),
        Value::F64(n) => number(*n),
        Value::String(text) => text.as_str().map_or_else(|| hex(text.as_bytes()), Json::from),
        Value::Binary(bytes) => text(bytes).unwrap_or_else(|| hex(bytes)),
        Value::Array(items) => items.iter().map(json).collect(),
        Value::Map(entries) => entries.iter().map(|(key, value)| (name(key), json(value))).collect::<Map<_, _>>().into(),
        Value::Ext(kind, bytes) => Json::from(format!("extension {kind}: {}", bytes.len())),
    }
}

/// JSON has no infinities.
fn number(n: f64) -> Json {
    Number::from_f64(n).map_or_else(|| Json::from(n.to_string()), Json::Number)
}

/// JSON's keys are texts.
fn name(key: &Value) -> String {
    match key.as_str() {
        Some(text) => text.to_owned(),
        None => json(key).to_string(),
    }
}

/// Names of files and threads are bytes, and mostly texts.
fn text(bytes: &[u8]) -> Option<Json> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.contains(char::is_control)).then(|| Json::from(text))
}

fn hex(bytes: &[u8]) -> Json {
    let shown: String = bytes.iter().take(BYTES_SHOWN).map(|byte| format!("{byte:02x}")).collect();
    let more = bytes.len().saturating_sub(BYTES_SHOWN);
    Json::from(if more == 0 { format!("hex:{shown}") } else { format!("hex:{shown}... ({} bytes)", bytes.len()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_shown_as_they_are() {
        let bytes = rmp_serde::to_vec_named(&serde_json::json!({ "a": [1, -2, 1.5, null, true], "b": { "c": "d" } })).unwrap();
        assert_eq!(record(&bytes).to_string(), r#"{"a":[1,-2,1.5,null,true],"b":{"c":"d"}}"#);
        assert_eq!(record(&[0xc1, 0xff]), "hex:c1ff");
        assert_eq!(record(&[]), "hex:");
        assert_eq!(record(&[0xc4, 2, 1, 2]), "hex:0102");
        assert_eq!(record(&[0xc4, 2, b'/', b'a']), "/a");
    }
}
