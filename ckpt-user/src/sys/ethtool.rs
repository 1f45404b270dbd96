//! What a network device does by itself: the features of SIOCETHTOOL (linux/ethtool.h).

use std::io;
use std::os::fd::AsRawFd;

use super::socket;

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;
/// Bytes of a name (ETH_GSTRING_LEN).
const STRING: usize = 32;

/// struct ifreq with ifr_data.
#[repr(C)]
struct Request {
    name: [u8; 16],
    data: *mut u32,
    rest: [u8; 16],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

/// The names of the features that are switched on.
pub fn features(name: [u8; 16]) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info: which sets, and how many strings each has.
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    ask(name, &mut info)?;
    let count = info[4] as usize;
    // struct ethtool_gstrings and the strings.
    let mut strings = vec![0u32; 3 + count * STRING / 4];
    (strings[0], strings[1], strings[2]) = (ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32);
    ask(name, &mut strings)?;
    // struct ethtool_gfeatures, and four words for 32 features each: available, requested, active, never changed.
    let words = count.div_ceil(32);
    let mut features = vec![0u32; 2 + words * 4];
    (features[0], features[1]) = (ETHTOOL_GFEATURES, words as u32);
    ask(name, &mut features)?;
    let names = bytemuck::cast_slice::<u32, u8>(&strings[3..]).chunks(STRING);
    let is_active = |n: usize| features[2 + n / 32 * 4 + 2] & 1 << (n % 32) != 0;
    let text = |name: &[u8]| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    Ok(names.enumerate().filter(|(n, _)| is_active(*n)).map(|(_, name)| text(name)).collect())
}

fn ask(name: [u8; 16], data: &mut [u32]) -> io::Result<()> {
    let socket = socket::create(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = Request { name, data: data.as_mut_ptr(), rest: [0; 16] };
    // SAFETY: the request and its data outlive the call; the data has room for what its first words ask for (linux/ethtool.h).
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_has_features() {
        let mut name = [0; 16];
        name[..2].copy_from_slice(b"lo");
        assert!(features(name).unwrap().iter().any(|feature| feature == "loopback"));
        assert!(features([b'x'; 16]).is_err());
    }
}
