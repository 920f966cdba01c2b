//! RULER's Python files, of which only string and number literals are read.

use super::read;
use crate::eval::ruler::texts::Wording;
use polykv_core::{Error, Result};
use regex::Regex;
use std::path::Path;

/// A Python file, of which only string and number literals are read.
pub struct Python {
    place: String,
    text: String,
}

impl Python {
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self {
            text: read(path, "RULER's own file, scripts/data/synthetic")?,
            place: path.display().to_string(),
        })
    }

    /// The entry of TASKS under a name.
    pub fn wording(&self, task: &str) -> Result<Wording> {
        let entry = self.behind(&format!(r#"['"]{task}['"]\s*:\s*\{{"#), task, &self.text)?;
        let literal = |field: &str| {
            let value = self.behind(&format!(r#"['"]{field}['"]\s*:\s*"#), field, entry)?;
            self.literal(field, value)
        };
        let tokens = self.behind(r#"['"]tokens_to_generate['"]\s*:\s*"#, "tokens", entry)?;
        let digits = tokens.split(|c: char| !c.is_ascii_digit()).next();
        let new_tokens = digits.and_then(|digits| digits.parse().ok());
        let template = literal("template")?;
        if template.matches("{context}").count() != 1 {
            return Err(self.lacks("a template with one {context}"));
        }
        Ok(Wording {
            template,
            lead_in: literal("answer_prefix")?,
            new_tokens: new_tokens
                .filter(|tokens| (1..=1 << 20).contains(tokens))
                .ok_or_else(|| self.lacks("tokens_to_generate"))?,
        })
    }

    /// The first text that is assigned to a variable.
    pub fn string(&self, variable: &str) -> Result<String> {
        let pattern = format!(r#"(?m)^\s*{variable}\s*=\s*(?<end>)['"]"#);
        self.literal(variable, self.behind(&pattern, variable, &self.text)?)
    }

    /// What follows a pattern's first match, or the group `end` in it.
    fn behind<'t>(&self, pattern: &str, what: &str, text: &'t str) -> Result<&'t str> {
        let pattern = Regex::new(pattern).map_err(|e| Error::Failed(e.to_string()))?;
        let found = pattern.captures(text);
        let end = found.and_then(|found| Some(found.name("end").or(found.get(0))?.end()));
        let rest = end.and_then(|end| text.get(end..));
        rest.ok_or_else(|| self.lacks(what))
    }

    /// The string literal that a text starts with.
    fn literal(&self, what: &str, text: &str) -> Result<String> {
        let quotes = [r#"""""#, "'''", "\"", "'"];
        let mut opened = quotes.into_iter();
        let opened = opened.find_map(|quote| Some((quote, text.strip_prefix(quote)?)));
        let (quote, mut rest) = opened.ok_or_else(|| self.lacks(what))?;
        let mut value = String::new();
        while !rest.starts_with(quote) {
            let mut chars = rest.chars();
            match (chars.next(), chars.clone().next()) {
                (Some('\\'), Some(escaped)) => {
                    match escaped {
                        'n' => value.push('\n'),
                        't' => value.push('\t'),
                        '\n' => {}
                        other => value.push(other),
                    }
                    chars.next();
                }
                (Some(c), _) => value.push(c),
                (None, _) => return Err(self.lacks(&format!("the end of {what}"))),
            }
            rest = chars.as_str();
        }
        Ok(value)
    }

    fn lacks(&self, what: &str) -> Error {
        let allowed = format!("{what}, as in RULER");
        Error::invalid(&self.place, "content", format!("without {what}"), allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::ruler::source::singular;

    fn python(text: &str) -> Python {
        Python {
            place: "constants.py".into(),
            text: text.into(),
        }
    }

    #[test]
    fn literals_are_read_from_python() {
        let file = python(
            "TASKS = {\n  'niah': {\n    'tokens_to_generate': 12,\n    'template': \"\"\"Some {type_needle_v} are \
             \"here\".\\n{context}\\nWhat are all of {query}?\"\"\",\n    'answer_prefix': ' They\\'re'\n  },\n\
             'qa' : {'tokens_to_generate': 5, 'template': '{context}', 'answer_prefix': ''},\n}\nneedle = 'It is {value}.'\n",
        );
        let found = file.wording("niah").unwrap();
        let wanted = "Some {type_needle_v} are \"here\".\n{context}\nWhat are all of {query}?";
        assert_eq!(found.template, wanted);
        assert_eq!((found.lead_in.as_str(), found.new_tokens), (" They're", 12));
        let one = singular(found);
        assert_eq!(
            one.template,
            "A {type_needle_v} is \"here\".\n{context}\nWhat is of {query}?"
        );
        assert_eq!(file.wording("qa").unwrap().new_tokens, 5);
        assert_eq!(file.string("needle").unwrap(), "It is {value}.");
        for (error, part) in [
            (file.wording("vt").unwrap_err(), "without vt"),
            (file.string("haystack").unwrap_err(), "without haystack"),
            (
                python("'qa': {'template': 'x").wording("qa").unwrap_err(),
                "without tokens",
            ),
        ] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
