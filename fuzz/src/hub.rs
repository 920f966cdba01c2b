//! What a hub answers to a pull, and the record of an earlier one.

mod recipe;

use super::Draw;
use polykv_models::doors;
use polykv_models::hub::Repo;
use recipe::Hub;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Stands between two answers.
const BORDER: &[u8] = b"\n%%%\n";
/// Bytes that are put in place of `%PORT%`, so that a redirect can lead back here.
const PORT: &[u8] = b"%PORT%";

/// Where the answers come from.
enum Script {
    /// These, in order; then none: connections are closed.
    Answers(Vec<Vec<u8>>),
    Hub(Hub),
}

static SCRIPT: Mutex<Script> = Mutex::new(Script::Answers(Vec::new()));
/// Requests that one input may cause: of a pull with its repetitions there are fewer.
static LEFT: AtomicUsize = AtomicUsize::new(0);
const MOST_REQUESTS: usize = 400;
/// One input at a time.
static TURN: Mutex<()> = Mutex::new(());

const SPECS: [&str; 2] = ["org/name", "org/name:x.gguf"];

pub fn run(input: &[u8]) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let port = port();
    let folder = super::Folder::new();
    LEFT.store(MOST_REQUESTS, Ordering::SeqCst);
    match Draw::of(input) {
        Some(draw) => hub(draw, &folder, port),
        None => answers(input, &folder, port),
    }
    let outside = std::fs::read_dir(folder.path())
        .expect("the cache")
        .flatten();
    let outside = outside
        .filter(|entry| entry.file_name() != "org--name")
        .count();
    assert_eq!(outside, 0, "files beside the model's folder");
    assert!(LEFT.load(Ordering::SeqCst) > 0, "requests without end");
    drop(turn);
}

/// The first piece is the record of an earlier pull, the second a file that it may have left; then the answers follow.
fn answers(input: &[u8], folder: &super::Folder, port: u16) {
    let [record, file, answers] = super::pieces(input);
    let answers = split(answers).map(|answer| with_port(answer, port));
    *script() = Script::Answers(answers.collect());
    if !record.is_empty() {
        folder.write("org--name/main/.pulled.json", record);
        folder.write("org--name/main/config.json", file);
    }
    for spec in SPECS {
        // What another pull left may be spoilt.
        let _ = pulled(spec, folder, port);
    }
}

/// Each model is pulled three times: lost connections are gone on with, and a hub moves on.
fn hub(draw: Draw<'_>, folder: &super::Folder, port: u16) {
    *script() = Script::Hub(Hub::new(draw, port));
    for spec in SPECS {
        for _ in 0..3 {
            let Some(path) = pulled(spec, folder, port) else {
                continue;
            };
            let repo = Repo::parse(spec).expect("a name of ours");
            let verified = doors::verify(folder.path(), &repo);
            assert!(verified.is_ok_and(|found| found.is_some()), "{path:?}");
            if let Script::Hub(hub) = &*script() {
                hub.check(&path);
            }
        }
    }
}

/// The path of a model, if the hub let it be pulled.
fn pulled(spec: &str, folder: &super::Folder, port: u16) -> Option<std::path::PathBuf> {
    let (repo, cache) = (Repo::parse(spec).expect("a name of ours"), folder.path());
    match doors::pull(&format!("http://127.0.0.1:{port}"), cache, &repo) {
        Ok(path) => {
            assert!(path.starts_with(cache) && path.exists(), "{path:?}");
            // Pulled just now, or found there at the commit that the hub names.
            let _ = doors::verify(cache, &repo);
            Some(path)
        }
        // A connection that was lost is no refusal.
        Err(error) => {
            assert!(error.to_string().len() <= super::LONGEST_MESSAGE, "{error}");
            None
        }
    }
}

fn script() -> std::sync::MutexGuard<'static, Script> {
    SCRIPT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn split(mut answers: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if answers.is_empty() {
            return None;
        }
        let end = answers
            .windows(BORDER.len())
            .position(|part| part == BORDER);
        let (answer, rest) = answers.split_at(end.unwrap_or(answers.len()));
        answers = rest.strip_prefix(BORDER).unwrap_or(rest);
        Some(answer)
    })
}

fn with_port(answer: &[u8], port: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(answer.len());
    let mut at = 0;
    while let Some(&byte) = answer.get(at) {
        match answer[at..].starts_with(PORT) {
            true => {
                out.extend(port.to_string().bytes());
                at += PORT.len();
            }
            false => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// Starts the server with the first input; its port.
fn port() -> u16 {
    static SERVER: OnceLock<u16> = OnceLock::new();
    *SERVER.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away is its own affair.
                let _ = serve(stream);
            }
        });
        port
    })
}

/// Reads one request and writes the next answer as it is, headers included; the connection ends with it.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?.take(1 << 14));
    let mut request = String::new();
    while lines.read_line(&mut request)? > 2 {}
    let left = LEFT.load(Ordering::SeqCst).saturating_sub(1);
    LEFT.store(left, Ordering::SeqCst);
    let answer = match &mut *script() {
        Script::Answers(answers) if answers.is_empty() => Vec::new(),
        Script::Answers(answers) => answers.remove(0),
        Script::Hub(hub) => hub.answer(&request),
    };
    stream.write_all(&answer)?;
    stream.shutdown(Shutdown::Both)
}
