//! POSIX timers (timer_create(2)), with their ids and the time that was left.
//!
//! /proc/PID/timers tells what they are, timer_gettime how long they still have. The kernel keeps a timer's last overrun count to itself
//! (timer_getoverrun), so that begins at zero. A timer that was set to a point in time goes on for the time that was left until then.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Refusal, Result};
use crate::sys::procfs;
use crate::tracee::batch::{Answers, Batch, CallId, Slot};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct PosixTimers;

/// Every timer of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PosixTimersRecord {
    /// In ascending order of id.
    pub timers: Vec<PosixTimer>,
}

/// One timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PosixTimer {
    /// Its id.
    pub id: i32,
    /// CLOCK_*, or the processor time of a process or thread.
    pub clock: i32,
    /// SIGEV_*.
    pub notify: i32,
    /// The signal that it sends.
    pub signal: i32,
    /// The value that comes with the signal.
    pub value: u64,
    /// The thread that gets it, with SIGEV_THREAD_ID.
    pub target: i32,
    /// The period in (seconds, nanoseconds); zero: it goes off once.
    pub interval: (i64, i64),
    /// Time until it goes off; zero: it is not running.
    pub left: (i64, i64),
}

/// struct sigevent.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SigEvent {
    value: u64,
    signal: i32,
    notify: i32,
    target: i32,
    reserved: [i32; 11],
}

const _: () = assert!(size_of::<SigEvent>() == 64);

/// PR_TIMER_CREATE_RESTORE_IDS and its arguments (linux/prctl.h, Linux 6.15): timer_create takes the id it is given.
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
const RESTORE_IDS_OFF: u64 = 0;
const RESTORE_IDS_ON: u64 = 1;

/// Timers made with one batch.
const PER_BATCH: usize = 64;
/// Without PR_TIMER_CREATE_RESTORE_IDS ids can only be counted up to; beyond this many a restart gives up.
const SKIPS_MAX: i32 = 1 << 20;

/// Parses /proc/PID/timers.
fn parse(text: &str) -> Option<Vec<PosixTimer>> {
    let mut timers = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let id = line.strip_prefix("ID: ")?.parse().ok()?;
        let (signal, value) = lines.next()?.strip_prefix("signal: ")?.split_once('/')?;
        let (how, whom) = lines.next()?.strip_prefix("notify: ")?.split_once('/')?;
        let (kind, target) = whom.split_once('.')?;
        let clock = lines.next()?.strip_prefix("ClockID: ")?.trim().parse().ok()?;
        let notify = match how {
            "signal" => libc::SIGEV_SIGNAL,
            "none" => libc::SIGEV_NONE,
            "thread" => libc::SIGEV_THREAD,
            _ => return None,
        };
        let notify = if kind == "tid" { notify | libc::SIGEV_THREAD_ID } else { notify };
        timers.push(PosixTimer {
            id,
            clock,
            notify,
            signal: signal.parse().ok()?,
            value: u64::from_str_radix(value, 16).ok()?,
            target: target.parse().ok()?,
            ..PosixTimer::default()
        });
    }
    timers.sort_by_key(|timer| timer.id);
    Some(timers)
}

impl PosixTimer {
    fn event(&self) -> SigEvent {
        SigEvent { value: self.value, signal: self.signal, notify: self.notify, target: self.target, reserved: [0; 11] }
    }
}

impl TaskResource for PosixTimers {
    const KIND: &'static str = "posix-timers";
    type Record = PosixTimersRecord;
    type Asked = Vec<(PosixTimer, CallId, Slot)>;

