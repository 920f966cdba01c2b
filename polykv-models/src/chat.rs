//! Chat templates: messages to the prompt a model was trained on, without letting message text act as markup.
//!
//! Templates come with models and are programs, so one is parsed and run only when a prompt needs it, on a thread of its
//! own and within stated bounds of syntax, steps, memory, depth and output; see `docs/chat-templates.md` for the numbers.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod argument;
mod calls;
mod encode;
mod engine;
mod filters;
mod follow_up;
mod fuel;
mod guard;
mod json;
mod methods;
mod sources;
mod tools;

pub use argument::Argument;
pub use calls::{CallReader, Said};
use tools::shown;
pub use tools::{Call, Tool};

use crate::tokenizer::{Specials, Tokenizer};
use chrono::NaiveDateTime;
use encode::{encode_pieces, marks, spells_special, split};
use engine::{MAX_MARKUP_BYTES, Trouble};
use minijinja::Value;
use polykv_core::{Error, Result};

const MAX_SOURCE_BYTES: usize = 256 << 10;
const MAX_ROLE_BYTES: usize = 64;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks, such as `system`, `user`, `assistant` or `tool`: 1 to 64 letters, digits, `_` and `-`.
    pub role: String,
    /// The text of the turn.
    pub content: String,
    /// The calls of tools in the model's answer.
    pub tool_calls: Vec<Call>,
    /// Which call a tool's message is the result of.
    pub tool_call_id: Option<String>,
    /// The name of who speaks, such as a tool's.
    pub name: Option<String>,
}

impl Message {
    /// A message of a role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }
}

/// A chat template with the variables it sees. It is parsed when it renders its first prompt.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    place: String,
    source: String,
    /// Why there is no source, for the time when one is needed.
    fault: Option<String>,
    /// `bos_token`, `pad_token` and the like, with their texts.
    tokens: Vec<(String, String)>,
    arguments: Vec<Argument>,
    /// The tools that the model may call, in the form that templates expect.
    tools: Vec<serde_json::Value>,
    /// The time that `strftime_now` formats; the time of the rendering if `None`.
    now: Option<NaiveDateTime>,
}

impl ChatTemplate {
    /// Takes a Jinja template; `place` names its source in errors.
    ///
    /// `bos` and `eos` are the texts of the model's begin and end tokens, empty when it has none.
    pub fn new(place: &str, source: &str, bos: &str, eos: &str) -> Self {
        let tokens = [("bos_token", bos), ("eos_token", eos)];
        let given = tokens.into_iter().filter(|(_, text)| !text.is_empty());
        Self {
            place: place.to_owned(),
            source: source.to_owned(),
            fault: None,
            tokens: given
                .map(|(name, text)| (name.into(), text.into()))
                .collect(),
            arguments: Vec::new(),
            tools: Vec::new(),
            now: None,
        }
    }

    /// The template with variables of its own kind set, such as `enable_thinking`, in place of those set before.
    #[must_use]
    pub fn with_arguments(mut self, arguments: &[Argument]) -> Self {
        self.arguments = arguments.to_vec();
        self
    }

