use crate::calibrate::{CalibrateOptions, Example};
use polykv_core::Phase;
use polykv_core::calibrate::{Candidate, Data, ExampleLosses, Measured, PhaseMeasured};
use std::collections::BTreeMap;

/// What the records of a calibration look like. A record of another shape would be averaged with the others, or read beyond
/// its end.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The model's layers.
    pub layers: usize,
    /// The phases, each with the number of its candidates.
    phases: Vec<(Phase, usize)>,
    likelihoods: bool,
    /// Per example: its kind, the tokens of its prompt, and its scored tokens.
    examples: Vec<(Data, usize, usize)>,
}

/// What was found and what is allowed.
type Refused = (String, String);

impl Shape {
    /// The shape of a calibration of these examples.
    pub fn new(options: &CalibrateOptions, layers: usize, examples: &[Example]) -> Self {
        let facts = |example: &Example| (example.data, example.prompt.len(), example.scored.len());
        let candidates = options.all_candidates();
        let of_phase = |&phase: &Phase| {
            let own = Candidate::of_phase(&candidates, phase, &options.phases);
            (phase, own.len())
        };
        Self {
            layers,
            phases: options.phases.iter().map(of_phase).collect(),
            likelihoods: options.likelihoods(),
            examples: examples.iter().map(facts).collect(),
        }
    }

    /// Whether these are the signals of an example.
    ///
    /// # Errors
    /// What was found and what is allowed.
    pub fn check_measured(&self, example: usize, measured: &Measured) -> Result<(), Refused> {
        let Some(wanted) = self.examples.get(example) else {
            let allowed = format!("below {}, the examples", self.examples.len());
            return Err((format!("of example {example}"), allowed));
        };
        let found = (
            measured.data,
            measured.prompt_tokens,
            measured.scored_tokens,
        );
        if found != *wanted {
            let say = |(data, prompt, scored): (Data, usize, usize)| {
                format!("{data:?} with {prompt} and {scored} tokens").to_lowercase()
            };
            return Err((format!("of {}", say(found)), say(*wanted)));
        }
        if measured.entropy.len() != self.layers {
            let found = format!("with the entropy of {} layers", measured.entropy.len());
            return Err((found, self.layers.to_string()));
        }
        finite("full_nll", &[measured.full_nll])?;
        finite("entropy", &measured.entropy)?;
        for (phase, of_phase) in [
            (Phase::Prefill, &measured.prefill),
            (Phase::Decode, &measured.decode),
        ] {
            self.check_phase(phase, of_phase)?;
        }
        Ok(())
    }

    /// Whether these are the counts of an example's heads.
    ///
    /// # Errors
    /// What was found and what is allowed.
    pub fn check_heads(&self, example: usize, counts: &[Vec<usize>]) -> Result<(), Refused> {
        if example >= self.examples.len() {
            let allowed = format!("below {}, the examples", self.examples.len());
            return Err((format!("of example {example}"), allowed));
        }
        let heads = counts.first().map_or(0, Vec::len);
        if counts.len() != self.layers || heads == 0 || counts.iter().any(|own| own.len() != heads)
        {
            let found = format!("with the heads of {} layers", counts.len());
            let allowed = format!("{} layers with equally many heads", self.layers);
            return Err((found, allowed));
        }
        Ok(())
    }

    fn check_phase(&self, phase: Phase, of_phase: &PhaseMeasured) -> Result<(), Refused> {
        let mut own = self.phases.iter().filter(|(own, _)| *own == phase);
        let candidates = own.next().map(|&(_, candidates)| candidates);
        let measured = candidates.is_some();
        let candidates = candidates.unwrap_or(0);
        for (name, table, measured) in [
            ("cosine", &of_phase.cosine, measured),
            ("nll", &of_phase.nll, measured && self.likelihoods),
        ] {
            let layers = if measured { self.layers } else { 0 };
            let wide = table.iter().all(|row| row.len() == candidates);
            if table.len() != layers || !wide {
                let widths: Vec<usize> = table.iter().map(Vec::len).collect();
                let found = format!("with {widths:?} numbers per layer in {phase} {name}");
                let allowed = format!("{layers} layers of {candidates} numbers");
                return Err((found, allowed));
            }
            table.iter().try_for_each(|row| finite(name, row))?;
        }
        Ok(())
    }

