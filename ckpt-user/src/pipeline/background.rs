//! Work that can wait: it rests while something urgent is done, and ends once nobody wants it any more.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::error::{Error, Result};

/// What the threads of such work ask again and again, and others tell them.
#[derive(Debug, Default)]
pub struct Background {
    stopped: AtomicBool,
    /// How many urgent things are being done.
    urgent: AtomicU32,
    /// Taken to wait for a change and to tell of one, never to begin what is urgent: who holds it may have no processor.
    turn: Mutex<()>,
    changed: Condvar,
}

impl Background {
    /// Between two small pieces of work: waits as long as something urgent is done.
    ///
    /// Errors: nobody wants the rest of it.
    pub fn go_on(&self) -> Result<()> {
        if self.must_rest() {
            let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            drop(self.changed.wait_while(turn, |()| self.must_rest()).unwrap_or_else(PoisonError::into_inner));
        }
        if self.is_stopped() { Err(Error::Unexpected("merging was stopped".to_owned())) } else { Ok(()) }
    }

    fn must_rest(&self) -> bool {
        self.urgent.load(Ordering::Acquire) > 0 && !self.is_stopped()
    }

    /// Does nobody want it any more?
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Has it end at its next piece.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.tell();
    }

    /// Something urgent begins, until what is returned is dropped.
    pub fn rest(self: &Arc<Background>) -> Resting {
        self.urgent.fetch_add(1, Ordering::AcqRel);
        Resting(Arc::clone(self))
    }

    fn tell(&self) {
        drop(self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

/// Something urgent is being done.
#[derive(Debug)]
pub struct Resting(Arc<Background>);

impl Drop for Resting {
    fn drop(&mut self) {
        if self.0.urgent.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_rests_while_something_urgent_is_done() {
        let background = Arc::new(Background::default());
        background.go_on().unwrap();
        let (one, other) = (background.rest(), background.rest());
        let (done, is_done) = mpsc::channel();
        let worker = Arc::clone(&background);
        let worker = thread::spawn(move || done.send(worker.go_on().is_ok()).unwrap());
        drop(one);
        assert!(is_done.recv_timeout(Duration::from_millis(50)).is_err(), "one urgent thing is left");
        drop(other);
        assert!(is_done.recv().unwrap());
        worker.join().unwrap();
    }

    #[test]
    fn what_rests_can_be_stopped() {
        let background = Arc::new(Background::default());
        let _urgent = background.rest();
        let worker = Arc::clone(&background);
        let worker = thread::spawn(move || worker.go_on().is_err());
        background.stop();
        assert!(worker.join().unwrap());
        assert!(background.is_stopped());
    }
}
