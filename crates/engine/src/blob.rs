//! Masked key blob, format v1. Documented byte by byte in `docs/formats/masked-key.md`.
//!
//! The header is readable and authenticated: it says which partition, key, version and attributes the blob belongs to,
//! and is the AAD of the ciphertext that follows. A reader compares it with what it expects before it decrypts.

use holdfast_core::{KeyAttributes, KeyName, KeyOperations, KeyVersion, KeyVersionId, PartitionId, Timestamp};
use holdfast_crypto::{
    AesSize, Curve, EcPublicKey, KeyMaterial, KeySpec, MacHash, MlDsaSize, MlKemSize, PublicKey, RsaPublicKey, RsaSize,
    SealingKey, aead,
};

const MAGIC: &[u8; 4] = b"HFMK";
const VERSION: u8 = 1;
/// Longest blob read. An RSA-4096 key takes about 3.3 KB.
const BLOB_BYTES_MAX: usize = 16 * 1024;

/// Why a blob does not open.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BlobError {
    /// It is not a masked key of a version this reader knows.
    #[error("not a masked key blob of a known version")]
    Malformed,
    /// It is a masked key, but not the one expected here.
    #[error("the blob belongs to another partition, key, version or other attributes")]
    OtherIdentity,
    /// It was changed, or was made under another masking key.
    #[error("the blob was changed, or made under another masking key")]
    Damaged,
}

/// What the header says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BlobHeader {
    /// Whose it is.
    pub partition: PartitionId,
    /// Which key version, with which attributes.
    pub version: KeyVersion,
    /// The public part.
    pub public: PublicKey,
}

/// Masks `material`.
pub(crate) fn mask(
    masking: &SealingKey,
    random: [u8; aead::SEAL_RANDOM_BYTES],
    header: &BlobHeader,
    material: &KeyMaterial,
) -> Result<Vec<u8>, BlobError> {
    let mut blob = encode_header(header);
    let sealed = masking.seal(random, &blob, material.expose_canonical()).map_err(|_| BlobError::Damaged)?;
    blob.extend_from_slice(&sealed);
    Ok(blob)
}

/// Unmasks, if the blob is exactly the one made for this partition, key, version and attributes.
pub(crate) fn unmask(
    masking: &SealingKey,
    partition: PartitionId,
    expected: &KeyVersion,
    blob: &[u8],
) -> Result<(BlobHeader, KeyMaterial), BlobError> {
    let (header, sealed) = decode_header(blob)?;
    if header.partition != partition || header.version != *expected {
        return Err(BlobError::OtherIdentity);
    }
    let aad = &blob[..blob.len() - sealed.len()];
    let secret = masking.open(aad, sealed).map_err(|_| BlobError::Damaged)?;
    let material = KeyMaterial::from_canonical(header.version.attributes.spec, secret);
    Ok((header, material))
}

fn encode_header(header: &BlobHeader) -> Vec<u8> {
    let KeyVersion { name, id, attributes } = &header.version;
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(MAGIC);
    out.push(VERSION);
    out.extend_from_slice(header.partition.as_bytes());
    out.extend_from_slice(id.as_bytes());
    let folded = name.folded();
    out.push(folded.len() as u8);
    out.extend_from_slice(folded.as_bytes());
    let (kind, parameter, exponent) = encode_spec(attributes.spec);
    out.push(kind);
    out.extend_from_slice(&parameter.to_be_bytes());
    out.extend_from_slice(&exponent.to_be_bytes());
    out.extend_from_slice(&attributes.operations.bits().to_be_bytes());
    out.push(u8::from(attributes.enabled) | u8::from(attributes.exportable) << 1);
    for moment in [attributes.not_before, attributes.expires] {
        out.extend_from_slice(&moment.map_or(i64::MIN, Timestamp::unix_millis).to_be_bytes());
    }
    out.extend_from_slice(&attributes.release_policy_sha256.unwrap_or_default());
    let public = match &header.public {
        PublicKey::Aes | PublicKey::Hmac => Vec::new(),
        PublicKey::Ed25519(key) => key.to_vec(),
        PublicKey::MlDsa(_, key) | PublicKey::MlKem(_, key) => key.clone(),
        PublicKey::Ec(key) => key.point.clone(),
        PublicKey::Rsa(key) => key.n.clone(),
    };
    out.extend_from_slice(&(public.len() as u16).to_be_bytes());
    out.extend_from_slice(&public);
    out
}

