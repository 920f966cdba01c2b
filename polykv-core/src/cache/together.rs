//! A decoded token of several caches at once.

use super::KvCache;
use super::arena::{self, Arena};
use crate::{Error, Result, ops};
use crate::{LayerShape, awake};
use burn::tensor::DType;
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// What caches made of a token: the output of each row, and why that of a row is not to be used.
type Outputs = (Tensor<4>, Vec<Option<Error>>);

impl KvCache {
    /// [`KvCache::decode`] of one new token for each of several caches of one row, in one layer. The caches have the same shape and
    /// device; their plans, lengths and positions may differ.
    ///
    /// `q [caches, heads, 1, head_dim]`, `k`, `v [caches, kv_heads, 1, head_dim]`, each row rotated for the
    /// [`KvCache::next_positions`] of its cache → `[caches, heads, 1, head_dim]`, and the error of each cache that had one, whose row
    /// is 0: the others go on.
    ///
    /// On GPUs, layers whose policies say all they do with a token by a [`TokenRule`](crate::policy::TokenRule) share their slots
    /// from the first such token on: attention is one launch for all of them, their evictions are another, and nothing is uploaded but
    /// where a sequence has joined, left or moved. Entries of a layer that keeps everything move to a longer range now and then.
    /// Other layers, and all on the CPU, take the token cache by cache.
    ///
    /// # Errors
    /// Queries, keys or values of other than as many rows as caches, and none. The errors of a cache are those of
    /// [`KvCache::decode`].
    pub fn decode_together(
        caches: &mut [&mut Self],
        layer: usize,
        parts: [Tensor<4>; 3],
    ) -> Result<Outputs> {
        let count = caches.len();
        for part in &parts {
            let rows = part.dims()[0];
            if rows != count || rows == 0 {
                let allowed = format!("{count}, one for each cache, at least 1");
                return Err(Error::shape("decode_together", "rows", rows, allowed));
            }
        }
        if ops::is_cube(&parts[0].device()) && parts[0].dtype() == DType::F32 {
            return Ok(in_arenas(caches, layer, parts));
        }
        Ok(one_by_one(caches, layer, &parts))
    }

    /// [`KvCache::decode`] of one row of several.
    fn decode_row(
        &mut self,
        layer: usize,
        parts: &[Tensor<4>; 3],
        row: usize,
    ) -> (Tensor<4>, Option<Error>) {
        let [q, k, v] = parts.each_ref().map(|all| all.clone().narrow(0, row, 1));
        let nothing = q.clone();
        match self.decode_alone(layer, q, k, v) {
            Ok(output) => (output, None),
            Err(error) => (nothing.zeros_like(), Some(error)),
        }
    }
}

/// Cache by cache. A row alone is too little work for several cores of a CPU.
fn one_by_one(caches: &mut [&mut KvCache], layer: usize, parts: &[Tensor<4>; 3]) -> Outputs {
    let of = |(row, cache): (usize, &mut &mut KvCache)| cache.decode_row(layer, parts, row);
    let (outputs, errors) = match ops::is_cpu(&parts[0].device()) {
        true => caches.par_iter_mut().enumerate().map(of).unzip(),
        false => caches
            .iter_mut()
            .enumerate()
            .map(of)
            .unzip::<_, _, Vec<_>, _>(),
    };
    (Tensor::cat(outputs, 0), errors)
}

/// In slots that the caches share, as far as their layers can lie in such.
pub(crate) fn in_arenas(
    caches: &mut [&mut KvCache],
    layer: usize,
    parts: [Tensor<4>; 3],
) -> Outputs {
    let joined = join(caches, layer, &parts);
    if !joined.contains(&true) {
        return one_by_one(caches, layer, &parts);
    }
    let mut rows = Vec::with_capacity(caches.len());
    let (mut members, mut numbers) = (Vec::new(), Vec::new());
    for (row, (cache, joined)) in caches.iter_mut().zip(&joined).enumerate() {
        match joined {
            true => {
                numbers.push(row);
                members.push(&mut **cache);
            }
            false => {
                let (output, error) = cache.decode_row(layer, &parts, row);
                rows.push((row, output, error));
            }
        }
    }
    let all = rows.is_empty();
    let parts = parts.map(|part| match all {
        true => part,
        false => {
            let own = numbers.iter().map(|&row| part.clone().narrow(0, row, 1));
            Tensor::cat(own.collect(), 0)
        }
    });
    let (output, errors) = take_token(&mut members, layer, parts);
    if all {
        return (output, errors);
    }
    let own = numbers.into_iter().zip(errors).enumerate();
    rows.extend(own.map(|(index, (row, error))| {
        let output = output.clone().narrow(0, index, 1);
        (row, output, error)
    }));
    rows.sort_unstable_by_key(|(row, ..)| *row);
    let (outputs, errors) = rows
        .into_iter()
        .map(|(_, output, error)| (output, error))
        .unzip();
    (Tensor::cat(outputs, 0), errors)
}

