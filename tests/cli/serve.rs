//! `polykv serve`, over a socket.

use crate::cli_support::{command, generate_json, path_str, polykv, tiny_model};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A server on the tiny model, which ends with it.
struct Server {
    child: Child,
    port: u16,
}

struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The objects of a stream, which ends with [DONE].
    fn parts(&self) -> Vec<Value> {
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
    fn start(more: &[&str]) -> Self {
        let model = tiny_model();
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
        let args = [&start[..], &[path_str(&model)], more].concat();
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

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        // The server may refuse before it has read everything.
        let _ = stream.write_all(&[head.as_bytes(), body].concat());
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
        read(self.send(method, path, headers, body))
    }

    fn get(&self, path: &str) -> Response {
        self.ask("GET", path, "", b"")
    }

    fn post(&self, path: &str, body: &Value) -> Response {
        self.ask("POST", path, "", body.to_string().as_bytes())
    }

    fn chat(&self, more: Value) -> Response {
        self.post("/v1/chat/completions", &chat(more))
    }

    /// The value of a metric.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let value = lines.find_map(|rest| rest.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    fn wait_for(&self, name: &str, wanted: f64) {
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
fn chat(more: Value) -> Value {
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
fn slow(mut more: Value) -> Value {
    let bias = (1000..300_000).map(|id: u32| (id.to_string(), json!(0)));
    let bias: serde_json::Map<_, _> = bias.chain([("70".into(), json!(100))]).collect();
    let fields = more.as_object_mut().unwrap();
    fields.insert("logit_bias".into(), bias.into());
    fields.insert("max_tokens".into(), json!(400));
    fields.insert("stream".into(), json!(true));
    more
}

fn read(mut stream: TcpStream) -> Response {
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

#[test]
fn answers_are_those_of_generate() {
    let server = Server::start(&[]);
    for (flags, polykv) in [
        (&[][..], json!({})),
        (
            &["--policy", "tova", "--budget", "12"],
            json!({"policy": "tova", "budget": 12}),
        ),
        (
            &["--policy", "keydiff", "--budget-ratio", "0.5"],
            json!({"policy": "keydiff", "budget": "50%"}),
        ),
    ] {
        let prompt = ["-p", "the sea and the ship", "-n", "12"];
        let alone = generate_json(&[&prompt[..], flags].concat());
        let whole = server.chat(json!({"polykv": polykv}));
        assert_eq!(whole.status, 200, "{}", whole.body);
        let whole = whole.json();
        assert_eq!(whole["object"], "chat.completion");
        let choice = &whole["choices"][0];
        assert_eq!(choice["message"]["content"], alone["text"]);
        assert_eq!(choice["finish_reason"], alone["finish"]);
        let usage = &whole["usage"];
        assert_eq!(usage["prompt_tokens"], alone["prompt_tokens"]);
        assert_eq!(usage["completion_tokens"], alone["new_tokens"]);
        assert_eq!(usage["polykv"]["plan_hash"], alone["plan_hash"]);
        assert_eq!(usage["polykv"]["kept"], alone["kv"]["kept_mean"]);
        assert_eq!(usage["polykv"]["kv_bytes"], alone["kv"]["bytes"]);

        let more =
            json!({"polykv": polykv, "stream": true, "stream_options": {"include_usage": true}});
        let mut parts = server.chat(more).parts();
        let last = parts.pop().unwrap();
        assert_eq!(last["usage"], *usage);
        assert_eq!(parts[0]["choices"][0]["delta"]["role"], "assistant");
        let text = parts
            .iter()
            .filter_map(|part| part["choices"][0]["delta"]["content"].as_str());
        assert_eq!(text.collect::<String>(), alone["text"].as_str().unwrap());
        let finish = &parts.last().unwrap()["choices"][0]["finish_reason"];
        assert_eq!(*finish, alone["finish"]);
    }
    let raw = generate_json(&["-p", "the sea", "--raw", "-n", "9"]);
    let body = json!({"prompt": "the sea", "temperature": 0, "max_tokens": 9, "logprobs": 2});
    let completion = server.post("/v1/completions", &body).json();
    let choice = &completion["choices"][0];
    assert_eq!(choice["text"], raw["text"]);
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 9);
    assert_eq!(choice["logprobs"]["text_offset"][0], 0);
}

#[test]
fn choices_seeds_and_probabilities() {
    let server = Server::start(&[]);
    let more = json!({"temperature": 1, "seed": 7, "n": 3, "logprobs": true, "top_logprobs": 4});
    let [first, again] = [(); 2].map(|()| server.chat(more.clone()).json()["choices"].clone());
    assert_eq!(first, again);
    let choices = first.as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_ne!(choices[0]["message"], choices[1]["message"]);
    for choice in choices {
        for token in choice["logprobs"]["content"].as_array().unwrap() {
            let top = token["top_logprobs"].as_array().unwrap();
            assert_eq!(top.len(), 4);
            assert!(token["logprob"].as_f64() <= top[0]["logprob"].as_f64());
        }
    }
    let other = server
        .chat(json!({"temperature": 1, "seed": 8, "n": 3}))
        .json();
    assert_ne!(other["choices"][0]["message"], choices[0]["message"]);
    // A bias of 100 leaves one token; the stop text ends at it.
    let more = json!({"logit_bias": {"70": 100}, "max_tokens": 3, "logprobs": true});
    let biased = server.chat(more).json();
    let content = biased["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(content.len(), 3);
    assert!(
        content
            .iter()
            .all(|token| token["token"] == content[0]["token"])
    );
    let stop = content[0]["token"].as_str().unwrap();
    let stopped = server
        .chat(json!({"logit_bias": {"70": 100}, "stop": [stop]}))
        .json();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["message"]["content"], "");
    let kept = json!({"polykv": {"policy": "streaming-llm", "budget": 8, "kept": true}});
    let kept = server.chat(kept).json();
    let told = kept["polykv"]["kept"].as_array().unwrap();
    assert_eq!(
        told.len() as u64,
        kept["usage"]["prompt_tokens"].as_u64().unwrap()
    );
    assert_eq!(told.iter().filter(|share| **share == 1.0).count(), 8);
}

#[test]
fn what_is_not_supported_is_named() {
    let server = Server::start(&["--max-body", "100KB"]);
    for (more, field) in [
        (json!({"tools": []}), "tools"),
        (json!({"functions": []}), "functions"),
        (json!({"prompt": "x"}), "prompt"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"n": -1}), "n"),
        (json!({"stop": ["a", ""]}), "stop"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format.type",
        ),
        (json!({"stream_options": {"x": 1}}), "stream_options.x"),
        (json!({"messages": []}), "messages"),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}),
            "messages[0].tool_calls",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}),
            "messages[0].content[0].type",
        ),
        (
            json!({"polykv": {"plan": "../../etc/passwd"}}),
            "polykv.plan",
        ),
        (
            json!({"polykv": {"policy": "nothing", "budget": 9}}),
            "polykv.policy",
        ),
        (json!({"polykv": {"policy": "tova"}}), "polykv.budget"),
        (
            json!({"polykv": {"policy": "tova", "budget": "9"}}),
            "polykv.budget",
        ),
        (json!({"polykv": {"protect": "all"}}), "polykv.protect"),
        (json!({"polykv": {"path": "x"}}), "polykv.path"),
    ] {
        let response = server.chat(more.clone());
        assert_eq!(response.status, 400, "{more}: {}", response.body);
        let error = &response.json()["error"];
        assert_eq!(error["param"], field, "{more}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(
            error["message"].as_str().unwrap().contains(field),
            "{error}"
        );
    }
    // Notes of the caller, and fields without a value, do no harm.
    let more = json!({"user": "me", "metadata": {"a": 1}, "tools": null, "stop": null});
    assert_eq!(server.chat(more).status, 200);
    let path = "/v1/chat/completions";
    let deep = [&b"{\"messages\":"[..], &[b'['; 50_000], b"1"].concat();
    for body in [
        &b""[..],
        b"{",
        b"[1]",
        b"\"a\"",
        b"{\"model\": \"\xff\"}",
        &deep,
    ] {
        let response = server.ask("POST", path, "", body);
        assert_eq!(response.status, 400, "{}", response.body);
        assert!(response.json()["error"]["message"].is_string());
    }
    let large = json!({"messages": [{"role": "user", "content": "a".repeat(100_000)}]});
    assert_eq!(server.post(path, &large).status, 413);
    let long = json!({"messages": [{"role": "user", "content": "the sea ".repeat(2000)}]});
    let long = server.post(path, &long);
    assert_eq!(long.status, 400);
    assert!(long.body.contains("512"), "{}", long.body);
    assert_eq!(
        server
            .post(path, &json!({"model": "other", "messages": [1]}))
            .status,
        404
    );
    assert_eq!(server.get("/v1/chat/completions").status, 405);
    assert_eq!(server.get("/v2").status, 404);
    // What was wrong with all these did not hurt the server.
    assert_eq!(server.chat(json!({})).status, 200);
    assert_eq!(server.metric("polykv_kv_bytes"), 0.0);
}

