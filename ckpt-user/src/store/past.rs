//! What goes on from the parent of an increment: memory, and contents of files that the parent holds, too.
//!
//! A page of an owner that goes on, and that an increment does not speak of, is as it is in the parent. Objects are numbered anew in each image, so
//! an increment says under which number the parent has them. Whoever is not named is whole in the increment.

use serde::{Deserialize, Serialize};

use crate::ids::ObjRef;
use crate::image::ImageError;
use crate::image::model::Object;

/// The kind of the object that says so. There is one at most.
pub const KIND: &str = "goes-on";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Past {
    /// The number of an object in this image, and that in its parent.
    pub owners: Vec<(ObjRef, ObjRef)>,
}

impl Past {
    /// What an image says, by its objects.
    pub fn of<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Result<Past, ImageError> {
        let found = objects.into_iter().find(|object| object.section.kind == KIND);
        found.map_or_else(|| Ok(Past::default()), |object| object.section.decode())
    }
}
