//! The request as it was captured: headers from flags or a file, the body from a file or standard input, or all of it from
//! one dump.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::Path;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::super::Failure;
use super::super::show::counted;

/// What is verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Captured {
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// The largest file that is read: the largest payload that can be set, in base64, with room to spare.
const BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Names standard input where a file is asked for.
const STDIN: &str = "-";

impl Captured {
    /// A request in parts. Without a file the body is read from standard input.
    pub(super) fn of_parts(
        headers: Vec<(HeaderName, HeaderValue)>,
        headers_file: Option<&Path>,
        body_file: Option<&Path>,
    ) -> Result<Self, Failure> {
        let mut all = match headers_file {
            Some(file) => {
                let bytes = read("--headers-file", file)?;
                let (headers, rest) = head(&bytes).map_err(|problem| bad("--headers-file", file, &problem))?;
                if rest.is_some_and(|rest| !rest.trim_ascii().is_empty()) {
                    let problem = "goes on after an empty line; a whole request is for --request";
                    return Err(bad("--headers-file", file, problem));
                }
                headers
            }
            None => HeaderMap::new(),
        };
        for (name, value) in headers {
            all.try_append(name, value).map_err(|_| Failure::usage("--header is there too often"))?;
        }
        let body = read("--body-file", body_file.unwrap_or_else(|| Path::new(STDIN)))?;
        Ok(Self { headers: all, body })
    }

    /// A request as it went over the wire, in one file.
    pub(super) fn of_dump(file: &Path) -> Result<Self, Failure> {
        let bytes = read("--request", file)?;
        dump(&bytes).map_err(|problem| bad("--request", file, &problem))
    }

    /// A header by its name. A value that is not text is there, and malformed.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap_or_default())
    }

    /// How many bytes the body had, as its request said.
    pub(super) fn content_length(&self) -> Option<usize> {
        self.header(CONTENT_LENGTH.as_str())?.parse().ok()
    }
}

/// Parses `Name: value`.
pub(super) fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    header_of(text.as_bytes()).ok_or_else(|| "is no header; allowed is 'Name: value'".to_owned())
}

fn header_of(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(line[..colon].trim_ascii()).ok()?;
    Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
}

fn dump(bytes: &[u8]) -> Result<Captured, String> {
    let (headers, rest) = head(bytes)?;
    let rest = rest.ok_or("has no empty line between headers and body")?;
    let mut captured = Captured { headers, body: rest.to_vec() };
    if captured.headers.contains_key(TRANSFER_ENCODING) {
        return Err("has a body in chunks; give the body itself by --body-file".to_owned());
    }
    if let Some(length) = captured.content_length() {
        if rest.len() < length {
            return Err(format!(
                "is cut off: {} of body, and content-length says {length}",
                counted(rest.len() as u64, "byte", "bytes")
            ));
        }
        // Whatever wrote the file may have ended it with a newline.
        captured.body.truncate(length);
    }
    Ok(captured)
}

/// The headers, and what stands behind the empty line that ends them. A request line before them is passed over.
fn head(bytes: &[u8]) -> Result<(HeaderMap, Option<&[u8]>), String> {
    let mut headers = HeaderMap::new();
    let mut rest = bytes;
    let mut number = 0;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = &rest[..end.unwrap_or(rest.len())];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        rest = &rest[end.map_or(rest.len(), |end| end + 1)..];
        number += 1;
        if line.is_empty() {
            return Ok((headers, Some(rest)));
        }
        if number == 1 && is_request_line(line) {
            continue;
        }
        let (name, value) =
            header_of(line).ok_or_else(|| format!("has no header in line {number}; allowed is 'Name: value'"))?;
        headers.try_append(name, value).map_err(|_| "has too many headers".to_owned())?;
    }
    Ok((headers, None))
}

/// A header has no space before its colon.
fn is_request_line(line: &[u8]) -> bool {
    let method: Vec<u8> = line.trim_ascii().iter().copied().take_while(|byte| byte.is_ascii_uppercase()).collect();
    !method.is_empty() && line.trim_ascii().get(method.len()) == Some(&b' ')
}

fn read(flag: &str, file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let taken = if file == Path::new(STDIN) {
        if io::stdin().is_terminal() {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "hooklane: reading the request from standard input; Ctrl-D ends it");
        }
        io::stdin().lock().take(BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    match taken {
        Ok(count) if count as u64 <= BYTES_MAX => Ok(bytes),
        Ok(_) => Err(bad(flag, file, &format!("has more than {BYTES_MAX} bytes"))),
        Err(error) => Err(bad(flag, file, &error.to_string())),
    }
}

fn bad(flag: &str, file: &Path, problem: &str) -> Failure {
    Failure::usage(format!("{flag} {}: {problem}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(captured: &Captured) -> Vec<(&str, &str)> {
        captured.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
    }

    #[test]
    fn a_dump_is_read_as_it_went_over_the_wire_or_with_bare_newlines() {
        for (text, headers, body) in [
            (
                "POST /a?b=c HTTP/1.1\r\nHost: a:1\r\nX-A:  b:c \r\n\r\n{}\r\n",
                &[("host", "a:1"), ("x-a", "b:c")][..],
                "{}\r\n",
            ),
            ("POST / HTTP/1.1\nContent-Length: 2\n\n{}\n", &[("content-length", "2")], "{}"),
            ("    POST /\n    x-a: b\n\n", &[("x-a", "b")], ""),
            ("x-a: b\n\n\n\n", &[("x-a", "b")], "\n\n"),
            ("\n{}", &[], "{}"),
        ] {
            let captured = dump(text.as_bytes()).expect(text);
            assert_eq!((names(&captured), captured.body.as_slice()), (headers.to_vec(), body.as_bytes()), "{text:?}");
        }
        for (text, words) in [
            ("POST / HTTP/1.1\r\nHost: a\r\n", "no empty line"),
            ("", "no empty line"),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n{}", "cut off: 2 bytes of body, and content-length says 3"),
            ("Transfer-Encoding: chunked\r\n\r\n2\r\n{}", "in chunks"),
            ("x-a: b\nnonsense\n\n", "in line 2"),
            ("x-a: b\n folded\n\n", "in line 2"),
            ("bad name: b\n\n", "in line 1"),
            ("x-a: \0\n\n", "in line 1"),
        ] {
            let problem = dump(text.as_bytes()).expect_err(text);
            assert!(problem.contains(words), "{text:?}: {problem}");
        }
    }

    #[test]
    fn headers_of_a_file_and_of_flags_go_together() {
        let file = |text: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        let (headers, body) = (file("POST / HTTP/1.1\nX-A: b\n\n"), file("{}\n"));
        let flags = vec![parse_header("X-C: d: e").unwrap()];
        let captured = Captured::of_parts(flags.clone(), Some(headers.path()), Some(body.path())).unwrap();
        assert_eq!((names(&captured), captured.body.as_slice()), (vec![("x-a", "b"), ("x-c", "d: e")], &b"{}\n"[..]));
        let whole = file("X-A: b\n\n{}");
        let failure = Captured::of_parts(flags, Some(whole.path()), Some(body.path())).unwrap_err();
        assert!(failure.code() == 64 && failure.to_string().contains("--request"), "{failure}");
        let failure = Captured::of_dump(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(failure.code() == 64 && failure.to_string().contains("--request /nowhere/at/all"), "{failure}");
        for bad in ["nonsense", ": x", "a b: c", "x-a: \0"] {
            assert!(parse_header(bad).is_err(), "{bad}");
        }
    }
}
