//! A server on a model, spoken to over a socket.

use super::{command, path_str, tiny_model};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A server, which ends with it.
pub struct Server {
    pub child: Child,
    port: u16,
}

pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The objects of a stream, which ends with [DONE].
    pub fn parts(&self) -> Vec<Value> {
        assert!(self.head.contains("text/event-stream"), "{}", self.head);
        let mut parts: Vec<&str> = self
            .body
            .split("\n\n")
            .filter(|part| !part.is_empty())
            .map(|part| part.strip_prefix("data: ").unwrap())
            .collect();
        assert_eq!(parts.pop(), Some("[DONE]"));
        let parts = parts.into_iter().map(serde_json::from_str);
        parts.collect::<Result<_, _>>().unwrap()
    }
}

impl Server {
    /// On the tiny model.
    pub fn start(more: &[&str]) -> Self {
        Self::on(&tiny_model(), more)
    }

    pub fn on(model: &Path, more: &[&str]) -> Self {
        let start = [
            "serve",
            "--device",
            "cpu",
            "--port",
            "0",
            "--model-name",
            "tiny",
            "-m",
        ];
        let args = [&start[..], &[path_str(model)], more].concat();
        let mut child = command(&args, Path::new("/nonexistent/polykv-cache"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let port = loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("{:?}: {said:?}", child.wait());
            };
            if let Some(address) = line.strip_prefix("ready: http://127.0.0.1:") {
                break address.parse().unwrap();
            }
            said.push(line);
        };
        // Nobody reads the rest, and the server must not mind.
        Self { child, port }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    pub fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        // The server may refuse before it has read everything.
        let _ = stream.write_all(&[head.as_bytes(), body].concat());
        stream
    }

    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
        read(self.send(method, path, headers, body))
    }

    pub fn get(&self, path: &str) -> Response {
        self.ask("GET", path, "", b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.ask("POST", path, "", body.to_string().as_bytes())
    }

    pub fn chat(&self, more: Value) -> Response {
        self.post("/v1/chat/completions", &chat(more))
    }

    /// Asks for a chat over a connection that stays open.
    pub fn ask_again(&self, stream: &mut TcpStream, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream
            .write_all(&[head, body].concat().into_bytes())
            .unwrap();
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            lines.read_line(&mut line).unwrap();
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        lines.read_exact(&mut body).unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// A chat with `more` fields whose answer streams, not read yet.
    pub fn stream(&self, more: &Value) -> TcpStream {
        let body = chat(more.clone()).to_string();
        self.send("POST", "/v1/chat/completions", "", body.as_bytes())
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let value = lines.find_map(|rest| rest.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    pub fn wait_for(&self, name: &str, wanted: f64) {
        let started = Instant::now();
        while self.metric(name) != wanted {
            let waited = started.elapsed();
            assert!(
                waited < Duration::from_secs(60),
                "{name} is {}",
                self.metric(name)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A greedy request with one message, and more fields.
pub fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": "tiny",
        "messages": [{"role": "user", "content": "the sea and the ship"}],
        "temperature": 0,
        "max_tokens": 12,
    });
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    body
}

/// Fields of an answer of 400 tokens that takes its time: biases of ids outside the vocabulary change nothing.
pub fn slow(mut more: Value) -> Value {
    let bias = (1000..300_000).map(|id: u32| (id.to_string(), json!(0)));
    let bias: serde_json::Map<_, _> = bias.chain([("70".into(), json!(100))]).collect();
    let fields = more.as_object_mut().unwrap();
    fields.insert("logit_bias".into(), bias.into());
    fields.insert("max_tokens".into(), json!(400));
    fields.insert("stream".into(), json!(true));
    more
}

pub fn read(mut stream: TcpStream) -> Response {
    let mut bytes = Vec::new();
    // Refusing before the body has come may reset the connection after the answer.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = match head.to_lowercase().contains("transfer-encoding: chunked") {
        true => dechunk(body),
        false => body.to_string(),
    };
    Response {
        status,
        head: head.to_lowercase(),
        body,
    }
}

fn dechunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    text
}
