use proptest::prelude::*;

use super::*;

fn identity() -> StreamIdentity {
    StreamIdentity { dek: Id([1; 16]), bucket: Id([2; 16]), object: Id([3; 16]), stream: Id([4; 16]) }
}

fn keys_of(dek: u8, identity: StreamIdentity) -> StreamKeys {
    StreamKeys::derive(Some(&SecretBytes::copy_of(&[dek; 32])), identity).unwrap()
}

fn seal(plain: &[u8], step: usize) -> Vec<u8> {
    let mut sealer = StreamSealer::new(keys_of(9, identity()));
    let mut out = Vec::new();
    for part in plain.chunks(step.max(1)) {
        sealer.push(part, |piece| out.extend(piece)).unwrap();
    }
    assert_eq!(sealer.plain_bytes(), plain.len() as u64);
    out.extend(sealer.finish().unwrap());
    out
}

fn open(keys: &StreamKeys, sealed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, CryptoError> {
    if sealed.len() as u64 != keys.sealed_bytes(plain_bytes as u64) || !sealed.starts_with(keys.header()) {
        return Err(CryptoError::Rejected);
    }
    keys.open(0, plain_bytes as u64, &sealed[HEADER_BYTES..])
}

fn plain(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn streams_of_every_shape_come_back() {
    for len in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 40 * CHUNK_BYTES + 7] {
        for step in [1000, CHUNK_BYTES, 100_000] {
            let sealed = seal(&plain(len), step);
            assert_eq!(open(&keys_of(9, identity()), &sealed, len).unwrap(), plain(len), "{len} by {step}");
        }
    }
}

#[test]
fn a_chunk_opens_at_its_own_place_only() {
    let len = 3 * CHUNK_BYTES;
    let sealed = seal(&plain(len), len);
    let keys = keys_of(9, identity());
    let chunk = |index: u64| &sealed[keys.chunk_offset(index) as usize..keys.chunk_offset(index + 1) as usize];
    for index in 0..3 {
        assert!(keys.open(index, len as u64, chunk(index)).is_ok());
        assert!(keys.open((index + 1) % 3, len as u64, chunk(index)).is_err(), "moved");
    }
    assert!(keys.open(0, CHUNK_BYTES as u64, chunk(0)).is_err(), "an early end: the chunk is not the last");
    assert!(keys.open(2, 4 * CHUNK_BYTES as u64, chunk(2)).is_err(), "a later end: the chunk is the last");
}

#[test]
fn another_dek_bucket_object_or_stream_does_not_open_it() {
    let sealed = seal(b"secret", 6);
    let other = Id([7; 16]);
    let rejected =
        |keys: StreamKeys| keys.open(0, 6, &sealed[HEADER_BYTES..]).is_err() && !sealed.starts_with(keys.header());
    assert!(rejected(keys_of(8, identity())));
    assert!(rejected(keys_of(9, StreamIdentity { bucket: other, ..identity() })));
    assert!(rejected(keys_of(9, StreamIdentity { object: other, ..identity() })));
    assert!(rejected(keys_of(9, StreamIdentity { stream: other, ..identity() })));
    assert!(rejected(keys_of(9, StreamIdentity { dek: other, ..identity() })));
}

#[test]
fn every_flipped_bit_is_refused() {
    let sealed = seal(b"some plaintext", 3);
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&keys_of(9, identity()), &changed, 14).is_err(), "bit {bit}");
    }
}

#[test]
fn golden_stream_is_written_and_read_alike() {
    let golden = include_bytes!("../../tests/golden/object-stream-v1.bin");
    assert_eq!(seal(&plain(300), 300), golden);
    assert_eq!(open(&keys_of(9, identity()), golden, 300).unwrap(), plain(300));
    assert_eq!(read_header(golden).unwrap().identity, identity());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_stream_comes_back(len in 0_usize..200_000, step in 1_usize..100_000) {
        let sealed = seal(&plain(len), step);
        prop_assert_eq!(open(&keys_of(9, identity()), &sealed, len).unwrap(), plain(len));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_header(&bytes);
        let _ = keys_of(9, identity()).open(0, 100, &bytes);
    }
}
