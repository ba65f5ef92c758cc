use holdfast_core::ExternalKeySpec;
use holdfast_crypto::RsaPublicKey;
use proptest::prelude::*;

use super::*;

fn object() -> TokenObject {
    TokenObject { label: Some("a".into()), id: Some(vec![1, 2]) }
}

#[test]
fn messages_round_trip() {
    for profile in [None, Profile::built_in("luna")] {
        let setup = Setup {
            module: "/lib/x.so".into(),
            token: TokenSelector::Serial("12".into()),
            profile: profile.clone(),
            sessions: 4,
            library_parameters: Some(c"configdir='/x'".into()),
            pin: SecretBytes::copy_of(b"1234"),
        };
        let again = Setup::decode(setup.encode().expose()).unwrap();
        assert_eq!((again.module, again.token, again.profile), (setup.module, setup.token, profile));
        assert_eq!(again.library_parameters, setup.library_parameters);
        assert!(again.pin.ct_eq(b"1234"));
    }
    let usage = [holdfast_core::KeyOperation::Encrypt].into_iter().collect();
    let calls = [
        Call::Create { object: object(), usage, value: Some(SecretBytes::copy_of(b"k")) },
        Call::Decrypt { object: object(), iv: vec![1], aad: vec![2], ciphertext: vec![], tag: vec![4] },
        Call::Describe { object: object() },
        Call::Encrypt { object: object(), plaintext: SecretBytes::copy_of(b"p"), aad: vec![], integrity: Some(vec![]) },
        Call::List { page: 256 },
        Call::Probe,
        Call::Unwrap { object: object(), wrap: ExternalWrap::Aes(WrapPadding::Padded), wrapped: vec![9] },
        Call::Wrap {
            object: object(),
            wrap: ExternalWrap::Rsa(EncryptionPadding::OaepSha256),
            key: SecretBytes::copy_of(b"k"),
        },
    ];
    for call in calls {
        let first = Request { id: 7, deadline: 9, call }.encode();
        let again = Request::decode(first.expose()).unwrap();
        assert_eq!((again.id, again.deadline), (7, 9));
        assert_eq!(again.encode().expose(), first.expose());
    }
    let key = ExternalKey {
        spec: ExternalKeySpec::Rsa(RsaPublicKey { n: vec![1], e: vec![3] }),
        usage,
        extractable: false,
        sensitive: true,
        was_extractable: None,
    };
    let answers = [
        Answer::Ciphertext { iv: vec![1], ciphertext: vec![2], tag: vec![3], integrity: Some([4; 32]) },
        Answer::Done,
        Answer::Failed(HsmError::InvalidInput(words::EXISTS)),
        Answer::Failed(HsmError::Unavailable("away".into())),
        Answer::Key(key.clone()),
        Answer::Keys { keys: vec![(object(), key)], more: true },
        Answer::Plaintext(SecretBytes::copy_of(b"p")),
        Answer::Wrapped(vec![5]),
    ];
    for answer in answers {
        let first = answer.encode(3);
        let (id, again) = Answer::decode(first.expose()).unwrap();
        assert_eq!(id, 3);
        assert_eq!(again.encode(3).expose(), first.expose());
    }
}

proptest! {
    #[test]
    fn foreign_packets_are_refused_without_a_panic(packet in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Setup::decode(&packet).is_ok(), Started::decode(&packet).is_ok());
        let _ = (Request::decode(&packet).is_ok(), Answer::decode(&packet).is_ok());
    }
}
