//! What d2o and cam do with entries that go.

use super::scores::{dot, hash, norm};
use super::{DIM, GROUP, Reference};
use polykv::Phase;

impl Reference {
    /// Merges what is not in `kept` into it, if the phase's policy does.
    pub(super) fn merge(&mut self, phase: Phase, head: usize, kept: &[usize]) {
        let gone = |j: &usize| !kept.contains(j);
        let evicted: Vec<usize> = (0..self.heads[head].len()).filter(gone).collect();
        let mut kept = kept.to_vec();
        kept.sort_unstable();
        match self.policies[&phase].name() {
            "d2o" => self.merge_d2o(phase, head, &kept, &evicted),
            "cam" => self.merge_cam(phase, head, &kept, &evicted),
            _ => {}
        }
    }

    fn merge_d2o(&mut self, phase: Phase, head: usize, kept: &[usize], evicted: &[usize]) {
        let entries = &self.heads[head];
        let cosine = |a: usize, b: usize| {
            let (a, b) = (&entries[a].key, &entries[b].key);
            dot(a, b) / norm(a) / norm(b)
        };
        let best = |&e: &usize| {
            let all = kept.iter().map(|&k| (cosine(e, k), k));
            all.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
        };
        let best: Vec<(f64, usize)> = evicted.iter().map(best).collect();
        let mean = best.iter().map(|(u, _)| u).sum::<f64>() / best.len() as f64;
        let [prefill, decode] = [Phase::Prefill, Phase::Decode].map(|p| &self.policies[&p]);
        let shared = prefill.name() == decode.name()
            && prefill.params() == decode.params()
            && self.budgets.values().all(Option::is_some);
        let memory = (if shared { Phase::Prefill } else { phase }, head);
        let ema = self.policies[&phase].params()["ema"].as_f64().unwrap();
        let threshold = match self.thresholds.get(&memory) {
            Some(old) => ema * mean + (1.0 - ema) * old,
            None => mean,
        };
        self.thresholds.insert(memory, threshold);
        let old = self.heads[head].clone();
        for &k in kept {
            let own = evicted.iter().zip(&best);
            let near: Vec<(usize, f64)> = own
                .filter(|(_, (u, target))| *target == k && *u >= threshold)
                .map(|(&e, (u, _))| (e, u.exp()))
                .collect();
            let e = std::f64::consts::E;
            let total = e + near.iter().map(|(_, w)| w).sum::<f64>();
            for c in 0..DIM {
                let key = near.iter().map(|(i, w)| w * old[*i].key[c]).sum::<f64>();
                let value = near.iter().map(|(i, w)| w * old[*i].value[c]).sum::<f64>();
                self.heads[head][k].key[c] = (e * old[k].key[c] + key) / total;
                self.heads[head][k].value[c] = (e * old[k].value[c] + value) / total;
            }
        }
    }

    fn merge_cam(&mut self, phase: Phase, head: usize, kept: &[usize], evicted: &[usize]) {
        let params = self.policies[&phase].params();
        let number = |name: &str| params[name].as_u64().unwrap() as usize;
        let (window, sinks) = (number("window"), number("sinks"));
        let seen = self.queries.len();
        let queries = match phase {
            Phase::Prefill => window.min(seen),
            Phase::Decode => 1,
        };
        let mut attention = vec![0.0; self.heads[head].len()];
        for g in 0..GROUP {
            for position in seen - queries..seen {
                let row = self.row(head, g, position);
                let share = 1.0 / (GROUP * queries) as f64;
                attention
                    .iter_mut()
                    .zip(row)
                    .for_each(|(a, p)| *a += p * share);
            }
        }
        let old = self.heads[head].clone();
        let recent: Vec<usize> = kept
            .iter()
            .copied()
            .filter(|&k| old[k].position >= sinks)
            .collect();
        let mean = recent.iter().map(|&k| attention[k]).sum::<f64>() / recent.len() as f64;
        for &e in evicted {
            let chance = (attention[e] / mean).clamp(0.0, 1.0);
            if hash(number("seed") as u64, self.layer, head, old[e].position) >= chance {
                continue;
            }
            for &k in kept.iter().filter(|&&k| k > e).take(window) {
                for c in 0..DIM {
                    self.heads[head][k].value[c] += old[e].value[c] / window as f64;
                }
            }
        }
    }
}
