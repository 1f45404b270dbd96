//! The metadata of an image, encoded: its records from the container to the last vma, one after another.
//!
//! An increment holds only what differs from those of its parent ([`super::delta`]); whoever has them can write a whole image.

use std::collections::HashSet;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{ImageError, Place};
use super::metadata::{EncodedVma, Metadata};
use super::model::{Header, Object, TaskState};
use super::order::Order;
use super::wire::{RecordType, words32};
use crate::ids::ObjRef;

/// Type and length stand before every payload, 32 bits each.
const HEAD_LEN: usize = 8;

/// See the module. Always in the order of the format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records(Vec<u8>);

impl Records {
    /// Adds a record: a MessagePack map with field names. The order is that of the format, which whoever writes them checks.
    pub fn push<T: Serialize>(&mut self, record_type: RecordType, record: &T) -> Result<(), ImageError> {
        let payload = rmp_serde::to_vec_named(record).map_err(|e| ImageError::encode(&record_type.to_string(), e))?;
        self.push_payload(record_type, &payload);
        Ok(())
    }

    /// Adds a record that is encoded, and within the limit of its type.
    pub(super) fn push_payload(&mut self, record_type: RecordType, payload: &[u8]) {
        self.0.extend_from_slice(&(record_type as u32).to_le_bytes());
        self.0.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.0.extend_from_slice(payload);
    }

    /// All types and payloads, in order.
    pub fn iter(&self) -> impl Iterator<Item = (RecordType, &[u8])> {
        self.ranges().filter_map(|range| {
            let (head, payload) = self.0[range].split_at(HEAD_LEN);
            let [number] = words32(head);
            Some((RecordType::from_number(number)?, payload))
        })
    }

    /// The records of a type, in order.
    pub fn all<T: DeserializeOwned>(&self, record_type: RecordType) -> Result<Vec<T>, ImageError> {
        let found = self.iter().filter(|(found, _)| *found == record_type);
        found.map(|(_, payload)| decode(record_type, payload)).collect()
    }

    /// The first record of a type.
    pub fn first<T: DeserializeOwned>(&self, record_type: RecordType) -> Result<Option<T>, ImageError> {
        let found = self.iter().find(|(found, _)| *found == record_type);
        found.map(|(_, payload)| decode(record_type, payload)).transpose()
    }

    /// Everything in them. `at`: where they stand, for what is wrong with them.
    pub fn decode(&self, header: Header, at: Place) -> Result<Metadata, ImageError> {
        let mut metadata = Metadata { header, ..Metadata::default() };
        let mut numbers = HashSet::new();
        for (record_type, payload) in self.iter() {
            match record_type {
                RecordType::Container => metadata.container = decode(record_type, payload)?,
                RecordType::Tasks => metadata.tasks = decode(record_type, payload)?,
                RecordType::Object => {
                    let object: Object = decode(record_type, payload)?;
                    if object.objref == ObjRef(0) || !numbers.insert(object.objref) {
                        let what = format!("the object number {} is 0 or was given before", object.objref);
                        return Err(ImageError::malformed(at, what));
                    }
                    metadata.objects.push(object);
                }
                RecordType::TaskState => metadata.task_states.push(decode::<TaskState>(record_type, payload)?),
                RecordType::Vma => metadata.vmas.push(EncodedVma(payload.to_vec())),
                other => return Err(ImageError::malformed(at, format!("a record of type {other} is no metadata"))),
            }
        }
        Ok(metadata)
    }

    /// As one string of bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Where each record, with its head, stands in [`Records::bytes`].
    pub(super) fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let [_, len] = words32(self.0.get(at..at + HEAD_LEN)?);
            let range = at..at + HEAD_LEN + len as usize;
            at = range.end;
            self.0.get(range.clone()).map(|_| range)
        })
    }

    /// The reverse of [`Records::bytes`], for bytes from an image: types, order and lengths are checked.
    pub(super) fn parse(bytes: Vec<u8>, at: Place) -> Result<Records, ImageError> {
        let malformed = |what: &str| Err(ImageError::malformed(at, what));
        let mut order = Order::after_header();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let Some((head, body)) = rest.split_at_checked(HEAD_LEN) else { return malformed("its result ends within a record") };
            let [number, len] = words32(head);
            let Some(found) = RecordType::from_number(number).filter(|found| found.is_metadata()) else {
                return malformed("its result holds a record that is no metadata");
            };
            if u64::from(len) > found.limit() {
                return Err(ImageError::TooLong { at, len: len.into(), limit: found.limit() });
            }
            order.admit(found).map_err(|expected| ImageError::OutOfOrder { at, found, expected })?;
            let Some((_, after)) = body.split_at_checked(len as usize) else {
                return malformed("its result ends within a record");
            };
            rest = after;
        }
        // The least that an image has.
        order.admit(RecordType::Trailer).map_err(|expected| ImageError::OutOfOrder {
            at,
            found: RecordType::Trailer,
            expected,
        })?;
        Ok(Records(bytes))
    }
}

fn decode<T: DeserializeOwned>(record_type: RecordType, payload: &[u8]) -> Result<T, ImageError> {
    rmp_serde::from_slice(payload).map_err(|e| ImageError::decode(&record_type.to_string(), e))
}
