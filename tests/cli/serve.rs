//! `polykv serve`: answers, plans and what is refused.

use crate::cli_support::server::{Server, chat};
use crate::cli_support::{generate_json, path_str, polykv};
use serde_json::{Value, json};

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
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (json!({"tool_choice": "auto"}), "tool_choice"),
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
