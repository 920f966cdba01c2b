//! Chat templates: messages to the prompt a model was trained on, without letting message text act as markup.

mod sources;

use crate::tokenizer::{Specials, Tokenizer};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use polykv_core::{Error, Result};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};

const MAX_SOURCE_BYTES: usize = 256 << 10;
/// Instructions and data of one rendering; minijinja counts 64 bytes of text as one.
const FUEL: u64 = 1_000_000;
/// What a template may write beyond the messages' own text.
const MAX_MARKUP_BYTES: usize = 1 << 20;
const MAX_ROLE_BYTES: usize = 64;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`: letters, digits, `_` and `-`.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// A checked chat template with the texts of its begin and end tokens.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    place: String,
    source: String,
    bos: String,
    eos: String,
}

/// A rendered prompt, cut at the borders of the messages.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Template(&'a str),
    Content(&'a str),
}

impl ChatTemplate {
    /// Takes a Jinja template of at most 256 KiB; `place` names its source in errors.
    ///
    /// `bos` and `eos` are the texts of the model's begin and end tokens, empty when it has none.
    pub fn new(place: &str, source: &str, bos: &str, eos: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            let found = format!("{} bytes", source.len());
            let allowed = format!("up to {MAX_SOURCE_BYTES}");
            return Err(Error::invalid(place, "chat template size", found, allowed));
        }
        let template = Self {
            place: place.to_owned(),
            source: source.to_owned(),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        };
        template
            .environment()
            .and_then(|env| env.template_from_str(&template.source).map(|_| ()))
            .map_err(|e| template.refuse(&e.to_string()))?;
        Ok(template)
    }

    /// The prompt as text. Message text stands in it as it is: encode with [`Self::encode`], not from here.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let contents: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
        self.render_with(messages, &contents, add_generation_prompt)
    }

    /// The prompt as token ids. Special tokens come from the template only, never from message text.
    ///
    /// Equals encoding [`Self::render`]'s text in one go, except for messages that spell special tokens: their
    /// text is then encoded apart. Fails when the template does not render, and when it branches on the text of
    /// messages that spell special tokens, because the borders cannot be found then.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let rendered = self.render(messages, add_generation_prompt)?;
        let whole = tokenizer.encode(&rendered, Specials::Parse)?;
        let marks = marks(messages.len());
        let marked: Vec<&str> = marks.iter().map(String::as_str).collect();
        // A template that fails on the marks inspects the content, which is handled like a difference.
        let marked = self.render_with(messages, &marked, add_generation_prompt);
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

    /// How many tokens at the start of what [`Self::encode`] makes of `messages` belong to the first `count` of them,
    /// the template's marks around them included.
    ///
    /// # Errors
    /// A template that does not put them at the start, or that cannot render them alone.
    pub fn leading_tokens(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        count: usize,
    ) -> Result<usize> {
        let leading = &messages[..count.min(messages.len())];
        let all = self.render(messages, true)?;
        let starts = self.render(leading, false).is_ok_and(|text| {
            let holds = |message: &Message| text.contains(message.content.trim());
            all.starts_with(&text) && leading.iter().all(holds)
        });
        match starts {
            true => Ok(self.encode(tokenizer, leading, false)?.len()),
            false => Err(Error::unsupported(
                "finding a message's tokens",
                format!(
                    "{}: the chat template does not render it as the prompt's start",
                    self.place
                ),
            )),
        }
    }

    fn render_with(
        &self,
        messages: &[Message],
        contents: &[&str],
        add_generation_prompt: bool,
    ) -> Result<String> {
        check_roles(messages)?;
        let values: Vec<Value> = messages
            .iter()
            .zip(contents)
            .map(|(message, content)| context! { role => message.role.as_str(), content => *content })
            .collect();
        let context = context! {
            messages => values,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
        };
        let text: usize = contents.iter().map(|c| c.len()).sum();
        let mut out = Capped {
            bytes: Vec::new(),
            most: text.saturating_add(MAX_MARKUP_BYTES),
            full: false,
        };
        let result = self.environment().and_then(|env| {
            env.template_from_str(&self.source)?
                .render_captured_to(context, &mut out)
                .map(|_| ())
        });
        match result {
            _ if out.full => {
                let found = format!("more than {} bytes", out.most);
                let allowed = format!("the messages and {MAX_MARKUP_BYTES} bytes");
                Err(Error::invalid(
                    &self.place,
                    "chat template output",
                    found,
                    allowed,
                ))
            }
            Ok(()) => String::from_utf8(out.bytes).map_err(|e| self.refuse(&e.to_string())),
            Err(e) if e.kind() == ErrorKind::OutOfFuel => Err(Error::invalid(
                &self.place,
                "chat template work",
                "endless or too much",
                format!("{FUEL} steps, one for each 64 bytes of text"),
            )),
            Err(e) => Err(self.refuse(&e.to_string())),
        }
    }

    /// Set up as transformers does it, with limits and without access to other templates.
    fn environment(&self) -> std::result::Result<Environment<'_>, minijinja::Error> {
        let mut env = Environment::new();
        env.set_fuel(Some(FUEL));
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()?,
        );
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", raise_exception);
        Ok(env)
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

fn raise_exception(message: String) -> std::result::Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
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

/// One stand-in per message that no content can hold, because nobody can guess 64 random bits.
fn marks(count: usize) -> Vec<String> {
    let nonce = RandomState::new().build_hasher().finish();
    (0..count)
        .map(|i| format!("\u{E000}{nonce:016x}.{i}\u{E001}"))
        .collect()
}

/// Finds in `rendered` what `marked` shows as template text and as message text, which a template may trim.
///
/// `None` when the two renderings differ in more than the messages' text.
fn split<'a>(
    marked: &str,
    rendered: &'a str,
    marks: &[String],
    messages: &'a [Message],
) -> Option<Vec<Piece<'a>>> {
    let mut pieces = Vec::new();
    let (mut marked, mut rest) = (marked, rendered);
    loop {
        let next = next_mark(marked, marks);
        let literal = next.map_or(marked, |(at, _)| &marked[..at]);
        rest.strip_prefix(literal)?;
        let (template, after) = rest.split_at(literal.len());
        pieces.push(Piece::Template(template));
        let Some((at, index)) = next else {
            return after.is_empty().then_some(pieces);
        };
        marked = &marked[at + marks[index].len()..];
        let following = next_mark(marked, marks).map_or(marked, |(at, _)| &marked[..at]);
        let content = messages[index].content.as_str();
        let forms = [
            content,
            content.trim(),
            content.trim_start(),
            content.trim_end(),
        ];
        let form = forms.into_iter().find(|form| {
            after
                .strip_prefix(form)
                .is_some_and(|tail| tail.starts_with(following))
        })?;
        pieces.push(Piece::Content(form));
        rest = &after[form.len()..];
    }
}

/// Byte position and message index of the first mark.
fn next_mark(text: &str, marks: &[String]) -> Option<(usize, usize)> {
    // The number in the mark is read instead of searching for every mark.
    let prefix = marks.first()?.strip_suffix("0\u{E001}")?;
    let at = text.find(prefix)?;
    let number = &text[at + prefix.len()..];
    let index: usize = number[..number.find('\u{E001}')?].parse().ok()?;
    (index < marks.len()).then_some((at, index))
}

fn spells_special(tokenizer: &Tokenizer, messages: &[Message]) -> Result<bool> {
    let contents = messages.iter().map(|m| m.content.as_str());
    // Joined both ways, because a template may put contents side by side, trimmed or not.
    for joined in [
        contents.clone().collect::<String>(),
        contents.map(str::trim).collect(),
    ] {
        let ids = tokenizer.encode(&joined, Specials::Parse)?;
        if ids.iter().any(|id| tokenizer.is_special(*id)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Keeps `whole` when all its special tokens come from the template, else encodes the pieces apart.
///
/// Apart, merges across the borders of a message are lost, so the first way is taken whenever it is safe.
fn encode_pieces(tokenizer: &Tokenizer, pieces: &[Piece], whole: Vec<u32>) -> Result<Vec<u32>> {
    let specials = |ids: &[u32]| -> Vec<u32> {
        let special = ids.iter().filter(|id| tokenizer.is_special(**id));
        special.copied().collect()
    };
    let mut apart = Vec::new();
    for piece in pieces {
        apart.extend(match piece {
            Piece::Template(text) => tokenizer.encode(text, Specials::Parse)?,
            Piece::Content(text) => tokenizer.encode(text, Specials::AsText)?,
        });
    }
    Ok(if specials(&whole) == specials(&apart) {
        whole
    } else {
        apart
    })
}

/// A buffer that refuses to grow beyond its limit.
struct Capped {
    bytes: Vec<u8>,
    most: usize,
    full: bool,
}

impl Write for Capped {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > self.most - self.bytes.len() {
            self.full = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
