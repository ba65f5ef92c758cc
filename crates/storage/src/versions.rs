//! Ids of versions. They carry the version's place among those of its key, so that a listing goes on behind a version that was
//! deleted, and so that one version among thousands is found without looking at the others.

/// `null`: what an object has where versions are not kept.
pub(crate) const NULL: &str = "null";
/// Between a version and its place, in a marker of a version whose id carries none.
const PLACE: char = '~';
const HEX_DIGITS: usize = 16;

/// The id of a new version: its place, then 8 random bytes. Places may come again after deletions, ids do not.
pub(crate) fn new(seq: u64, random: u64) -> String {
    format!("{seq:016x}.{random:016x}")
}

fn hex(text: &str) -> Option<u64> {
    let digits =
        text.len() == HEX_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// The place that an id carries. None: `null`, and ids from before they carried one.
pub(crate) fn place(version: &str) -> Option<u64> {
    let (seq, random) = version.split_once('.')?;
    hex(random)?;
    hex(seq)
}

/// Whether this may be the id of a version at all.
pub(crate) fn is_legal(version: &str) -> bool {
    version == NULL || place(version).is_some() || crate::record::Id::parse(version).is_some()
}

/// Where a listing goes on, behind this version: the id, with its place where it carries none.
pub(crate) fn marker(version: &str, seq: u64) -> String {
    match place(version) {
        Some(_) => version.to_owned(),
        None => format!("{version}{PLACE}{seq:016x}"),
    }
}

/// The id and place that a marker names. Clients also take the id of the last version they saw, which may have no place.
pub(crate) fn read_marker(marker: &str) -> Option<(&str, Option<u64>)> {
    let (version, seq) = match marker.split_once(PLACE) {
        Some((version, seq)) => (version, Some(hex(seq)?)),
        None => (marker, place(marker)),
    };
    is_legal(version).then_some((version, seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_their_place_and_markers_those_of_others() {
        let id = new(0x0123_4567_89ab_cdef, 7);
        assert_eq!(id, "0123456789abcdef.0000000000000007");
        assert_eq!((place(&id), read_marker(&id)), (Some(0x0123_4567_89ab_cdef), Some((id.as_str(), place(&id)))));
        assert_eq!(marker(&id, 9), id);
        let old = "00112233445566778899aabbccddeeff";
        for without in [NULL, old] {
            assert_eq!(place(without), None);
            assert_eq!(read_marker(without), Some((without, None)));
            assert_eq!(read_marker(&marker(without, 9)), Some((without, Some(9))));
        }
        for none in
            ["", "x", "null~", "null~9", "~0000000000000009", "0123456789abcdef.", "0123456789ABCDEF.0000000000000007"]
        {
            assert_eq!(read_marker(none), None, "{none}");
        }
    }
}
