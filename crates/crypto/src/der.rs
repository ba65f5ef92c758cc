//! The little DER that public keys, ECDSA signatures and answers to attested callers need (X.690).

use crate::{
    AesKey, CbcPadding, Curve, EncryptionPadding, MlDsaSize, MlKemSize, PublicKey, RsaPublicKey, SecretBytes,
    error::CryptoError, kdf,
};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;

/// One element.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        len @ 0..=0x7f => out.push(len as u8),
        len @ 0x80..=0xff => out.extend_from_slice(&[0x81, len as u8]),
        len => out.extend_from_slice(&[0x82, (len >> 8) as u8, len as u8]),
    }
    out.extend_from_slice(content);
    out
}

fn unsigned(number: &[u8]) -> Vec<u8> {
    let digits = crate::rsa::strip_zeros(number);
    let padded =
        if digits.first().is_none_or(|first| *first >= 0x80) { [&[0], digits].concat() } else { digits.to_vec() };
    element(INTEGER, &padded)
}

/// AlgorithmIdentifier contents: the OIDs and their parameters, encoded.
fn algorithm(key: &PublicKey) -> Option<&'static [u8]> {
    Some(match key {
        PublicKey::Aes | PublicKey::Hmac => return None,
        // rsaEncryption, NULL (RFC 8017, A.1).
        PublicKey::Rsa(_) => &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0],
        // id-ecPublicKey with the curve (RFC 5480, section 2).
        PublicKey::Ec(key) => match key.curve {
            Curve::P256 => &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7],
            Curve::P256K => &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 0x0a],
            Curve::P384 => &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 0x22],
            Curve::P521 => &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 0x23],
        },
        // RFC 8410, section 3.
        PublicKey::Ed25519(_) => &[6, 3, 0x2b, 0x65, 0x70],
        // RFC 9881, section 2.
        PublicKey::MlDsa(size, _) => match size {
            MlDsaSize::Dsa44 => &[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 17],
            MlDsaSize::Dsa65 => &[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 18],
            MlDsaSize::Dsa87 => &[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 19],
        },
        // RFC 9935, section 3.
        PublicKey::MlKem(size, _) => match size {
            MlKemSize::Kem512 => &[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 4, 1],
            MlKemSize::Kem768 => &[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 4, 2],
            MlKemSize::Kem1024 => &[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 4, 3],
        },
    })
}

impl PublicKey {
    /// SubjectPublicKeyInfo (RFC 5280, section 4.1), DER; `None` for symmetric keys.
    #[must_use]
    pub fn spki(&self) -> Option<Vec<u8>> {
        let algorithm = element(SEQUENCE, algorithm(self)?);
        let key = match self {
            Self::Aes | Self::Hmac => return None,
            Self::Ec(key) => key.point.clone(),
            Self::Ed25519(key) => key.to_vec(),
            Self::MlDsa(_, key) | Self::MlKem(_, key) => key.clone(),
            Self::Rsa(key) => element(SEQUENCE, &[unsigned(&key.n), unsigned(&key.e)].concat()),
        };
        let bits = element(BIT_STRING, &[&[0], key.as_slice()].concat());
        Some(element(SEQUENCE, &[algorithm, bits].concat()))
    }
}

const OCTET_STRING: u8 = 0x04;
const SET: u8 = 0x31;
/// envelopedData and data (RFC 5652, sections 6.1 and 4).
const ENVELOPED_DATA: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 3];
const DATA: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
/// aes256-CBC (RFC 3565, section 4.1).
const AES256_CBC: &[u8] = &[6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 42];
/// id-RSAES-OAEP with SHA-256 and MGF1 of it (RFC 8017, A.2.1), as an AlgorithmIdentifier.
const OAEP_SHA256: &[u8] = &[
    0x30, 60, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 7, 0x30, 47, 0xa0, 15, 0x30, 13, 6, 9, 0x60, 0x86, 0x48,
    1, 0x65, 3, 4, 2, 1, 5, 0, 0xa1, 28, 0x30, 26, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8, 0x30, 13, 6, 9,
    0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0,
];

/// What [`enveloped_data`] draws: an AES-256 key and an IV.
pub const ENVELOPE_RANDOM_BYTES: usize = 48;

