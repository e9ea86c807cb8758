//! What a client's stdio address names: a fifo, a file, or a logging binary (containerd's docs/runtime-v2.md, "Logging").
//!
//! An address without a scheme is a plain path. The path and the query of a URL are percent-encoded (RFC 3986); a host
//! and a fragment mean nothing here.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// An address that nothing can be connected to.
#[derive(Debug, thiserror::Error)]
#[error("stdio {address:?}: got {got}, want {want}")]
pub(crate) struct Unusable {
    address: String,
    got: String,
    want: &'static str,
}

/// Where a stream goes to or comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Null,
    /// A fifo or a file that exists.
    Path(PathBuf),
    /// A file to append to, made if it is missing.
    File(PathBuf),
    Binary(Binary),
}

/// A program that takes a process's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binary {
    pub(super) path: PathBuf,
    pub(super) args: Vec<CString>,
    /// Closing the readiness pipe is not enough: `binary-v2`, since containerd 2.2.
    pub(super) must_say_ready: bool,
}

impl Target {
    pub(super) fn parse(address: &str) -> Result<Target, Unusable> {
        let Some((scheme, rest)) = address.split_once("://") else {
            return Ok(if address.is_empty() { Target::Null } else { Target::Path(address.into()) });
        };
        let unusable = |got: &str, want| Unusable { address: address.to_owned(), got: got.to_owned(), want };
        let rest = rest.split('#').next().unwrap_or_default();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = path.find('/').and_then(|start| decode(path.get(start..)?, false));
        let path = path.map(|bytes| PathBuf::from(OsString::from_vec(bytes)));
        let path = path.ok_or_else(|| unusable(&format!("{rest:?}"), "an absolute path, percent-encoded"));
        match scheme {
            "fifo" => Ok(Target::Path(path?)),
            "file" => Ok(Target::File(path?)),
            "binary" | "binary-v2" => Ok(Target::Binary(Binary {
                path: path?,
                args: arguments(query)
                    .ok_or_else(|| unusable(&format!("{query:?}"), "a percent-encoded query"))?,
                must_say_ready: scheme == "binary-v2",
            })),
            other => Err(unusable(
                &format!("scheme {other:?}"),
                "a path or scheme fifo, file, binary or binary-v2",
            )),
        }
    }

    /// For a stream that only a fifo or a file will do for.
    pub(super) fn refuse(address: &str, want: &'static str) -> Unusable {
        let scheme = address.split("://").next().unwrap_or_default();
        Unusable { address: address.to_owned(), got: format!("scheme {scheme:?}"), want }
    }
}

/// Each key and its first value become two arguments, as containerd's own shim has it (`NewBinaryCmd` in
/// cmd/containerd-shim-runc-v2/process/io_util.go); their order here is that of the query.
fn arguments(query: &str) -> Option<Vec<CString>> {
    let mut pairs: Vec<(CString, CString)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let text = |encoded| CString::new(decode(encoded, true)?).ok();
        let (key, value) = (text(key)?, text(value)?);
        if !pairs.iter().any(|(known, _)| *known == key) {
            pairs.push((key, value));
        }
    }
    Some(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect())
}

/// `None` if a percent sign is not followed by two hexadecimal digits. In a query a plus sign is a space.
fn decode(text: &str, is_query: bool) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => digit(bytes.next()?)? << 4 | digit(bytes.next()?)?,
            b'+' if is_query => b' ',
            byte => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_path_a_file_or_a_program() {
        let table = [
            ("", Target::Null),
            ("/run/x%20y", Target::Path("/run/x%20y".into())),
            ("fifo:///run/x", Target::Path("/run/x".into())),
            ("file:///var/a%20log%3F", Target::File("/var/a log?".into())),
        ];
        for (address, target) in table {
            assert_eq!(Target::parse(address).unwrap(), target, "{address}");
        }
        let Target::Binary(binary) =
            Target::parse("binary:///bin/log?id=a+b%26&id=second&flag&tag=%C3%A9").unwrap()
        else {
            panic!("not a program")
        };
        assert_eq!(binary.path, PathBuf::from("/bin/log"));
        assert_eq!(binary.args, [c"id", c"a b&", c"flag", c"", c"tag", c"é"].map(CString::from));
        assert!(!binary.must_say_ready);
        let strict = Target::parse("binary-v2:///bin/log").unwrap();
        assert!(matches!(strict, Target::Binary(Binary { must_say_ready: true, .. })));
    }

    #[test]
    fn an_address_that_cannot_be_used_says_why() {
        let table = [
            (
                "npipe:////./pipe/x",
                "got scheme \"npipe\", want a path or scheme fifo, file, binary or binary-v2",
            ),
            ("file://relative", "got \"relative\", want an absolute path, percent-encoded"),
            ("binary:///bin/log%2", "got \"/bin/log%2\", want an absolute path, percent-encoded"),
            ("binary:///bin/log?a=%zz", "got \"a=%zz\", want a percent-encoded query"),
        ];
        for (address, why) in table {
            let text = Target::parse(address).unwrap_err().to_string();
            assert_eq!(text, format!("stdio {address:?}: {why}"));
        }
    }
}
