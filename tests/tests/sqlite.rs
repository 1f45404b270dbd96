//! The sqlite3 command line filling a database: afterwards the database is sound and holds every row.

use std::fmt::Write;
use std::fs::File;
use std::process::Command;

use ckpt_tests::job::Job;
use ckpt_tests::story;

fn statements() -> String {
    let mut text = String::from("create table t(a integer primary key, b text);\n");
    for transaction in 0..600 {
        text.push_str("begin;\n");
        for row in 0..100 {
            let key = transaction * 100 + row;
            writeln!(text, "insert into t values({key}, '{}');", "row ".repeat(key % 40)).expect("memory");
        }
        text.push_str("commit;\n");
    }
    text
}

#[test]
fn fills_a_database() {
    let text = statements();
    story::survives(
        |folder| {
            let script = folder.join("fill.sql");
            std::fs::write(&script, &text).expect("cannot write the statements");
            let input = File::open(&script).expect("cannot open the statements");
            let out = File::create(folder.join("out")).expect("no output file");
            let err = File::create(folder.join("err")).expect("no error file");
            Job::spawn(folder, Command::new("sqlite3").arg(folder.join("db")).stdin(input).stdout(out).stderr(err))
        },
        |job| {
            let ask = "pragma integrity_check; select count(*), sum(a), sum(length(b)) from t;";
            let answer = Command::new("sqlite3").arg(job.folder().join("db")).arg(ask).output().expect("cannot run sqlite3");
            String::from_utf8_lossy(&answer.stdout).into_owned()
        },
    );
}