#[test]
fn plans_have_names_and_the_key_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let plan = "schema: 1\nlayers: 3\nbudget: {tokens: 10}\nprefill:\n- {layers: 0-2, policy: tova}\ndecode:\n- {layers: 0-2, policy: tova}\n";
    std::fs::write(folder.path().join("short.yaml"), plan).unwrap();
    let other = plan.replace("layers: 3", "layers: 2").replace("0-2", "0-1");
    std::fs::write(folder.path().join("other.yaml"), other).unwrap();
    let shown = polykv(&[
        "plan",
        "show",
        "--json",
        path_str(&folder.path().join("short.yaml")),
    ]);
    let hash = serde_json::from_str::<Value>(&shown.stdout).unwrap()["hash"].clone();
    let server = Server::start(&["--plans", path_str(folder.path()), "--api-key", "secret"]);
    let chat = |more, headers: &str| {
        let body = chat(more).to_string();
        server.ask("POST", "/v1/chat/completions", headers, body.as_bytes())
    };
    for headers in [
        "",
        "Authorization: Bearer secre\r\n",
        "Authorization: secret\r\n",
    ] {
        let refused = chat(json!({}), headers);
        assert_eq!(refused.status, 401);
        assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
    }
    assert_eq!(server.get("/v1/models").status, 401);
    let key = "Authorization: Bearer secret\r\n";
    let models = server.ask("GET", "/v1/models", key, b"").json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(server.ask("GET", "/v1/models/tiny", key, b"").status, 200);
    assert_eq!(server.ask("GET", "/v1/models/a/b", key, b"").status, 404);
    let plans = server.ask("GET", "/v1/plans", key, b"").json();
    assert_eq!(plans["data"].as_array().unwrap().len(), 2);
    assert_eq!(plans["data"][1]["id"], "short");
    assert_eq!(plans["data"][1]["hash"], hash);
    let answer = chat(json!({"polykv": {"plan": "short"}}), key).json();
    assert_eq!(answer["usage"]["polykv"]["plan"], "short");
    assert_eq!(answer["usage"]["polykv"]["plan_hash"], hash);
    assert_eq!(answer["usage"]["polykv"]["kept"], 10.0);
    // Who looks after the server needs no key.
    for path in ["/health", "/metrics", "/openapi.json", "/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let openapi = server.get("/openapi.json").json();
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "tiny");
        for method in methods.as_object().unwrap().keys() {
            let response = server.ask(&method.to_uppercase(), &path, key, b"");
            // A path that is missing here has no name in its message.
            assert!(!response.body.contains("no such path"), "{method} {path}");
            assert_ne!(response.status, 405, "{method} {path}");
        }
    }
}

