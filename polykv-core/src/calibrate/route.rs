use super::Profile;
use crate::phase::Phase;
use serde::{Deserialize, Serialize};

/// The signal that a route is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// The cosine between the attention block's outputs with and without eviction; higher is better.
    Cosine,
    /// The rise of perplexity by eviction (ΔPPL); lower is better.
    Ppl,
}

/// Whether a route has the best or the worst candidate of each layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The best candidate of each layer.
    Forward,
    /// The worst candidate of each layer, as a control.
    Inverse,
}

/// The route of one phase: the index of a candidate for each layer. Of equally good candidates the one with the lowest of
/// `costs` is chosen, then the one with the lowest index.
///
/// A single profile gives the route of PolyKV (arXiv 2606.15157): the candidate with the highest cosine or the lowest ΔPPL.
/// Several profiles, which is an addition of this project, come with the factors of their regrets and are combined by
/// [`joint`]. The regret of a candidate is its loss minus that of the layer's best candidate, on a scale that is the same for
/// all layers of a profile, so that a profile for which a layer does not matter hardly counts there.
///
/// Layer `l` gets a candidate `c` for which `allowed(l, c)` is true.
pub fn route(
    profiles: &[(&Profile, f64)],
    phase: Phase,
    signal: Signal,
    direction: Direction,
    costs: &[usize],
    allowed: &dyn Fn(usize, usize) -> bool,
) -> Vec<usize> {
    let losses: Vec<(Vec<Vec<f64>>, f64)> = profiles
        .iter()
        .map(|&(profile, factor)| (losses(profile, phase, signal), factor))
        .collect();
    let weighed = match &losses[..] {
        [(only, _)] => only.clone(),
        all => weigh(all),
    };
    let sign = match direction {
        Direction::Forward => 1.0,
        Direction::Inverse => -1.0,
    };
    let best = |(layer, row): (usize, &Vec<f64>)| {
        let order = |&a: &usize, &b: &usize| {
            let by_loss = (sign * row[a]).total_cmp(&(sign * row[b]));
            by_loss.then(costs[a].cmp(&costs[b])).then(a.cmp(&b))
        };
        let candidates = (0..row.len()).filter(|&candidate| allowed(layer, candidate));
        candidates.min_by(order).unwrap_or(0)
    };
    weighed.iter().enumerate().map(best).collect()
}

fn losses(profile: &Profile, phase: Phase, signal: Signal) -> Vec<Vec<f64>> {
    let measured = profile.phase(phase);
    match signal {
        Signal::Ppl => measured.delta_ppl.clone(),
        Signal::Cosine => {
            let row = |row: &Vec<f64>| row.iter().map(|cosine| 1.0 - cosine).collect();
            measured.cosine.iter().map(row).collect()
        }
    }
}

/// The joint regrets of several profiles, `[layer][candidate]`, from their losses and the factors of their regrets.
fn weigh(profiles: &[(Vec<Vec<f64>>, f64)]) -> Vec<Vec<f64>> {
    let scales: Vec<f64> = profiles
        .iter()
        .map(|(layers, factor)| {
            let spreads: f64 = layers.iter().map(|row| spread(row)).sum();
            spreads / layers.len().max(1) as f64 / factor
        })
        .collect();
    let layers = profiles.first().map_or(0, |(losses, _)| losses.len());
    (0..layers)
        .map(|layer| {
            let by_profile: Vec<Vec<f64>> = profiles
                .iter()
                .zip(&scales)
                .map(|((profile, _), &scale)| {
                    regrets(&profile[layer], least(&profile[layer]), scale)
                })
                .collect();
            let candidates = by_profile.first().map_or(0, Vec::len);
            let of = |candidate: usize| {
                by_profile
                    .iter()
                    .map(|regrets| regrets[candidate])
                    .collect::<Vec<f64>>()
            };
            (0..candidates)
                .map(|candidate| joint(&of(candidate)))
                .collect()
        })
        .collect()
}

/// The losses minus `best`, in units of `scale`; a loss below `best` gives a negative regret.
pub fn regrets(losses: &[f64], best: f64, scale: f64) -> Vec<f64> {
    // A scale of 0 means that all losses are equal.
    let scale = scale.max(1e-9);
    losses.iter().map(|loss| (loss - best) / scale).collect()
}

