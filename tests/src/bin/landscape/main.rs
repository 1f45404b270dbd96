//! `landscape`: has memory mappings of every kind, each with contents that it knows. Says "ready", and for every SIGUSR1 what has become
//! of them ([`ckpt_tests::checks`]). Its working directory gets files.

mod anonymous;
mod code;
mod files;

use ckpt_tests::checks::Checks;

fn main() {
    let mut checks = Checks::new();
    anonymous::add(&mut checks);
    files::add(&mut checks);
    code::add(&mut checks);
    checks.serve();
}
