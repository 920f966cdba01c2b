//! From a request's JSON to what the engine takes.

use super::fault::Fault;
use super::fields::Fields;
use super::plans::Named;
use super::sessions::{self, Lease};
use super::state::Ready;
use super::tools::Toolbox;
use super::{format, messages};
use polykv::Spans;
use polykv::models::GenerateOptions;
use polykv::models::chat::Message;
use polykv::models::engine::{Held, Request};
use polykv::models::sample::SamplingParams;
use polykv::models::tokenizer::Specials;
use serde_json::{Map, Value};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

/// The most texts at which an answer ends.
const MOST_STOPS: usize = 16;
/// The most likely tokens that are told of with every token.
const MOST_LOGPROBS: usize = 20;
/// Tokens of a completion, if the request does not say how many; OpenAI's number.
const COMPLETION_TOKENS: usize = 16;

/// Which of the two interfaces a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Chat,
    Completion,
}

/// A request that has been understood.
#[derive(Debug)]
pub struct Asked {
    pub kind: Kind,
    pub request: Request,
    pub plan: Arc<Named>,
    /// The session that the request goes on with.
    pub lease: Option<Lease>,
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub usage: bool,
    /// The names of the tools that an answer may call.
    pub tools: Option<Vec<String>>,
}

/// Reads a request's body. It may take time: templates are programs.
///
/// # Errors
/// What is malformed, out of range or not supported, by the name of its field.
pub fn read(kind: Kind, body: &[u8], ready: &Arc<Ready>) -> Result<Asked, Fault> {
    let mut fields = Fields::of_body(body)?;
    let model: Option<String> = fields.take("model")?;
    if let Some(name) = model.filter(|name| *name != ready.name) {
        return Err(Fault::no_model(&name, &ready.name));
    }
    // Notes of the caller to itself.
    for name in ["user", "metadata", "safety_identifier"] {
        fields.take::<Value>(name)?;
    }
    let mut of_polykv = match fields.take_object("polykv")? {
        Some(fields) => fields,
        None => Fields::of(Value::Object(Map::new()), "polykv".into())?,
    };
    let config = ready.model.model.config();
    let chosen = ready.plans.chosen(&mut of_polykv, config)?;
    let plan_given = chosen.is_some();
    let mut plan = chosen.unwrap_or_else(|| ready.plans.default.clone());
    let session: Option<String> = of_polykv.take("session")?;
    let resume = of_polykv.take("resume")?.unwrap_or(false);
    let lease = match session {
        Some(name) => Some(sessions::lease(
            ready,
            &name,
            plan.clone(),
            plan_given,
            resume,
        )?),
        None if resume => return Err(Fault::field("polykv.resume", "needs a session")),
        None => None,
    };
    if let Some(lease) = &lease {
        plan = lease.plan().clone();
    }
    let before = lease.as_ref().and_then(Lease::held);
    let protect: Option<Value> = of_polykv.take("protect")?;
    let kept = of_polykv.take("kept")?.unwrap_or(false);
    of_polykv.end()?;
    let tools = match kind {
        Kind::Chat => Toolbox::read(&mut fields)?,
        Kind::Completion => None,
    };
    if tools.is_some() && lease.is_some() {
        return Err(Fault::field("tools", "is not supported in a session"));
    }
    let (prompt, protect) = match kind {
        Kind::Chat => chat_prompt(&mut fields, protect, before, tools.as_ref(), ready)?,
        Kind::Completion => completion_prompt(&mut fields, protect, before, ready)?,
    };
    let (stream, usage) = streaming(&mut fields)?;
    let mut options = GenerateOptions {
        max_new_tokens: most_tokens(&mut fields, kind, ready)?,
        sampling: sampling(&mut fields)?,
        stop: stops(&mut fields)?,
        guide: format::guide(&mut fields, ready)?,
        ..GenerateOptions::default()
    };
    if let Some(tools) = &tools {
        tools.set(&mut options, ready)?;
    }
    let mut request = Request::new(prompt, plan.plan.clone(), options);
    request.protect = protect;
    request.kept = kept;
    request.choices = fields.take("n")?.unwrap_or(1);
    request.logprobs = logprobs(&mut fields, kind)?;
    fields.end()?;
    request.keep = lease.is_some();
    Ok(Asked {
        kind,
        request,
        plan,
        lease,
        stream,
        usage,
        tools: tools.map(|tools| tools.names()),
    })
}

