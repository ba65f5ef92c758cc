//! Secret bytes: not printable, not clonable, not serializable, zeroed on drop.

use zeroize::Zeroize;

/// Secret bytes on the heap, zeroed when dropped.
///
/// The type has no `Debug`, `Display`, `Clone` or `Serialize`: a secret cannot reach a log or be copied by accident.
///
/// ```compile_fail,E0277
/// let s = holdfast_crypto::SecretBytes::zeroed(32);
/// println!("{:?}", s); // a secret cannot be printed
/// ```
/// ```compile_fail,E0277
/// let s = holdfast_crypto::SecretBytes::zeroed(32);
/// println!("{}", s);
/// ```
/// ```compile_fail,E0599
/// let s = holdfast_crypto::SecretBytes::zeroed(32);
/// let t = s.clone(); // nor copied
/// ```
/// ```compile_fail,E0369
/// let s = holdfast_crypto::SecretBytes::zeroed(32);
/// let t = holdfast_crypto::SecretBytes::zeroed(32);
/// let _ = s == t; // nor compared in variable time: see `ct_eq`
/// ```
/// ```compile_fail,E0599
/// let s = holdfast_crypto::SecretBytes::zeroed(32);
/// let t = s.to_vec(); // nor turned into ordinary bytes but by `expose`
/// ```
pub struct SecretBytes(Box<[u8]>);

impl SecretBytes {
    /// Secret storage of `len` zero bytes, to be filled in place by [`Self::expose_mut`].
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self(vec![0; len].into_boxed_slice())
    }

    /// Fills a new secret of `len` bytes in place, so that it never lies on the stack.
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn try_fill<E>(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut secret = Self::zeroed(len);
        fill(&mut secret.0)?;
        Ok(secret)
    }

    /// Copies `bytes`; the caller's copy is the caller's to erase. Prefer [`Self::take`].
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Takes the bytes of `vec` over. Its spare capacity is erased before the allocation is shrunk.
    #[must_use]
    pub fn take(mut vec: Vec<u8>) -> Self {
        if vec.capacity() == vec.len() {
            return Self(vec.into_boxed_slice());
        }
        let exact = Self::copy_of(&vec);
        vec.zeroize();
        exact
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret itself, to be written in place.
    #[must_use]
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Its length in bytes; a length is not secret.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares in constant time (for equal lengths).
    #[must_use]
    pub fn ct_eq(&self, other: &[u8]) -> bool {
        ct_eq(&self.0, other)
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Compares two byte strings in time that depends on their lengths only.
#[must_use]
pub fn ct_eq(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Erases a buffer which held a secret for a moment.
pub fn erase(buffer: &mut [u8]) {
    buffer.zeroize();
}