/// Turns of a session are what `generate --session` makes of them, also on another server.
#[test]
fn sessions_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("of-generate.session");
    let start = [
        "serve",
        "--sessions",
        path_str(folder.path()),
        "--most-sessions",
        "2",
    ];
    let server = Server::start(&start[1..]);
    let plan = json!({"policy": "h2o", "budget": 40, "session": "a-1"});
    let first = server.chat(json!({"polykv": plan})).json();
    let flags = [
        "--policy",
        "h2o",
        "--budget",
        "40",
        "-n",
        "12",
        "--save-session",
        path_str(&saved),
    ];
    let alone = generate_json(&[&["-p", "the sea and the ship"][..], &flags].concat());
    assert_eq!(first["choices"][0]["message"]["content"], alone["text"]);
    let turn = |server: &Server, text: &str, more: Value| {
        let mut polykv = json!({"session": "a-1"});
        polykv
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let messages = json!([{"role": "user", "content": text}]);
        server.chat(json!({"messages": messages, "polykv": polykv}))
    };
    let second = turn(&server, "and the wind", json!({})).json();
    let next = [
        "-p",
        "and the wind",
        "-n",
        "12",
        "--session",
        path_str(&saved),
    ];
    let alone = generate_json(&next);
    assert_eq!(second["choices"][0]["message"]["content"], alone["text"]);
    let shown = server.get("/v1/sessions/a-1").json();
    assert_eq!(shown["kept"], 40.0);
    assert_eq!(shown["running"], false);

    for (more, text) in [
        (
            json!({"policy": "tova", "budget": 40}),
            "the session has plan",
        ),
        (json!({"protect": 3}), "when a session begins"),
        (json!({"session": "../a"}), "letters"),
    ] {
        let refused = turn(&server, "x", more);
        assert_eq!(refused.status, 400);
        assert!(refused.body.contains(text), "{}", refused.body);
    }
    let messages = json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]);
    let refused = server.chat(json!({"messages": messages, "polykv": {"session": "a-1"}}));
    assert!(
        refused.body.contains("the next one alone"),
        "{}",
        refused.body
    );
    // What is refused after the sequence was taken up is put back.
    let refused = turn(&server, &"the sea ".repeat(150), json!({}));
    assert!(
        refused.body.contains("in a context of 512"),
        "{}",
        refused.body
    );
    assert_eq!(server.get("/v1/sessions/a-1").json(), shown);
    // So is what its caller gave up.
    let body = chat(slow(json!({
        "messages": [{"role": "user", "content": "x"}],
        "polykv": {"session": "a-1"},
    })));
    let stream = server.send(
        "POST",
        "/v1/chat/completions",
        "",
        body.to_string().as_bytes(),
    );
    server.wait_for("polykv_answers_running", 1.0);
    assert_eq!(turn(&server, "x", json!({})).status, 409);
    assert_eq!(
        server.ask("DELETE", "/v1/sessions/a-1", "", b"").status,
        409
    );
    drop(stream);
    server.wait_for("polykv_requests_cancelled_total", 1.0);
    let after = server.get("/v1/sessions/a-1").json();
    assert_eq!(after["running"], false);
    assert!(
        after["tokens"].as_u64() > shown["tokens"].as_u64(),
        "{after}"
    );

    assert_eq!(server.chat(json!({"polykv": {"session": "b"}})).status, 200);
    let third = server.chat(json!({"polykv": {"session": "c"}}));
    assert!(third.body.contains("delete one"), "{}", third.body);
    assert_eq!(server.ask("DELETE", "/v1/sessions/b", "", b"").status, 200);
    assert_eq!(server.get("/v1/sessions/b").status, 404);
    let held = server.metric("polykv_kv_reserved_bytes");
    assert!(held > 0.0, "{held}");

    assert_eq!(server.post("/v1/sessions/a-1/save", &json!({})).status, 200);
    let other = Server::start(&start[1..]);
    assert_eq!(other.post("/v1/sessions/none/load", &json!({})).status, 404);
    let loaded = other.post("/v1/sessions/a-1/load", &json!({})).json();
    assert_eq!(loaded["tokens"], after["tokens"]);
    let [here, there] = [&server, &other].map(|server| turn(server, "go on", json!({})).json());
    assert_eq!(here["choices"], there["choices"]);
    // The file that generate has written is as good.
    let loaded = other.post("/v1/sessions/of-generate/load", &json!({}));
    assert_eq!(loaded.status, 200, "{}", loaded.body);
}