    /// Whether these are losses of every example.
    ///
    /// # Errors
    /// What was found and what is allowed.
    pub fn check_losses(&self, losses: &ExampleLosses) -> Result<(), Refused> {
        let mut wanted: BTreeMap<Data, usize> = BTreeMap::new();
        for (data, ..) in &self.examples {
            let count = wanted.entry(*data).or_default();
            *count = count.saturating_add(1);
        }
        let counts = losses.iter().map(|(&data, of_data)| (data, of_data.len()));
        let found: BTreeMap<Data, usize> = counts.collect();
        if found != wanted {
            let say = |counts: &BTreeMap<Data, usize>| format!("{counts:?}").to_lowercase();
            return Err((format!("losses of {}", say(&found)), say(&wanted)));
        }
        losses
            .values()
            .try_for_each(|of_data| finite("losses", of_data))
    }
}

/// Infinite numbers are written as null.
fn finite(name: &str, values: &[f64]) -> Result<(), Refused> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err((format!("with {value} in {name}"), "finite numbers".into())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            layers: 2,
            phases: vec![(Phase::Decode, 3)],
            likelihoods: false,
            examples: vec![(Data::Text, 64, 15), (Data::Evidence, 60, 4)],
        }
    }

    fn measured() -> Measured {
        Measured {
            data: Data::Text,
            prompt_tokens: 64,
            scored_tokens: 15,
            full_nll: 7.5,
            entropy: vec![2.0; 2],
            prefill: PhaseMeasured::default(),
            decode: PhaseMeasured {
                cosine: vec![vec![0.5; 3]; 2],
                nll: Vec::new(),
            },
        }
    }

    #[test]
    fn records_of_other_shapes_are_refused() {
        let shape = shape();
        assert_eq!(shape.check_measured(0, &measured()), Ok(()));
        type Change = fn(&mut Measured);
        let changes: [(Change, &str); 7] = [
            (
                |measured| measured.prompt_tokens = 63,
                "of text with 63 and 15 tokens",
            ),
            (
                |measured| measured.data = Data::Evidence,
                "of evidence with 64",
            ),
            (
                |measured| measured.full_nll = f64::NAN,
                "with NaN in full_nll",
            ),
            (
                |measured| measured.entropy.truncate(1),
                "entropy of 1 layers",
            ),
            (
                |measured| measured.decode.cosine[1].push(0.5),
                "[3, 4] numbers per layer in decode cosine",
            ),
            (
                |measured| measured.decode.nll = vec![vec![1.0; 3]; 2],
                "decode nll",
            ),
            (
                |measured| measured.prefill.cosine = vec![vec![]],
                "[0] numbers per layer in prefill cosine",
            ),
        ];
        for (change, found) in changes {
            let mut measured = measured();
            change(&mut measured);
            let refused = shape.check_measured(0, &measured).unwrap_err().0;
            assert!(refused.contains(found), "{refused}, not {found}");
        }
        assert!(
            shape
                .check_measured(2, &measured())
                .unwrap_err()
                .0
                .contains("example 2")
        );
    }

    #[test]
    fn losses_are_of_every_example() {
        let losses = |text: &[f64], evidence: &[f64]| {
            let all = [
                (Data::Text, text.to_vec()),
                (Data::Evidence, evidence.to_vec()),
            ];
            shape().check_losses(&ExampleLosses::from(all))
        };
        assert_eq!(losses(&[0.1], &[0.2]), Ok(()));
        assert!(losses(&[0.1, 0.2], &[0.2]).is_err() && losses(&[0.1], &[]).is_err());
        assert!(losses(&[f64::INFINITY], &[0.2]).is_err());
        assert!(shape().check_losses(&ExampleLosses::new()).is_err());
    }
}
