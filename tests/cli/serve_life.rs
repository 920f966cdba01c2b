//! `polykv serve`: sessions, callers that wait or go away, and the end.

use crate::cli_support::server::{Server, chat, read, slow};
use crate::cli_support::{generate_json, path_str};
use serde_json::{Value, json};

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
    let stream = server.stream(&slow(json!({
        "messages": [{"role": "user", "content": "x"}],
        "polykv": {"session": "a-1"},
    })));
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

/// The session is free when its answer has come, also for whoever goes on at once.
#[test]
fn sessions_are_given_back_before_the_answer_is_told() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    let mut ask = |name: &str, resume: bool| {
        let body = chat(json!({"max_tokens": 1, "polykv": {"session": name, "resume": resume}}));
        server.ask_again(&mut stream, &body)
    };
    for number in 0..300 {
        let name = format!("s{number}");
        let seen = [false, true, true].map(|resume| {
            let (status, body) = ask(&name, resume);
            assert_eq!(status, 200, "{number}: {body}");
            body["usage"]["polykv"]["kept"].as_f64().unwrap()
        });
        assert!(seen.is_sorted_by(|a, b| a < b), "{number}: {seen:?}");
        let deleted = server.ask("DELETE", &format!("/v1/sessions/{name}"), "", b"");
        assert_eq!(deleted.status, 200, "{number}: {}", deleted.body);
    }
    let (status, body) = ask("none", true);
    assert_eq!(status, 404, "{body}");
    let refused = server.chat(json!({"polykv": {"resume": true}}));
    assert_eq!(refused.json()["error"]["param"], "polykv.resume");
}

#[test]
fn callers_wait_for_memory_and_leave_nothing_behind() {
    let server = Server::start(&["--rows", "1", "--queue", "1", "--kv-memory", "900KB"]);
    let running = server.stream(&slow(json!({})));
    server.wait_for("polykv_answers_running", 1.0);
    let waiting = server.stream(&json!({"stream": true}));
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
    let stream = server.stream(&slow(json!({})));
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
