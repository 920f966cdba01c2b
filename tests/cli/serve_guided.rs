//! `polykv serve`: answers that follow a schema, and tools.

use crate::cli_support::copy_of_tiny_model;
use crate::cli_support::server::{Server, chat};
use serde_json::{Value, json};

/// Whatever a model with random weights says, it is this.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "count": {"type": "integer", "minimum": 0, "maximum": 999},
            "kind": {"enum": ["sea", "ship"]},
            "names": {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 1, "maxItems": 2},
        },
        "required": ["count", "kind", "names"],
        "additionalProperties": false,
    })
}

fn check(found: &Value) {
    let object = found.as_object().unwrap();
    assert_eq!(object.len(), 3, "{found}");
    assert!(found["count"].as_u64().unwrap() <= 999, "{found}");
    assert!(found["kind"] == "sea" || found["kind"] == "ship", "{found}");
    let names = found["names"].as_array().unwrap();
    assert!((1..=2).contains(&names.len()), "{found}");
    for name in names {
        assert!(name.as_str().unwrap().chars().count() <= 4, "{found}");
    }
}

fn text_of(parts: &[Value]) -> String {
    let text = parts
        .iter()
        .filter_map(|part| part["choices"][0]["delta"]["content"].as_str());
    text.collect()
}

#[test]
fn answers_follow_a_schema() {
    let server = Server::start(&[]);
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema(), "strict": true}});
    for (seed, polykv) in [(1, json!({})), (2, json!({"policy": "tova", "budget": 12}))] {
        let more = json!({
            "response_format": format, "temperature": 1, "seed": seed, "n": 2, "max_tokens": 440, "polykv": polykv,
        });
        let answer = server.chat(more.clone());
        assert_eq!(answer.status, 200, "{}", answer.body);
        for choice in answer.json()["choices"].as_array().unwrap() {
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            let text = choice["message"]["content"].as_str().unwrap();
            check(&serde_json::from_str(text).unwrap());
        }
    }
    let more = json!({"response_format": format, "max_tokens": 440});
    let whole = server.chat(more.clone()).json();
    let mut streamed = more;
    streamed["stream"] = json!(true);
    let parts = server.chat(streamed).parts();
    assert_eq!(text_of(&parts), whole["choices"][0]["message"]["content"]);
    // Any object, as far as the tokens go.
    let more = json!({"response_format": {"type": "json_object"}, "temperature": 1, "seed": 3});
    let choice = server.chat(more).json()["choices"][0].clone();
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(text.starts_with('{'), "{text}");
    let completion = json!({
        "prompt": "the sea", "response_format": format, "max_tokens": 440, "temperature": 0,
    });
    let completion = server.post("/v1/completions", &completion).json();
    let text = completion["choices"][0]["text"].as_str().unwrap();
    check(&serde_json::from_str(text).unwrap());
}

#[test]
fn schemas_that_cannot_be_followed_are_refused() {
    let server = Server::start(&[]);
    let with = |schema: Value| {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        server.chat(json!({"response_format": format}))
    };
    let mut deep = json!({"type": "string"});
    for _ in 0..50 {
        deep = json!({"type": "array", "items": deep});
    }
    for (schema, text) in [
        (json!({"type": "nonsense"}), "nonsense"),
        (json!({"$ref": "http://example.com/x.json"}), "example.com"),
        (json!({"type": "string", "format": "wrong"}), "wrong"),
        (
            json!({"type": "string", "minLength": 9, "maxLength": 2}),
            "",
        ),
        (json!({"enum": []}), ""),
        (json!({"not": {"type": "string"}}), "not"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"description": "x".repeat(300_000)}), "262144"),
    ] {
        let response = with(schema.clone());
        let shown: String = response.body.chars().take(400).collect();
        assert_eq!(response.status, 400, "{shown}");
        let error = &response.json()["error"];
        assert_eq!(error["param"], "response_format.json_schema.schema");
        assert!(error["message"].as_str().unwrap().contains(text), "{shown}");
    }
    // Deep is not wrong; the answer is cut.
    let response = with(deep);
    assert_eq!(response.status, 200, "{}", response.body);
    let response = server.chat(json!({"response_format": {"type": "json_schema"}}));
    assert_eq!(
        response.json()["error"]["param"],
        "response_format.json_schema"
    );
    assert_eq!(server.chat(json!({})).status, 200);
}

const TEMPLATE: &str = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}\
    as <tool_call><|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}\
    {% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% else %}{{ m.content }}\
    {% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "count", "parameters": {"enum": [{"n": [1, 2]}]}}},
        {"type": "function", "function": {"name": "rest"}},
    ])
}

