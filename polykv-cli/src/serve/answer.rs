//! From the engine's events to OpenAI's objects.

use super::request::{Kind, random};
use polykv::CacheReport;
use polykv::models::chat::Call;
use polykv::models::engine::{Answer, Probability, Token};
use polykv::models::{Finish, LoadedModel};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a part of a stream brings of a choice.
#[derive(Debug)]
pub enum Delta<'a> {
    Text(&'a str),
    /// A call with its place among those of the choice.
    Call(usize, &'a Call),
}

/// What is the same in all objects of an answer.
#[derive(Debug)]
pub struct Frame {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
}

impl Frame {
    pub fn new(kind: Kind, model: &str) -> Self {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Completion => "cmpl",
        };
        Self {
            kind,
            id: format!("{prefix}-{:016x}{:016x}", random(), random()),
            created: now(),
            model: model.to_string(),
        }
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// An answer as a whole.
    pub fn whole(&self, choices: Vec<Value>, usage: Value) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Completion => "text_completion",
        };
        let mut whole = self.object(object, choices);
        insert(&mut whole, "usage", usage);
        whole
    }

    /// One choice of an answer as a whole.
    pub fn choice(
        &self,
        index: usize,
        text: &str,
        calls: &[Call],
        logprobs: Value,
        finish: Finish,
    ) -> Value {
        let mut choice = json!({
            "index": index,
            "logprobs": logprobs,
            "finish_reason": reason(finish, !calls.is_empty()),
        });
        match self.kind {
            Kind::Chat => {
                let mut message = json!({"role": "assistant", "content": text, "refusal": null});
                if !calls.is_empty() {
                    if text.is_empty() {
                        insert(&mut message, "content", Value::Null);
                    }
                    insert(&mut message, "tool_calls", calls.iter().map(call).collect());
                }
                insert(&mut choice, "message", message);
            }
            Kind::Completion => insert(&mut choice, "text", text.into()),
        }
        choice
    }

    /// A part of a stream. `first` is the first of its choice.
    pub fn part(&self, index: usize, delta: &Delta<'_>, logprobs: Value, first: bool) -> Value {
        let mut choice = json!({"index": index, "logprobs": logprobs, "finish_reason": null});
        match (self.kind, delta) {
            (Kind::Completion, Delta::Text(text)) => insert(&mut choice, "text", (*text).into()),
            // Only chats have tools.
            (Kind::Completion, Delta::Call(..)) => {}
            (Kind::Chat, delta) => {
                let mut told = json!({});
                if first {
                    insert(&mut told, "role", "assistant".into());
                }
                match delta {
                    Delta::Text(text) if first || !text.is_empty() => {
                        insert(&mut told, "content", (*text).into());
                    }
                    Delta::Text(_) => {}
                    Delta::Call(at, called) => {
                        if first {
                            insert(&mut told, "content", Value::Null);
                        }
                        let mut called = call(called);
                        insert(&mut called, "index", (*at).into());
                        insert(&mut told, "tool_calls", vec![called].into());
                    }
                }
                insert(&mut choice, "delta", told);
            }
        }
        self.object(self.stream_object(), vec![choice])
    }

    /// Makes a part the last of its choice, with `calls` calls before or in it.
    pub fn ended(mut part: Value, finish: Finish, calls: usize) -> Value {
        if let Some(choice) = part.pointer_mut("/choices/0") {
            insert(choice, "finish_reason", reason(finish, calls > 0).into());
        }
        part
    }

    /// The part of a stream that has the usage only.
    pub fn usage_part(&self, usage: Value) -> Value {
        let mut part = self.object(self.stream_object(), Vec::new());
        insert(&mut part, "usage", usage);
        part
    }

    /// The part of a stream that tells what was kept of the prompt.
    pub fn kept_part(&self, kept: Value) -> Value {
        let mut part = self.object(self.stream_object(), Vec::new());
        insert(&mut part, "polykv", kept);
        part
    }

    fn stream_object(&self) -> &'static str {
        match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        }
    }

    /// What is told of the probabilities of tokens; null where nothing is. `offset` is where in the answer the first one's
    /// text begins, in characters.
    pub fn logprobs(&self, tokens: &[Token], model: &LoadedModel, offset: usize) -> Value {
        let told: Vec<(u32, &Probability)> = tokens
            .iter()
            .filter_map(|token| Some((token.id, token.probability.as_ref()?)))
            .collect();
        if told.is_empty() {
            return Value::Null;
        }
        let text = |id: u32| model.tokenizer.decode(&[id], false).unwrap_or_default();
        match self.kind {
            Kind::Chat => {
                let one = |id: u32, logprob: f32| {
                    let text = text(id);
                    json!({"token": text, "logprob": finite(logprob), "bytes": text.as_bytes()})
                };
                let content = told.iter().map(|(id, probability)| {
                    let top = probability.top.iter();
                    let top: Vec<_> = top.map(|(id, logprob)| one(*id, *logprob)).collect();
                    let mut content = one(*id, probability.logprob);
                    insert(&mut content, "top_logprobs", top.into());
                    content
                });
                json!({"content": content.collect::<Vec<_>>(), "refusal": null})
            }
            Kind::Completion => {
                let mut at = offset;
                let mut offsets = Vec::new();
                let texts: Vec<_> = told.iter().map(|(id, _)| text(*id)).collect();
                for text in &texts {
                    offsets.push(at);
                    at += text.chars().count();
                }
                let top = told.iter().map(|(_, probability)| {
                    let top = probability.top.iter();
                    let top = top.map(|(id, logprob)| (text(*id), finite(*logprob)));
                    Value::Object(top.collect())
                });
                let logprobs: Vec<_> = told.iter().map(|(_, p)| finite(p.logprob)).collect();
                json!({
                    "tokens": texts,
                    "token_logprobs": logprobs,
                    "top_logprobs": top.collect::<Vec<_>>(),
                    "text_offset": offsets,
                })
            }
        }
    }
}

