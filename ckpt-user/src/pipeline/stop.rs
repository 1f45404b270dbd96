//! How the threads of a stream stop together: the first error is kept, and everyone sees that there is one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Scope};

use crate::error::{Error, Result};
use crate::image::ImageError;

/// The first error of a group of threads.
#[derive(Debug, Default)]
pub(super) struct Stop {
    stopped: AtomicBool,
    first: Mutex<Option<Error>>,
}

impl Stop {
    /// Has something failed? Whoever sees it does no more work.
    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Stops everyone because of this error, which is kept if it is the first. That an image was given up is never the cause: it
    /// makes room for the error that was.
    pub(super) fn fail(&self, error: impl Into<Error>) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*first, None | Some(Error::Image(ImageError::GivenUp))) {
            *first = Some(error.into());
        }
        drop(first);
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Starts a thread of the group. If it cannot be started, or its work fails or panics, that stops everyone.
    pub(super) fn spawn<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        name: String,
        work: impl FnOnce() -> Result<()> + Send + 'scope,
    ) {
        // Whatever a panic leaves half done is not used any more: the stream has failed then.
        let started = thread::Builder::new().name(name).spawn_scoped(scope, || match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => self.fail(e),
            Err(_) => self.fail(Error::Unexpected("a thread that moves pages panicked: this is an error in ckpt".to_owned())),
        });
        if let Err(e) = started {
            self.fail(Error::os("cannot start a thread to move pages", e));
        }
    }

    /// The outcome, once all threads ended.
    pub(super) fn into_result(self) -> Result<()> {
        self.first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_kept_and_not_what_followed_from_it() {
        let stop = Stop::default();
        stop.fail(ImageError::GivenUp);
        stop.fail(ImageError::NotAnImage);
        stop.fail(ImageError::Revision(7));
        assert!(stop.stopped());
        assert!(matches!(stop.into_result(), Err(Error::Image(ImageError::NotAnImage))));
        assert!(Stop::default().into_result().is_ok());
    }
}
