//! Why eBPF cannot be used here, in plain language.

use std::error::Error as StdError;
use std::io;

use crate::error::Error;

/// What was being done, and why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct EbpfError {
    doing: String,
    kind: io::ErrorKind,
    reason: String,
}

impl EbpfError {
    /// From an error of whoever spoke to the kernel; its error number, if there is one behind it, is put in plain words.
    pub(super) fn new(doing: impl Into<String>, error: impl StdError + 'static) -> EbpfError {
        let doing = doing.into();
        match errno(&error) {
            Some(libc::EPERM) => EbpfError {
                doing,
                kind: io::ErrorKind::PermissionDenied,
                reason: "the kernel does not permit it; run ckpt as root, or with CAP_BPF and CAP_PERFMON (a container must be \
                         given them in the initial user namespace, and kernel lockdown must not be in confidentiality mode)"
                    .into(),
            },
            Some(libc::ENOSYS) => EbpfError::unsupported(doing, "this kernel was built without bpf(2) (CONFIG_BPF_SYSCALL)"),
            errno => {
                let kind = errno.map_or(io::ErrorKind::Other, |n| io::Error::from_raw_os_error(n).kind());
                EbpfError { doing, kind, reason: chain(&error) }
            }
        }
    }

    /// The kernel lacks something.
    pub(super) fn unsupported(doing: impl Into<String>, reason: impl Into<String>) -> EbpfError {
        EbpfError { doing: doing.into(), kind: io::ErrorKind::Unsupported, reason: reason.into() }
    }

    /// Something that should not be.
    pub(super) fn unexpected(doing: impl Into<String>, reason: impl Into<String>) -> EbpfError {
        EbpfError { doing: doing.into(), kind: io::ErrorKind::InvalidData, reason: reason.into() }
    }

    /// [`io::ErrorKind::PermissionDenied`] if the caller lacks rights, [`io::ErrorKind::Unsupported`] if the kernel lacks
    /// something; anything else is a failure.
    pub fn kind(&self) -> io::ErrorKind {
        self.kind
    }
}

impl From<EbpfError> for Error {
    fn from(e: EbpfError) -> Error {
        Error::os(e.doing, io::Error::new(e.kind, e.reason))
    }
}

/// The error number at the root of an error.
pub(super) fn errno(error: &(dyn StdError + 'static)) -> Option<i32> {
    causes(error).find_map(|e| e.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error))
}

/// An error with all its causes, unless a message already has that of its cause in it.
fn chain(error: &(dyn StdError + 'static)) -> String {
    causes(error).map(ToString::to_string).fold(String::new(), |text, cause| match text {
        text if text.is_empty() => cause,
        text if text.contains(&cause) => text,
        text => format!("{text}: {cause}"),
    })
}

/// The error itself, its cause, the cause of that, ...
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let current = next?;
        next = current.source();
        Some(current)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot create map")]
    struct Outer(#[source] io::Error);

    #[test]
    fn missing_rights_are_said_with_what_to_do() {
        let e = EbpfError::new("cannot load", Outer(io::Error::from_raw_os_error(libc::EPERM)));
        assert_eq!(e.kind(), io::ErrorKind::PermissionDenied);
        assert!(e.to_string().contains("CAP_BPF"), "{e}");
    }

    #[test]
    fn other_errors_keep_their_cause() {
        let e = EbpfError::new("cannot load", Outer(io::Error::from_raw_os_error(libc::ENOMEM)));
        assert!(e.to_string().starts_with("cannot load: cannot create map: Cannot allocate memory"), "{e}");
        let whole: Error = e.into();
        assert!(whole.to_string().starts_with("cannot load: cannot create map"), "{whole}");
    }
}
