//! The operations of the API, by name, each with the members that it needs.

macro_rules! operations {
    ($($variant:ident: [$($member:literal),*]),* $(,)?) => {
        /// An operation of the API.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub(crate) enum Operation {
            $($variant),*
        }

        impl Operation {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),*];

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant)),*
                }
            }

            /// Members that a request must have, by the API's model.
            pub(crate) fn required(self) -> &'static [&'static str] {
                match self {
                    $(Self::$variant => &[$($member),*]),*
                }
            }
        }
    };
}

operations! {
    CancelKeyDeletion: ["KeyId"],
    ConnectCustomKeyStore: ["CustomKeyStoreId"],
    CreateAlias: ["AliasName", "TargetKeyId"],
    CreateCustomKeyStore: ["CustomKeyStoreName"],
    CreateGrant: ["KeyId", "Operations"],
    CreateKey: [],
    Decapsulate: ["KeyId", "SharedSecretCiphertextBlob", "EncapsulationAlgorithm"],
    Decrypt: [],
    DeleteAlias: ["AliasName"],
    DeleteCustomKeyStore: ["CustomKeyStoreId"],
    DeleteImportedKeyMaterial: ["KeyId"],
    DeriveSharedSecret: ["KeyId", "KeyAgreementAlgorithm", "PublicKey"],
    DescribeCustomKeyStores: [],
    DescribeKey: ["KeyId"],
    DisableKey: ["KeyId"],
    DisableKeyRotation: ["KeyId"],
    DisconnectCustomKeyStore: ["CustomKeyStoreId"],
    EnableKey: ["KeyId"],
    EnableKeyRotation: ["KeyId"],
    Encapsulate: ["KeyId", "EncapsulationAlgorithm"],
    Encrypt: ["KeyId", "Plaintext"],
    GenerateDataKey: ["KeyId"],
    GenerateDataKeyPair: ["KeyId", "KeyPairSpec"],
    GenerateDataKeyPairWithoutPlaintext: ["KeyId", "KeyPairSpec"],
    GenerateDataKeyWithoutPlaintext: ["KeyId"],
    GenerateMac: ["Message", "KeyId", "MacAlgorithm"],
    GenerateRandom: [],
    GetKeyLastUsage: ["KeyId"],
    GetKeyPolicy: ["KeyId"],
    GetKeyRotationStatus: ["KeyId"],
    GetParametersForImport: ["KeyId", "WrappingAlgorithm", "WrappingKeySpec"],
    GetPublicKey: ["KeyId"],
    ImportKeyMaterial: ["KeyId", "ImportToken", "EncryptedKeyMaterial"],
    ListAliases: [],
    ListGrants: ["KeyId"],
    ListKeyPolicies: ["KeyId"],
    ListKeyRotations: ["KeyId"],
    ListKeys: [],
    ListResourceTags: ["KeyId"],
    ListRetirableGrants: [],
    PutKeyPolicy: ["KeyId", "Policy"],
    ReEncrypt: ["DestinationKeyId"],
    ReplicateKey: ["KeyId", "ReplicaRegion"],
    RetireGrant: [],
    RevokeGrant: ["KeyId", "GrantId"],
    RotateKeyOnDemand: ["KeyId"],
    ScheduleKeyDeletion: ["KeyId"],
    Sign: ["KeyId", "Message", "SigningAlgorithm"],
    TagResource: ["KeyId", "Tags"],
    UntagResource: ["KeyId", "TagKeys"],
    UpdateAlias: ["AliasName", "TargetKeyId"],
    UpdateCustomKeyStore: ["CustomKeyStoreId"],
    UpdateKeyDescription: ["KeyId", "Description"],
    UpdatePrimaryRegion: ["KeyId", "PrimaryRegion"],
    Verify: ["KeyId", "Message", "Signature", "SigningAlgorithm"],
    VerifyMac: ["Message", "KeyId", "MacAlgorithm", "Mac"],
}

impl Operation {
    /// Whether a key that it names is used by it, as `GetKeyLastUsage` counts.
    pub(crate) fn is_use(self) -> bool {
        matches!(
            self,
            Self::Decapsulate
                | Self::Decrypt
                | Self::DeriveSharedSecret
                | Self::Encapsulate
                | Self::Encrypt
                | Self::GenerateDataKey
                | Self::GenerateDataKeyPair
                | Self::GenerateDataKeyPairWithoutPlaintext
                | Self::GenerateDataKeyWithoutPlaintext
                | Self::GenerateMac
                | Self::ReEncrypt
                | Self::Sign
                | Self::Verify
                | Self::VerifyMac
        )
    }

    /// Whether requests of it may have `GrantTokens`.
    pub(crate) fn takes_grant_tokens(self) -> bool {
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
                | Self::GetPublicKey
                | Self::ReEncrypt
                | Self::Sign
                | Self::Verify
                | Self::VerifyMac
        )
    }

    /// Whether `InvalidArnException` is one of its errors. Where it is not, a malformed ARN is a key that is not found.
    pub(crate) fn tells_invalid_arns(self) -> bool {
        !self.is_use() && !matches!(self, Self::CreateAlias | Self::UpdateAlias)
    }

    /// From `X-Amz-Target`.
    pub(crate) fn parse(target: &str) -> Option<Self> {
        Self::named(target.strip_prefix("TrentService.")?)
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|operation| operation.name() == name)
    }
}
