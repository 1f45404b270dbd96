//! Who a thread is to the kernel: users, groups, capabilities, securebits, no_new_privs (credentials(7), capabilities(7)).
//!
//! Every thread has its own. They are compared first, so that a restart by the job's own user makes no call at all; what has to change
//! changes in the one order in which each step still has the right to the next, and the outcome is compared again.

use serde::{Deserialize, Serialize};

use super::capabilities::{CAP_SETPCAP, members, names};
use super::task::{Subject, TaskResource};
use super::{Collector, Restorer, dumpable};
use crate::error::{Doing, Error, Result};
use crate::sys::procfs;
use crate::sys::status::Status;
use crate::tracee::batch::{Answers, Batch, CallId};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Credentials;

/// Numbers as ckpt's user namespace counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CredentialsRecord {
    /// Users.
    pub uids: Ids,
    /// Groups.
    pub gids: Ids,
    /// Supplementary groups, ascending.
    pub groups: Vec<u32>,
    /// Capabilities that execve may pass on.
    pub inheritable: u64,
    /// Capabilities that may be made effective.
    pub permitted: u64,
    /// Capabilities in use.
    pub effective: u64,
    /// Capabilities that execve can give at most.
    pub bounding: u64,
    /// Capabilities that execve keeps.
    pub ambient: u64,
    /// SECBIT_*, keepcaps among them.
    pub securebits: u32,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}

/// The four ids of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ids {
    /// Whom it belongs to.
    pub real: u32,
    /// What it may do.
    pub effective: u32,
    /// What it may become again.
    pub saved: u32,
    /// What it may do with files.
    pub fs: u32,
}

impl From<[u32; 4]> for Ids {
    fn from([real, effective, saved, fs]: [u32; 4]) -> Ids {
        Ids { real, effective, saved, fs }
    }
}

/// struct __user_cap_header_struct, version 3.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

impl CredentialsRecord {
    fn new(status: &Status, securebits: u32) -> CredentialsRecord {
        CredentialsRecord {
            uids: Ids::from(status.uids),
            gids: Ids::from(status.gids),
            groups: status.groups.clone(),
            inheritable: status.capinh,
            permitted: status.capprm,
            effective: status.capeff,
            bounding: status.capbnd.unwrap_or_default(),
            ambient: status.capamb.unwrap_or_default(),
            securebits,
            no_new_privs: status.nonewprivs.is_some_and(|value| value != 0),
        }
    }

    fn read(task: &mut RemoteTask<'_>) -> Result<CredentialsRecord> {
        let securebits = prctl(task, "cannot read the securebits", libc::PR_GET_SECUREBITS, 0, 0)? as u32;
        Ok(CredentialsRecord::new(&procfs::status(task.pid(), task.tid())?, securebits))
    }
}

fn prctl(task: &mut RemoteTask<'_>, doing: &str, option: i32, a: u64, b: u64) -> Result<u64> {
    let zero = 0u64.into();
    task.call(doing, libc::SYS_prctl, [option.into(), a.into(), b.into(), zero, zero])
}

impl TaskResource for Credentials {
    const KIND: &'static str = "credentials";
    type Record = CredentialsRecord;
    type Asked = CallId;

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<CallId> {
        Ok(batch.call(libc::SYS_prctl, [libc::PR_GET_SECUREBITS.into()]))
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, id: CallId, answers: &Answers) -> Result<CredentialsRecord> {
        let securebits = answers.ret(id).doing(|| format!("cannot read the securebits of thread {}", who.tid))?;
        Ok(CredentialsRecord::new(who.status, securebits as u32))
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &CredentialsRecord) -> Result<()> {
        let now = CredentialsRecord::read(task)?;
        if now == *record {
            return Ok(());
        }
        let wanted = possible(task, &now, record)?;
        let core = dumpable::read(task)?;
        change(task, &now, &wanted)?;
        dumpable::set(task, core)?;
        let got = CredentialsRecord::read(task)?;
        if got == wanted {
            return Ok(());
        }
        Err(Error::Restart(format!("thread {} got other credentials than it had: {got:?} instead of {wanted:?}", task.tid())))
    }
}

/// What can be had of `record`: everything that gives or takes rights now, or the restart fails. What merely limits what a later execve
/// could gain may be stricter here, with a warning.
fn possible(task: &RemoteTask<'_>, now: &CredentialsRecord, record: &CredentialsRecord) -> Result<CredentialsRecord> {
    let mut wanted = record.clone();
    let missing = record.permitted & !now.permitted;
    if missing != 0 {
        return Err(Error::Restart(format!(
            "thread {} held {}, which ckpt does not hold; run ckpt restart as root",
            task.tid(),
            names(missing)
        )));
    }
    let out_of_bounds = record.bounding & !now.bounding;
    if out_of_bounds != 0 {
        wanted.bounding &= now.bounding;
        tracing::warn!("thread {}: programs that it executes can no longer gain {}", task.tid(), names(out_of_bounds));
    }
    if now.no_new_privs && !record.no_new_privs {
        wanted.no_new_privs = true;
        tracing::warn!("thread {}: programs that it executes can no longer gain privileges, as ckpt cannot itself", task.tid());
    }
    Ok(wanted)
}

