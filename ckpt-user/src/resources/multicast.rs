//! The multicast groups that a UDP socket has joined. The kernel does not list them per socket; it lists those of the machine, and tells
//! for each whether a socket is a member.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use super::Collector;
use crate::error::{Doing, Error, Result};
use crate::sys::socket as raw;

/// A membership of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// struct group_filter: interface, group, and from which sources.
    #[serde(with = "serde_bytes")]
    pub filter: Vec<u8>,
}

/// sizeof(struct sockaddr_storage).
const STORAGE: usize = 128;
/// struct group_filter: u32 interface, padding, group, u32 mode, u32 number of sources, sources.
const GROUP_AT: usize = 8;
const MODE_AT: usize = GROUP_AT + STORAGE;
const COUNT_AT: usize = MODE_AT + 4;
const SOURCES_AT: usize = COUNT_AT + 4;
/// More than the machine lets a socket have (igmp_max_msf, mld_max_msf).
const SOURCES_MAX: usize = 64;
/// No source is excluded: an ordinary membership.
const EXCLUDE: u32 = 0;

// linux/in.h; the numbers are the same for IPv4 and IPv6.
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;

fn level(domain: i32) -> i32 {
    if domain == libc::AF_INET6 { libc::SOL_IPV6 } else { libc::SOL_IP }
}

/// A group on an interface, as the beginning of a struct group_filter without sources.
fn question(interface: u32, group: &[u8]) -> Vec<u8> {
    let mut filter = vec![0; SOURCES_AT + SOURCES_MAX * STORAGE];
    filter[..4].copy_from_slice(&interface.to_ne_bytes());
    filter[GROUP_AT..GROUP_AT + group.len()].copy_from_slice(group);
    filter[COUNT_AT..SOURCES_AT].copy_from_slice(&(SOURCES_MAX as u32).to_ne_bytes());
    filter
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The multicast groups of the machine: interface and address.
#[derive(Debug)]
struct Groups {
    inet: Vec<(u32, Vec<u8>)>,
    inet6: Vec<(u32, Vec<u8>)>,
}

impl Groups {
    fn find() -> Result<Groups> {
        let read = |path| match fs::read_to_string(path) {
            // A kernel without multicast.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other.doing(|| format!("cannot read {path}")),
        };
        Ok(Groups { inet: groups4(&read("/proc/net/igmp")?), inet6: groups6(&read("/proc/net/igmp6")?) })
    }
}

/// The memberships of a socket of this domain.
pub fn collect(cx: &mut Collector<'_>, fd: BorrowedFd<'_>, domain: i32) -> Result<Vec<Membership>> {
    let groups = cx.fact(|_| Groups::find())?;
    let mut memberships = Vec::new();
    for (interface, group) in if domain == libc::AF_INET6 { &groups.inet6 } else { &groups.inet } {
        let mut filter = question(*interface, group);
        match raw::option_into(fd, level(domain), MCAST_MSFILTER, &mut filter) {
            Ok(_) => {
                let sources = (word(&filter, COUNT_AT) as usize).min(SOURCES_MAX);
                filter.truncate(SOURCES_AT + sources * STORAGE);
                memberships.push(Membership { filter });
            }
            // Not a member; or (IPv6) not a multicast group that a socket can join.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EINVAL)) => {}
            Err(error) => return Err(error).doing(|| "cannot ask a socket for its multicast groups"),
        }
    }
    Ok(memberships)
}

/// Joins a group again.
pub fn restore(fd: BorrowedFd<'_>, domain: i32, membership: &Membership) -> Result<()> {
    let filter = &membership.filter;
    if filter.len() < SOURCES_AT || filter.len() > SOURCES_AT + SOURCES_MAX * STORAGE {
        return Err(Error::Restart("the image holds an impossible multicast group".to_owned()));
    }
    let doing = || format!("cannot join a multicast group on interface {} again", word(filter, 0));
    raw::set_option(fd, level(domain), MCAST_JOIN_GROUP, &filter[..MODE_AT]).doing(doing)?;
    if word(filter, MODE_AT) != EXCLUDE || word(filter, COUNT_AT) != 0 {
        raw::set_option(fd, level(domain), MCAST_MSFILTER, filter).doing(doing)?;
    }
    Ok(())
}

/// /proc/net/igmp: "1\tlo        :     1      V3", and below it the groups: "\t\t\t\t010000E0     1 0:00000000\t\t0".
fn groups4(text: &str) -> Vec<(u32, Vec<u8>)> {
    let mut interface = 0;
    let mut groups = Vec::new();
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !line.starts_with(char::is_whitespace) {
            interface = first.parse().unwrap_or(0);
        } else if let Ok(group) = u32::from_str_radix(first, 16) {
            // Printed as the number that its bytes in network order make on this machine.
            let mut address = vec![0; 16];
            address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            address[4..8].copy_from_slice(&group.to_ne_bytes());
            groups.push((interface, address));
        }
    }
    groups
}

/// /proc/net/igmp6: "1    lo              ff020000000000000000000000000001     1 0000000C 0".
fn groups6(text: &str) -> Vec<(u32, Vec<u8>)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let interface = words.next()?.parse().ok()?;
        let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
        let mut address = vec![0; 28];
        address[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        address[8..24].copy_from_slice(&group.to_be_bytes());
        Some((interface, address))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_understood() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    7\teth0      :     1      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n";
        let groups = groups4(text);
        assert_eq!(
            groups.iter().map(|g| (g.0, g.1[4..8].to_vec())).collect::<Vec<_>>(),
            [(1, vec![224, 0, 0, 1]), (7, vec![224, 0, 0, 251])]
        );
        let groups = groups6("3    eth0            ff0200000000000000000000000000fb     1 0000000C 0\nbad\n");
        assert_eq!((groups.len(), groups[0].0, groups[0].1[8], groups[0].1[23]), (1, 3, 0xff, 0xfb));
    }
}