#[test]
fn tools_are_called() {
    let folder = copy_of_tiny_model();
    let place = folder.path().join("chat_template.jinja");
    for (template, tagged) in [
        (TEMPLATE.to_string(), true),
        (TEMPLATE.replace("tool_call>", "call>"), false),
    ] {
        std::fs::write(&place, template).unwrap();
        let server = Server::on(folder.path(), &[]);
        let named = json!({"type": "function", "function": {"name": "count"}});
        let more = json!({"tools": tools(), "tool_choice": named, "max_tokens": 200, "temperature": 1, "seed": 5});
        let answer = server.chat(more.clone());
        assert_eq!(answer.status, 200, "{}", answer.body);
        let choice = answer.json()["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        assert_eq!(choice["message"]["content"], Value::Null);
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!(call["function"]["name"], "count");
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
        let arguments = call["function"]["arguments"].as_str().unwrap();
        assert_eq!(arguments, r#"{"n":[1,2]}"#);

        let mut streamed = more;
        streamed["stream"] = json!(true);
        let parts = server.chat(streamed).parts();
        let calls: Vec<&Value> = parts
            .iter()
            .filter_map(|part| part["choices"][0]["delta"].get("tool_calls"))
            .collect();
        assert_eq!(calls.len(), 1, "{parts:?}");
        assert_eq!(calls[0][0]["index"], 0);
        assert_eq!(calls[0][0]["function"]["arguments"], arguments);
        assert_eq!(text_of(&parts), "");
        let finish = &parts.last().unwrap()["choices"][0]["finish_reason"];
        assert_eq!(finish, "tool_calls");

        let result = json!({"role": "tool", "tool_call_id": call["id"], "content": "nine ships"});
        let messages = json!([{"role": "user", "content": "the sea"}, choice["message"], result]);
        let more = json!({"messages": messages, "tools": tools(), "tool_choice": "auto"});
        let next = server.chat(more);
        assert_eq!(next.status, 200, "{}", next.body);
        let text = next.json()["choices"][0]["message"]["content"].clone();
        assert!(text.is_string(), "tagged: {tagged}");
        let more = json!({"tools": tools(), "tool_choice": "required", "max_tokens": 200});
        let choice = server.chat(more).json()["choices"][0].clone();
        assert_eq!(choice["message"]["tool_calls"].as_array().unwrap().len(), 1);
        // Not to be used is not to be shown.
        let none = server
            .chat(json!({"tools": tools(), "tool_choice": "none"}))
            .json();
        let without = server.chat(json!({})).json();
        assert_eq!(
            none["usage"]["prompt_tokens"],
            without["usage"]["prompt_tokens"]
        );
        let auto = server
            .chat(json!({"tools": tools(), "parallel_tool_calls": false}))
            .json();
        assert!(
            auto["usage"]["prompt_tokens"].as_u64() > without["usage"]["prompt_tokens"].as_u64()
        );
    }
}

#[test]
fn tools_that_cannot_be_used_are_refused() {
    let server = Server::start(&[]);
    let function = |more: Value| {
        let mut function = json!({"name": "f"});
        function
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!([{"type": "function", "function": function}])
    };
    let strict = json!({"strict": true});
    for (more, field) in [
        (json!({"tools": [{"type": "code"}]}), "tools[0].type"),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
        (
            json!({"tools": function(json!({"name": "a b"}))}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": function(json!({"parameters": 1}))}),
            "tools[0].function.parameters",
        ),
        (
            json!({"tools": function(json!({"extra": 1}))}),
            "tools[0].function.extra",
        ),
        (
            json!({"tools": function(strict)}),
            "tools[0].function.strict",
        ),
        (
            json!({"tools": tools(), "tool_choice": "some"}),
            "tool_choice",
        ),
        (
            json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "x"}}}),
            "tool_choice.function.name",
        ),
        (
            json!({"tools": tools(), "polykv": {"session": "a"}}),
            "tools",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "["}}]}]}),
            "messages[0].tool_calls[0].function.arguments",
        ),
    ] {
        let response = server.chat(more.clone());
        assert_eq!(response.status, 400, "{more}: {}", response.body);
        assert_eq!(
            response.json()["error"]["param"],
            field,
            "{more}: {}",
            response.body
        );
    }
    // The tiny model's template has no place for them.
    let blind = server.chat(json!({"tools": tools()}));
    assert_eq!(blind.status, 400);
    assert!(blind.body.contains("does not show"), "{}", blind.body);
    let body = chat(json!({"tools": null, "tool_choice": null}));
    assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
}
