//! Sets of capabilities (capabilities(7)) as bit masks, and their names for messages.

/// CAP_SETPCAP.
pub const CAP_SETPCAP: u32 = 8;
/// CAP_SYS_RESOURCE.
pub const CAP_SYS_RESOURCE: u32 = 24;

const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The numbers of the capabilities in a set.
pub fn members(set: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |cap| set & (1 << cap) != 0)
}

/// "CAP_SETUID, CAP_NET_RAW".
pub fn names(set: u64) -> String {
    let name = |cap: u32| NAMES.get(cap as usize).map_or_else(|| format!("capability {cap}"), |name| (*name).to_owned());
    members(set).map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_named() {
        assert_eq!(names(0), "");
        assert_eq!(names(1 << 7 | 1 << CAP_SYS_RESOURCE | 1 << 63), "CAP_SETUID, CAP_SYS_RESOURCE, capability 63");
        assert_eq!(names(1 << 40), "CAP_CHECKPOINT_RESTORE");
    }
}