fn chat_prompt(
    fields: &mut Fields,
    protect: Option<Value>,
    before: Option<&Held>,
    tools: Option<&Toolbox>,
    ready: &Ready,
) -> Result<(Vec<u32>, Spans), Fault> {
    let Some(chat) = &ready.model.chat else {
        let reason = "the model has no chat template; /v1/completions takes a prompt";
        return Err(Fault::field("messages", reason));
    };
    let messages: Vec<Value> = fields.take("messages")?.unwrap_or_default();
    if messages.is_empty() {
        return Err(Fault::field(
            "messages",
            "is empty; allowed: at least one message",
        ));
    }
    let messages = messages.into_iter().enumerate();
    let messages = messages.map(|(index, value)| messages::read(index, value));
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    ready.check_fits(messages.iter().map(|message| message.content.as_str()))?;
    let tokenizer = &ready.model.tokenizer;
    if let Some(held) = before {
        let [Message { role, content, .. }] = messages.as_slice() else {
            let reason = "the session has the messages before; allowed: the next one alone";
            return Err(Fault::field("messages", reason));
        };
        if role != "user" {
            let reason = format!("is {role}; allowed: user, for the next message of a session");
            return Err(Fault::field("messages[0].role", reason));
        }
        refuse_protection(protect)?;
        let ids = chat.next_turn(tokenizer, content, held.pending())?;
        return Ok((ids, Spans::default()));
    }
    let shown = tools.map(|tools| chat.clone().with_tools(&tools.tools));
    let chat = shown.as_ref().unwrap_or(chat);
    let ids = chat.encode(tokenizer, &messages, true)?;
    let system = messages.first().is_some_and(|first| first.role == "system");
    let spans = match protect {
        Some(Value::String(what)) if what == "system" => match system {
            true => Spans::prefix(chat.leading_tokens(tokenizer, &messages, 1)?),
            false => Spans::default(),
        },
        other => protected_prefix(other, ids.len())?,
    };
    Ok((ids, spans))
}

fn completion_prompt(
    fields: &mut Fields,
    protect: Option<Value>,
    before: Option<&Held>,
    ready: &Ready,
) -> Result<(Vec<u32>, Spans), Fault> {
    let tokenizer = &ready.model.tokenizer;
    let wrong = || {
        let reason = "allowed: one text, or the token ids of one prompt";
        Fault::field("prompt", reason)
    };
    let text = |text: String| -> Result<Vec<u32>, Fault> {
        ready.check_fits(std::iter::once(text.as_str()))?;
        let ids = tokenizer.encode(&text, Specials::AsText)?;
        Ok(match before {
            None => [tokenizer.start(), &ids].concat(),
            Some(_) => ids,
        })
    };
    let ids = match fields.take("prompt")? {
        Some(Value::String(prompt)) => text(prompt)?,
        Some(Value::Array(items)) => match items.as_slice() {
            [Value::String(prompt)] => text(prompt.clone())?,
            items => {
                let ids = items.iter().map(|id| u32::try_from(id.as_u64()?).ok());
                ids.collect::<Option<Vec<_>>>().ok_or_else(wrong)?
            }
        },
        _ => return Err(wrong()),
    };
    if fields.take("echo")?.unwrap_or(false) {
        return Err(Fault::field("echo", "is not supported"));
    }
    if before.is_some() {
        refuse_protection(protect)?;
        return Ok((ids, Spans::default()));
    }
    let spans = protected_prefix(protect, ids.len())?;
    Ok((ids, spans))
}

/// What is protected is settled when a session begins.
fn refuse_protection(protect: Option<Value>) -> Result<(), Fault> {
    match protect {
        None => Ok(()),
        Some(_) => Err(Fault::field(
            "polykv.protect",
            "allowed: when a session begins",
        )),
    }
}

