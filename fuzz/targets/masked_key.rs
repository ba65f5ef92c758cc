#![no_main]
//! Masked key blobs and key backups: nothing but what the partition made opens.

use holdfast_core::{MaskedKey, PartitionId};
use holdfast_crypto::SecretBytes;
use holdfast_engine::{Partition, PartitionPolicy, blob::decode_header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let masking_key = SecretBytes::copy_of(&[1; 32]);
    let id = decode_header(data).map_or(PartitionId::from_bytes([0; 16]), |(header, _)| header.partition);
    let Ok(partition) = Partition::new(id, &masking_key, PartitionPolicy::default()) else { return };
    if let Ok((header, _)) = decode_header(data) {
        let masked = MaskedKey(data.into());
        assert!(partition.describe(&header.version, &masked).is_ok());
        assert!(partition.open(&header.version, &masked).is_err(), "nobody masked this");
    }
    assert!(partition.open_backup(data).is_err(), "nobody sealed this");
});
