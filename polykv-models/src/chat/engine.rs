//! Renders a template that nobody has checked, within bounds of time, memory and stack.
//!
//! - Syntax is bounded by [`guard`] before minijinja parses it.
//! - Work and memory are bounded by fuel: minijinja takes a step for each instruction and for each 64 bytes of every
//!   text or list that it makes, and [`limit`] does so for what it weighs.
//! - Depth is bounded by [`limit`], which every value passes before something walks it.
//! - What is left of recursion (macros, nested blocks, values of the largest depth) fits the thread's own stack.

use super::fuel::{pay, refused};
use super::guard::{self, LIMIT, MODULO, STORE};
use super::{filters, json, methods};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use std::io::{self, Write};

/// Steps of one rendering, apart from those for the messages' text.
pub(super) const STEPS: u64 = 1_000_000;
/// Steps for each byte of the messages: a template may handle a text some 60 times.
const STEPS_PER_BYTE: u64 = 1;
/// Most steps for the messages' text.
const MAX_TEXT_STEPS: u64 = 4_000_000;
/// What a template may write beyond the messages' own text.
pub(super) const MAX_MARKUP_BYTES: usize = 1 << 20;
/// Lists, maps and namespaces within one another.
pub(super) const MAX_DEPTH: usize = 64;
/// Weight of a value beyond the messages' text: the bytes of its texts, and [`ITEM_BYTES`] for each item.
pub(super) const MAX_VALUE_BYTES: usize = 4 << 20;
const ITEM_BYTES: usize = 32;
/// Calls and loops within one another, as minijinja counts them: a macro is worth several.
const MAX_RECURSION: usize = 256;
/// Several times what the limits above can need.
const STACK_BYTES: usize = 64 << 20;

/// Why a template gave no text.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It ran out of steps.
    Work(u64),
    /// It wrote more than this many bytes.
    Output(usize),
    /// It is not Jinja, is refused by the limits on values and syntax, or refuses the messages.
    Refused(String),
}

/// The text that `source` makes of `context`, whose messages hold `text` bytes; `now` is what `strftime_now` tells.
pub(super) fn render(
    source: &str,
    context: &Value,
    text: usize,
    now: chrono::NaiveDateTime,
) -> Result<String, Trouble> {
    let work = || render_here(source, context, text, now);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, work).map(|thread| thread.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Trouble::Refused("a panic inside minijinja".into())),
            Err(e) => Err(Trouble::Refused(format!("no thread to render it: {e}"))),
        }
    })
}

fn render_here(
    source: &str,
    context: &Value,
    text: usize,
    now: chrono::NaiveDateTime,
) -> Result<String, Trouble> {
    let source = guard::rewrite(source).map_err(Trouble::Refused)?;
    let mut out = Capped {
        bytes: Vec::new(),
        most: text.saturating_add(MAX_MARKUP_BYTES),
        full: false,
    };
    let extra = u64::try_from(text)
        .unwrap_or(u64::MAX)
        .saturating_mul(STEPS_PER_BYTE);
    let steps = STEPS.saturating_add(extra.min(MAX_TEXT_STEPS));
    let env = environment(steps, text, now);
    let rendered = env.and_then(|env| {
        let template = env.template_from_named_str("chat template", &source)?;
        template.render_captured_to(context, &mut out).map(|_| ())
    });
    match rendered {
        _ if out.full => Err(Trouble::Output(out.most)),
        Ok(()) => String::from_utf8(out.bytes).map_err(|e| Trouble::Refused(e.to_string())),
        Err(e) if e.kind() == ErrorKind::OutOfFuel => Err(Trouble::Work(steps)),
        Err(e) => Err(Trouble::Refused(e.to_string())),
    }
}

/// Set up as transformers does it, with limits and without access to other templates.
fn environment<'a>(
    steps: u64,
    text: usize,
    now: chrono::NaiveDateTime,
) -> Result<Environment<'a>, Error> {
    let mut env = Environment::new();
    env.set_debug(false);
    env.set_fuel(Some(steps));
    env.set_recursion_limit(MAX_RECURSION);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    let mut syntax = SyntaxConfig::builder();
    env.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_unknown_method_callback(methods::call);
    let heaviest = MAX_VALUE_BYTES.saturating_add(text);
    env.add_filter(LIMIT, move |state: &State, value: Value| {
        limit(state, value, heaviest)
    });
    env.add_filter(STORE, move |state: &State, value: Value| {
        let value = limit(state, value, heaviest)?;
        match changeable(&value) {
            true => Err(refused("a namespace inside a namespace".into())),
            false => Ok(value),
        }
    });
    env.add_filter(MODULO, methods::modulo);
    env.add_filter("format", methods::format_filter);
    env.add_filter("tojson", json::tojson);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", move |format: &str| {
        filters::strftime(now, format)
    });
    filters::add_to(&mut env);
    Ok(env)
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(refused(message))
}

/// The value itself when it is neither too deep nor too heavy; what is made item by item becomes a list.
///
/// Takes a step for each 64 bytes of its weight.
fn limit(state: &State, value: Value, heaviest: usize) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::Iterable => {
            let most = heaviest / ITEM_BYTES;
            let items = value.try_iter()?.checked();
            // One too many, so that it is refused below.
            let items: Result<Vec<Value>, Error> = items.take(most.saturating_add(1)).collect();
            Value::from(items?)
        }
        ValueKind::Seq | ValueKind::Map => value,
        _ => return Ok(value),
    };
    let mut left = heaviest;
    weigh(&value, MAX_DEPTH, &mut left)?;
    pay(state, heaviest.saturating_sub(left))?;
    Ok(value)
}

/// Takes the weight of a value off `left`.
fn weigh(value: &Value, depth: usize, left: &mut usize) -> Result<(), Error> {
    let text = value.as_str().map_or(0, str::len);
    let heavy = || refused("a value is too large".into());
    let weight = ITEM_BYTES.saturating_add(text);
    *left = left.checked_sub(weight).ok_or_else(heavy)?;
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    let deep = || {
        refused(format!(
            "lists or maps are nested more than {MAX_DEPTH} deep"
        ))
    };
    let depth = depth.checked_sub(1).ok_or_else(deep)?;
    let pairs = match kind {
        ValueKind::Map => value.as_object().and_then(|map| map.try_iter_pairs()),
        _ => None,
    };
    match pairs {
        Some(pairs) => {
            for (key, item) in pairs {
                weigh(&key, depth, left)?;
                weigh(&item, depth, left)?;
            }
        }
        None => {
            for item in value.try_iter()?.checked() {
                weigh(&item?, depth, left)?;
            }
        }
    }
    Ok(())
}

/// Whether a value of bounded depth holds a map that can still be changed: a namespace, or a loop.
fn changeable(value: &Value) -> bool {
    let Some(object) = value.as_object() else {
        return false;
    };
    match value.kind() {
        ValueKind::Map => {
            let plain = Value::from_pairs([("", Value::UNDEFINED)]);
            let plain = plain.as_object().map(|map| map.type_name());
            let mut pairs = object.try_iter_pairs().into_iter().flatten();
            plain != Some(object.type_name())
                || pairs.any(|(key, item)| changeable(&key) || changeable(&item))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter();
            items.is_ok_and(|mut items| items.any(|item| changeable(&item)))
        }
        _ => false,
    }
}

/// A buffer that refuses to grow beyond its limit.
struct Capped {
    bytes: Vec<u8>,
    most: usize,
    full: bool,
}

impl Write for Capped {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > self.most.saturating_sub(self.bytes.len()) {
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
