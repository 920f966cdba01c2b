//! Guides from JSON schemas, by llguidance.

use super::Guide;
use crate::chat::CallReader;
use crate::load::LoadedModel;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, TokenParser};
use polykv_core::{Error, Result};
use serde_json::{Value, json};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The largest schema, or description of tools, as JSON.
const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Schemas are walked by recursion, and JSON itself is read to a depth of 128.
const STACK_BYTES: usize = 64 << 20;
/// White space between two parts of an answer: enough to indent, too little to go on for ever.
const WHITE_SPACE: &str = r"[ \n\r\t]{1,32}";

/// Where white space may stand.
#[derive(Clone, Copy)]
enum Spaces {
    /// Anywhere between two parts, within a bound.
    Bounded,
    /// One behind commas and colons, as models have learnt to write calls.
    Fixed,
}

/// Makes guides for the answers of one model. It holds the vocabulary in the form that grammars are compared with, which takes a
/// moment to make.
pub struct Guides {
    factory: ParserFactory,
}

impl fmt::Debug for Guides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guides").finish_non_exhaustive()
    }
}

/// How a model writes the call of a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen do.
    Tagged,
    /// `{"name": …, "parameters": {…}}` as the whole answer, as Llama 3 does.
    Bare,
}

impl Guides {
    /// Guides for the answers of `model`, from its vocabulary and its end tokens.
    ///
    /// # Errors
    /// A tokenizer whose tokens stand for bytes that are not known, and a model without end tokens.
    pub fn new(model: &LoadedModel) -> Result<Self> {
        let refuse = |why: String| Error::unsupported("an answer that follows a schema", why);
        let rows = model.model.config().vocab_size;
        let mut words = model.tokenizer.spellings()?;
        words.resize(rows, Vec::new());
        let mut ends: Vec<u32> = model.eos_tokens.clone();
        ends.retain(|id| (*id as usize) < rows);
        ends.sort_unstable();
        let Some(&end) = ends.first() else {
            return Err(refuse("the model has no end token".into()));
        };
        let count = u32::try_from(rows).map_err(|e| refuse(e.to_string()))?;
        let made = catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&TokRxInfo::new(count, end), &words).with_eos_tokens(&ends);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
        }));
        let mut factory = match made {
            Ok(Ok(factory)) => factory,
            Ok(Err(error)) => return Err(refuse(error.to_string())),
            Err(_) => return Err(refuse("a panic inside llguidance".into())),
        };
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory })
    }

    /// A guide to JSON that follows `schema`, an object of at most 256 KiB.
    ///
    /// # Errors
    /// A schema that is no object, is too large, or says what cannot be followed, by name.
    pub fn json_schema(&self, schema: &Value) -> Result<Box<dyn Guide>> {
        let schema = spaced(schema, Spaces::Bounded)?;
        self.guide("JSON schema", TopLevelGrammar::from_json_schema(schema))
    }

    /// A guide to one call of one of the tools, which have a name and a JSON schema of their arguments each.
    ///
    /// # Errors
    /// No tools, a name with other characters than letters, digits, `_`, `-` and `.`, and schemas as for [`Guides::json_schema`].
    pub fn call(&self, tools: &[(&str, &Value)], form: CallForm) -> Result<Box<dyn Guide>> {
        let arguments = match form {
            CallForm::Tagged => "arguments",
            CallForm::Bare => "parameters",
        };
        let mut grammar = String::new();
        for (index, (name, parameters)) in tools.iter().enumerate() {
            let mut own = (*parameters).clone();
            let mut schema = json!({
                "type": "object",
                "properties": {"name": {"const": name}},
                "required": ["name", arguments],
                "additionalProperties": false,
            });
            // References go from the root, so definitions move there.
            for definitions in ["$defs", "definitions"] {
                let moved = own.as_object_mut().and_then(|own| own.remove(definitions));
                if let Some(moved) = moved {
                    insert(&mut schema, definitions, moved);
                }
            }
            if let Some(properties) = schema.get_mut("properties") {
                insert(properties, arguments, own);
            }
            let schema = spaced(&schema, Spaces::Fixed)?;
            grammar.push_str(&format!("call_{index}: %json {schema}\n"));
        }
        let calls: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
        let calls = calls.join(" | ");
        let start = match form {
            CallForm::Tagged => {
                let [begin, end] = [CallReader::BEGIN, CallReader::END];
                format!("\"{begin}\\n\" ({calls}) \"\\n{end}\"")
            }
            CallForm::Bare => calls,
        };
        let grammar = format!("start: {start}\n{grammar}");
        self.guide("tools", TopLevelGrammar::from_lark(grammar))
    }

    fn guide(&self, what: &str, grammar: TopLevelGrammar) -> Result<Box<dyn Guide>> {
        let refuse = |why: String| {
            let why: String = why.chars().take(300).collect();
            Error::invalid(what, "content", why, "what llguidance can follow")
        };
        let make = || self.factory.create_parser(grammar);
        let made = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let thread = thread
                .spawn_scoped(scope, make)
                .map_err(|error| refuse(error.to_string()))?;
            thread
                .join()
                .map_err(|_| refuse("a panic inside llguidance".into()))
        })?;
        let parser: TokenParser = made.map_err(|error| refuse(error.to_string()))?;
        let mut matcher = Matcher::new(Ok(parser));
        // What is wrong with the grammar may show here only.
        matcher
            .compute_mask()
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Box::new(Grammar(matcher)))
    }
}

/// A schema that says where white space may stand.
fn spaced(schema: &Value, spaces: Spaces) -> Result<Value> {
    let invalid = |found: String, allowed: String| {
        Err(Error::invalid("JSON schema", "content", found, allowed))
    };
    let size = schema.to_string().len();
    if size > MAX_SCHEMA_BYTES {
        let allowed = format!("at most {MAX_SCHEMA_BYTES}");
        return invalid(format!("{size} bytes"), allowed);
    }
    if !schema.is_object() {
        return invalid(schema.to_string(), "an object".into());
    }
    let mut schema = schema.clone();
    let options = match spaces {
        Spaces::Bounded => json!({"whitespace_pattern": WHITE_SPACE}),
        Spaces::Fixed => {
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "})
        }
    };
    insert(&mut schema, "x-guidance", options);
    Ok(schema)
}

fn insert(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_string(), value);
    }
}

/// A place in a grammar.
struct Grammar(Matcher);

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

fn failed(error: impl fmt::Display) -> Error {
    let text: String = error.to_string().chars().take(300).collect();
    Error::Failed(format!("an answer that follows a grammar: {text}"))
}

impl Guide for Grammar {
    fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let allowed = self.0.compute_mask_or_eos().map_err(failed)?;
        for (id, logit) in (0..).zip(logits) {
            if !allowed.is_allowed(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn push(&mut self, token: u32) -> Result<bool> {
        self.0.consume_token(token).map_err(failed)?;
        Ok(self.0.is_stopped())
    }

    fn copy(&self) -> Box<dyn Guide> {
        Box::new(Self(self.0.clone()))
    }
}
