#![expect(clippy::expect_used, reason = "a bench may panic")]

//! The raw operations that the service's figures are compared with.

use criterion::{Criterion, criterion_group, criterion_main};
use holdfast_crypto::{
    AesSize, Curve, EncryptionPadding, HashAlgorithm, KeyMaterial, KeySpec, LoadedKey, RsaSize, SignatureScheme,
    WrapPadding,
};

fn load(spec: KeySpec) -> LoadedKey {
    KeyMaterial::generate(spec, |bytes| bytes.fill(7)).and_then(KeyMaterial::load).expect("a key")
}

fn primitives(c: &mut Criterion) {
    for size in [RsaSize::Bits2048, RsaSize::Bits3072, RsaSize::Bits4096] {
        let LoadedKey::Rsa(key) = load(KeySpec::Rsa { size, exponent: 65537 }) else { unreachable!() };
        let ciphertext = key.encrypt(EncryptionPadding::OaepSha256, &[1; 32]).expect("encrypts");
        c.bench_function(&format!("rsa{}_oaep256_decrypt", size.bits()), |b| {
            b.iter(|| key.decrypt(EncryptionPadding::OaepSha256, &ciphertext));
        });
        c.bench_function(&format!("rsa{}_ps256_sign", size.bits()), |b| {
            b.iter(|| key.sign(SignatureScheme::RsaPss(HashAlgorithm::Sha256), &[1; 32]));
        });
    }
    for curve in Curve::ALL {
        let LoadedKey::Ec(key) = load(KeySpec::Ec(curve)) else { unreachable!() };
        let digest = vec![1; curve.hash().len()];
        c.bench_function(&format!("ecdsa_{curve:?}_sign"), |b| b.iter(|| key.sign(&digest)));
    }
    let LoadedKey::Aes(key) = load(KeySpec::Aes(AesSize::Bits256)) else { unreachable!() };
    c.bench_function("a256kw_wrap_32", |b| b.iter(|| key.wrap(WrapPadding::None, &[1; 32])));
    c.bench_function("a256gcm_encrypt_32", |b| b.iter(|| key.gcm_encrypt([1; 12], b"", &[1; 32])));
}

criterion_group!(benches, primitives);
criterion_main!(benches);
