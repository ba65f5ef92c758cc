//! RSA keys with a public exponent other than 65537.
//!
//! aws-lc-rs draws primes for 65537 only. The primes do not depend on the exponent but for one condition
//! (`gcd(e, p-1) = gcd(e, q-1) = 1`), so we take the primes of a fresh key and derive the private exponents for the
//! wanted one. Since `e` is one machine word, `e^-1 mod m = (1 + k*m) / e` with `k = -(m^-1) mod e` needs only products
//! and quotients by a word; the result is checked by the library like any imported key.

use pkcs8::der::Decode;
use zeroize::Zeroizing;

use super::{RsaPrivateComponents, from_components};
use crate::{SecretBytes, error::CryptoError};

/// Fresh keys tried. For e = 3, the worst case, one in four fits.
const ATTEMPTS_MAX: usize = 64;

type Number = Zeroizing<Vec<u8>>;

pub(super) fn with_exponent(
    exponent: u32,
    mut fresh: impl FnMut() -> Result<SecretBytes, CryptoError>,
) -> Result<SecretBytes, CryptoError> {
    const UNREADABLE: CryptoError = CryptoError::Library("RSA encoding");
    for _ in 0..ATTEMPTS_MAX {
        let der = fresh()?;
        let info = pkcs8::PrivateKeyInfoRef::from_der(der.expose()).map_err(|_| UNREADABLE)?;
        let key = pkcs1::RsaPrivateKeyRef::from_der(info.private_key.as_bytes()).map_err(|_| UNREADABLE)?;
        let n = key.modulus.as_bytes();
        let (p, q) = (key.prime1.as_bytes(), key.prime2.as_bytes());
        let p_less_1 = subtract(p, &[1]);
        let q_less_1 = subtract(q, &[1]);
        // (p-1)(q-1) = n - p - q + 1
        let phi = subtract(&subtract(n, &p_less_1), q);
        let inverses = (inverse_of(exponent, &phi), inverse_of(exponent, &p_less_1), inverse_of(exponent, &q_less_1));
        let (Some(d), Some(dp), Some(dq)) = inverses else { continue };
        return from_components(&RsaPrivateComponents {
            n: n.to_vec(),
            e: exponent.to_be_bytes().to_vec(),
            d: SecretBytes::copy_of(&d),
            p: SecretBytes::copy_of(p),
            q: SecretBytes::copy_of(q),
            dp: SecretBytes::copy_of(&dp),
            dq: SecretBytes::copy_of(&dq),
            qi: SecretBytes::copy_of(key.coefficient.as_bytes()),
        });
    }
    Err(CryptoError::InvalidInput("no RSA key was found for this public exponent"))
}

/// `a - b` for big-endian `a >= b`.
fn subtract(a: &[u8], b: &[u8]) -> Number {
    let mut out = Zeroizing::new(a.to_vec());
    let mut borrow = 0_i32;
    for (i, byte) in out.iter_mut().rev().enumerate() {
        let other = b.len().checked_sub(i + 1).map_or(0, |at| i32::from(b[at]));
        let difference = i32::from(*byte) - other - borrow;
        borrow = i32::from(difference < 0);
        *byte = difference.rem_euclid(256) as u8;
    }
    out
}

fn remainder(number: &[u8], divisor: u64) -> u64 {
    number.iter().fold(0, |rest, byte| (rest << 8 | u64::from(*byte)) % divisor)
}

/// `exponent^-1 mod modulus`, if there is one.
fn inverse_of(exponent: u32, modulus: &[u8]) -> Option<Number> {
    let e = u64::from(exponent);
    let k = e - inverse_of_word(remainder(modulus, e), e)?;
    // (1 + k * modulus) / e, with five more bytes for the product.
    let mut product = Zeroizing::new(vec![0; modulus.len() + 5]);
    let mut carry = 1_u64;
    for (out, byte) in product.iter_mut().rev().zip(modulus.iter().rev().chain(std::iter::repeat(&0))) {
        carry += k * u64::from(*byte);
        *out = carry as u8;
        carry >>= 8;
    }
    let mut rest = 0_u64;
    for byte in product.iter_mut() {
        rest = rest << 8 | u64::from(*byte);
        *byte = (rest / e) as u8;
        rest %= e;
    }
    (rest == 0).then_some(product)
}

/// `value^-1 mod modulus` by the extended Euclidean algorithm.
fn inverse_of_word(value: u64, modulus: u64) -> Option<u64> {
    let (mut r0, mut r1) = (i128::from(modulus), i128::from(value));
    let (mut t0, mut t1) = (0_i128, 1_i128);
    while r1 != 0 {
        let quotient = r0 / r1;
        (r0, r1) = (r1, r0 - quotient * r1);
        (t0, t1) = (t1, t0 - quotient * t1);
    }
    (r0 == 1).then(|| t0.rem_euclid(i128::from(modulus)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    #[test]
    fn small_inverses() {
        assert_eq!(number(&subtract(&[1, 0], &[1])), 255);
        for (e, m) in [(17_u32, 3120_u64), (3, 40), (65537, 1_000_003)] {
            let inverse = inverse_of(e, &m.to_be_bytes()).map(|d| number(&d));
            assert_eq!(inverse.map(|d| d * u64::from(e) % m), Some(1), "{e} mod {m}");
        }
        assert!(inverse_of(3, &[9]).is_none(), "3 has no inverse mod 9");
    }
}
