//! sqlite3 under `ckpt watch --save-files`: whenever the machine fails, the database is what it was at the cut, with the transaction that was going
//! on then.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::watched::{Watch, is_increment};
use ckpt_tests::{ckpt, needs_root, python};
use tempfile::tempdir;

/// Opens a database. A transaction adds twenty rows, changes twenty older ones, and deletes one; with so small a cache some of it is in the database
/// before it ends.
const SQLITE: &str = "
import random, sqlite3
db = sqlite3.connect('db', isolation_level=None, timeout=60)
db.execute('pragma journal_mode = MODE')
db.execute('pragma cache_size = 20')
db.execute('pragma synchronous = off')
db.execute('create table t(n integer primary key, b integer, c text)')
n = deleted = 0
def transaction():
    global n, deleted
    db.execute('begin immediate')
    for _ in range(20):
        n += 1
        db.execute('insert into t values(?, 0, ?)', (n, str(n) * random.randrange(200)))
        db.execute('update t set b = b + 1 where n = ?', (n - (n * 7919 % 100) % (n - deleted),))
    deleted += 1
    db.execute('delete from t where n = ?', (deleted,))
";

/// Fills it. What was committed is said, so that what is said is rolled back, too.
const FILL: &str = "
while True:
    transaction()
    db.execute('commit')
    print('rows', n, flush=True)
";

fn start(folder: &Path, mode: &str) -> Job {
    let script = SQLITE.replace("MODE", mode) + FILL;
    Job::start(folder, Command::new(python::PYTHON).args(["-c", &script]).current_dir(folder))
}

/// What is in a database, as it would be found if the job had died now: its number of transactions. It must be sound.
fn transactions(folder: &Path) -> u64 {
    let aside = tempdir().unwrap();
    for name in ["db", "db-journal", "db-wal"] {
        if folder.join(name).exists() {
            fs::copy(folder.join(name), aside.path().join(name)).unwrap();
        }
    }
    let ask = "pragma integrity_check; select count(*), max(n), min(n), max(length(c) % length(n)) from t;";
    let answer = Command::new("sqlite3").arg(aside.path().join("db")).arg(ask).output().expect("cannot run sqlite3");
    let text = String::from_utf8_lossy(&answer.stdout).into_owned() + &String::from_utf8_lossy(&answer.stderr);
    let numbers: Vec<u64> = text.trim().trim_start_matches("ok\n").split('|').filter_map(|n| n.parse().ok()).collect();
    let [rows, last, first, garbled] = numbers[..] else { panic!("the database is not sound: {text}") };
    let done = last / 20;
    assert_eq!((rows, last, first, garbled), (done * 19, done * 20, done + 1, 0), "{text}");
    done
}

/// How many transactions the job has told of.
fn told(job: &Job) -> u64 {
    let output = job.output();
    // What has no end yet is being written.
    let whole = output.rfind('\n').map_or("", |end| &output[..end]);
    let rows = whole.lines().filter_map(|line| line.strip_prefix("rows ")).next_back();
    rows.map_or(0, |rows| rows.parse::<u64>().unwrap() / 20)
}

fn wait_for_more(job: &Job) {
    let before = told(job);
    job.wait_for("more rows", |_| told(job) > before + 20);
}

fn a_database(mode: &str, interval: &str) {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let mut job = start(folder.path(), mode);
    job.wait_for_line("rows");
    let dir = folder.path().join("images");
    let mut increments = 0;
    for round in 0..5 {
        let watch = Watch::start(&job, &dir, interval, &["--save-files"]);
        watch.wait_for(2);
        moments.let_pass(Duration::from_millis(600), 0.0, 1.0);
        increments += watch.crash(&mut job, &moments).iter().filter(|checkpoint| is_increment(checkpoint)).count();
        let more: &[&str] = if round % 2 == 0 { &["--frozen"] } else { &["--frozen", "--discard-changes"] };
        job = ckpt::restart(&job, &dir, more);
        let (found, told) = (transactions(folder.path()), told(&job));
        assert!(found == told || found == told + 1, "{found} transactions are in the database, {told} are told of");
        ckpt::run(&mut ckpt::command(["thaw", &job.pid().to_string()])).success();
        wait_for_more(&job);
    }
    job.kill();
    let (found, told) = (transactions(folder.path()), told(&job));
    assert!(found == told || found == told + 1, "{found} transactions are in the database, {told} are told of");
    assert!(increments > 0, "there were only full images");
}

#[test]
fn a_database_with_a_journal() {
    a_database("delete", "200ms");
}

#[test]
fn a_database_with_a_journal_often() {
    a_database("delete", "20ms");
}

#[test]
fn a_database_with_a_log_of_writes() {
    a_database("wal", "200ms");
}

#[test]
fn a_database_with_a_log_of_writes_often() {
    a_database("wal", "20ms");
}

/// The job was between two transactions at the cut, and in the middle of a later one when it died. Whoever opens the database must not undo that
/// one in what was put back.
#[test]
fn a_journal_that_is_newer() {
    needs_root!();
    let folder = tempdir().unwrap();
    let fill = "
for _ in range(30): transaction(); db.execute('commit')
def report():
    for _ in range(30): transaction(); db.execute('commit')
    transaction()
    print('done', flush=True)
";
    let mut job = python::rest_after(folder.path(), &(SQLITE.replace("MODE", "delete") + fill)).unwrap();
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &["--save-files"]);
    job.report();
    job.kill();
    let journal = folder.path().join("db-journal");
    assert!(fs::metadata(&journal).unwrap().len() > 4096, "there is no journal");
    let mut job = ckpt::restart(&job, &image, &[]);
    assert!(!journal.exists() && folder.path().join("db-journal.ckpt-kept-1").exists());
    assert_eq!(transactions(folder.path()), 30);
    job.report();
    job.kill();
    assert_eq!(transactions(folder.path()), 60);
}

/// Without `--save-files` a database that was written to is no file that only grew.
#[test]
fn a_database_that_was_not_saved() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = start(folder.path(), "delete");
    wait_for_more(&job);
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &[]);
    watch.wait_for(3);
    watch.end();
    wait_for_more(&job);
    job.kill();
    let before = fs::read(folder.path().join("db")).unwrap();
    let said = ckpt::try_restart(&dir, &["--detach"]).failure();
    assert!(said.contains(&format!("the file {} ", folder.path().join("db").display())), "{said}");
    assert!(fs::read(folder.path().join("db")).unwrap() == before, "it was changed");
    assert!(!folder.path().join("db.ckpt-kept-1").exists());
}
