//! What `holdfast dev` tells a person: what runs, one first command, where the rest is. No secret: those are in the env file.

use std::{fmt::Write, path::Path};

use super::env_file::quoted;

/// What the page is about.
pub(super) struct Page<'a> {
    pub variables: &'a [(String, String)],
    pub env_file: &'a Path,
    pub data_dir: &'a Path,
    /// Whether the state outlives this process.
    pub kept: bool,
    /// Names that this machine's resolver does not know.
    pub unresolved: &'a [&'a str],
}

/// What makes the names known.
pub(super) fn hosts_line(names: &[&str]) -> String {
    format!("echo '127.0.0.1 {}' | sudo tee -a /etc/hosts", names.join(" "))
}

impl Page<'_> {
    #[expect(clippy::print_stdout, reason = "the command's data")]
    pub(super) fn print(&self) {
        println!("{}", self.text());
    }

    fn variable(&self, wanted: &str) -> &str {
        self.variables.iter().find(|(name, _)| name == wanted).map_or("", |(_, value)| value)
    }

    fn text(&self) -> String {
        let mut text = String::from("\nHoldfast runs, for this machine alone. Ctrl-C stops it.\n\n");
        let xks = format!("{}{}", self.variable("HOLDFAST_XKS_URL"), self.variable("HOLDFAST_XKS_PREFIX"));
        for (what, url, clients) in [
            ("Managed HSM", self.variable("HOLDFAST_HSM_URL"), "az keyvault, Azure SDKs"),
            ("  its tokens", self.variable("HOLDFAST_AUTHORITY_URL"), "the issuer that they ask"),
            ("Storage", self.variable("HOLDFAST_S3_URL"), "aws s3, boto3, rclone"),
            ("Key management", self.variable("HOLDFAST_KMS_URL"), "aws kms, boto3"),
            ("External key store", &xks, "what a key service calls"),
        ] {
            line(&mut text, format_args!("  {what:<20} {url:<30} {clients}"));
        }
        let state = self.data_dir.display();
        let end = if self.kept { "" } else { ", gone when it stops (--data-dir DIR keeps it)" };
        line(&mut text, format_args!("\n  State: {state}{end}"));
        if !self.unresolved.is_empty() {
            let names = self.unresolved.join(" and ");
            let url = self.variable("HOLDFAST_HSM_URL");
            line(&mut text, format_args!("\nThis machine does not know the name {names}. az and the Python SDK take"));
            line(&mut text, format_args!("{url} in its place; others (JavaScript, Rust) refuse it."));
            line(&mut text, format_args!("Type this, and start again:\n"));
            line(&mut text, format_args!("  {}", hosts_line(self.unresolved)));
        }
        let env = self.env_file.canonicalize().unwrap_or_else(|_| self.env_file.to_owned());
        let env = quoted(&env.display().to_string());
        let program = std::env::current_exe().map_or_else(|_| "holdfast".into(), |path| path.display().to_string());
        let program = quoted(&program);
        line(
            &mut text,
            format_args!("\nIn another terminal, take the variables (secrets among them: only you can read the file),"),
        );
        line(&mut text, format_args!("then make a first key:\n"));
        line(&mut text, format_args!("  set -a; . {env}; set +a"));
        line(
            &mut text,
            format_args!(
                "  curl --cacert \"$HOLDFAST_CA_FILE\" -H \"Authorization: Bearer $({program} token --env-file {env})\" \\"
            ),
        );
        line(&mut text, format_args!("    -H 'Content-Type: application/json' -d '{{\"kty\":\"RSA-HSM\"}}' \\"));
        line(&mut text, format_args!("    \"$HOLDFAST_HSM_URL/keys/first/create?api-version=7.5\""));
        line(
            &mut text,
            format_args!(
                "\nThe rest (Azure SDKs, az, aws s3, aws kms, the external key store, the audit log): README.md, \"First five minutes\"."
            ),
        );
        text
    }
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_on_the_page() {
        let variables: Vec<_> =
            ["HOLDFAST_HSM_URL", "HOLDFAST_CLIENT_SECRET", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"]
                .map(|name| (name.to_owned(), format!("value-of-{name}")))
                .to_vec();
        let (env_file, data_dir) = (Path::new("/tmp/a b.env"), Path::new("/tmp/data"));
        let page = |unresolved| Page { variables: &variables, env_file, data_dir, kept: true, unresolved }.text();
        let text = page(&[]);
        assert!(text.contains("value-of-HOLDFAST_HSM_URL") && text.contains(". '/tmp/a b.env'; set"), "{text}");
        assert!(!text.contains("SECRET") && !text.contains("ACCESS_KEY") && !text.contains("/etc/hosts"), "{text}");
        assert!(page(&["hsm.localhost"]).contains("echo '127.0.0.1 hsm.localhost' | sudo tee -a /etc/hosts"));
    }
}
