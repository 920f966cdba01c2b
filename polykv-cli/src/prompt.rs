//! Where the prompt comes from, and what becomes of it.

use crate::args::{PromptArgs, ProtectionArgs};
use polykv::models::LoadedModel;
use polykv::models::chat::Message;
use polykv::models::tokenizer::Specials;
use polykv::{Error, Result, Spans};
use polykv_core::files;
use std::io::Read;
use std::path::Path;

const MAX_BYTES: u64 = 64 << 20;

/// The text of the file, a blank line and the text of the flag, as far as they are given.
///
/// # Errors
/// A file that cannot be read, is too large or is not UTF-8; a prompt of nothing but white space.
pub fn read(args: &PromptArgs) -> Result<String> {
    let file = args.file.as_deref().map(read_file).transpose()?;
    let flag = match args.prompt.as_deref() {
        Some("-") => Some(read_all("standard input", std::io::stdin().lock())?),
        other => other.map(str::to_string),
    };
    let text = match (file, flag) {
        (Some(file), Some(flag)) if !flag.is_empty() => {
            format!("{}\n\n{flag}", file.trim_end_matches(['\r', '\n']))
        }
        (Some(text), _) | (None, Some(text)) => text,
        (None, None) => String::new(),
    };
    if text.trim().is_empty() {
        return Err(Error::invalid(
            "prompt",
            "text",
            "empty",
            "at least one word",
        ));
    }
    Ok(text)
}

/// The whole file, or standard input for `-`.
///
/// # Errors
/// A file that cannot be read, is too large or is not UTF-8.
pub fn read_file(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return read_all("standard input", std::io::stdin().lock());
    }
    files::read_capped_text(path, MAX_BYTES)
}

fn read_all(place: &str, source: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    source
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(Path::new(place), e))?;
    if bytes.len() as u64 > MAX_BYTES {
        let found = format!("more than {MAX_BYTES} bytes");
        let allowed = format!("at most {MAX_BYTES} bytes");
        return Err(Error::invalid(place, "size", found, allowed));
    }
    files::text(place, bytes)
}

/// Token ids of the prompt: in the chat template if the model has one, unless it is to be fed as it is; then after
/// the begin token if the tokenizer asks for one.
///
/// # Errors
/// A text that cannot fit the model's context; a template that does not render; a system message for a model without a
/// template.
pub fn encode(model: &LoadedModel, args: &PromptArgs, text: &str) -> Result<Vec<u32>> {
    let tokenizer = &model.tokenizer;
    check_fits(model, text)?;
    let mut ids = match &model.chat {
        Some(chat) if !args.raw => chat.encode(tokenizer, &messages(args, text), true)?,
        _ if args.system.is_some() => {
            let reason = "the model has no chat template to put it into";
            return Err(Error::unsupported("a system message", reason));
        }
        _ => [
            tokenizer.start(),
            &tokenizer.encode(text, Specials::AsText)?,
        ]
        .concat(),
    };
    if let Some(prefix) = &args.answer_prefix {
        ids.extend(tokenizer.encode(prefix, Specials::AsText)?);
    }
    Ok(ids)
}

/// Token ids of a prompt that follows `pending`, the last token of an answer: a turn in the chat template if the model has one,
/// unless it is to be fed as it is.
///
/// # Errors
/// A text that cannot fit the model's context; a template that does not render.
pub fn encode_next(
    model: &LoadedModel,
    args: &PromptArgs,
    text: &str,
    pending: Option<u32>,
) -> Result<Vec<u32>> {
    let tokenizer = &model.tokenizer;
    check_fits(model, text)?;
    let mut ids = match &model.chat {
        Some(chat) if !args.raw => chat.next_turn(tokenizer, text, pending)?,
        _ => tokenizer.encode(text, Specials::AsText)?,
    };
    if let Some(prefix) = &args.answer_prefix {
        ids.extend(tokenizer.encode(prefix, Specials::AsText)?);
    }
    Ok(ids)
}

/// # Errors
/// A text that cannot fit the model's context.
fn check_fits(model: &LoadedModel, text: &str) -> Result<()> {
    let (least, most) = (
        model.tokenizer.least_tokens(text),
        model.model.config().max_positions,
    );
    if least > most {
        let found = format!("at least {least} tokens");
        let allowed = format!("at most {most} tokens, the model's context");
        return Err(Error::invalid("prompt", "length", found, allowed));
    }
    Ok(())
}

fn messages(args: &PromptArgs, text: &str) -> Vec<Message> {
    let system = args.system.as_ref();
    let system = system.map(|text| Message::new("system", text));
    system
        .into_iter()
        .chain([Message::new("user", text)])
        .collect()
}

/// The span that no policy may evict: from the prompt's first token to the end of the prefix or of the system message,
/// whichever is longer. `tokens` is the prompt's length.
///
/// # Errors
/// A prefix longer than the prompt; a template in which the system message cannot be found.
pub fn protected(
    model: &LoadedModel,
    prompt: &PromptArgs,
    args: &ProtectionArgs,
    text: &str,
    tokens: usize,
) -> Result<Spans> {
    let prefix = args.protect_prefix;
    if prefix > tokens {
        let allowed = format!("at most {tokens}, the prompt's tokens");
        return Err(Error::invalid(
            "command line",
            "--protect-prefix",
            prefix,
            allowed,
        ));
    }
    let system = match &model.chat {
        Some(chat) if args.protect_system => {
            chat.leading_tokens(&model.tokenizer, &messages(prompt, text), 1)?
        }
        _ => 0,
    };
    Ok(Spans::prefix(prefix.max(system)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(file: Option<&[u8]>, prompt: Option<&str>) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompt.txt");
        std::fs::write(&path, file.unwrap_or_default()).unwrap();
        read(&PromptArgs {
            prompt: prompt.map(Into::into),
            file: file.map(|_| path),
            raw: false,
            system: None,
            template_arg: Vec::new(),
            answer_prefix: None,
        })
    }

    #[test]
    fn the_file_goes_before_the_prompt() {
        assert_eq!(
            text(Some(b"one\ntwo\n"), Some("three")).unwrap(),
            "one\ntwo\n\nthree"
        );
        assert_eq!(text(Some(b"one\n"), None).unwrap(), "one\n");
        assert_eq!(text(None, Some(" three")).unwrap(), " three");
        assert_eq!(text(Some(b"one\n"), Some("")).unwrap(), "one\n");
    }

    #[test]
    fn empty_and_foreign_texts_are_refused() {
        for (file, prompt) in [
            (None, Some("")),
            (None, Some(" \n")),
            (Some(&b"\n"[..]), None),
        ] {
            let message = text(file, prompt).unwrap_err().to_string();
            assert_eq!(message, "prompt: text is empty; allowed: at least one word");
        }
        let message = text(Some(b"ab\xffc"), None).unwrap_err().to_string();
        assert!(
            message.contains("prompt.txt") && message.contains("0xff at offset 2"),
            "{message}"
        );
    }
}
