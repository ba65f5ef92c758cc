//! MD5 (RFC 1321), for what protocols demand of it (S3's ETag and Content-MD5); never for security.

use md5::Digest as _;

/// An MD5 in the making.
#[derive(Default)]
pub struct Md5(md5::Md5);

impl Md5 {
    /// Takes more bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest.
    #[must_use]
    pub fn finish(self) -> [u8; 16] {
        self.0.finalize().into()
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn digest(bytes: &[u8]) -> [u8; 16] {
        md5::Md5::digest(bytes).into()
    }
}
