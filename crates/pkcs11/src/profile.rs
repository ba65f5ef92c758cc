//! What differs from vendor to vendor, as data (`profiles/*.toml`).

use serde::Deserialize;

/// Peculiarities of a vendor's PKCS #11.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// It is chosen if the library's or the token's maker or model contains one of these, in any case.
    pub matches: Vec<String>,
    /// Where the IV of AES-GCM comes from.
    pub gcm_iv: GcmIv,
    /// Longest AAD in bytes that the HSM takes.
    pub gcm_aad_bytes_max: usize,
    /// How a key is wrapped under an AES key.
    pub aes_wrap: AesWrap,
    /// The number of the padded key wrap (RFC 5649): 0x210A in PKCS #11 2.40, 0x210B in 3.0.
    pub kwp_mechanism: u64,
    /// Whether it wraps whole blocks of eight bytes only as RFC 5649 has it: then other lengths are refused.
    pub kwp_whole_blocks_only: bool,
    /// Return codes of a decryption that mean: the ciphertext is not authentic.
    pub rejected: Vec<String>,
    /// Return codes of a decryption that mean that too, if the session is found well afterwards.
    pub rejected_if_well: Vec<String>,
}

/// Where the IV of AES-GCM comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum GcmIv {
    /// The HSM draws it and appends it to ciphertext and tag.
    Appended,
    /// The HSM draws it and writes it into the parameter's zeroed buffer.
    Inside,
    /// The operating system draws it.
    System,
    /// C_GenerateRandom draws many at once.
    Token,
}

/// How a key is wrapped under an AES key.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum AesWrap {
    /// C_Encrypt and C_Decrypt with the wrap mechanism: the bytes never become an object.
    Encrypt,
    /// C_WrapKey and C_UnwrapKey of a session object that lives for the call.
    Object,
}

/// Not a profile.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a profile: {0}")]
pub struct InvalidProfile(String);

/// In the order in which they are tried; the last fits everything.
const BUILT_IN: &[&str] = &[
    include_str!("../profiles/softhsm.toml"),
    include_str!("../profiles/cloudhsm.toml"),
    include_str!("../profiles/luna.toml"),
    include_str!("../profiles/nshield.toml"),
    include_str!("../profiles/opencryptoki.toml"),
    include_str!("../profiles/utimaco.toml"),
    include_str!("../profiles/yubihsm.toml"),
    include_str!("../profiles/generic.toml"),
];

impl Profile {
    /// Reads the text of a profile.
    ///
    /// # Errors
    /// [`InvalidProfile`].
    pub fn parse(text: &str) -> Result<Self, InvalidProfile> {
        toml::from_str(text).map_err(|error| InvalidProfile(error.to_string()))
    }

    /// One that comes with the program.
    #[must_use]
    pub fn built_in(name: &str) -> Option<Self> {
        BUILT_IN.iter().filter_map(|text| Self::parse(text).ok()).find(|profile| profile.name == name)
    }

    /// The one for a library and token that say of themselves what `words` are.
    ///
    /// # Errors
    /// [`InvalidProfile`] if none fits, which the generic one always does.
    pub fn matching(words: &[&str]) -> Result<Self, InvalidProfile> {
        let words: Vec<String> = words.iter().map(|word| word.to_ascii_lowercase()).collect();
        for text in BUILT_IN {
            let profile = Self::parse(text)?;
            let fits = |pattern: &String| words.iter().any(|word| word.contains(&pattern.to_ascii_lowercase()));
            if profile.matches.iter().any(fits) {
                return Ok(profile);
            }
        }
        Err(InvalidProfile("no profile fits".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_profiles_are_valid_and_found() {
        for text in BUILT_IN {
            let profile = Profile::parse(text).unwrap();
            assert_eq!(Profile::built_in(&profile.name), Some(profile.clone()));
        }
        for (words, name) in [
            (["SoftHSM", "Implementation of PKCS11", "SoftHSM v2"], "softhsm"),
            (["SafeNet", "Chrystoki", "LunaSA 7.7"], "luna"),
            (["nCipher Corp. Ltd", "nCipher PKCS#11 12.80", ""], "nshield"),
            (["Marvell Semiconductors, Inc.", "CloudHSM", ""], "cloudhsm"),
            (["Utimaco IS GmbH", "CryptoServer", ""], "utimaco"),
            (["Yubico (www.yubico.com)", "YubiHSM PKCS#11 Library", "YubiHSM"], "yubihsm"),
            (["IBM Corp.", "IBM SoftTok", "Meta PKCS11 LIBRARY"], "opencryptoki"),
            (["Acme", "", ""], "generic"),
        ] {
            assert_eq!(Profile::matching(&words).unwrap().name, name);
        }
        assert!(Profile::parse("name = 'x'").is_err());
    }
}