/// Encrypts `content` to the holder of an RSA key (SubjectPublicKeyInfo): CMS EnvelopedData (RFC 5652, section 6) with one
/// KeyTransRecipientInfo by subject key identifier (RFC 7093, section 2, method 1), RSAES-OAEP with SHA-256, AES-256-CBC.
/// `random`: the content key and the IV, [`ENVELOPE_RANDOM_BYTES`].
///
/// # Errors
/// [`CryptoError::InvalidKey`] if it is no RSA key of 2048 bits and more.
pub fn enveloped_data(
    recipient_spki: &[u8],
    random: &SecretBytes,
    content: &SecretBytes,
) -> Result<Vec<u8>, CryptoError> {
    let recipient = RsaPublicKey::from_der(recipient_spki)?;
    if recipient.n.len() < 256 {
        return Err(CryptoError::InvalidKey("an RSA key of a recipient has at least 2048 bits"));
    }
    let (key, iv) = random.expose().split_at_checked(32).ok_or(CryptoError::Library("CMS"))?;
    let iv: [u8; 16] = iv.try_into().map_err(|_| CryptoError::Library("CMS"))?;
    let wrapped = recipient.encrypt(EncryptionPadding::OaepSha256, key)?;
    let ciphertext = AesKey::new(SecretBytes::copy_of(key))?.cbc_encrypt(CbcPadding::Pkcs7, iv, content.expose())?;
    let identifier = &kdf::sha256(&[recipient_spki])[..20];
    let version = element(INTEGER, &[2]);
    let recipient_info = element(
        SEQUENCE,
        &[version.as_slice(), &element(0x80, identifier), OAEP_SHA256, &element(OCTET_STRING, &wrapped)].concat(),
    );
    let algorithm = element(SEQUENCE, &[AES256_CBC, &element(OCTET_STRING, &iv)].concat());
    let encrypted = element(SEQUENCE, &[DATA, &algorithm, &element(0x80, &ciphertext)].concat());
    let enveloped = element(SEQUENCE, &[version.as_slice(), &element(SET, &recipient_info), &encrypted].concat());
    Ok(element(SEQUENCE, &[ENVELOPED_DATA, &element(0xa0, &enveloped)].concat()))
}

/// ECDSA-Sig-Value (RFC 3279, section 2.2.3) of `r || s`.
#[must_use]
pub fn ecdsa_signature(fixed: &[u8]) -> Vec<u8> {
    let (r, s) = fixed.split_at(fixed.len() / 2);
    element(SEQUENCE, &[unsigned(r), unsigned(s)].concat())
}

/// `r || s` of an ECDSA-Sig-Value on `curve`.
///
/// # Errors
/// [`CryptoError::InvalidInput`] on anything that is not strict DER, or too large for the curve.
pub fn ecdsa_signature_fixed(curve: Curve, der: &[u8]) -> Result<Vec<u8>, CryptoError> {
    const INVALID: CryptoError = CryptoError::InvalidInput("not a signature in DER");
    let (content, rest) = read(SEQUENCE, der).ok_or(INVALID)?;
    let (r, content) = read(INTEGER, content).ok_or(INVALID)?;
    let (s, content) = read(INTEGER, content).ok_or(INVALID)?;
    if !rest.is_empty() || !content.is_empty() {
        return Err(INVALID);
    }
    let mut out = Vec::with_capacity(2 * curve.field_bytes());
    for number in [r, s] {
        let digits = crate::rsa::strip_zeros(number);
        // As in `unsigned`, and in no other way: else one signature had many forms.
        if unsigned(digits)[2..] != *number || digits.len() > curve.field_bytes() {
            return Err(INVALID);
        }
        out.resize(out.len() + curve.field_bytes() - digits.len(), 0);
        out.extend_from_slice(digits);
    }
    Ok(out)
}

/// One element with this tag: its content, and what follows.
fn read(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = der.split_first_chunk::<2>()?;
    let (len, rest) = match header[1] {
        len @ 0..=0x7f => (usize::from(len), rest),
        0x81 => match rest.split_first()? {
            (len @ 0x80..=0xff, rest) => (usize::from(*len), rest),
            _ => return None,
        },
        _ => return None,
    };
    (header[0] == tag).then(|| rest.split_at_checked(len)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_there_and_back() {
        for fixed in [vec![0; 64], vec![0xff; 64], [vec![0; 31], vec![1], vec![0x80; 32]].concat()] {
            let der = ecdsa_signature(&fixed);
            assert_eq!(ecdsa_signature_fixed(Curve::P256, &der).unwrap(), fixed);
            for at in 0..der.len() {
                assert!(ecdsa_signature_fixed(Curve::P256, &der[..at]).is_err(), "cut at {at}");
            }
        }
        let large = ecdsa_signature(&[0xff; 132]);
        assert_eq!(large[..3], [SEQUENCE, 0x81, 138]);
        assert_eq!(ecdsa_signature_fixed(Curve::P521, &large).unwrap(), [0xff; 132]);
        for bad in [
            &[0x30, 6, 2, 1, 1, 2, 1][..],
            &[0x30, 7, 2, 2, 0, 1, 2, 1, 1],
            &[0x30, 6, 2, 1, 0x81, 2, 1, 1],
            &[0x30, 6, 2, 1, 1, 2, 1, 1, 0],
            &[0x30, 0x81, 6, 2, 1, 1, 2, 1, 1],
        ] {
            assert!(ecdsa_signature_fixed(Curve::P256, bad).is_err(), "{bad:x?}");
        }
    }
}