/// The first tokens that no policy evicts.
fn protected_prefix(value: Option<Value>, tokens: usize) -> Result<Spans, Fault> {
    let Some(value) = value else {
        return Ok(Spans::default());
    };
    let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
    match count.filter(|count| *count <= tokens) {
        Some(count) => Ok(Spans::prefix(count)),
        None => {
            let allowed = format!("0 to {tokens}, the prompt's tokens, or \"system\" in a chat");
            let reason = format!("is {value}; allowed: {allowed}");
            Err(Fault::field("polykv.protect", reason))
        }
    }
}

fn streaming(fields: &mut Fields) -> Result<(bool, bool), Fault> {
    let stream = fields.take("stream")?.unwrap_or(false);
    let Some(mut options) = fields.take_object("stream_options")? else {
        return Ok((stream, false));
    };
    let usage = options.take("include_usage")?.unwrap_or(false);
    // It would hide the length of tokens by padding; there is none.
    options.take::<bool>("include_obfuscation")?;
    options.end()?;
    Ok((stream, usage))
}

fn most_tokens(fields: &mut Fields, kind: Kind, ready: &Ready) -> Result<usize, Fault> {
    let older: Option<usize> = fields.take("max_tokens")?;
    let newer = match kind {
        Kind::Chat => fields.take("max_completion_tokens")?,
        Kind::Completion => None,
    };
    let default = match kind {
        Kind::Chat => ready.max_new_tokens,
        Kind::Completion => COMPLETION_TOKENS,
    };
    Ok(newer.or(older).unwrap_or(default))
}

fn sampling(fields: &mut Fields) -> Result<SamplingParams, Fault> {
    let default = SamplingParams::default();
    let seed: Option<i64> = fields.take("seed")?;
    let bias: Option<Map<String, Value>> = fields.take("logit_bias")?;
    let bias = bias.unwrap_or_default().into_iter().map(|(id, value)| {
        let wrong = || {
            Fault::field(
                "logit_bias",
                format!("\"{id}\": {value} is no token's bias"),
            )
        };
        let id = id.parse().map_err(|_| wrong())?;
        Ok((id, value.as_f64().ok_or_else(wrong)? as f32))
    });
    let params = SamplingParams {
        temperature: fields.take("temperature")?.unwrap_or(1.0),
        top_p: fields.take("top_p")?.unwrap_or(1.0),
        top_k: fields.take("top_k")?,
        min_p: fields.take("min_p")?,
        repeat_penalty: fields.take("repetition_penalty")?.unwrap_or(1.0),
        frequency_penalty: fields.take("frequency_penalty")?.unwrap_or(0.0),
        presence_penalty: fields.take("presence_penalty")?.unwrap_or(0.0),
        logit_bias: bias.collect::<Result<Vec<_>, Fault>>()?,
        seed: seed.map_or_else(random, |seed| seed as u64),
        ..default
    };
    params.validate()?;
    Ok(params)
}

/// Some number.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, Fault> {
    let stops = match fields.take("stop")? {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(value) => {
            serde_json::from_value(value).map_err(|error| Fault::field("stop", error))?
        }
    };
    let good = stops.len() <= MOST_STOPS && stops.iter().all(|stop| !stop.is_empty());
    match good {
        true => Ok(stops),
        false => {
            let reason = format!("allowed: at most {MOST_STOPS} texts, none empty");
            Err(Fault::field("stop", reason))
        }
    }
}

/// A flag and a number in a chat, a number in a completion.
fn logprobs(fields: &mut Fields, kind: Kind) -> Result<Option<usize>, Fault> {
    let (name, count) = match kind {
        Kind::Completion => ("logprobs", fields.take("logprobs")?),
        Kind::Chat => {
            let wanted = fields.take("logprobs")?.unwrap_or(false);
            let top: Option<usize> = fields.take("top_logprobs")?;
            if top.is_some() && !wanted {
                return Err(Fault::field("top_logprobs", "needs logprobs: true"));
            }
            ("top_logprobs", wanted.then_some(top.unwrap_or(0)))
        }
    };
    match count {
        Some(count) if count > MOST_LOGPROBS => {
            let reason = format!("is {count}; allowed: 0 to {MOST_LOGPROBS}");
            Err(Fault::field(name, reason))
        }
        count => Ok(count),
    }
}
