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
            plain.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("{{").or(rest.strip_prefix("}}")) {
                plain.push_str(&rest[..1]);
                rest = after;
                continue;
            }
            let end = rest.find('}').filter(|_| rest.starts_with('{'));
            let end = end.ok_or_else(|| refuse("a template with a brace alone"))?;
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
            pieces.push(match &rest[1..end] {
                "context" => Piece::Context,
                "input" => Piece::Input,
                other => return Err(refuse(&format!("a template with {{{other}}}"))),
            });
            rest = &rest[end + 1..];
        }
        pieces.push(Piece::Text(plain + rest));
        let places: Vec<usize> = (0..pieces.len())
            .filter(|&at| pieces[at] == Piece::Context)
            .collect();
        let [at] = places[..] else {
            return Err(refuse(&format!(
                "a template with {} of {{context}}",
                places.len()
            )));
        };
        let after = pieces.split_off(at + 1);
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
