//! Every kind of open file, most specific first.

use super::file::FileKindEntry;

/// See the module.
pub const FILE_KINDS: &[FileKindEntry] = &[];
