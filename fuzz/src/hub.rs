//! What a hub answers to a pull, and the record of an earlier one.

use polykv_models::doors;
use polykv_models::hub::Repo;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// Stands between two answers.
const BORDER: &[u8] = b"\n%%%\n";
/// Bytes that are put in place of `%PORT%`, so that a redirect can lead back here.
const PORT: &[u8] = b"%PORT%";

/// The answers to come, in order; then none: connections are closed.
static ANSWERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
/// Requests that one input may cause: of a pull with its repetitions there are fewer.
static LEFT: AtomicUsize = AtomicUsize::new(0);
const MOST_REQUESTS: usize = 400;
/// One input at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The first piece is the record of an earlier pull, the second a file that it may have left; then the answers follow.
pub fn run(input: &[u8]) {
    let turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let [record, file, answers] = super::pieces(input);
    let port = port();
    *ANSWERS.lock().unwrap() = split(answers)
        .map(|answer| with_port(answer, port))
        .collect();
    LEFT.store(MOST_REQUESTS, Ordering::SeqCst);
    let folder = super::Folder::new();
    if !record.is_empty() {
        folder.write("org--name/main/.pulled.json", record);
        folder.write("org--name/main/config.json", file);
    }
    let cache = folder.path();
    let endpoint = format!("http://127.0.0.1:{port}");
    for spec in ["org/name", "org/name:x.gguf"] {
        let repo = Repo::parse(spec).expect("a name of ours");
        match doors::pull(&endpoint, cache, &repo) {
            Ok(path) => {
                assert!(path.starts_with(cache) && path.exists(), "{path:?}");
                // Pulled just now, or found there at the commit that the hub names.
                let _ = doors::verify(cache, &repo);
            }
            // A connection that was lost is no refusal.
            Err(error) => assert!(error.to_string().len() <= super::LONGEST_MESSAGE, "{error}"),
        }
    }
    let outside = std::fs::read_dir(cache).expect("the cache").flatten();
    let outside = outside
        .filter(|entry| entry.file_name() != "org--name")
        .count();
    assert_eq!(outside, 0, "files beside the model's folder");
    assert!(LEFT.load(Ordering::SeqCst) > 0, "requests without end");
    drop(turn);
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
    let mut line = String::new();
    while lines.read_line(&mut line)? > 2 {
        line.clear();
    }
    let left = LEFT.load(Ordering::SeqCst).saturating_sub(1);
    LEFT.store(left, Ordering::SeqCst);
    let answer = {
        let mut answers = ANSWERS.lock().unwrap();
        match answers.is_empty() {
            true => None,
            false => Some(answers.remove(0)),
        }
    };
    if let Some(answer) = answer {
        stream.write_all(&answer)?;
    }
    stream.shutdown(Shutdown::Both)
}
