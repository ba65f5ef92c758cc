//! POST forms: what the fields before the file ask for, and the name of the file in the key.
//!
//! s3s reads a form itself; it knows nothing of `${filename}` and passes over fields that it does not know. So the fields are read
//! here first, up to the file, and the form goes on as it would have been with the name in its place.

use std::{ops::Range, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use s3s::Body;

use super::form_policy;
use crate::error::{Error, Result, not_implemented};

/// The fields of a form before its file, headers of parts included, as sent and with the name of the file in its places.
/// S3's bound is 20 KB.
const FIELDS_BYTES_MAX: usize = 32 * 1024;
/// Time for the fields to arrive.
const FIELDS_TIMEOUT: Duration = Duration::from_secs(60);
/// The name of a file: longest key.
const FILE_NAME_BYTES_MAX: usize = 1024;
const END_OF_LINES: &[u8] = b"\r\n\r\n";
/// What S3 replaces by the name of the file.
const FILE_NAME: &[u8] = b"${filename}";
/// Fields that are signed or sign: they are as they are.
const VERBATIM: &[&str] = &["policy", "signature", "x-amz-signature", "x-amz-credential", "awsaccesskeyid", "file"];

/// What the fields of a form ask for, by the names of the headers that ask for the same.
#[derive(Clone, Default)]
pub(super) struct Fields(pub HeaderMap);

impl Fields {
    /// The region and the service for which the form was signed, if it says so.
    pub(super) fn scope(&self) -> Option<(String, String)> {
        let credential = self.0.get("x-amz-credential")?.to_str().ok()?;
        let mut parts = credential.rsplit('/').skip(1);
        let (service, region) = (parts.next()?, parts.next()?);
        Some((region.to_owned(), service.to_owned()))
    }

    /// # Errors
    /// `NotImplemented`: the form asks for what only other requests can have here.
    pub(super) fn check(&self) -> Result<()> {
        const UNKEPT: &[&str] = &["if-match", "if-none-match", "tagging"];
        match UNKEPT.iter().any(|name| self.0.contains_key(*name)) {
            true => Err(not_implemented("A field of this form is not supported")),
            false => Ok(()),
        }
    }

    /// Puts what the form claims of its file to where an operation reads it. What the request itself claims is of the form.
    pub(super) fn add_claims(self, headers: &mut HeaderMap) {
        let of_form: Vec<HeaderName> = headers.keys().filter(|name| is_claim(name.as_str())).cloned().collect();
        of_form.iter().for_each(|name| drop(headers.remove(name)));
        let claims = self.0.into_iter().filter(|(name, _)| name.as_ref().is_some_and(|name| is_claim(name.as_str())));
        headers.extend(claims);
    }
}

/// What is claimed of the file.
fn is_claim(name: &str) -> bool {
    name.starts_with("x-amz-checksum-") || name == "content-md5"
}

/// Whether a request is a POST form.
pub(super) fn is_form(method: &Method, headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    method == Method::POST && kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data")
}

/// Reads the fields of a form to a bucket, checks them against their policy, leaves them beside it ([`Fields`]), and puts
/// the name of its file into them. `is_signed` says whether somebody who is known signed the fields, whose names are in lower case: otherwise
/// the file is left where it is, since s3s would hold it in memory, whoever sends it.
///
/// # Errors
/// `MalformedPOSTRequest`: the form has no boundary, no file within the bound, or ends early. What [`form_policy::check`] says.
pub(super) async fn prepared(
    request: Request<Body>,
    bucket: &str,
    now_millis: i64,
    is_signed: impl FnOnce(&[(String, String)]) -> bool,
) -> Result<Request<Body>> {
    let malformed = || Error::MalformedPost;
    let (mut parts, body) = request.into_parts();
    let boundary = boundary(&parts.headers).ok_or_else(malformed)?;
    let mut body = body;
    let mut head = BytesMut::new();
    let read = async {
        loop {
            let Some(Ok(bytes)) = body.next().await else { return Err(malformed()) };
            // Only the end of a part's header lines can make a form of it: pieces without one are not looked at again and again.
            let known = head.len().saturating_sub(END_OF_LINES.len());
            head.extend_from_slice(&bytes);
            let form = find(&head, END_OF_LINES, known).and_then(|_| Form::parse(&head, &boundary));
            match form {
                Some(form) if form.is_bounded(&head) => return Ok(form),
                None if head.len() <= FIELDS_BYTES_MAX => {}
                _ => return Err(malformed()),
            }
        }
    };
    // Nobody has signed anything yet: this takes no longer than the header of a request.
    let form = tokio::time::timeout(FIELDS_TIMEOUT, read).await.map_err(|_| Error::RequestTimeout)??;
    let texts = form.texts(&head);
    let is_signed = is_signed(&texts);
    let covered = form_policy::check(&texts, bucket, now_millis)?;
    if !is_signed && !texts.iter().any(|(name, _)| name == "x-amz-signature" || name == "signature") {
        return Err(Error::Denied);
    }
    let rewritten = form.with_file_name(&head, &covered);
    let more = rewritten.len() as i64 - head.len() as i64;
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<i64>().ok());
    if let Some(length) = length {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length + more));
    }
    parts.extensions.insert(form.fields(&head));
    let begin = stream::once(async move { Ok(Bytes::from(rewritten)) });
    // What is wrong with a signature, s3s says without the file.
    let rest = stream::iter(is_signed.then_some(body)).flatten();
    let whole = http_body_util::StreamBody::new(begin.chain(rest).map(|piece| piece.map(http_body::Frame::data)));
    Ok(Request::from_parts(parts, Body::http_body_unsync(whole)))
}

