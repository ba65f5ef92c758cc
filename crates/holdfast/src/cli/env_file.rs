//! KEY=VALUE files that `holdfast dev` writes and other commands read.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::fault::Fault;

/// Writes the file in one step, readable by its owner only.
pub(crate) fn write(path: &Path, variables: &[(String, String)]) -> Result<(), Fault> {
    let failed = |error| Fault::file(path, error);
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
    for (name, value) in variables {
        writeln!(file, "{name}={}", quoted(value)).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

/// A value as a shell takes it: as it is, or in quotes if it has a character that means something to the shell.
pub(super) fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:@%+=,".contains(&byte);
    if value.bytes().all(plain) { value.to_owned() } else { format!("'{}'", value.replace('\'', r"'\''")) }
}

fn unquoted(text: &str) -> String {
    match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        Some(inner) => inner.replace(r"'\''", "'"),
        None => text.to_owned(),
    }
}

/// The variables of a file.
pub(crate) struct EnvFile(Vec<(String, String)>);

impl EnvFile {
    pub(crate) fn read(path: &Path) -> Result<Self, Fault> {
        let text = fs::read_to_string(path)
            .map_err(|error| Fault::file(path, error).hint("type: holdfast dev --env-file FILE"))?;
        let variables = text.lines().filter_map(|line| line.split_once('='));
        Ok(Self(variables.map(|(name, value)| (name.trim().to_owned(), unquoted(value.trim()))).collect()))
    }

    /// The variables of this process, in place of a file's.
    pub(crate) fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn require(&self, name: &str) -> Result<&str, Fault> {
        self.get(name).ok_or_else(|| Fault::usage(format!("the variable {name} is missing")))
    }
}

/// A path as a variable has it.
pub(crate) fn path_text(path: &Path) -> Result<String, Fault> {
    Ok(path.canonicalize().map_err(|error| Fault::file(path, error))?.display().to_string())
}

/// `DIR.NAME`: beside the state, so that a copy of the state alone is of no use.
pub(crate) fn beside(data_dir: &Path, name: &str) -> PathBuf {
    let mut whole = data_dir.file_name().unwrap_or_default().to_os_string();
    whole.push(".");
    whole.push(name);
    data_dir.with_file_name(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_were() {
        for (value, written) in [
            ("https://127.0.0.1:8443", "https://127.0.0.1:8443"),
            ("/home/a b/it's", r"'/home/a b/it'\''s'"),
            ("$(reboot)", "'$(reboot)'"),
        ] {
            assert_eq!(quoted(value), written);
            assert_eq!(unquoted(written), value);
        }
    }
}
