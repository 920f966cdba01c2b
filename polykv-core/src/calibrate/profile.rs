use crate::phase::Phase;
use serde::{Deserialize, Serialize};

/// What an example asks of a compressed cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// The continuation of plain text.
    Text,
    /// The answer to a question about facts hidden in a text (our addition).
    Evidence,
}

/// One example, every (layer, phase, candidate) perturbed alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub data: Data,
    /// Tokens of the prefix, and scored tokens of the continuation.
    pub prompt_tokens: usize,
    pub scored_tokens: usize,
    /// Mean negative log-likelihood of the scored tokens under FullKV.
    pub full_nll: f64,
    /// Mean entropy of FullKV's attention, per layer.
    pub entropy: Vec<f64>,
    /// Empty if the phase was not measured.
    pub prefill: PhaseMeasured,
    pub decode: PhaseMeasured,
}

/// One phase of an example, `[layer][candidate]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseMeasured {
    /// Between the attention block's outputs under FullKV and with the layer compressed.
    pub cosine: Vec<Vec<f64>>,
    /// Mean negative log-likelihood of the scored tokens, empty if it was not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nll: Vec<Vec<f64>>,
}

/// The signals over all examples of one kind of data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub examples: usize,
    /// FullKV's.
    pub perplexity: f64,
    /// Per layer, in nats.
    pub entropy: Vec<f64>,
    pub prefill: PhaseProfile,
    pub decode: PhaseProfile,
}

/// One phase, `[layer][candidate]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseProfile {
    /// Higher is better.
    pub cosine: Vec<Vec<f64>>,
    /// PPL with the layer compressed − PPL of FullKV, lower is better; empty if it was not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delta_ppl: Vec<Vec<f64>>,
}

impl Profile {
    /// Means over the examples of `data`, none without any. Every example counts the same.
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

    pub fn phase(&self, phase: Phase) -> &PhaseProfile {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }
}

impl PhaseProfile {
    /// The largest ΔPPL of any candidate in each layer, at least 0: how much compressing the layer can hurt.
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