fn boundary(headers: &HeaderMap) -> Option<String> {
    let kind: mime::Mime = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.parse().ok()?;
    Some(kind.get_param(mime::BOUNDARY)?.as_str().to_owned())
}

/// A field, as places in the head of its form.
struct Field {
    /// In lower case.
    name: String,
    value: Range<usize>,
    /// From behind the delimiter before it to behind the one after it.
    part: Range<usize>,
}

/// The parts of a form up to its file.
struct Form {
    fields: Vec<Field>,
    file_name: String,
    /// The header lines of the file's part.
    file_lines: Range<usize>,
}

fn find(bytes: &[u8], what: &[u8], from: usize) -> Option<usize> {
    bytes.get(from..)?.windows(what.len()).position(|window| window == what).map(|at| from + at)
}

impl Form {
    /// `None`: more is needed.
    fn parse(head: &[u8], boundary: &str) -> Option<Self> {
        let delimiter = format!("--{boundary}");
        let between = format!("\r\n{delimiter}");
        let mut at = find(head, delimiter.as_bytes(), 0)? + delimiter.len();
        let mut fields = Vec::new();
        loop {
            let end = find(head, END_OF_LINES, at)?;
            let (name, file_name) = disposition(&String::from_utf8_lossy(&head[at..end]));
            let name = name.unwrap_or_default().to_ascii_lowercase();
            if name == "file" {
                let file_name = base_name(&file_name.unwrap_or_default()).to_owned();
                return Some(Self { fields, file_name, file_lines: at..end });
            }
            let value_end = find(head, between.as_bytes(), end + 2)?;
            let next = value_end + between.len();
            fields.push(Field { name, value: (end + 4).min(value_end)..value_end, part: at..next });
            at = next;
        }
    }

    fn with_file_name(&self, head: &[u8], covered: &[String]) -> Vec<u8> {
        let mut out = Vec::with_capacity(head.len() + self.file_name.len());
        let mut at = 0;
        for field in &self.fields {
            // s3s wants these in the policy, S3 does not; they are checked as headers would be.
            if is_claim(&field.name) && !covered.contains(&field.name) {
                out.extend_from_slice(&head[at..field.part.start]);
                at = field.part.end;
                continue;
            }
            out.extend_from_slice(&head[at..field.value.start]);
            out.extend_from_slice(&self.value(field, head));
            at = field.value.end;
        }
        out.extend_from_slice(&head[at..self.file_lines.start]);
        // s3s reads one form of this line only, and a name that is not empty.
        out.extend_from_slice(b"\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"");
        for line in String::from_utf8_lossy(&head[self.file_lines.clone()]).lines().filter(|line| !line.is_empty()) {
            if !is_disposition(line) {
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(line.as_bytes());
            }
        }
        out.extend_from_slice(&head[self.file_lines.end..]);
        out
    }

    /// Whether the fields are within their bound, with the name of the file in all its places, and no field is there twice:
    /// whoever reads them must find the same.
    fn is_bounded(&self, head: &[u8]) -> bool {
        let head = &head[..self.file_lines.start];
        let mut places = 0;
        let mut at = 0;
        while let Some(place) = find(head, FILE_NAME, at) {
            places += 1;
            at = place + FILE_NAME.len();
        }
        let twice = self
            .fields
            .iter()
            .enumerate()
            .any(|(at, field)| self.fields[at + 1..].iter().any(|other| other.name == field.name));
        let length = head.len() + places * self.file_name.len();
        self.file_name.len() <= FILE_NAME_BYTES_MAX && length <= FIELDS_BYTES_MAX && !twice
    }

    /// The value of a field, with the name of the file in its place.
    fn value(&self, field: &Field, head: &[u8]) -> Vec<u8> {
        let value = &head[field.value.clone()];
        if VERBATIM.contains(&field.name.as_str()) {
            return value.to_vec();
        }
        let mut out = Vec::with_capacity(value.len() + self.file_name.len());
        let mut at = 0;
        while let Some(place) = find(value, FILE_NAME, at) {
            out.extend_from_slice(&value[at..place]);
            out.extend_from_slice(self.file_name.as_bytes());
            at = place + FILE_NAME.len();
        }
        out.extend_from_slice(&value[at..]);
        out
    }

    /// Names and values, as a policy speaks of them.
    fn texts(&self, head: &[u8]) -> Vec<(String, String)> {
        let text = |field| String::from_utf8_lossy(&self.value(field, head)).into_owned();
        self.fields.iter().map(|field| (field.name.clone(), text(field))).collect()
    }

    fn fields(&self, head: &[u8]) -> Fields {
        let mut headers = HeaderMap::new();
        for field in &self.fields {
            let name = if field.name == "acl" { "x-amz-acl" } else { &field.name };
            let value = HeaderValue::from_bytes(&head[field.value.clone()]);
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), value) {
                headers.append(name, value);
            }
        }
        Fields(headers)
    }
}

