//! A chat template.

mod recipe;
mod words;

pub use recipe::source;

use super::Draw;
use polykv_models::chat::{ChatTemplate, Message};

pub fn run(input: &[u8]) {
    if let Some(mut draw) = Draw::of(input) {
        let source = source(&mut draw);
        return rendered(&ChatTemplate::new("template", &source, "<s>", "</s>"));
    }
    let Ok(source) = std::str::from_utf8(input) else {
        return;
    };
    rendered(&ChatTemplate::new("template", source, "<s>", "</s>"));
}

/// What the limits of `docs/chat-templates.md` let a template write beside the messages' text, in bytes.
const MOST_MARKUP: usize = 1 << 20;

/// What holds for every template, whatever file it came from.
pub fn rendered(template: &ChatTemplate) {
    let long = "lorem <|im_end|> ipsum {{ x }} ".repeat(40);
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", long),
        Message::new("assistant", "Yes.\n\u{4e16}\u{754c}"),
        Message::new("user", ""),
    ];
    for count in [1, 4] {
        let messages = &messages[4 - count..];
        let text: usize = messages.iter().map(|message| message.content.len()).sum();
        match template.render(messages, true) {
            Ok(rendered) => assert!(rendered.len() <= text + MOST_MARKUP),
            Err(error) => super::refused(&error),
        }
    }
}
