use polykv_core::{Error, Result};

/// How tokens are chosen. The default is greedy without a penalty.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits before the softmax; 0 always takes the most likely token (greedy).
    pub temperature: f32,
    /// Keeps the k most likely tokens.
    pub top_k: Option<usize>,
    /// Keeps the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens with at least this share of the most likely token's probability.
    pub min_p: Option<f32>,
    /// Divides positive logits of recent tokens, and multiplies negative ones; 1 is off.
    pub repeat_penalty: f32,
    /// How many of the last tokens the repeat penalty covers.
    pub repeat_last_n: usize,
    /// Is taken from a token's logit for each time that it was chosen; 0 is off.
    pub frequency_penalty: f32,
    /// Is taken from the logit of a token that was chosen at all; 0 is off.
    pub presence_penalty: f32,
    /// Is added to the logits of single tokens; ids outside the vocabulary are ignored.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws. The same seed, parameters and logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: None,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Checks the range of every parameter; NaN is out of range.
    ///
    /// # Errors
    /// The first parameter that is out of range, with the value found and the values allowed.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field: &str, found: &dyn std::fmt::Display, allowed: &str| {
            Err(Error::invalid("sampling", field, found, allowed))
        };
        if !(0.0..=100.0).contains(&self.temperature) {
            return refuse("temperature", &self.temperature, "0 (greedy) to 100");
        }
        if self.top_k == Some(0) {
            return refuse("top_k", &0, "1 or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", &self.top_p, "above 0, up to 1");
        }
        if let Some(min_p) = self.min_p
            && !(0.0..=1.0).contains(&min_p)
        {
            return refuse("min_p", &min_p, "0 to 1");
        }
        if !(0.01..=100.0).contains(&self.repeat_penalty) {
            return refuse(
                "repeat_penalty",
                &self.repeat_penalty,
                "0.01 to 100 (1 is off)",
            );
        }
        for (field, found) in [
            ("frequency_penalty", self.frequency_penalty),
            ("presence_penalty", self.presence_penalty),
        ] {
            if !(-2.0..=2.0).contains(&found) {
                return refuse(field, &found, "-2 to 2 (0 is off)");
            }
        }
        let wrong = |(_, bias): &&(u32, f32)| !(-100.0..=100.0).contains(bias);
        if let Some((id, bias)) = self.logit_bias.iter().find(wrong) {
            return refuse(&format!("logit_bias of token {id}"), bias, "-100 to 100");
        }
        Ok(())
    }

    /// Whether logits stay as the model gave them.
    pub(super) fn leaves_logits(&self) -> bool {
        self.repeat_penalty == 1.0
            && self.frequency_penalty == 0.0
            && self.presence_penalty == 0.0
            && self.logit_bias.is_empty()
    }
}
