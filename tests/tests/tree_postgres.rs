//! PostgreSQL under pgbench, both below one shell: shared memory of System V and POSIX, semaphores in shared memory, latches, unix sockets. When
//! it was interrupted, sums of balances and histories fit as well, and amcheck finds every index in order.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::{needs_root, skip, story, watched};
use nix::unistd::User;
use tempfile::tempdir;

/// Debian has it in a folder for each version. `None`: it is not there.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let folders = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let whole = |folder: &PathBuf| ["postgres", "initdb", "pgbench", "pg_amcheck"].iter().all(|name| folder.join(name).exists());
    folders.filter(whole).max()
}

/// The server, a benchmark, and a look at what it has left.
const SCRIPT: &str = r#"
cd "$FOLDER"
initdb --no-sync -D data -A trust > init.log
postgres -D data -k "$FOLDER" -c listen_addresses= -c dynamic_shared_memory_type=posix > server.log 2>&1 &
until pg_isready -q -h "$FOLDER"; do sleep 0.05; done
pgbench -q -h "$FOLDER" -i -s 2 postgres > init.log 2>&1 || exit 1
echo begins
pgbench -h "$FOLDER" -c 4 -j 2 -t $TIMES postgres > bench.log 2>&1 || exit 2
echo ends
psql -h "$FOLDER" -Atq postgres -c "
    select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts), sum(delta) = (select sum(bbalance) from pgbench_branches),
    sum(delta) = (select sum(tbalance) from pgbench_tellers) from pgbench_history" || exit 3
psql -h "$FOLDER" -Atq postgres -c 'create extension amcheck' || exit 4
pg_amcheck -h "$FOLDER" --heapallindexed postgres || exit 5
psql -h "$FOLDER" -Atq postgres -c "
    set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set min_parallel_table_scan_size = 0;
    select count(*) from pgbench_accounts" || exit 6
kill -INT $(head -1 data/postmaster.pid)
wait
grep -E 'PANIC|FATAL|ERROR' server.log | grep -v 'starting up' && exit 7
echo done
"#;

fn start(programs: &Path, folder: &Path, times: u32) -> Job {
    let user = User::from_name("postgres").ok().flatten().expect("there is no user postgres");
    let at = folder.join("database");
    std::fs::create_dir(&at).unwrap();
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    chown(&at, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "sh", "-c", SCRIPT]);
    command.env("FOLDER", &at).env("TIMES", times.to_string()).env("PATH", path).env("LC_ALL", "C.UTF-8");
    Job::start(folder, command.current_dir("/"))
}

macro_rules! programs {
    () => {
        match programs() {
            Some(programs) => programs,
            None => skip!("PostgreSQL is not there"),
        }
    };
}

/// Stopped, killed and restarted.
#[test]
fn what_pgbench_leaves() {
    needs_root!();
    let programs = programs!();
    story::survives(|folder| start(&programs, folder, 300), |job| job.output());
}

/// Live cuts and increments of memory and of the files that are open, and all of them are newer than the last image.
#[test]
fn what_pgbench_leaves_under_watch() {
    needs_root!();
    let programs = programs!();
    let moments = Moments::new();
    let folder = tempdir().unwrap();
    let job = start(&programs, folder.path(), 2500);
    job.wait_for_line("begins");
    let mut job = watched::survives_crashes_with(job, "100ms", 3, &moments, &["--save-files"], |_| {});
    let output = job.succeed();
    assert_eq!(output, "begins\nends\n10000|t|t|t\n200000\ndone\n");
}
