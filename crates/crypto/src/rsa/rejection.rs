//! Implicit rejection for RSAES-PKCS1-v1_5 (draft-irtf-cfrg-rsa-guidance, section 7).

use crate::{HashAlgorithm, SecretBytes, error::CryptoError, kdf, kdf::MacKey};

/// Bytes that RSAES-PKCS1-v1_5 padding needs at least: 00 02, eight non-zero bytes, 00.
pub(super) const PADDING_BYTES: usize = 11;
/// Candidate lengths drawn; with 128 of them a fitting one fails to appear less than once in 2^64 calls.
const CANDIDATES: usize = 128;

/// Derives the message that stands in for a badly padded one.
pub(super) struct ImplicitRejection(MacKey);

impl ImplicitRejection {
    pub(super) fn new(private_key: &SecretBytes) -> Result<Self, CryptoError> {
        let key = kdf::derive_key(private_key, "holdfast rsa1_5 implicit rejection v1")?;
        Ok(Self(MacKey::new(HashAlgorithm::Sha256, key.expose())))
    }

    /// A pseudo-random message of pseudo-random length, the same for the same key and ciphertext.
    pub(super) fn synthetic(&self, ciphertext: &[u8]) -> Result<SecretBytes, CryptoError> {
        let seed = SecretBytes::take(self.0.sign(&[ciphertext]));
        let bytes_max = ciphertext.len() - PADDING_BYTES;
        let lengths = kdf::hkdf(HashAlgorithm::Sha256, &[], seed.expose(), b"length", 2 * CANDIDATES)?;
        let message = kdf::hkdf(HashAlgorithm::Sha256, &[], seed.expose(), b"message", bytes_max)?;
        let len = select_length(lengths.expose(), bytes_max);
        Ok(SecretBytes::copy_of(&message.expose()[bytes_max - len..]))
    }
}

/// The last candidate that fits, chosen without a branch on its value.
fn select_length(candidates: &[u8], bytes_max: usize) -> usize {
    let mask = bytes_max.next_power_of_two() - 1;
    candidates.as_chunks::<2>().0.iter().fold(0, |chosen, pair| {
        let candidate = usize::from(u16::from_be_bytes(*pair)) & mask;
        // All ones if candidate <= bytes_max: the subtraction borrows, and the sign spreads.
        let fits = (candidate.wrapping_sub(bytes_max + 1) as isize >> (isize::BITS - 1)) as usize;
        (chosen & !fits) | (candidate & fits)
    })
}

#[cfg(test)]
mod tests {
    use super::select_length;

    #[test]
    fn last_fitting_candidate_is_chosen() {
        assert_eq!(select_length(&[0, 5, 0, 9, 0, 127], 100), 9);
        assert_eq!(select_length(&[0, 100], 100), 100);
        assert_eq!(select_length(&[0, 101], 100), 0);
    }
}
