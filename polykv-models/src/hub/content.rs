//! Whether a file is what its name says, as far as its first bytes tell: portals and proxies answer with pages, and
//! repositories without Git LFS hold pointers in place of weights.

use polykv_core::{Error, Result};
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

/// How the pointers begin that Git stores in place of large files.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
const PAGES: [&str; 4] = ["<!doctype", "<html", "<head", "<?xml"];
/// The format's own limit for the JSON at the start of a safetensors file, in bytes.
const MAX_HEADER: u64 = 100_000_000;
const START: u64 = 512;

/// # Errors
/// A page or a Git LFS pointer in place of the file `name`, which is stored at `path`; JSON, GGUF or safetensors in the
/// name but not in the file. `place` is how messages call it.
pub(super) fn check(place: &str, name: &str, path: &Path) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let mut start = Vec::new();
    (&mut file)
        .take(START)
        .read_to_end(&mut start)
        .map_err(io)?;
    let refused =
        |found: &str, allowed: &str| Err(Error::invalid(place, "content", found, allowed));
    if start.starts_with(POINTER) {
        let allowed =
            "the file itself (this server does not serve the large files of the repository)";
        return refused("a Git LFS pointer", allowed);
    }
    if is_page(&start) {
        return refused("a web page", PAGE_ADVICE);
    }
    match name.rsplit('.').next() {
        Some("gguf") if !start.starts_with(b"GGUF") => {
            refused("a file that does not begin with GGUF", "a GGUF file")
        }
        Some("safetensors") if !is_safetensors(&start, bytes) => refused(
            "a file without the header of safetensors",
            "a safetensors file",
        ),
        Some("json") => {
            file.rewind().map_err(io)?;
            let parsed: std::result::Result<BTreeMap<String, IgnoredAny>, _> =
                serde_json::from_reader(BufReader::new(file));
            match parsed {
                Ok(_) => Ok(()),
                Err(e) => refused(&format!("no JSON object ({e})"), "a JSON object"),
            }
        }
        _ => Ok(()),
    }
}

/// What to do about a page in place of a file.
pub(super) const PAGE_ADVICE: &str = "the file (a portal or proxy may answer in place of the hub: sign in to the \
     network, or check HF_ENDPOINT)";

fn is_page(start: &[u8]) -> bool {
    let text = String::from_utf8_lossy(start).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    PAGES.iter().any(|page| text.starts_with(page))
}

/// Eight bytes with the length of the JSON that follows.
fn is_safetensors(start: &[u8], bytes: u64) -> bool {
    let Some((length, json)) = start.split_first_chunk() else {
        return false;
    };
    let length = u64::from_le_bytes(*length);
    length <= MAX_HEADER && length.saturating_add(8) <= bytes && json.starts_with(b"{")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, content: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        match check("the place", name, &path) {
            Ok(()) => String::new(),
            Err(error) => {
                assert!(error.is_refusal());
                error.to_string()
            }
        }
    }

    #[test]
    fn files_are_what_their_names_say() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
        for name in [
            "x.safetensors",
            "tokenizer.json",
            "x.gguf",
            "chat_template.jinja",
        ] {
            assert!(found(name, pointer.as_bytes()).contains("Git LFS pointer"));
            let page = "\u{feff}\n <!DOCTYPE HTML><title>Sign in</title>";
            assert!(found(name, page.as_bytes()).contains("a web page"));
        }
        for (name, content, part) in [
            ("x.gguf", &b"GGML"[..], "begin with GGUF"),
            ("x.gguf", b"", "begin with GGUF"),
            ("config.json", b"", "no JSON object"),
            ("config.json", b"[1]", "no JSON object"),
            ("config.json", b"{\"a\": 1} x", "no JSON object"),
            (
                "x.safetensors",
                b"\x03\0\0\0\0\0\0\0{}",
                "header of safetensors",
            ),
            (
                "x.safetensors",
                b"\x02\0\0\0\0\0\0\0[]",
                "header of safetensors",
            ),
            ("x.safetensors", b"\x02\0", "header of safetensors"),
        ] {
            let message = found(name, content);
            assert!(message.contains(part), "{name}: {message}");
            assert!(message.starts_with("the place: content is "), "{message}");
        }
        for (name, content) in [
            ("x.gguf", &b"GGUF...."[..]),
            ("config.json", b" {\"a\": [1]}\n"),
            ("x.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
            ("chat_template.jinja", b"{{ '<html>' }}"),
        ] {
            assert_eq!(found(name, content), "", "{name}");
        }
    }
}
