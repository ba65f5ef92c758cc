//! Prints the CPU time of raw operations, one `name nanoseconds` a line: what the service's figures are compared with.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a measuring tool")]

use std::hint::black_box;

use holdfast_crypto::{AesSize, Curve, EncryptionPadding, KeyMaterial, KeySpec, LoadedKey, RsaSize, WrapPadding};
use rustix::time::{ClockId, clock_gettime};

fn load(spec: KeySpec) -> LoadedKey {
    KeyMaterial::generate(spec, |bytes| bytes.fill(7)).and_then(KeyMaterial::load).expect("a key")
}

/// What this thread has had of a core: others on the machine take none of it.
fn cpu_nanos() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Median over rounds of the mean time of one call.
fn measure<T>(name: &str, calls: u32, mut call: impl FnMut() -> T) {
    let mut rounds: Vec<i64> = (0..11)
        .map(|_| {
            let start = cpu_nanos();
            for _ in 0..calls {
                black_box(call());
            }
            (cpu_nanos() - start) / i64::from(calls)
        })
        .collect();
    rounds.sort_unstable();
    println!("{name} {}", rounds[rounds.len() / 2]);
}

fn main() {
    for size in [RsaSize::Bits2048, RsaSize::Bits4096] {
        let LoadedKey::Rsa(key) = load(KeySpec::Rsa { size, exponent: 65537 }) else { unreachable!() };
        let ciphertext = key.encrypt(EncryptionPadding::OaepSha256, &[1; 32]).expect("encrypts");
        let name = format!("rsa{}-oaep256-unwrap", size.bits());
        measure(&name, 40, || key.decrypt(EncryptionPadding::OaepSha256, &ciphertext));
    }
    let LoadedKey::Ec(key) = load(KeySpec::Ec(Curve::P256)) else { unreachable!() };
    measure("es256-sign", 2000, || key.sign(&[1; 32]));
    let LoadedKey::Aes(key) = load(KeySpec::Aes(AesSize::Bits256)) else { unreachable!() };
    let wrapped = key.wrap(WrapPadding::None, &[1; 32]).expect("wraps");
    measure("a256kw-wrap", 20_000, || key.wrap(WrapPadding::None, &[1; 32]));
    measure("a256kw-unwrap", 20_000, || key.unwrap(WrapPadding::None, &wrapped));
    measure("a256gcm-encrypt", 20_000, || key.gcm_encrypt([1; 12], b"", &[1; 32]));
}