/// Reads the header; returns it with what follows.
///
/// # Errors
/// [`BlobError::Malformed`].
pub fn decode_header(blob: &[u8]) -> Result<(BlobHeader, &[u8]), BlobError> {
    if blob.len() > BLOB_BYTES_MAX {
        return Err(BlobError::Malformed);
    }
    let mut reader = Reader(blob);
    if reader.array()? != *MAGIC || reader.byte()? != VERSION {
        return Err(BlobError::Malformed);
    }
    let partition = PartitionId::from_bytes(reader.array()?);
    let id = KeyVersionId::from_bytes(reader.array()?);
    let name_bytes = usize::from(reader.byte()?);
    let name = std::str::from_utf8(reader.take(name_bytes)?).map_err(|_| BlobError::Malformed)?;
    let name = KeyName::parse(name).map_err(|_| BlobError::Malformed)?;
    let kind = reader.byte()?;
    let parameter = u16::from_be_bytes(reader.array()?);
    let exponent = u32::from_be_bytes(reader.array()?);
    let spec = decode_spec(kind, parameter, exponent)?;
    let operations = KeyOperations::from_bits(u16::from_be_bytes(reader.array()?)).ok_or(BlobError::Malformed)?;
    let flags = reader.byte()?;
    if flags & !3 != 0 {
        return Err(BlobError::Malformed);
    }
    let not_before = reader.moment()?;
    let expires = reader.moment()?;
    let policy: [u8; 32] = reader.array()?;
    let public_bytes = usize::from(u16::from_be_bytes(reader.array()?));
    let public = decode_public(spec, reader.take(public_bytes)?)?;
    let attributes = KeyAttributes {
        spec,
        operations,
        enabled: flags & 1 != 0,
        exportable: flags & 2 != 0,
        not_before,
        expires,
        release_policy_sha256: (policy != [0; 32]).then_some(policy),
    };
    let version = KeyVersion { name, id, attributes };
    Ok((BlobHeader { partition, version, public }, reader.0))
}

/// Numbers that stand for specs; for ever.
fn encode_spec(spec: KeySpec) -> (u8, u16, u32) {
    match spec {
        KeySpec::Aes(size) => (1, size.bits() as u16, 0),
        KeySpec::Ec(curve) => (2, curve_number(curve), 0),
        KeySpec::Rsa { size, exponent } => (3, size.bits() as u16, exponent),
        KeySpec::Hmac(hash) => (4, hash.bits(), 0),
        KeySpec::Ed25519 => (5, 0, 0),
        KeySpec::MlDsa(size) => (6, size.number(), 0),
        KeySpec::MlKem(size) => (7, size.number(), 0),
    }
}

fn curve_number(curve: Curve) -> u16 {
    match curve {
        Curve::P256 => 256,
        Curve::P256K => 257,
        Curve::P384 => 384,
        Curve::P521 => 521,
    }
}

fn decode_spec(kind: u8, parameter: u16, exponent: u32) -> Result<KeySpec, BlobError> {
    let spec = match kind {
        1 => AesSize::from_bits(parameter.into()).map(KeySpec::Aes),
        2 => Curve::ALL.into_iter().find(|curve| curve_number(*curve) == parameter).map(KeySpec::Ec),
        3 => RsaSize::from_bits(parameter.into()).map(|size| KeySpec::Rsa { size, exponent }),
        4 => MacHash::ALL.into_iter().find(|hash| hash.bits() == parameter).map(KeySpec::Hmac),
        5 => (parameter == 0).then_some(KeySpec::Ed25519),
        6 => MlDsaSize::ALL.into_iter().find(|size| size.number() == parameter).map(KeySpec::MlDsa),
        7 => MlKemSize::ALL.into_iter().find(|size| size.number() == parameter).map(KeySpec::MlKem),
        _ => None,
    };
    spec.filter(|_| kind == 3 || exponent == 0).ok_or(BlobError::Malformed)
}

fn decode_public(spec: KeySpec, public: &[u8]) -> Result<PublicKey, BlobError> {
    match spec {
        KeySpec::Aes(_) if public.is_empty() => Ok(PublicKey::Aes),
        KeySpec::Hmac(_) if public.is_empty() => Ok(PublicKey::Hmac),
        KeySpec::Ed25519 => public.try_into().map(PublicKey::Ed25519).map_err(|_| BlobError::Malformed),
        KeySpec::MlDsa(size) if public.len() == size.public_bytes() => Ok(PublicKey::MlDsa(size, public.to_vec())),
        KeySpec::MlKem(size) if public.len() == size.public_bytes() => Ok(PublicKey::MlKem(size, public.to_vec())),
        KeySpec::Ec(curve) if public.len() == 1 + 2 * curve.field_bytes() && public[0] == 4 => {
            Ok(PublicKey::Ec(EcPublicKey { curve, point: public.to_vec() }))
        }
        KeySpec::Rsa { size, exponent } if public.len() == size.bytes() => {
            let e = exponent.to_be_bytes();
            let zeros = (exponent.leading_zeros() / 8) as usize;
            Ok(PublicKey::Rsa(RsaPublicKey { n: public.to_vec(), e: e[zeros..].to_vec() }))
        }
        _ => Err(BlobError::Malformed),
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], BlobError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(BlobError::Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BlobError> {
        self.take(N)?.try_into().map_err(|_| BlobError::Malformed)
    }

    fn byte(&mut self) -> Result<u8, BlobError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn moment(&mut self) -> Result<Option<Timestamp>, BlobError> {
        let millis = i64::from_be_bytes(self.array()?);
        Ok((millis != i64::MIN).then(|| Timestamp::from_unix_millis(millis)))
    }
}
