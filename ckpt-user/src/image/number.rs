//! Numbers in few bytes, where most of them are small.

/// A signed number as an unsigned one that is small if it is near 0.
pub fn fold(signed: i64) -> u64 {
    ((signed << 1) ^ (signed >> 63)) as u64
}

/// The number that [`fold`] was given.
pub fn unfold(folded: u64) -> i64 {
    (folded >> 1) as i64 ^ -((folded & 1) as i64)
}

/// Writes a number, seven bits to a byte, the low ones first (LEB128).
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads one, of at most nine bytes.
pub fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(value in 0..u64::MAX >> 1, signed in i64::MIN >> 1..i64::MAX >> 1) {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            prop_assert_eq!(number(&mut bytes.as_slice()), Some(value));
            prop_assert_eq!(unfold(fold(signed)), signed);
        }
    }
}
