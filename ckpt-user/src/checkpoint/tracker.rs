//! What `--tracker` becomes on this machine.

use super::live::Programs;
use crate::error::Result;
use crate::track::{Kind, Method, not_here};

/// How changed pages are found, and whether pages are copied while the target runs.
#[derive(Debug)]
pub struct Tracker {
    pub(super) method: Method,
    pub(super) programs: Programs,
}

impl Tracker {
    /// What was asked for. No target is needed for that, nor touched.
    ///
    /// Errors: it is not there, for a reason that is told.
    pub fn choose(kind: Kind) -> Result<Tracker> {
        let only = |method: Method| {
            method.probe().map_err(|missing| not_here(method.name(), &missing))?;
            Ok(Tracker { method, programs: Programs::NotHere })
        };
        match kind {
            Kind::Auto => Ok(Tracker::best()),
            Kind::Live => {
                let loaded = Method::Scan.probe().and_then(|()| Programs::loaded());
                let programs = loaded.map_err(|missing| not_here("live", &missing))?;
                Ok(Tracker { method: Method::Scan, programs })
            }
            Kind::Scan => only(Method::Scan),
            Kind::SoftDirty => only(Method::SoftDirty),
            Kind::Hash => only(Method::Hash),
        }
    }

    /// Copying while the target runs takes the protection of `scan`, and its programs are loaded when they are first needed.
    fn best() -> Tracker {
        let method = Method::best();
        let programs = if method == Method::Scan { Programs::NotNeededYet } else { Programs::NotHere };
        Tracker { method, programs }
    }
}