/// Tokens and what the caches hold of them, over all choices.
pub fn usage(prompt: usize, answers: &[Answer], plan: &str, hash: &str) -> Value {
    let new: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
    let caches = || answers.iter().map(|answer| &answer.cache);
    let mean = |of: &dyn Fn(&CacheReport) -> f64| {
        caches().map(of).sum::<f64>() / answers.len().max(1) as f64
    };
    let kept = mean(&CacheReport::kept_mean);
    let seen = mean(&|cache| cache.seen as f64);
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "polykv": {
            "plan": plan,
            "plan_hash": hash,
            "kept": kept,
            "evicted": seen - kept,
            "kv_bytes": caches().map(|cache| cache.bytes).sum::<usize>(),
            "full_bytes": caches().map(|cache| cache.full_bytes).sum::<usize>(),
        },
    })
}

/// The tokens of a prompt as they are read, and the share of layers and KV heads that kept each.
pub fn kept(prompt: &[u32], shares: &[f32], model: &LoadedModel) -> Value {
    let text = |id: &u32| model.tokenizer.decode(&[*id], false).unwrap_or_default();
    json!({"tokens": prompt.iter().map(text).collect::<Vec<_>>(), "kept": shares})
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn reason(finish: Finish, called: bool) -> &'static str {
    match finish {
        Finish::Stop if called => "tool_calls",
        Finish::Length => "length",
        Finish::Stop | Finish::Cancelled => "stop",
    }
}

fn call(call: &Call) -> Value {
    let arguments = Value::Object(call.arguments.clone()).to_string();
    let id = call.id.clone().unwrap_or_default();
    json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
}

/// JSON has no minus infinity; this is what OpenAI says instead.
fn finite(logprob: f32) -> Value {
    json!(logprob.max(-9999.0))
}

fn insert(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_string(), value);
    }
}
