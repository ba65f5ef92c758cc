//! What policies and grants speak of.

use holdfast_core::Action;

macro_rules! actions {
    ($($variant:ident => $core:ident),* $(,)?) => {
        /// An action of the service, as policies name it.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub(crate) enum KmsAction {
            $($variant),*
        }

        impl KmsAction {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// `kms:NAME`
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!("kms:", stringify!($variant))),*
                }
            }

            /// What a permit for it is for.
            pub(crate) fn core(self) -> Action {
                match self {
                    $(Self::$variant => Action::$core),*
                }
            }
        }
    };
}

actions! {
    CancelKeyDeletion => KeyUpdate,
    ConnectCustomKeyStore => ExternalKeyManagerWrite,
    CreateAlias => KeyUpdate,
    CreateCustomKeyStore => ExternalKeyManagerWrite,
    CreateGrant => KeyUpdate,
    CreateKey => KeyCreate,
    Decapsulate => KeyUnwrap,
    Decrypt => KeyDecrypt,
    DeleteAlias => KeyUpdate,
    DeleteCustomKeyStore => ExternalKeyManagerWrite,
    DeleteImportedKeyMaterial => KeyUpdate,
    DeriveSharedSecret => KeyDerive,
    DescribeCustomKeyStores => ExternalKeyManagerRead,
    DescribeKey => KeyRead,
    DisableKey => KeyUpdate,
    DisableKeyRotation => KeyUpdate,
    DisconnectCustomKeyStore => ExternalKeyManagerWrite,
    EnableKey => KeyUpdate,
    EnableKeyRotation => KeyUpdate,
    Encapsulate => KeyWrap,
    Encrypt => KeyEncrypt,
    GenerateDataKey => KeyEncrypt,
    GenerateDataKeyPair => KeyEncrypt,
    GenerateDataKeyPairWithoutPlaintext => KeyEncrypt,
    GenerateDataKeyWithoutPlaintext => KeyEncrypt,
    GenerateMac => KeySign,
    GenerateRandom => RandomRead,
    GetKeyLastUsage => KeyRead,
    GetKeyPolicy => KeyRead,
    GetKeyRotationStatus => KeyRead,
    GetParametersForImport => KeyImport,
    GetPublicKey => KeyRead,
    ImportKeyMaterial => KeyImport,
    ListAliases => KeyRead,
    ListGrants => KeyRead,
    ListKeyPolicies => KeyRead,
    ListKeyRotations => KeyRead,
    ListKeys => KeyRead,
    ListResourceTags => KeyRead,
    ListRetirableGrants => KeyRead,
    PutKeyPolicy => KeyUpdate,
    ReEncryptFrom => KeyDecrypt,
    ReEncryptTo => KeyEncrypt,
    ReplicateKey => KeyUpdate,
    RetireGrant => KeyUpdate,
    RevokeGrant => KeyUpdate,
    RotateKeyOnDemand => KeyRotate,
    ScheduleKeyDeletion => KeyDelete,
    Sign => KeySign,
    TagResource => KeyUpdate,
    UntagResource => KeyUpdate,
    UpdateAlias => KeyUpdate,
    UpdateCustomKeyStore => ExternalKeyManagerWrite,
    UpdateKeyDescription => KeyUpdate,
    UpdatePrimaryRegion => KeyUpdate,
    Verify => KeyVerify,
    VerifyMac => KeyVerify,
}

impl KmsAction {
    /// Whether callers of another account may have it, if the key's policy lets them.
    pub(crate) fn crosses_accounts(self) -> bool {
        matches!(
            self,
            Self::CreateGrant
                | Self::Decapsulate
                | Self::Decrypt
                | Self::DeriveSharedSecret
                | Self::DescribeKey
                | Self::Encapsulate
                | Self::Encrypt
                | Self::GenerateDataKey
                | Self::GenerateDataKeyPair
                | Self::GenerateDataKeyPairWithoutPlaintext
                | Self::GenerateDataKeyWithoutPlaintext
                | Self::GenerateMac
                | Self::GetKeyRotationStatus
                | Self::GetPublicKey
                | Self::ListGrants
                | Self::ReEncryptFrom
                | Self::ReEncryptTo
                | Self::RetireGrant
                | Self::RevokeGrant
                | Self::Sign
                | Self::Verify
                | Self::VerifyMac
        )
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|action| action.name() == name)
    }
}