fn change(task: &mut RemoteTask<'_>, now: &CredentialsRecord, wanted: &CredentialsRecord) -> Result<()> {
    let mut securebits = now.securebits;
    // Else the kernel takes capabilities away as soon as the user is no longer root.
    let fixup = libc::SECBIT_NO_SETUID_FIXUP as u32;
    if wanted.uids != now.uids && now.effective & (1 << CAP_SETPCAP) != 0 && securebits & fixup == 0 {
        securebits |= fixup;
        prctl(task, "cannot keep capabilities over a change of user", libc::PR_SET_SECUREBITS, securebits.into(), 0)?;
    }
    if wanted.inheritable != now.inheritable {
        set_capabilities(task, now.permitted, now.effective, wanted.inheritable)?;
    }
    for cap in members(now.bounding & !wanted.bounding) {
        let doing = format!("cannot give up {} for good, which needs CAP_SETPCAP", names(1 << cap));
        prctl(task, &doing, libc::PR_CAPBSET_DROP, cap.into(), 0)?;
    }
    set_groups(task, now, wanted)?;
    let [setres, setfs] = [libc::SYS_setresgid, libc::SYS_setfsgid];
    set_ids(task, "group", [setres, setfs], now.gids, wanted.gids)?;
    let [setres, setfs] = [libc::SYS_setresuid, libc::SYS_setfsuid];
    set_ids(task, "user", [setres, setfs], now.uids, wanted.uids)?;
    set_ambient(task, wanted)?;
    if wanted.securebits != securebits {
        set_securebits(task, securebits, wanted.securebits)?;
    }
    set_capabilities(task, wanted.permitted, wanted.effective, wanted.inheritable)?;
    if wanted.no_new_privs && !now.no_new_privs {
        prctl(task, "cannot set no_new_privs", libc::PR_SET_NO_NEW_PRIVS, 1, 0)?;
    }
    Ok(())
}

fn set_groups(task: &mut RemoteTask<'_>, now: &CredentialsRecord, wanted: &CredentialsRecord) -> Result<()> {
    if wanted.groups == now.groups {
        return Ok(());
    }
    let mut batch = Batch::new();
    let list = batch.bytes(bytemuck::cast_slice(&wanted.groups));
    let id = batch.call(libc::SYS_setgroups, [wanted.groups.len().into(), list.into()]);
    let answers = task.run(batch)?;
    answers
        .ret(id)
        .doing(|| format!("cannot give thread {} its groups again; run ckpt restart as root, or as its user", task.tid()))
        .map(drop)
}

fn set_ids(task: &mut RemoteTask<'_>, what: &str, [setres, setfs]: [libc::c_long; 2], now: Ids, wanted: Ids) -> Result<()> {
    if wanted == now {
        return Ok(());
    }
    let doing = format!(
        "cannot make thread {} belong to {what} {} again; run ckpt restart as root, or as that user",
        task.tid(),
        wanted.real
    );
    task.call(&doing, setres, [wanted.real.into(), wanted.effective.into(), wanted.saved.into()])?;
    // Setting the effective id has set this one too. The call tells no error: what it did is seen in the end.
    if wanted.fs != wanted.effective {
        task.call(&doing, setfs, [wanted.fs.into()])?;
    }
    Ok(())
}

fn set_ambient(task: &mut RemoteTask<'_>, wanted: &CredentialsRecord) -> Result<()> {
    // A change of users may have cleared them.
    let now = procfs::status(task.pid(), task.tid())?.capamb.unwrap_or_default();
    for (set, how) in [(now & !wanted.ambient, libc::PR_CAP_AMBIENT_LOWER), (wanted.ambient & !now, libc::PR_CAP_AMBIENT_RAISE)] {
        for cap in members(set) {
            let doing = format!("cannot change whether {} is an ambient capability", names(1 << cap));
            prctl(task, &doing, libc::PR_CAP_AMBIENT, how as u64, cap.into())?;
        }
    }
    Ok(())
}

fn set_securebits(task: &mut RemoteTask<'_>, now: u32, wanted: u32) -> Result<()> {
    let keep_caps = libc::SECBIT_KEEP_CAPS as u32;
    if now ^ wanted == keep_caps {
        // This one needs no privilege.
        let on = u64::from(wanted & keep_caps != 0);
        return prctl(task, "cannot set PR_SET_KEEPCAPS", libc::PR_SET_KEEPCAPS, on, 0).map(drop);
    }
    prctl(task, "cannot set the securebits, which needs CAP_SETPCAP", libc::PR_SET_SECUREBITS, wanted.into(), 0).map(drop)
}