fn is_disposition(line: &str) -> bool {
    line.split_once(':').is_some_and(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"))
}

/// Name and file name in the header lines of a part (RFC 7578, section 4.2).
fn disposition(lines: &str) -> (Option<String>, Option<String>) {
    let line = lines.lines().find(|line| is_disposition(line));
    let mut rest = line.unwrap_or_default();
    let (mut name, mut file_name) = (None, None);
    while let Some((_, after)) = rest.split_once(';') {
        let Some((key, value)) = after.split_once('=') else { break };
        let (value, left) = parameter(value);
        match key.trim().to_ascii_lowercase().as_str() {
            "name" => name = Some(value),
            "filename" => file_name = Some(value),
            _ => {}
        }
        rest = left;
    }
    (name, file_name)
}

/// One value, quoted or not, and what comes behind it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.trim_start().strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            // Browsers escape a quote so, or as %22; a backslash before anything else is part of a path.
            '\\' if quoted[at + 1..].starts_with('"') => {
                value.push('"');
                characters.next();
            }
            other => value.push(other),
        }
    }
    (value, "")
}

/// A browser may send a path; S3 takes what is behind its last slash.
fn base_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(parts: &[(&str, &str)]) -> Vec<u8> {
        let mut out = String::new();
        for (disposition, value) in parts {
            out.push_str(&format!("--B\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{value}\r\n"));
        }
        out.push_str("--B--\r\n");
        out.into_bytes()
    }

    #[test]
    fn the_name_of_the_file_takes_its_place() {
        for (file, expected) in [
            (r#"name="file"; filename="a.txt""#, "up/a.txt"),
            (r#"filename="C:\dir\b c.txt"; name="file""#, "up/b c.txt"),
            (r#"name="file"; filename="x\"y;z.txt""#, "up/x\"y;z.txt"),
            (r#"name="file"; filename=plain.txt"#, "up/plain.txt"),
            (r#"name="file""#, "up/"),
        ] {
            let body =
                form(&[(r#"name="key""#, "up/${filename}"), (r#"name="policy""#, "${filename}"), (file, "data")]);
            let parsed = Form::parse(&body, "B").unwrap();
            let rewritten = String::from_utf8(parsed.with_file_name(&body, &[])).unwrap();
            assert!(rewritten.contains(&format!("\r\n\r\n{expected}\r\n")), "{file}: {rewritten}");
            assert!(rewritten.contains("\r\n\r\n${filename}\r\n"), "the policy is as it was signed");
        }
    }

    #[test]
    fn a_form_is_read_only_once_its_file_begins() {
        let body = form(&[(r#"name="acl""#, "public-read"), (r#"name="empty""#, ""), (r#"name="file""#, "data")]);
        let whole = find(&body, b"\r\n\r\ndata", 0).unwrap() + 4;
        for cut in 0..whole {
            assert!(Form::parse(&body[..cut], "B").is_none(), "{cut}");
        }
        let parsed = Form::parse(&body[..whole], "B").unwrap();
        assert_eq!(parsed.fields(&body).0.get("x-amz-acl").unwrap(), "public-read");
        assert_eq!(parsed.fields(&body).0.get("empty").unwrap(), "");
    }
}
