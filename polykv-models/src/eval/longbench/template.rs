//! A prompt template with the fields `{context}` and `{input}`.

use polykv_core::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Up to the context, the context included.
    before: Vec<Piece>,
    after: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Context,
    Input,
}

impl Template {
    /// As Python's `str.format` reads it: doubled braces are braces.
    ///
    /// # Errors
    /// Other fields, braces without a partner, no or more than one `{context}`; `place` and `task` name the template.
    pub fn parse(place: &str, task: &str, text: &str) -> Result<Self> {
        let refuse = |found: &str| {
            let allowed = "one {context}, {input}, and other braces doubled";
            Error::invalid(place, task, found, allowed)
        };
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (text, tag) = rest.split_at(at);
            plain.push_str(text);
            let doubled = [("{{", '{'), ("}}", '}')];
            let doubled = doubled.map(|(two, one)| Some((one, tag.strip_prefix(two)?)));
            if let Some((brace, after)) = doubled.into_iter().flatten().next() {
                plain.push(brace);
                rest = after;
                continue;
            }
            let field = tag.strip_prefix('{').and_then(|tag| tag.split_once('}'));
            let (field, after) = field.ok_or_else(|| refuse("a template with a brace alone"))?;
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
            pieces.push(match field {
                "context" => Piece::Context,
                "input" => Piece::Input,
                other => return Err(refuse(&format!("a template with {{{other}}}"))),
            });
            rest = after;
        }
        pieces.push(Piece::Text(plain + rest));
        let count = pieces.iter().filter(|piece| **piece == Piece::Context);
        let count = count.count();
        let place = pieces.iter().position(|piece| *piece == Piece::Context);
        let (1, Some(at)) = (count, place) else {
            let found = format!("a template with {count} of {{context}}");
            return Err(refuse(&found));
        };
        let after = pieces.split_off(at.saturating_add(1));
        Ok(Self {
            before: pieces,
            after,
        })
    }

    /// The prompt up to the end of the context, and what comes after it.
    pub fn fill(&self, context: &str, input: &str) -> (String, String) {
        let fill = |pieces: &[Piece]| {
            pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Text(text) => text.as_str(),
                    Piece::Context => context,
                    Piece::Input => input,
                })
                .collect()
        };
        (fill(&self.before), fill(&self.after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_fields_are_filled() {
        let parse = |text| Template::parse("t.json", "task", text);
        let template = parse("{{x}} Read: {context}\nAsk: {input}!{input}").unwrap();
        let (before, after) = template.fill("a {input} b", "c {context}");
        assert_eq!(before, "{x} Read: a {input} b");
        assert_eq!(after, "\nAsk: c {context}!c {context}");
        for (text, found) in [
            ("{input}", "0 of {context}"),
            ("{context}{context}", "2 of {context}"),
            ("{context} {answer}", "{answer}"),
            ("{context} {", "a brace alone"),
            ("{context} }", "a brace alone"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(
                message.starts_with("t.json: task is") && message.contains(found),
                "{message}"
            );
        }
    }
}