#[test]
fn callers_wait_for_memory_and_leave_nothing_behind() {
    let server = Server::start(&["--rows", "1", "--queue", "1", "--kv-memory", "900KB"]);
    let long = slow(json!({}));
    let stream = |body: &Value| {
        server.send(
            "POST",
            "/v1/chat/completions",
            "",
            chat(body.clone()).to_string().as_bytes(),
        )
    };
    let running = stream(&long);
    server.wait_for("polykv_answers_running", 1.0);
    let waiting = stream(&json!({"stream": true}));
    server.wait_for("polykv_requests_waiting", 1.0);
    let refused = server.chat(json!({}));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.head.contains("retry-after"), "{}", refused.head);
    assert_eq!(
        server.metric("vllm:num_requests_running{model_name=\"tiny\"}"),
        1.0
    );
    // Nobody reads them any more.
    drop(running);
    drop(waiting);
    server.wait_for("polykv_requests_cancelled_total", 2.0);
    server.wait_for("polykv_kv_bytes", 0.0);
    assert_eq!(server.metric("polykv_kv_reserved_bytes"), 0.0);
    let never = server.chat(json!({"n": 16, "max_tokens": 400}));
    assert_eq!(never.status, 400);
    let error = &never.json()["error"];
    assert_eq!(error["code"], "kv_memory_exceeded");
    assert!(
        error["message"].as_str().unwrap().contains("900000"),
        "{error}"
    );
    assert_eq!(server.chat(json!({})).status, 200);
}

#[cfg(unix)]
#[test]
fn the_end_waits_for_answers_at_hand() {
    let mut server = Server::start(&[]);
    let body = chat(slow(json!({})));
    let stream = server.send(
        "POST",
        "/v1/chat/completions",
        "",
        body.to_string().as_bytes(),
    );
    server.wait_for("polykv_answers_running", 1.0);
    let pid = server.child.id().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-TERM", &pid])
        .status();
    assert!(sent.unwrap().success());
    let parts = read(stream).parts();
    let finish = &parts.last().unwrap()["choices"][0]["finish_reason"];
    assert_eq!(finish, "length");
    let status = server.child.wait().unwrap();
    assert!(status.success(), "{status}");
}
