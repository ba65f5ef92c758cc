//! Why the program cannot do what it was asked, with what to type next.

use std::fmt::Display;

/// Text as it goes to a terminal, where control characters are commands.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

const UNAVAILABLE: u8 = 4;

/// A fault of the program as a whole; requests have their own errors.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Fault {
    message: String,
    /// What would help.
    pub hint: Option<String>,
    /// Exit code: 1 failed, 2 usage, 3 denied, 4 unavailable, 5 history does not hold.
    pub code: u8,
}

impl Fault {
    /// What others wrote may stand in the message: it says nothing to the terminal.
    pub(crate) fn new(message: impl Display) -> Self {
        Self { message: shown(&message.to_string()), hint: None, code: 1 }
    }

    pub(crate) fn usage(message: impl Display) -> Self {
        Self { code: 2, ..Self::new(message) }
    }

    pub(crate) fn unavailable(message: impl Display) -> Self {
        Self { code: UNAVAILABLE, ..Self::new(message) }
    }

    pub(crate) fn tls(error: impl Display) -> Self {
        Self::new(format!("TLS: {error}"))
    }

    pub(crate) fn denied(message: impl Display) -> Self {
        Self { code: 3, ..Self::new(message) }
    }

    /// What somebody keeps a copy for has come about.
    pub(crate) fn history(message: impl Display) -> Self {
        Self { code: 5, ..Self::new(message) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(shown(&hint.into()));
        self
    }

    /// Nobody answers now: what was asked may be asked of another one, or later.
    pub(crate) fn is_unavailable(&self) -> bool {
        self.code == UNAVAILABLE
    }

    /// A file that could not be read or written.
    pub(crate) fn file(path: &std::path::Path, error: impl Display) -> Self {
        Self::new(format!("{}: {error}", path.display()))
    }
}
