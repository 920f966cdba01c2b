//! A model hub on this machine, as far as `polykv pull` needs one: for the tests of the library and of the binary.

// Each test binary uses its part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// The repository that the server has, and where its branches are.
pub const REPO: &str = "org/tiny";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

const MAX_HEAD_BYTES: u64 = 1 << 14;
const MAX_CONNECTIONS: usize = 200;

pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Under names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn is_get(&self, end: &str) -> bool {
        self.method == "GET" && self.path.ends_with(end)
    }

    fn from(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection is closed.
    pub cut: usize,
    /// The body comes in pieces of so many bytes, with a pause after each.
    pub drip: Option<(usize, Duration)>,
}

impl Reply {
    pub fn new(status: u16, body: &[u8]) -> Self {
        let reply = Self {
            status,
            headers: Vec::new(),
            body: body.to_vec(),
            cut: usize::MAX,
            drip: None,
        };
        reply.header("Content-Length", body.len())
    }

    /// Replaces a header of the same name.
    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self = self.without(name);
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    pub fn cut(mut self, bytes: usize) -> Self {
        self.cut = bytes;
        self
    }

    pub fn drip(mut self, bytes: usize, pause: Duration) -> Self {
        self.drip = Some((bytes, pause));
        self
    }

    /// What a portal answers to everything.
    pub fn page() -> Self {
        let page = b"<!DOCTYPE html>\n<html><body>Sign in to this network</body></html>";
        Self::new(200, page).header("Content-Type", "text/html; charset=utf-8")
    }

    /// A file as the hub serves it, from where the request wants it.
    pub fn file(request: &Request, content: &[u8]) -> Self {
        let sum = content
            .iter()
            .fold(7u64, |sum, b| sum.wrapping_mul(31) + u64::from(*b));
        let total = content.len();
        let reply = match request.from() {
            Some(from) if from >= total => Self::new(416, b""),
            Some(from) => Self::new(206, &content[from..]).header(
                "Content-Range",
                format!("bytes {from}-{}/{total}", total - 1),
            ),
            None => Self::new(200, content),
        };
        let reply = reply.header("ETag", format!("\"{sum:016x}\""));
        reply.header("X-Repo-Commit", COMMIT)
    }
}

type Rule = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

struct State {
    files: Mutex<Files>,
    rule: Rule,
    requests: Mutex<Vec<Request>>,
    stop: AtomicBool,
}

pub struct HubServer {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl HubServer {
    pub fn new(files: Files) -> Self {
        Self::with(files, |_| None)
    }

    /// `rule` answers instead of the files where it wants to.
    pub fn with(
        files: Files,
        rule: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            files: Mutex::new(files),
            rule: Box::new(rule),
            requests: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().take(MAX_CONNECTIONS) {
                if shared.stop.load(Ordering::SeqCst) {
                    break;
                }
                // A client that goes away is part of some tests.
                let _ = stream.and_then(|stream| shared.serve(stream));
            }
        });
        Self {
            address,
            state,
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Method and file of every request so far, which are forgotten.
    pub fn take(&self) -> Vec<String> {
        let requests = std::mem::take(&mut *self.state.requests.lock().unwrap());
        let file = |path: &str| path.rsplit('/').next().unwrap_or_default().to_string();
        let line = |r: &Request| format!("{} {}", r.method, file(&r.path));
        requests.iter().map(line).collect()
    }

    pub fn set_files(&self, files: Files) {
        *self.state.files.lock().unwrap() = files;
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        let mut lines = BufReader::new(stream.try_clone()?.take(MAX_HEAD_BYTES)).lines();
        let first = lines.next().unwrap_or(Ok(String::new()))?;
        let mut words = first.split(' ').map(str::to_string);
        let (Some(method), Some(path)) = (words.next(), words.next()) else {
            return Ok(());
        };
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.insert(name.to_lowercase(), value.trim().to_string());
        }
        let request = Request {
            method,
            path,
            headers,
        };
        self.requests.lock().unwrap().push(request.clone());
        let reply = (self.rule)(&request).unwrap_or_else(|| self.usual(&request));
        let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method != "HEAD" {
            let body = &reply.body[..reply.cut.min(reply.body.len())];
            let (piece, pause) = reply.drip.unwrap_or((body.len(), Duration::ZERO));
            for piece in body.chunks(piece.max(1)) {
                stream.write_all(piece)?;
                stream.flush()?;
                std::thread::sleep(pause);
            }
        }
        stream.flush()
    }

    /// As the hub answers: an unknown repository might be a private one.
    fn usual(&self, request: &Request) -> Reply {
        let start = format!("/{REPO}/resolve/");
        let Some(rest) = request.path.strip_prefix(&start) else {
            return Reply::new(401, b"").header("X-Error-Code", "RepoNotFound");
        };
        let (revision, file) = rest.split_once('/').unwrap_or((rest, ""));
        if ![COMMIT, "main", "refs%2Fpr%2F1"].contains(&revision) {
            return Reply::new(404, b"").header("X-Error-Code", "RevisionNotFound");
        }
        match self.files.lock().unwrap().get(file) {
            Some(content) => Reply::file(request, content),
            None => Reply::new(404, b"").header("X-Error-Code", "EntryNotFound"),
        }
    }
}

/// The files of a model's folder.
pub fn folder_files(folder: &Path, names: &[&str]) -> Files {
    let read = |name: &&str| (name.to_string(), std::fs::read(folder.join(name)).unwrap());
    names.iter().map(read).collect()
}

/// The tiny model of the fixtures, with a text model's files.
pub fn tiny_files(fixtures: &Path) -> Files {
    let names = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ];
    folder_files(&fixtures.join("tiny-llama31"), &names)
}