/// Which of the caches lie in one arena for this layer, once those have moved there that can.
fn join(caches: &mut [&mut KvCache], layer: usize, parts: &[Tensor<4>; 3]) -> Vec<bool> {
    let facts = |cache: &KvCache| (cache.shape, cache.facts.scale, cache.facts.softcap);
    let first = caches.first().map(|cache| facts(cache));
    let joins = |cache: &KvCache| {
        let LayerShape {
            heads,
            kv_heads,
            head_dim,
            ..
        } = cache.shape;
        let wanted = [heads, kv_heads, kv_heads].map(|heads| [heads, 1, head_dim]);
        let found = parts.each_ref().map(|part| {
            let [_, heads, tokens, head_dim] = part.dims();
            [heads, tokens, head_dim]
        });
        let ready = cache.check_ready("decode").is_ok();
        let layer = cache.layers.get(layer);
        let alike = first == Some(facts(cache)) && found == wanted;
        ready && alike && layer.is_some_and(|layer| layer.joins())
    };
    let mut joined: Vec<bool> = caches.iter().map(|cache| joins(cache)).collect();
    let own = || caches.iter().zip(&joined).filter(|(_, joined)| **joined);
    let layers = || own().filter_map(|(cache, _)| cache.layers.get(layer));
    if layers().count() == 1 && !layers().any(|layer| layer.is_divided()) {
        // Nobody is there to share launches with.
        return vec![false; caches.len()];
    }
    let arena = layers().find_map(|layer| layer.arena().cloned());
    let arena = arena.or_else(|| layers().next().map(|layer| layer.new_arena()));
    let Some(arena) = arena else {
        return joined;
    };
    let mut known = BTreeSet::new();
    let wanted = layers().map(|layer| layer.slots_wanted(&arena, &mut known));
    let wanted = wanted.fold(0, usize::saturating_add);
    if wanted > 0
        && let Some(cache) = caches.first()
    {
        arena::reserve(&arena, wanted, cache.shape.dtype);
    }
    for (cache, joined) in caches.iter_mut().zip(&mut joined) {
        if *joined && let Some(layer) = cache.layers.get_mut(layer) {
            *joined = layer.join(&arena);
        }
    }
    joined
}

/// A token of caches that lie in the same arena.
fn take_token(caches: &mut [&mut KvCache], layer: usize, parts: [Tensor<4>; 3]) -> Outputs {
    awake::again();
    let [q, k, v] = parts.clone();
    let softcap = caches.first().and_then(|cache| cache.facts.softcap);
    let q = match caches.first() {
        Some(first) => first.scaled(q),
        None => q,
    };
    let mut layers = caches.iter().filter_map(|cache| cache.layers.get(layer));
    let arena = layers.find_map(|layer| layer.arena().cloned());
    let own = caches
        .iter_mut()
        .filter_map(|cache| cache.layers.get_mut(layer));
    let mut members: Vec<_> = own.flat_map(|layer| layer.members()).collect();
    let output = arena.and_then(|arena| {
        let parts = [q.clone(), k, v];
        Arena::decode(&arena, &mut members, parts, softcap)
    });
    let Some(output) = output else {
        // A range that cannot grow: each goes on by itself.
        return one_by_one(caches, layer, &parts);
    };
    let mut errors = Vec::with_capacity(caches.len());
    for (row, cache) in caches.iter_mut().enumerate() {
        if let Some(layer) = cache.layers.get_mut(layer) {
            layer.took(&q.clone().narrow(0, row, 1));
        }
        errors.push(cache.check_when_due(layer).err());
    }
    (output, errors)
}

#[cfg(all(test, feature = "flex"))]
mod tests;