    fn ask(who: &Subject<'_>, batch: &mut Batch) -> Result<Self::Asked> {
        let pid = who.pid;
        // The file belongs to the process and is not among a thread's.
        let text = match procfs::read_text(format!("/proc/{pid}/timers")) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Refused(Refusal {
                    pid,
                    object: "its POSIX timers".to_owned(),
                    reason: "cannot be told, because this kernel has no /proc/PID/timers".to_owned(),
                    advice: "use a kernel with CONFIG_CHECKPOINT_RESTORE".to_owned(),
                    passing: false,
                }));
            }
            other => other.doing(|| format!("cannot read the timers of pid {pid}"))?,
        };
        let timers = parse(&text).ok_or_else(|| Error::Unexpected(format!("/proc/{pid}/timers makes no sense: {text:?}")))?;
        let ask = |timer: PosixTimer| {
            let left = batch.room(size_of::<[i64; 4]>());
            (timer, batch.call(libc::SYS_timer_gettime, [timer.id.into(), left.into()]), left)
        };
        Ok(timers.into_iter().map(ask).collect())
    }

    fn collect(cx: &mut Collector<'_>, who: &Subject<'_>, asked: Self::Asked, answers: &Answers) -> Result<Self::Record> {
        let mut timers = Vec::new();
        for (mut timer, id, slot) in asked {
            answers.ret(id).doing(|| format!("cannot read timer {} of pid {}", timer.id, who.pid))?;
            let [interval_s, interval_ns, left_s, left_ns] = answers.value(slot);
            (timer.interval, timer.left) = ((interval_s, interval_ns), (left_s, left_ns));
            // The thread has ended: its timer ticks on and signals nobody.
            let targeted = timer.notify & libc::SIGEV_THREAD_ID != 0;
            if targeted && !std::fs::exists(format!("/proc/{}/task/{}", who.pid, timer.target)).unwrap_or(false) {
                timer.notify = libc::SIGEV_NONE;
            }
            timers.push(timer);
            cx.is_passing();
        }
        Ok(PosixTimersRecord { timers })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &Self::Record) -> Result<()> {
        if record.timers.is_empty() {
            return Ok(());
        }
        if restore_ids(task, RESTORE_IDS_ON)? {
            let made = make_with_ids(task, &record.timers);
            restore_ids(task, RESTORE_IDS_OFF)?;
            made?;
        } else {
            make_counting_up(task, &record.timers)?;
        }
        start(task, &record.timers)
    }
}

/// Switches PR_TIMER_CREATE_RESTORE_IDS; false where the kernel does not know it.
fn restore_ids(task: &mut RemoteTask<'_>, on: u64) -> Result<bool> {
    let zero = 0u64.into();
    let args = [PR_TIMER_CREATE_RESTORE_IDS.into(), on.into(), zero, zero, zero];
    match task.call("cannot choose the ids of timers", libc::SYS_prctl, args) {
        Ok(_) => Ok(true),
        Err(e) if e.errno() == Some(libc::EINVAL) => Ok(false),
        Err(e) => Err(e),
    }
}

fn make_with_ids(task: &mut RemoteTask<'_>, timers: &[PosixTimer]) -> Result<()> {
    for some in timers.chunks(PER_BATCH) {
        let mut batch = Batch::new();
        let calls: Vec<(CallId, Slot)> = some
            .iter()
            .map(|timer| {
                let (event, id) = (batch.value(&timer.event()), batch.value(&timer.id));
                (batch.call(libc::SYS_timer_create, [timer.clock.into(), event.into(), id.into()]), id)
            })
            .collect();
        let answers = task.run(batch)?;
        for (timer, (call, slot)) in some.iter().zip(calls) {
            answers.ret(call).doing(|| format!("cannot make timer {} of pid {}", timer.id, task.pid()))?;
            got_id(timer, answers.value(slot))?;
        }
    }
    Ok(())
}

fn got_id(timer: &PosixTimer, id: i32) -> Result<()> {
    if id == timer.id {
        return Ok(());
    }
    Err(Error::Unexpected(format!("the kernel gave timer {} the id {id}", timer.id)))
}

/// Older kernels number timers one after another: those between are made and deleted again.
fn make_counting_up(task: &mut RemoteTask<'_>, timers: &[PosixTimer]) -> Result<()> {
    let mut next = 0;
    for timer in timers {
        if timer.id < next || timer.id - next > SKIPS_MAX {
            return Err(Error::Restart(format!(
                "this kernel cannot give a timer the id {} (Linux 6.15 can, with PR_TIMER_CREATE_RESTORE_IDS)",
                timer.id
            )));
        }
        while next < timer.id {
            let until = timer.id.min(next + PER_BATCH as i32);
            let mut batch = Batch::new();
            let skip = PosixTimer { notify: libc::SIGEV_NONE, ..PosixTimer::default() };
            let event = batch.value(&skip.event());
            let calls: Vec<(i32, CallId, Slot)> = (next..until)
                .map(|id| {
                    let slot = batch.room(size_of::<i32>());
                    let call = batch.call(libc::SYS_timer_create, [libc::CLOCK_MONOTONIC.into(), event.into(), slot.into()]);
                    batch.call(libc::SYS_timer_delete, [id.into()]);
                    (id, call, slot)
                })
                .collect();
            let answers = task.run(batch)?;
            for (id, call, slot) in calls {
                answers.ret(call).doing(|| format!("cannot count timers of pid {} up to {}", task.pid(), timer.id))?;
                got_id(&PosixTimer { id, ..skip }, answers.value(slot))?;
            }
            next = until;
        }
        make_with_ids(task, std::slice::from_ref(timer))?;
        next += 1;
    }
    Ok(())
}

