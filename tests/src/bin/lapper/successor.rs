//! A program that executes itself: a new address space in the same process.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;

use ckpt_tests::sys::program;
use nix::sys::personality::{self, Persona};
use nix::unistd::execv;

/// What becomes of the old address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old {
    /// It ends.
    Gone,
    /// Another process holds it, and the new one has the same addresses.
    Held,
}

/// Programs that are executed from now on get the same addresses each time, this one included.
pub fn fix_addresses(words: &[String]) -> io::Result<()> {
    let old = personality::get()?;
    if !old.contains(Persona::ADDR_NO_RANDOMIZE) {
        personality::set(old | Persona::ADDR_NO_RANDOMIZE)?;
        execute(words)?;
    }
    Ok(())
}

/// Has a successor go on after `lap`.
pub fn hand_over(words: &[String], old: Old, lap: u64) -> io::Result<Infallible> {
    if old == Old::Held {
        program::leave_holder()?;
    }
    let words = words.iter().take_while(|word| *word != "from").cloned();
    execute(&words.chain(["from".to_owned(), lap.to_string()]).collect::<Vec<_>>())
}

/// Signals that wait stay so.
fn execute(words: &[String]) -> io::Result<Infallible> {
    let own = std::env::current_exe()?;
    let words = [own.clone().into_os_string()].into_iter().chain(words.iter().map(OsString::from));
    let words = words.map(|word| Ok(CString::new(word.into_vec())?)).collect::<io::Result<Vec<_>>>()?;
    Ok(execv(&CString::new(own.into_os_string().into_vec())?, &words)?)
}
