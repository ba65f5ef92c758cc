//! Patterns with `*` (any run of characters) and `?` (any one).

/// A pattern. In an ARN no wildcard reaches over a colon of the first five: `arn:aws:iam::1111:role/*` is about account 1111
/// and nothing else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Pattern(String);

/// ARNs have six components; the last may contain colons.
const ARN_COMPONENTS: usize = 6;

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether it stands for one text only.
    pub(super) fn is_exact(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        if self.is_exact() {
            return self.0 == text;
        }
        if !self.0.starts_with("arn:") {
            return glob(self.0.as_bytes(), text.as_bytes());
        }
        let (mut wanted, mut given) = (self.0.splitn(ARN_COMPONENTS, ':'), text.splitn(ARN_COMPONENTS, ':'));
        loop {
            match (wanted.next(), given.next()) {
                (None, None) => return true,
                (Some(wanted), Some(given)) if glob(wanted.as_bytes(), given.as_bytes()) => {}
                _ => return false,
            }
        }
    }
}

/// Linear but for the last `*`: a pattern cannot make it slow.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                (p, t) = (at + 1, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*b*", "abab", true),
            ("a", "A", false),
            ("arn:aws:iam::1:role/*", "arn:aws:iam::1:role/a/b", true),
            ("arn:aws:iam::1:role/*", "arn:aws:iam::2:role/a", false),
            ("arn:aws:iam::*:role/x", "arn:aws:iam::2:role/x", true),
            ("arn:aws:iam::*:role/x", "arn:aws:iam::2:user:role/x", false),
            ("arn:*", "arn:aws:iam::2:role/x", false),
            ("arn:aws:iam::1:*", "arn:aws:iam::1:role/a:b", true),
            ("arn:aws:sts::1:assumed-role/App/*", "arn:aws:sts::1:assumed-role/App/i-1", true),
            ("*", "AWS Internal", true),
            ("*.amazonaws.com", "ec2.amazonaws.com", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(text), matches, "{pattern} on {text}");
        }
    }

    #[test]
    fn a_pattern_cannot_make_it_slow() {
        let pattern = "*a".repeat(1000);
        assert!(!Pattern::new(&(pattern + "b")).matches(&"a".repeat(2048)));
    }
}
