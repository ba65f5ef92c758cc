//! Bytes as hex digits and back.

pub use holdfast_core::hex;

/// From hex digits of either case.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs
        .iter()
        .map(|pair| {
            let [high, low] = pair.map(|digit| (digit as char).to_digit(16));
            Some((high? << 4 | low?) as u8)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        assert_eq!(hex(&[0, 0xaf, 0x10]), "00af10");
        assert_eq!(unhex("00aF10"), Some(vec![0, 0xaf, 0x10]));
        for bad in ["0", "0g", "+1", "\u{e4}"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
