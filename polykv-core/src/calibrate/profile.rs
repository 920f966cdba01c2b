use crate::phase::Phase;
use serde::{Deserialize, Serialize};

/// A kind of data, by what its examples ask of a compressed cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// The continuation of plain text.
    Text,
    /// The answer to a question about facts that are hidden in a text, which is an addition of this project.
    Evidence,
}

/// The measurements of one example, where each candidate evicts in one layer and phase while all others keep everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The kind of data of the example.
    pub data: Data,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens after the prompt whose likelihood is measured.
    pub scored_tokens: usize,
    /// The mean negative log-likelihood of the scored tokens under FullKV, in nats.
    pub full_nll: f64,
    /// The mean entropy of the attention under FullKV for each layer, in nats.
    pub entropy: Vec<f64>,
    /// The measurements of the prefill, empty if there were none.
    pub prefill: PhaseMeasured,
    /// The measurements of the decode phase, empty if there were none.
    pub decode: PhaseMeasured,
}

/// The measurements of one phase of an example, `[layer][candidate]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseMeasured {
    /// The mean cosine between the outputs of the layer's attention block under FullKV and with the layer compressed.
    pub cosine: Vec<Vec<f64>>,
    /// The mean negative log-likelihood of the scored tokens in nats, empty if it was not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nll: Vec<Vec<f64>>,
}

/// The signals of a model, averaged over the examples of one kind of data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// The number of examples.
    pub examples: usize,
    /// The perplexity under FullKV.
    pub perplexity: f64,
    /// The mean entropy of the attention under FullKV for each layer, in nats.
    pub entropy: Vec<f64>,
    /// The signals of the prefill, empty if it was not measured.
    pub prefill: PhaseProfile,
    /// The signals of the decode phase, empty if it was not measured.
    pub decode: PhaseProfile,
}

/// The signals of one phase, `[layer][candidate]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseProfile {
    /// The mean cosine between the outputs of the layer's attention block under FullKV and with the layer compressed; higher
    /// is better.
    pub cosine: Vec<Vec<f64>>,
    /// ΔPPL: the perplexity with the layer compressed minus that under FullKV; lower is better. Empty if it was not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delta_ppl: Vec<Vec<f64>>,
}

impl Profile {
    /// The means over the examples of `data`, where every example counts the same; `None` if there are none.
    pub fn of(measured: &[Measured], data: Data) -> Option<Self> {
        let examples: Vec<&Measured> = measured.iter().filter(|one| one.data == data).collect();
        let first = examples.first()?;
        let perplexity = mean(examples.iter().map(|one| one.full_nll)).exp();
        let phase = |of: fn(&Measured) -> &PhaseMeasured| PhaseProfile {
            cosine: table(&of(first).cosine, |l, c| {
                mean(examples.iter().map(|one| of(one).cosine[l][c]))
            }),
            delta_ppl: table(&of(first).nll, |l, c| {
                mean(examples.iter().map(|one| of(one).nll[l][c])).exp() - perplexity
            }),
        };
        Some(Self {
            examples: examples.len(),
            perplexity,
            entropy: (0..first.entropy.len())
                .map(|layer| mean(examples.iter().map(|one| one.entropy[layer])))
                .collect(),
            prefill: phase(|one| &one.prefill),
            decode: phase(|one| &one.decode),
        })
    }

    /// The signals of one phase.
    pub fn phase(&self, phase: Phase) -> &PhaseProfile {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }
}

impl PhaseProfile {
    /// The largest ΔPPL of any candidate in each layer, at least 0.
    pub fn worst_delta_ppl(&self) -> Vec<f64> {
        let worst = |row: &Vec<f64>| row.iter().copied().fold(0.0, f64::max);
        self.delta_ppl.iter().map(worst).collect()
    }
}

fn table(shape: &[Vec<f64>], value: impl Fn(usize, usize) -> f64) -> Vec<Vec<f64>> {
    let row = |layer: usize| {
        (0..shape[layer].len())
            .map(|candidate| value(layer, candidate))
            .collect()
    };
    (0..shape.len()).map(row).collect()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1);
    values.sum::<f64>() / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_by_hand() {
        let one = |data, full_nll: f64, cosine: f64| {
            let phase = |nll: f64| PhaseMeasured {
                cosine: vec![vec![cosine, 1.0]],
                nll: vec![vec![full_nll, nll]],
            };
            Measured {
                data,
                prompt_tokens: 10,
                scored_tokens: 4,
                full_nll,
                entropy: vec![cosine + 1.0],
                prefill: phase(full_nll + 1.0),
                decode: phase(full_nll - 1.0),
            }
        };
        let all = [
            one(Data::Text, 1.0, 0.5),
            one(Data::Evidence, 9.0, 0.0),
            one(Data::Text, 2.0, 0.7),
        ];
        let profile = Profile::of(&all, Data::Text).unwrap();
        assert_eq!((profile.examples, profile.entropy[0]), (2, 1.6));
        assert!((profile.perplexity - 1.5f64.exp()).abs() < 1e-12);
        let prefill = profile.phase(Phase::Prefill);
        assert!((prefill.cosine[0][0] - 0.6).abs() < 1e-12);
        assert!(prefill.delta_ppl[0][0].abs() < 1e-12);
        let wanted = 2.5f64.exp() - 1.5f64.exp();
        assert!((prefill.worst_delta_ppl()[0] - wanted).abs() < 1e-12);
        // A layer that compression helps is not sensitive.
        assert_eq!(profile.decode.worst_delta_ppl(), [0.0]);
        assert_eq!(Profile::of(&all, Data::Evidence).unwrap().examples, 1);
        assert!(Profile::of(&all[..1], Data::Evidence).is_none());
    }
}
