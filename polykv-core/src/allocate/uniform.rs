use super::{Allocator, LayerStat, largest_remainder};
use crate::{Error, Result};

/// The same budget in every layer; what does not divide goes to the first layers, one entry each.
#[derive(Debug)]
pub struct Uniform;

impl Allocator for Uniform {
    fn name(&self) -> &'static str {
        "uniform"
    }

    fn split(&self, total: usize, layers: &[LayerStat]) -> Result<Vec<usize>> {
        let counts = largest_remainder(total, &vec![1.0; layers.len()]);
        for (layer, (count, stat)) in counts.iter().zip(layers).enumerate() {
            if *count < stat.minimum {
                return Err(Error::invalid(
                    "uniform allocator",
                    format!("budget of layer {layer}"),
                    count,
                    format!("at least the {} entries its policy protects", stat.minimum),
                ));
            }
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_evenly_and_respects_minimums() {
        let stat = |minimum| LayerStat {
            share: 1.0,
            minimum,
        };
        assert_eq!(Uniform.split(11, &[stat(0); 3]).unwrap(), [4, 4, 3]);
        let message = Uniform
            .split(11, &[stat(0), stat(5)])
            .map(|_| ())
            .and_then(|()| Uniform.split(8, &[stat(0), stat(5)]).map(|_| ()))
            .unwrap_err()
            .to_string();
        assert!(message.contains("layer 1 is 4"), "{message}");
    }
}