    /// The prompt as text. Message text stands in it as it is: encode with [`Self::encode`], not from here.
    ///
    /// # Errors
    /// A template of more than 256 KiB; one that is not Jinja, goes beyond the bounds of a rendering or refuses the
    /// messages; a role with other characters than letters, digits, `_` and `-`.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_at(self.now(), messages, add_generation_prompt)
    }

    /// The prompt as token ids. Special tokens come from the template only, never from message text.
    ///
    /// Equals encoding [`Self::render`]'s text in one go, except for messages that spell special tokens: their
    /// text is then encoded apart.
    ///
    /// # Errors
    /// A template of more than 256 KiB; one that is not Jinja, goes beyond the bounds of a rendering or refuses the
    /// messages; a role with other characters than letters, digits, `_` and `-`. A template that branches on the text
    /// of messages that spell special tokens, because their borders cannot be found then.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        self.encode_at(self.now(), tokenizer, messages, add_generation_prompt)
    }

    /// The number of tokens that the first `count` messages take at the start of [`Self::encode`]'s result, with the
    /// template's markup around them.
    ///
    /// # Errors
    /// A template that does not put them at the start, or that cannot render them alone.
    pub fn leading_tokens(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        count: usize,
    ) -> Result<usize> {
        let now = self.now();
        let leading = messages.get(..count).unwrap_or(messages);
        let all = self.render_at(now, messages, true)?;
        let starts = self.render_at(now, leading, false).is_ok_and(|text| {
            let holds = |message: &Message| text.contains(message.content.trim());
            all.starts_with(&text) && leading.iter().all(holds)
        });
        match starts {
            true => Ok(self.encode_at(now, tokenizer, leading, false)?.len()),
            false => Err(Error::unsupported(
                "finding a message's tokens",
                format!(
                    "{}: the chat template does not render it as the prompt's start",
                    self.place
                ),
            )),
        }
    }

    /// One moment for all renderings of one prompt.
    fn now(&self) -> NaiveDateTime {
        self.now
            .unwrap_or_else(|| chrono::Local::now().naive_local())
    }

    fn render_at(
        &self,
        now: NaiveDateTime,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let contents: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
        self.render_with(now, messages, &contents, add_generation_prompt)
    }

    fn encode_at(
        &self,
        now: NaiveDateTime,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let rendered = self.render_at(now, messages, add_generation_prompt)?;
        self.check_tools(now, tokenizer, messages, &rendered, add_generation_prompt)?;
        let whole = tokenizer.encode(&rendered, Specials::Parse)?;
        let marks = marks(messages.len());
        let marked: Vec<&str> = marks.iter().map(String::as_str).collect();
        // A template that fails on the marks inspects the content, which is handled like a difference.
        let marked = self.render_with(now, messages, &marked, add_generation_prompt);
        let pieces = marked
            .as_deref()
            .ok()
            .and_then(|marked| split(marked, &rendered, &marks, messages));
        let Some(pieces) = pieces else {
            if spells_special(tokenizer, messages)? {
                return Err(self.refuse(
                    "the template inspects the text of messages that spell special tokens",
                ));
            }
            return Ok(whole);
        };
        encode_pieces(tokenizer, &pieces, whole)
    }

    fn render_with(
        &self,
        now: NaiveDateTime,
        messages: &[Message],
        contents: &[&str],
        add_generation_prompt: bool,
    ) -> Result<String> {
        check_roles(messages)?;
        if let Some(fault) = &self.fault {
            return Err(self.refuse(fault));
        }
        if self.source.len() > MAX_SOURCE_BYTES {
            let found = format!("{} bytes", self.source.len());
            let allowed = format!("up to {MAX_SOURCE_BYTES}");
            return Err(Error::invalid(
                &self.place,
                "chat template size",
                found,
                allowed,
            ));
        }
        let tools = self.tools.iter().map(|tool| tool.to_string().len());
        let more = messages.iter().map(Message::more_bytes);
        let text = contents
            .iter()
            .map(|c| c.len())
            .chain(tools)
            .chain(more)
            .sum();
        let context = self.context(messages, contents, add_generation_prompt);
        engine::render(&self.source, &context, text, now).map_err(|trouble| match trouble {
            Trouble::Refused(why) => self.refuse(&why),
            Trouble::Output(most) => {
                let found = format!("more than {most} bytes");
                let allowed = format!("the messages and {MAX_MARKUP_BYTES} bytes");
                Error::invalid(&self.place, "chat template output", found, allowed)
            }
            Trouble::Work(steps) => Error::invalid(
                &self.place,
                "chat template work",
                "endless or too much",
                format!("{steps} steps, one for each 64 bytes of text"),
            ),
        })
    }

    /// The variables, those given by hand last, so that they go before the others.
    fn context(&self, messages: &[Message], contents: &[&str], prompt: bool) -> Value {
        let message = |(message, content): (&Message, &&str)| message.context(content);
        let messages: Vec<Value> = messages.iter().zip(contents).map(message).collect();
        let tools = match self.tools.is_empty() {
            true => Value::from(()),
            false => shown(&self.tools.clone().into()),
        };
        let fixed = [
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(prompt)),
            ("tools", tools),
            ("documents", Value::from(())),
        ];
        let tokens = self
            .tokens
            .iter()
            .map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        let arguments = self.arguments.iter().map(|a| (a.name(), a.value()));
        Value::from_pairs(fixed.into_iter().chain(tokens).chain(arguments))
    }

    fn refuse(&self, found: &str) -> Error {
        let line: String = found
            .chars()
            .take(300)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        Error::invalid(
            &self.place,
            "chat template",
            line,
            "a template that renders these messages",
        )
    }
}

/// Roles go into the markup, so they may not carry any of their own.
fn check_roles(messages: &[Message]) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    for (index, message) in messages.iter().enumerate() {
        let role = &message.role;
        if role.is_empty() || role.len() > MAX_ROLE_BYTES || !role.chars().all(plain) {
            let cut: String = role.chars().take(MAX_ROLE_BYTES).collect();
            return Err(Error::invalid(
                format!("message {index}"),
                "role",
                format!("{cut:?}"),
                "1 to 64 letters, digits, _ and -",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
