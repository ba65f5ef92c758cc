//! The fields that messages are made of.

use holdfast_core::{ExternalKey, ExternalKeySpec, KeyOperations, TokenObject};
use holdfast_crypto::{RsaPublicKey, SecretBytes};

use super::Malformed;

/// Fields, written one after the other. What it holds may be secret: a buffer that is too small is erased when it is left.
pub(super) struct Fields(Vec<u8>);

impl Fields {
    pub(super) fn new(kind: u8) -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.push(kind);
        Self(bytes)
    }
    fn push(&mut self, bytes: &[u8]) {
        if self.0.capacity() - self.0.len() < bytes.len() {
            let mut larger = Vec::with_capacity((self.0.len() + bytes.len()).next_power_of_two());
            larger.extend_from_slice(&self.0);
            holdfast_crypto::secret::erase(&mut self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
    }
    pub(super) fn byte(mut self, value: u8) -> Self {
        self.push(&[value]);
        self
    }
    pub(super) fn number(mut self, value: u64) -> Self {
        self.push(&value.to_be_bytes());
        self
    }
    pub(super) fn bytes(mut self, value: &[u8]) -> Self {
        // Longer than a packet is refused when it is sent.
        self.push(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.push(value);
        self
    }
    pub(super) fn optional(self, value: Option<&[u8]>) -> Self {
        match value {
            None => self.byte(0),
            Some(value) => self.byte(1).bytes(value),
        }
    }
    pub(super) fn object(self, object: &TokenObject) -> Self {
        self.optional(object.label.as_deref().map(str::as_bytes)).optional(object.id.as_deref())
    }
    pub(super) fn key(self, key: &ExternalKey) -> Self {
        let fields = match &key.spec {
            ExternalKeySpec::Aes(bits) => self.byte(0).number(u64::from(*bits)),
            ExternalKeySpec::Other(words) => self.byte(1).bytes(words.as_bytes()),
            ExternalKeySpec::Rsa(public) => self.byte(2).bytes(&public.n).bytes(&public.e),
        };
        let was = key.was_extractable.map_or(2, u8::from);
        fields
            .number(u64::from(key.usage.bits()))
            .byte(u8::from(key.extractable))
            .byte(u8::from(key.sensitive))
            .byte(was)
    }
    pub(super) fn done(self) -> SecretBytes {
        SecretBytes::take(self.0)
    }
}

/// Fields, read one after the other.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*first)
    }
    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        let (first, rest) = self.0.split_first_chunk::<8>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*first))
    }
    pub(super) fn slice(&mut self) -> Result<&'a [u8], Malformed> {
        let (len, rest) = self.0.split_first_chunk::<4>().ok_or(Malformed)?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize).ok_or(Malformed)?;
        self.0 = rest;
        Ok(value)
    }
    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, Malformed> {
        self.slice().map(<[u8]>::to_vec)
    }
    pub(super) fn secret(&mut self) -> Result<SecretBytes, Malformed> {
        self.slice().map(SecretBytes::copy_of)
    }
    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }
    pub(super) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }
    pub(super) fn object(&mut self) -> Result<TokenObject, Malformed> {
        Ok(TokenObject { label: self.optional(Self::text)?, id: self.optional(Self::bytes)? })
    }
    pub(super) fn usage(&mut self) -> Result<KeyOperations, Malformed> {
        let bits = u16::try_from(self.number()?).map_err(|_| Malformed)?;
        KeyOperations::from_bits(bits).ok_or(Malformed)
    }
    pub(super) fn key(&mut self) -> Result<ExternalKey, Malformed> {
        let spec = match self.byte()? {
            0 => ExternalKeySpec::Aes(u32::try_from(self.number()?).map_err(|_| Malformed)?),
            1 => ExternalKeySpec::Other(self.text()?),
            2 => ExternalKeySpec::Rsa(RsaPublicKey { n: self.bytes()?, e: self.bytes()? }),
            _ => return Err(Malformed),
        };
        Ok(ExternalKey {
            spec,
            usage: self.usage()?,
            extractable: self.flag()?,
            sensitive: self.flag()?,
            was_extractable: match self.byte()? {
                0 => Some(false),
                1 => Some(true),
                2 => None,
                _ => return Err(Malformed),
            },
        })
    }
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}
