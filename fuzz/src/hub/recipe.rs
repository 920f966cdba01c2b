//! A hub that has a model, whose answers go wrong here and there.

use super::super::Draw;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

const COMMITS: [&str; 2] = [
    "0123456789abcdef0123456789abcdef01234567",
    "fedcba9876543210fedcba9876543210fedcba98",
];

pub struct Hub {
    /// What says which answers go wrong.
    recipe: Vec<u8>,
    files: BTreeMap<&'static str, Vec<u8>>,
    /// Whether large files are elsewhere, as Git LFS has them.
    redirects: bool,
    commit: &'static str,
    port: u16,
    /// Whether an answer said of a file what is not so. Else a pull that succeeds must have every file as it is here.
    lied: bool,
}

impl Hub {
    pub fn new(mut draw: Draw<'_>, port: u16) -> Self {
        let mut files = BTreeMap::from([
            ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
            ("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec()),
            ("x.gguf", [b"GGUF".as_slice(), &[3; 400]].concat()),
        ]);
        for (name, content) in [
            ("tokenizer_config.json", "{\"bos_token\": \"<s>\"}"),
            ("chat_template.jinja", "{{ messages[0].content }}"),
            ("generation_config.json", "{}"),
        ] {
            if draw.flag() {
                files.insert(name, content.into());
            }
        }
        match draw.below(4) {
            0 | 1 => drop(files.insert("model.safetensors", weights(200))),
            2 => {
                let index =
                    "{\"weight_map\": {\"a\": \"a.safetensors\", \"b\": \"b.safetensors\"}}";
                files.insert("model.safetensors.index.json", index.into());
                files.insert("a.safetensors", weights(100));
                files.insert("b.safetensors", weights(50));
            }
            // None, which no pull may take for a model.
            _ => {}
        }
        let redirects = draw.flag();
        Self {
            recipe: draw.rest().to_vec(),
            files,
            redirects,
            commit: COMMITS[0],
            port,
            lied: false,
        }
    }

    /// Compares what a pull put at `path` with what is here.
    pub fn check(&self, path: &Path) {
        let weights = ["model.safetensors", "model.safetensors.index.json"];
        assert!(
            path.is_file() || weights.iter().any(|name| path.join(name).exists()),
            "a model without weights"
        );
        if self.lied {
            return;
        }
        for (name, content) in &self.files {
            let file = match path.is_file() {
                true if path.ends_with(name) => path.to_owned(),
                true => continue,
                false => path.join(name),
            };
            // GGUF files are models of their own, and an optional one may have been missing for once.
            if let Ok(found) = std::fs::read(&file) {
                assert!(found == *content, "{name} is not what the hub has");
            }
        }
    }

    /// The answer to a request, headers included.
    pub fn answer(&mut self, request: &str) -> Vec<u8> {
        let recipe = std::mem::take(&mut self.recipe);
        let mut draw = Draw(&recipe);
        let answer = self.drawn(&mut draw, request);
        self.recipe = draw.rest().to_vec();
        answer
    }

    fn drawn(&mut self, draw: &mut Draw<'_>, request: &str) -> Vec<u8> {
        let mut words = request.split_ascii_whitespace();
        let (head, path) = (words.next() == Some("HEAD"), words.next().unwrap_or("/"));
        let name = path
            .split('?')
            .next()
            .and_then(|path| path.rsplit('/').next());
        let content = name.and_then(|name| self.files.get(name)).cloned();
        let Some(mut content) = content else {
            return b"HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\n\r\n".to_vec();
        };
        let (sum, size) = (sha256(&content), content.len());
        let large = content.len() > 40;
        let mut headers = vec![format!("X-Repo-Commit: {}", self.commit)];
        let elsewhere = path.ends_with("?elsewhere");
        if self.redirects && large && !elsewhere {
            headers.push(format!("X-Linked-Etag: \"{sum}\""));
            headers.push(format!("X-Linked-Size: {size}"));
            let start = draw
                .pick(&["", "http://127.0.0.1:%"])
                .replace('%', &self.port.to_string());
            headers.push(format!("Location: {start}{path}?elsewhere"));
            headers.push("Content-Length: 0".into());
            return whole("302 Found", &headers, &[]);
        }
        let fault = match draw.byte() {
            fault @ 180.. => fault % 19,
            _ => 0,
        };
        let etag = match fault {
            1 => None,
            2 => Some("\"0b\"".to_owned()),
            3 => Some(format!("W/\"{sum}\"")),
            _ => Some(format!("\"{}\"", &sum[..16])),
        };
        headers.extend(etag.map(|etag| format!("ETag: {etag}")));
        match fault {
            4 => drop(headers.remove(0)),
            5 => self.commit = COMMITS[1],
            6 => {
                let status = [
                    "401 Unauthorized",
                    "403 Forbidden",
                    "404 Not Found",
                    "416 Range Not Satisfiable",
                    "429 Too Many Requests",
                    "500 Oops",
                    "503 Busy",
                    "204 No Content",
                    "206 Partial Content",
                    "308 Permanent Redirect",
                    "100 Continue",
                ];
                headers.push("Content-Length: 0".into());
                return whole(draw.pick(&status), &headers, &[]);
            }
            7 => {
                headers.push("Content-Type: Text/HTML; charset=utf-8".into());
                content = b"<!DOCTYPE html><title>Sign in</title>".to_vec();
                self.lied = true;
            }
            8 => {
                let at = draw.below(content.len());
                content[at] ^= 1;
                self.lied = true;
            }
            9 => return Vec::new(),
            10 => return vec![b'a'; draw.below(1 << 14)],
            _ => {}
        }
        let range = request.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            let from = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?;
            key.eq_ignore_ascii_case("range")
                .then(|| from.parse::<usize>().ok())?
        });
        let total = content.len();
        let status = match range {
            // A server may send all of it again.
            Some(from) if fault != 11 => {
                if from >= total {
                    headers.push("Content-Length: 0".into());
                    return whole("416 Range Not Satisfiable", &headers, &[]);
                }
                let (mut start, mut all) = (from as u64, total as u64);
                if fault == 12 {
                    (start, all, self.lied) = (draw.number(), draw.number(), true);
                }
                headers.push(format!("Content-Range: bytes {start}-{}/{all}", total - 1));
                content.drain(..from);
                "206 Partial Content"
            }
            _ => "200 OK",
        };
        match fault {
            13 => {
                headers.push(format!("Content-Length: {}", draw.number()));
                self.lied = true;
            }
            14 => self.lied = true,
            15 => {
                headers.push("Transfer-Encoding: chunked".into());
                let size = format!("{:x}\r\n", content.len());
                content = [size.as_bytes(), &content, b"\r\n0\r\n\r\n"].concat();
            }
            _ => headers.push(format!("Content-Length: {}", content.len())),
        }
        match fault {
            // A connection that is lost.
            16 | 17 => content.truncate(draw.below(content.len().clamp(1, 1 << 16))),
            18 => content.extend([b'x'; 9]),
            _ => {}
        }
        whole(status, &headers, if head { &[] } else { &content })
    }
}

fn whole(status: &str, headers: &[String], body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{}\r\n\r\n", headers.join("\r\n"));
    [head.as_bytes(), body].concat()
}

/// A safetensors file of so many bytes of one tensor.
fn weights(bytes: usize) -> Vec<u8> {
    let header =
        format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{bytes}],\"data_offsets\":[0,{bytes}]}}}}");
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), &vec![7; bytes]].concat()
}

fn sha256(content: &[u8]) -> String {
    let sum = Sha256::digest(content);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}
