//! Prints the CPU time of raw PKCS #11 operations, one `name nanoseconds` a line: what the proxy's figures are compared with.
//! Arguments: module, token label, key label. The PIN comes by `RAW_PIN`, for measuring only.

#![expect(clippy::expect_used, clippy::print_stdout, clippy::panic, reason = "a measuring tool")]

use std::time::Instant;

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::{Mechanism, aead::GcmParams},
    object::Attribute,
    session::UserType,
    types::AuthPin,
};

/// Median over rounds of the mean time of one call.
fn measure(name: &str, mut call: impl FnMut()) {
    const CALLS: u32 = 2000;
    let mut rounds: Vec<u128> = (0..11)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..CALLS {
                call();
            }
            start.elapsed().as_nanos() / u128::from(CALLS)
        })
        .collect();
    rounds.sort_unstable();
    println!("{name} {}", rounds[rounds.len() / 2]);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, token, label] = arguments.as_slice() else { panic!("usage: raw_pkcs11 MODULE TOKEN KEY") };
    let module = Pkcs11::new(module).expect("the module loads");
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("it initializes");
    let slots = module.get_slots_with_token().expect("slots");
    let slot = slots.into_iter().find(|slot| module.get_token_info(*slot).is_ok_and(|info| info.label() == token));
    let session = module.open_ro_session(slot.expect("the token is there")).expect("a session");
    let pin = AuthPin::new(std::env::var("RAW_PIN").expect("RAW_PIN").into());
    session.login(UserType::User, Some(&pin)).expect("the login");
    let template = [Attribute::Label(label.clone().into_bytes()), Attribute::Token(true)];
    let key = session.find_objects(&template).expect("a search")[0];
    let mut iv = [1; 12];
    let sealed = {
        let params = GcmParams::new(&mut iv, &[2; 35], 128.into()).expect("parameters");
        session.encrypt(&Mechanism::AesGcm(params), key, &[3; 32]).expect("encrypts")
    };
    measure("encrypt", || {
        let params = GcmParams::new(&mut iv, &[2; 35], 128.into()).expect("parameters");
        session.encrypt(&Mechanism::AesGcm(params), key, &[3; 32]).expect("encrypts");
    });
    let mut iv = [1; 12];
    measure("decrypt", || {
        let params = GcmParams::new(&mut iv, &[2; 35], 128.into()).expect("parameters");
        session.decrypt(&Mechanism::AesGcm(params), key, &sealed).expect("decrypts");
    });
}
