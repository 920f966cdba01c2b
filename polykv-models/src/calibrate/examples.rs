use super::evidence::{self, EvidenceOptions};
use super::example::Example;
use crate::LoadedModel;
use crate::texts::draw::{check_counts, check_length, of_text, starts};
use crate::tokenizer::Specials;
use polykv_core::calibrate::Data;
use polykv_core::{Error, Result};

/// Bytes of text per call of the tokenizer: bounds its memory whatever the text's length.
const PIECE: usize = 1 << 20;

/// How windows are cut from plain text.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// The number of windows; fewer if the texts have fewer.
    pub examples: usize,
    /// Tokens of each prefix.
    pub length: usize,
    /// Tokens of each continuation, at least 2.
    pub continuation: usize,
    /// Seed of the choice among all windows.
    pub seed: u64,
}

/// The examples of a calibration.
#[derive(Clone, Debug, Default)]
pub struct Examples(pub Vec<Example>);

impl Examples {
    /// Adds windows of texts: each text is cut into windows from its start, and a seed chooses among all of them. A prefix
    /// begins with the begin token of a model that was trained with one, which counts among its tokens.
    ///
    /// # Errors
    /// Texts without a single window, counts of zero, and windows beyond the model's context.
    pub fn add_text(
        &mut self,
        model: &LoadedModel,
        texts: &[String],
        options: &TextOptions,
    ) -> Result<()> {
        let TextOptions {
            length,
            continuation,
            ..
        } = *options;
        check_counts(&[("examples", options.examples)])?;
        if continuation < 2 {
            let field = "continuation";
            return Err(Error::invalid(
                "calibration",
                field,
                continuation,
                "at least 2",
            ));
        }
        check_length(length, continuation, model.model.config().max_positions)?;
        let begin = model.tokenizer.start();
        let length = of_text(length, begin)?;
        let whole = length + continuation;
        let mut windows = Vec::new();
        let mut longest = 0;
        for text in texts {
            let tokens = encode(model, text)?;
            longest = longest.max(tokens.len());
            windows.extend(tokens.chunks_exact(whole).map(<[u32]>::to_vec));
        }
        if windows.is_empty() {
            let found = format!("{} texts of at most {longest} tokens", texts.len());
            let allowed = format!(
                "one of at least {whole}, for a prefix of {} and a continuation of {continuation}",
                options.length
            );
            return Err(Error::invalid("calibration", "data", found, allowed));
        }
        for index in starts(windows.len(), options.examples, options.seed) {
            let mut text = std::mem::take(&mut windows[index]);
            let continuation = text.split_off(length);
            let prompt = [begin, &text].concat();
            self.0.push(Example {
                data: Data::Text,
                prompt,
                scored: 1..continuation.len(),
                continuation,
            });
        }
        Ok(())
    }

    /// Adds questions about facts hidden in a text.
    ///
    /// # Errors
    /// A count of zero, lengths too short for facts and question or beyond the model's context.
    pub fn add_evidence(&mut self, model: &LoadedModel, options: &EvidenceOptions) -> Result<()> {
        check_counts(&[("evidence", options.examples)])?;
        let context = model.model.config().max_positions;
        check_length(options.length, 0, context)?;
        for example in evidence::examples(model, options)? {
            check_length(example.prompt.len(), example.continuation.len(), context)?;
            self.0.push(example);
        }
        Ok(())
    }
}

/// The tokens of a text, piece by piece; pieces end before white space.
fn encode(model: &LoadedModel, text: &str) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = piece_end(rest);
        tokens.extend(model.tokenizer.encode(&rest[..end], Specials::AsText)?);
        rest = &rest[end..];
    }
    Ok(tokens)
}

fn piece_end(text: &str) -> usize {
    if text.len() <= PIECE {
        return text.len();
    }
    let most = text.floor_char_boundary(PIECE);
    match text[..most].rfind(char::is_whitespace) {
        Some(end) if end > 0 => end,
        _ => most,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_before_white_space() {
        let long = format!("{}é {}", "a".repeat(PIECE - 3), "b".repeat(9));
        assert_eq!(piece_end(&long), PIECE - 1);
        assert_eq!(piece_end("short text"), 10);
        assert_eq!(piece_end(&"é".repeat(PIECE)), PIECE);
    }
}