fn start(task: &mut RemoteTask<'_>, timers: &[PosixTimer]) -> Result<()> {
    let running: Vec<&PosixTimer> = timers.iter().filter(|timer| timer.left != (0, 0)).collect();
    for some in running.chunks(PER_BATCH) {
        let mut batch = Batch::new();
        let calls: Vec<CallId> = some
            .iter()
            .map(|timer| {
                let value = batch.value(&[timer.interval.0, timer.interval.1, timer.left.0, timer.left.1]);
                batch.call(libc::SYS_timer_settime, [timer.id.into(), 0u64.into(), value.into(), 0u64.into()])
            })
            .collect();
        let answers = task.run(batch)?;
        for (timer, call) in some.iter().zip(calls) {
            answers.ret(call).doing(|| format!("cannot start timer {} of pid {}", timer.id, task.pid()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn the_list_of_timers_is_understood() {
        let text = "ID: 7\nsignal: 10/00000000fffffffd\nnotify: signal/tid.7084\nClockID: 0\n\
                    ID: 1\nsignal: 14/00007ffd12345678\nnotify: none/pid.7084\nClockID: -6\n";
        let timers = parse(text).unwrap();
        assert_eq!(timers.len(), 2);
        let expected =
            PosixTimer { id: 1, clock: -6, notify: 1, signal: 14, value: 0x7ffd_1234_5678, target: 7084, ..Default::default() };
        assert_eq!(timers[0], expected);
        assert_eq!((timers[1].id, timers[1].notify, timers[1].value), (7, libc::SIGEV_THREAD_ID, 0xffff_fffd));
        assert_eq!(parse(""), Some(Vec::new()));
        for damaged in ["ID: 1\n", "ID: x\nsignal: 1/0\nnotify: none/pid.1\nClockID: 0\n", "nonsense"] {
            assert_eq!(parse(damaged), None);
        }
    }

    fn timers_of(program: &Trial) -> Vec<PosixTimer> {
        let tid = program.pid().0;
        let base =
            PosixTimer { clock: libc::CLOCK_MONOTONIC, signal: libc::SIGUSR1, value: 42, target: tid, ..Default::default() };
        vec![
            PosixTimer { id: 3, left: (100, 5), interval: (1, 2), ..base },
            PosixTimer { id: 4, clock: libc::CLOCK_REALTIME, notify: libc::SIGEV_THREAD_ID, left: (200, 0), ..base },
            PosixTimer { id: 90, clock: -6, notify: libc::SIGEV_NONE, ..base },
        ]
    }

    fn same_but_for_time(program: &mut Trial, made: &[PosixTimer]) {
        let found = program.collect::<PosixTimers>().unwrap().timers;
        assert_eq!(found.len(), made.len());
        for (found, made) in found.iter().zip(made) {
            assert_eq!(PosixTimer { left: made.left, ..*found }, *made);
            assert!(found.left <= made.left && found.left.0 >= made.left.0 - 5, "{found:?} {made:?}");
        }
    }

    #[test]
    fn timers_return_with_their_ids() {
        let (mut before, mut after) = (Trial::sleep(), Trial::sleep());
        let made = timers_of(&before);
        before.restore::<PosixTimers>(&PosixTimersRecord { timers: made.clone() }).unwrap();
        same_but_for_time(&mut before, &made);
        let mut record = before.collect::<PosixTimers>().unwrap();
        for timer in &mut record.timers {
            timer.target = after.pid().0;
        }
        after.restore::<PosixTimers>(&record).unwrap();
        same_but_for_time(&mut after, &record.timers);
    }

    #[test]
    fn and_so_they_do_on_kernels_that_only_count() {
        let mut program = Trial::sleep();
        let made = timers_of(&program);
        make_counting_up(&mut program.task(), &made).unwrap();
        start(&mut program.task(), &made).unwrap();
        same_but_for_time(&mut program, &made);
        let far = PosixTimer { id: i32::MAX, ..made[0] };
        assert!(make_counting_up(&mut program.task(), &[far]).is_err(), "a damaged image must not keep us counting");
        let negative = PosixTimer { id: -1, ..made[0] };
        assert!(make_counting_up(&mut program.task(), &[negative]).is_err());
    }

    #[test]
    fn none_stay_none() {
        let (before, after) = trial::roundtrip::<PosixTimers>(|_| {});
        assert!(before.timers.is_empty() && after.timers.is_empty());
    }
}
