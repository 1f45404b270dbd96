//! Tests that cannot run on this machine say so, and count as passed.

#[path = "../../ckpt-user/src/skip.rs"]
mod noted;

pub use noted::note;

/// Returns from a test that cannot run here, and says why.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here).trim_end_matches("::here");
        $crate::skip::note(name, &format!($($reason)*));
        return;
    }};
}

/// What is there, or returns from a test that cannot run here, and says why: the error.
#[macro_export]
macro_rules! or_skip {
    ($there:expr) => {
        match $there {
            Ok(there) => there,
            Err(why) => $crate::skip!("{why}"),
        }
    };
}

/// Is this process root? Returns from the test if not.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            $crate::skip!("not root");
        }
    };
}
