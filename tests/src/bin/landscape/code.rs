//! Memory that is executed.

use std::io;

use ckpt_tests::checks::{Checks, said, same};
use ckpt_tests::sys::memory::{PAGE, Region};
use nix::time::{ClockId, clock_gettime};

type Check = Box<dyn FnMut() -> Result<(), String>>;

/// Makes it.
pub fn add(checks: &mut Checks) {
    checks.add("code", code(libc::PROT_READ | libc::PROT_EXEC, 4242));
    checks.add("code-execute-only", code(libc::PROT_EXEC, 4343));
    checks.add("code-writable", code(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, 4444));
    checks.add("vdso", clock());
}

/// A function made at run time.
fn code(protection: i32, result: u32) -> io::Result<Check> {
    let region = Region::anonymous(PAGE)?;
    // mov eax, result; ret
    let [a, b, c, d] = result.to_le_bytes();
    region.put(&[0xb8, a, b, c, d, 0xc3]);
    region.protect(protection)?;
    Ok(Box::new(move || same("the result of the function", region.call(), result)))
}

/// The clock that is read without a system call: it must neither stop nor go back.
fn clock() -> io::Result<Check> {
    let now = || clock_gettime(ClockId::CLOCK_MONOTONIC);
    let mut before = now()?;
    Ok(Box::new(move || {
        let after = said("clock_gettime", now())?;
        same("the clock has gone on", after > before, true)?;
        before = after;
        Ok(())
    }))
}
