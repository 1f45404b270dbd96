//! `filer`: has descriptors of every kind, in states that it knows. Says "ready", and for every SIGUSR1 what has become of them
//! ([`ckpt_tests::checks`]). Its working directory gets files.

mod events;
mod files;
mod locks;
mod nameless;
mod pipes;
mod sockets;
mod watches;

use ckpt_tests::checks::Checks;

/// A look at something that was made.
type Check = Box<dyn FnMut() -> Result<(), String>>;
/// The making of it.
type Made = std::io::Result<Check>;

fn main() {
    let mut checks = Checks::new();
    // Signals that are read from descriptors, and those that files send.
    nix::sys::signal::SigSet::all().thread_block().expect("cannot block signals");
    files::add(&mut checks);
    nameless::add(&mut checks);
    pipes::add(&mut checks);
    events::add(&mut checks);
    watches::add(&mut checks);
    sockets::add(&mut checks);
    locks::add(&mut checks);
    checks.serve();
}

/// A check as the list wants it.
fn boxed(check: impl FnMut() -> Result<(), String> + 'static) -> Made {
    Ok(Box::new(check))
}
