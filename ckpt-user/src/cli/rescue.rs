//! `ckpt watch --restart-on-failure`: a job that was killed is brought back.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use ckpt::Error;
use ckpt::ids::Pid;
use ckpt::resources::restorer::RestoreOptions;
use ckpt::restart::{self, Options};
use ckpt::stand_in::StandIn;
use ckpt::watch::{Restarts, Watch};
use nix::sys::signal::Signal;

use super::narrator::{Narrator, Restart};
use super::points::{self, Choice};
use super::{Failure, descriptors, output};

/// See the module.
#[derive(Debug)]
pub struct Rescue<'a> {
    dir: &'a Path,
    restarts: Restarts,
    options: Options,
}

impl<'a> Rescue<'a> {
    /// From the folder `dir`, at most `limit` times in an hour. A job that is brought back gets what `ckpt restart DIR` would give it.
    pub fn new(dir: &'a Path, limit: NonZeroUsize) -> Result<Rescue<'a>, Failure> {
        descriptors::write_at_end()?;
        let restore = RestoreOptions {
            files: points::FILES,
            discard_changes: false,
            inherit: descriptors::standard()?,
            ambient: descriptors::ambient()?,
        };
        Ok(Rescue { dir, restarts: Restarts::new(limit), options: Options { detach: false, frozen: false, restore } })
    }

    /// Brings the job back that was killed by `signal`, and has everybody go on with it. False: it cannot be; that was told.
    pub fn bring_back(
        &mut self,
        pid: Pid,
        signal: i32,
        stand_in: &mut StandIn,
        watch: &mut Watch,
        narrator: &mut Narrator<'_>,
    ) -> Result<bool, Failure> {
        let killed = format!("pid {pid} was killed by {}", name(signal));
        match narrator.aside(|| self.restart(stand_in, watch)) {
            Ok((number, report)) => {
                let (count, limit) = (self.restarts.recent(), self.restarts.limit());
                let text = format!(
                    "{killed}, and goes on from image {number} of {}: restart {count} of at most {limit} within an hour",
                    self.dir.display()
                );
                let restart = Restart { event: "restart", number, killed_by: signal, report };
                narrator.restarted(&restart, &text);
                watch.follow(pid);
                Ok(true)
            }
            Err(failure) => {
                narrator.complain(&format!("{killed}, and is not brought back: {failure}"));
                Ok(false)
            }
        }
    }

    fn restart(&mut self, stand_in: &mut StandIn, watch: &Watch) -> Result<(u64, restart::Report), Failure> {
        let made = watch.made().ok_or_else(|| Failure::Damaged("there was no checkpoint of it yet".to_owned()))?;
        stand_in.end_what_is_left()?;
        loop {
            let among = self.restarts.next(Instant::now(), &made).ok_or_else(|| self.too_often())?;
            let (number, restarted) = match points::restart_point(self.dir, &Choice::Newest(among), &self.options) {
                // Killed again, before it was complete.
                Err(Failure::Library(Error::Gone(_))) => continue,
                other => other?,
            };
            self.restarts.took(number, &made);
            stand_in.follow(restarted.pid())?;
            match restarted.release() {
                Err(Error::Gone(_)) => {}
                other => return Ok((number, other?)),
            }
        }
    }

    fn too_often(&self) -> Failure {
        let times = output::count(self.restarts.limit() as u64, "time");
        Failure::Damaged(format!("it was, {times} within the last hour, which is the limit (--max-restarts)"))
    }
}

fn name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}
