//! System calls as the kernel knows them, without the C library's loops around EINTR: for the programs under test, which watch what
//! a call returns. What a wrong argument can break is the test program that passes it.

use std::io;
use std::marker::PhantomData;

/// One argument of a system call.
#[derive(Clone, Copy, Debug)]
pub struct Arg<'a>(usize, PhantomData<&'a mut ()>);

impl<'a> Arg<'a> {
    /// A null pointer.
    pub const NULL: Arg<'static> = Arg(0, PhantomData);

    /// A pointer to something that the call reads or writes.
    pub fn to<T: ?Sized>(value: &'a mut T) -> Arg<'a> {
        Arg((value as *mut T).cast::<u8>() as usize, PhantomData)
    }
}

macro_rules! from_integers {
    ($($type:ty),*) => { $(
        impl From<$type> for Arg<'_> {
            fn from(value: $type) -> Self {
                Arg(value as usize, PhantomData)
            }
        }
    )* };
}
from_integers!(i32, u32, i64, u64, usize);

/// Makes the call, once. Its result, which is not negative, or its error.
pub fn call(number: libc::c_long, arguments: &[Arg<'_>]) -> io::Result<i64> {
    let mut all = [0; 6];
    for (slot, argument) in all.iter_mut().zip(arguments) {
        *slot = argument.0;
    }
    let [a, b, c, d, e, f] = all;
    // SAFETY: pointers come from references that outlive the call; the callers pass what the call expects.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