fn set_capabilities(task: &mut RemoteTask<'_>, permitted: u64, effective: u64, inheritable: u64) -> Result<()> {
    let sets = |shift: u32| [effective, permitted, inheritable].map(|set| (set >> shift) as u32);
    let mut batch = Batch::new();
    let header = batch.value(&CAPABILITY_HEADER);
    let data = batch.value(&[sets(0), sets(32)]);
    let id = batch.call(libc::SYS_capset, [header.into(), data.into()]);
    let answers = task.run(batch)?;
    answers.ret(id).doing(|| format!("cannot set the capabilities of thread {}", task.tid())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    fn root() -> CredentialsRecord {
        Trial::sleep().collect::<Credentials>().unwrap()
    }

    /// Gives one program the credentials, and another what is collected from it.
    fn returns(wanted: &CredentialsRecord) {
        let (before, after) = trial::roundtrip::<Credentials>(|program| program.restore::<Credentials>(wanted).unwrap());
        assert_eq!((&before, &after), (wanted, wanted));
    }

    const NOBODY: Ids = Ids { real: 65534, effective: 65534, saved: 65534, fs: 65534 };
    const KILL: u64 = 1 << 5;
    const NET_BIND: u64 = 1 << 10;

    #[test]
    fn an_ordinary_user_returns() {
        let user = CredentialsRecord {
            uids: Ids { real: 1000, effective: 1000, saved: 1000, fs: 1000 },
            gids: Ids { real: 1000, effective: 100, saved: 1000, fs: 100 },
            groups: vec![4, 24, 100_000],
            permitted: 0,
            effective: 0,
            ..root()
        };
        returns(&user);
        returns(&CredentialsRecord { no_new_privs: true, ..user });
    }

    #[test]
    fn a_service_that_keeps_some_capabilities_returns() {
        let service = CredentialsRecord {
            uids: NOBODY,
            gids: NOBODY,
            groups: vec![],
            inheritable: KILL | NET_BIND,
            permitted: NET_BIND | KILL,
            effective: KILL,
            bounding: NET_BIND,
            ambient: NET_BIND,
            ..root()
        };
        returns(&service);
        let locked = libc::SECBIT_NO_SETUID_FIXUP | libc::SECBIT_NO_SETUID_FIXUP_LOCKED | libc::SECBIT_KEEP_CAPS;
        returns(&CredentialsRecord { securebits: locked as u32, ..service.clone() });
        let no_raise = libc::SECBIT_NO_CAP_AMBIENT_RAISE as u32;
        returns(&CredentialsRecord { securebits: no_raise, ..service });
    }

    #[test]
    fn a_server_halfway_to_another_user_returns() {
        let halfway = CredentialsRecord {
            uids: Ids { real: 0, effective: 1000, saved: 0, fs: 33 },
            gids: Ids { real: 0, effective: 1000, saved: 0, fs: 34 },
            effective: 0,
            ..root()
        };
        returns(&halfway);
        returns(&CredentialsRecord { effective: halfway.permitted, ..halfway });
    }

    #[test]
    fn a_user_needs_no_rights_to_stay_what_he_is_and_gets_none() {
        let user = CredentialsRecord { uids: NOBODY, gids: NOBODY, groups: vec![], permitted: 0, effective: 0, ..root() };
        let mut program = Trial::sleep();
        program.restore::<Credentials>(&user).unwrap();
        program.restore::<Credentials>(&user).unwrap();
        let keeps = CredentialsRecord { securebits: libc::SECBIT_KEEP_CAPS as u32, ..user.clone() };
        program.restore::<Credentials>(&keeps).unwrap();
        let error = program.restore::<Credentials>(&root()).unwrap_err().to_string();
        assert!(error.contains("CAP_SETUID") && error.contains("as root"), "{error}");
        let other = CredentialsRecord { uids: Ids::default(), ..keeps.clone() };
        let error = program.restore::<Credentials>(&other).unwrap_err().to_string();
        assert!(error.contains("user 0"), "{error}");
        assert_eq!(program.collect::<Credentials>().unwrap(), keeps);
    }

    #[test]
    fn the_core_file_setting_survives_a_change_of_user() {
        let mut program = Trial::sleep();
        let user = CredentialsRecord { uids: NOBODY, gids: NOBODY, permitted: 0, effective: 0, ..root() };
        program.restore::<Credentials>(&user).unwrap();
        assert_eq!(dumpable::read(&mut program.task()).unwrap(), 1);
    }

    #[test]
    fn ids_that_mean_no_change_are_found_out() {
        let none = Ids { real: u32::MAX, effective: u32::MAX, saved: u32::MAX, fs: u32::MAX };
        let record = CredentialsRecord { uids: none, ..root() };
        assert!(Trial::sleep().restore::<Credentials>(&record).is_err());
        let record = CredentialsRecord { permitted: u64::MAX, ..root() };
        assert!(Trial::sleep().restore::<Credentials>(&record).is_err());
    }
}