/// One number for several regrets: half the largest plus half the mean. The largest alone would not reward gains in the
/// others.
pub fn joint(regrets: &[f64]) -> f64 {
    let worst = regrets.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mean = regrets.iter().sum::<f64>() / regrets.len().max(1) as f64;
    (worst + mean) / 2.0
}

pub(super) fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The median minus the minimum. Unlike the maximum it does not depend on how bad the worst candidates are.
pub(super) fn spread(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[middle] - sorted[0],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0 - sorted[0],
    }
}

#[cfg(test)]
mod tests {
    use super::super::PhaseProfile;
    use super::*;

    fn profile(losses: &[[f64; 3]]) -> Profile {
        let phase = PhaseProfile {
            cosine: losses
                .iter()
                .map(|row| row.map(|loss| 1.0 - loss).to_vec())
                .collect(),
            delta_ppl: losses
                .iter()
                .map(|row| row.map(|loss| -loss).to_vec())
                .collect(),
        };
        Profile {
            examples: 1,
            perplexity: 10.0,
            entropy: vec![1.0; losses.len()],
            prefill: phase.clone(),
            decode: phase,
        }
    }

    fn by(profiles: &[&Profile], signal: Signal, direction: Direction) -> Vec<usize> {
        let even: Vec<(&Profile, f64)> = profiles.iter().map(|&profile| (profile, 1.0)).collect();
        route(
            &even,
            Phase::Decode,
            signal,
            direction,
            &[2, 1, 1],
            &|_, _| true,
        )
    }

    #[test]
    fn one_profile_takes_the_best_and_ties_the_cheapest() {
        let measured = profile(&[[0.1, 0.2, 0.3], [0.3, 0.5, 0.2], [0.25, 0.25, 0.25]]);
        assert_eq!(
            by(&[&measured], Signal::Cosine, Direction::Forward),
            [0, 2, 1]
        );
        assert_eq!(
            by(&[&measured], Signal::Cosine, Direction::Inverse),
            [2, 1, 1]
        );
        // The fixture's ΔPPL runs the other way.
        assert_eq!(by(&[&measured], Signal::Ppl, Direction::Forward), [2, 1, 1]);
    }

    #[test]
    fn only_what_is_allowed_is_chosen() {
        let measured = profile(&[[0.1, 0.2, 0.3], [0.3, 0.5, 0.2]]);
        let (signal, forward) = (Signal::Cosine, Direction::Forward);
        let allowed = |layer, candidate| candidate != layer * 2;
        let profiles = [(&measured, 1.0)];
        let found = route(&profiles, Phase::Decode, signal, forward, &[1; 3], &allowed);
        assert_eq!(found, [1, 0]);
    }

    #[test]
    fn two_profiles_meet_in_the_middle() {
        let text = profile(&[[0.0, 0.1, 0.9], [0.0, 0.1, 0.9], [0.0, 0.001, 0.002]]);
        let evidence = profile(&[[0.9, 0.1, 0.0], [0.0, 0.001, 0.002], [0.9, 0.4, 0.0]]);
        let both = by(&[&text, &evidence], Signal::Cosine, Direction::Forward);
        // The compromise where both care, else the choice of the one that does.
        assert_eq!(both, [1, 0, 2]);
    }

    #[test]
    fn a_factor_makes_one_profile_count_more() {
        let text = profile(&[[0.0, 0.1, 0.9]]);
        let evidence = profile(&[[0.9, 0.1, 0.0]]);
        let with = |factor: f64| {
            let profiles = [(&text, 1.0), (&evidence, factor)];
            let (signal, forward) = (Signal::Cosine, Direction::Forward);
            route(
                &profiles,
                Phase::Decode,
                signal,
                forward,
                &[1; 3],
                &|_, _| true,
            )
        };
        assert_eq!([with(0.01), with(1.0), with(100.0)], [[0], [1], [2]]);
    }

    #[test]
    fn joint_losses_by_hand() {
        assert_eq!(regrets(&[1.0, 3.0, 0.5], 1.0, 2.0), [0.0, 1.0, -0.25]);
        assert_eq!(joint(&[1.0, 0.0]), 0.75);
        assert_eq!(joint(&[0.5]), 0.5);
        assert_eq!(
            [spread(&[5.0, 1.0, 2.0]), spread(&[1.0, 4.0]), spread(&[])],
            [1.0, 1.5, 0.0]
        );
    }
}
