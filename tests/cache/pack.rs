//! Keys at consecutive positions, against keys that are computed from those before rotation.

use super::world::World;
use crate::common::{policy, uniform};
use burn::tensor::{Device, Tensor, TensorData};
use polykv::testing::max_difference;
use polykv::{
    Budget, Codes, KvCache, ModelFacts, Phase, Plan, PlanFile, Registry, Session, SessionInfo,
};

const DIM: usize = 8;
const LAYERS: usize = 2;
const PROMPT: usize = 30;

fn world() -> World {
    World::new(LAYERS, PROMPT, 0)
}

fn numbers(tensor: Tensor<4>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap()
}

/// A vector at a position, in the rotate-half layout with the frequencies of the world.
fn rotated(x: &[f32], position: f64) -> Vec<f64> {
    let half = DIM / 2;
    let turn = |i: usize| {
        let (sin, cos) = (position * 0.7f64.powi((i % half) as i32)).sin_cos();
        let (a, b) = (f64::from(x[i % half]), f64::from(x[i % half + half]));
        if i < half {
            a * cos - b * sin
        } else {
            b * cos + a * sin
        }
    };
    (0..DIM).map(turn).collect()
}

/// Queries (0) or keys (1) of one token before rotation, `[heads][DIM]`.
fn plain(layer: usize, kind: u64, token: usize) -> Vec<Vec<f32>> {
    let part = numbers(world().part(layer, kind, token..token + 1));
    part.chunks(DIM).map(<[f32]>::to_vec).collect()
}

/// Queries, keys and values of one token for its position in the model.
fn inputs(layer: usize, token: usize, position: usize) -> [Tensor<4>; 3] {
    let turned = |kind: u64| {
        let heads = plain(layer, kind, token);
        let all = heads.iter().flat_map(|head| rotated(head, position as f64));
        let all: Vec<f32> = all.map(|x| x as f32).collect();
        let dims = [1, heads.len(), 1, DIM];
        Tensor::from_data(TensorData::new(all, dims), &Device::flex())
    };
    [
        turned(0),
        turned(1),
        world().part(layer, 2, token..token + 1),
    ]
}

fn prompted(plan: Plan) -> KvCache {
    let mut cache = world().cache(plan).unwrap();
    let mut prompt = cache.prompt(PROMPT).unwrap();
    for layer in 0..LAYERS {
        for token in 0..PROMPT {
            let [q, k, v] = inputs(layer, token, token);
            prompt.attend(layer, q, k, v).unwrap();
        }
        prompt.end_layer(layer).unwrap();
    }
    prompt.finish().unwrap();
    cache
}

fn step(cache: &mut KvCache) -> Vec<Vec<f32>> {
    let (token, position) = (cache.seen(), cache.next_positions()[0]);
    let mut outputs = Vec::new();
    for layer in 0..LAYERS {
        let [q, k, v] = inputs(layer, token, position);
        outputs.push(numbers(cache.decode(layer, q, k, v).unwrap()));
    }
    outputs
}

/// The entries of a head as the layer has them: position and key by slot.
fn entries(cache: &KvCache, layer: usize) -> Vec<Vec<(usize, Vec<f32>)>> {
    let layer = &cache.layers()[layer];
    let positions = layer.positions().unwrap();
    let count = positions.dims()[2];
    let positions: Vec<i64> = positions.try_into_vec_as().unwrap();
    let keys = numbers(layer.keys().unwrap());
    let all = positions.iter().zip(keys.chunks(DIM));
    let all: Vec<_> = all.map(|(&p, key)| (p as usize, key.to_vec())).collect();
    all.chunks(count).map(<[_]>::to_vec).collect()
}

/// Where the entries of a head are after packing, with the next token at `next`.
fn packed(head: &[(usize, Vec<f32>)], next: usize) -> Vec<(usize, usize)> {
    let mut kept: Vec<usize> = head.iter().map(|(position, _)| *position).collect();
    kept.sort_unstable();
    let first = next - kept.len();
    kept.into_iter().zip(first..).collect()
}

fn check_keys(cache: &KvCache) {
    let next = cache.next_positions()[0];
    for layer in 0..LAYERS {
        for (index, head) in entries(cache, layer).iter().enumerate() {
            let places = packed(head, next);
            for (position, key) in head {
                let (_, place) = places.iter().find(|(own, _)| own == position).unwrap();
                let wanted = rotated(&plain(layer, 1, *position)[index], *place as f64);
                let apart = max_difference(key, &wanted);
                assert!(apart < 1e-5, "layer {layer}, position {position}: {apart}");
            }
        }
    }
}

/// The attention of the next token over the packed keys of one layer, from keys before rotation.
fn expected(cache: &KvCache, layer: usize) -> Vec<f64> {
    let (token, next) = (cache.seen(), cache.next_positions()[0]);
    let queries = plain(layer, 0, token);
    let heads = entries(cache, layer);
    let group = queries.len() / heads.len();
    let mut all = Vec::new();
    for (index, query) in queries.iter().enumerate() {
        let head = index / group;
        let mut places = packed(&heads[head], next);
        places.push((token, next));
        let query = rotated(query, next as f64);
        let weights: Vec<f64> = places
            .iter()
            .map(|(position, place)| {
                let key = rotated(&plain(layer, 1, *position)[head], *place as f64);
                let dot: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                (dot / (DIM as f64).sqrt()).exp()
            })
            .collect();
        let total: f64 = weights.iter().sum();
        for d in 0..DIM {
            let values = places
                .iter()
                .map(|(position, _)| plain(layer, 2, *position)[head][d]);
            let sum: f64 = values.zip(&weights).map(|(v, w)| f64::from(v) * w).sum();
            all.push(sum / total);
        }
    }
    all
}

#[test]
fn packed_keys_are_those_of_their_new_positions() {
    for name in ["tova", "snapkv", "streaming-llm", "h2o", "lagkv", "cam"] {
        let params = match name {
            "snapkv" => "{window: 4, kernel: 3}",
            "lagkv" => "{lag: 3, sinks: 2}",
            "streaming-llm" => "{sinks: 2}",
            _ => "{}",
        };
        let mut plan = Plan::uniform(
            LAYERS,
            policy(name, params),
            Budget::Tokens(12),
            &Phase::BOTH,
        );
        // Layers of different lengths.
        for (layer, part) in plan.layers.iter_mut().zip([2.0, 1.0]) {
            for phase in Phase::BOTH {
                let rule = layer.rule(phase).clone();
                *layer.rule_mut(phase) = rule.with_share(polykv::plan::Share::Part(part));
            }
        }
        let mut cache = prompted(plan.clone());
        for round in 0..3 {
            for _ in 0..4 {
                step(&mut cache);
            }
            cache.pack().unwrap();
            let most = cache
                .layers()
                .iter()
                .map(|layer| layer.entries())
                .max()
                .unwrap();
            assert_eq!(cache.next_positions(), [most], "{name}");
            assert_eq!(cache.seen(), PROMPT + 5 * round + 4);
            // Merging changes values only.
            check_keys(&cache);
            let wanted: Vec<_> = (0..LAYERS).map(|layer| expected(&cache, layer)).collect();
            let merges = name == "cam";
            for (found, wanted) in step(&mut cache).iter().zip(&wanted) {
                let apart = max_difference(found, wanted);
                assert!(merges || apart < 1e-5, "{name}: {apart}");
            }
        }
        // A session goes on from there too.
        let info = SessionInfo {
            model: "m".into(),
            plan: PlanFile::of(&plan, &Registry::default()),
            tokens: Vec::new(),
            pending: Vec::new(),
        };
        let content = cache.to_session(&info).unwrap();
        let session = Session::from_bytes("session", content).unwrap();
        let mut loaded = world().cache(plan).unwrap();
        loaded.load(&session, "m").unwrap();
        assert_eq!(loaded.next_positions(), cache.next_positions());
        for cache in [&mut cache, &mut loaded] {
            step(cache);
            cache.pack().unwrap();
        }
        assert_eq!(step(&mut cache), step(&mut loaded), "{name}");
    }
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let refused = |cache: &mut KvCache, text: &str| {
        let error = cache.pack().unwrap_err();
        assert!(
            error.is_refusal() && error.to_string().contains(text),
            "{text}: {error}"
        );
    };
    let plan = |name: &str| uniform(LAYERS, name, Budget::Tokens(12), &Phase::BOTH);
    refused(
        &mut prompted(plan("expected-attention")),
        "policy expected-attention",
    );
    let mut cache = prompted(plan("tova"));
    let [q, k, v] = inputs(0, PROMPT, PROMPT);
    cache.decode(0, q, k, v).unwrap();
    refused(&mut cache, "within a token");
    let mut cache = prompted(plan("tova"));
    cache.set_facts(&ModelFacts::default());
    refused(&mut cache, "rotary embedding is unknown");
    let mut cache = prompted(plan("tova"));
    let unfinished = cache.prompt(3).unwrap();
    let _ = unfinished;
    refused(&mut cache, "pack within a prompt");

    // Without gaps nothing moves.
    let mut cache = prompted(Plan::full(LAYERS));
    cache.pack().unwrap();
    assert_eq!(cache.next_positions(), [PROMPT]);
}

/// What streaming-llm keeps does not depend on the numbers, so that only the codes make a difference.
#[test]
fn keys_in_codes_are_moved_as_others_are() {
    let plan = uniform(LAYERS, "streaming-llm", Budget::Tokens(12), &Phase::BOTH);
    let moved = |plan: Plan| {
        let mut cache = prompted(plan);
        (0..9).for_each(|_| drop(step(&mut cache)));
        cache.pack().unwrap();
        step(&mut cache);
        let layers = (0..LAYERS).flat_map(|layer| entries(&cache, layer).concat());
        layers.collect::<Vec<(usize, Vec<f32>)>>()
    };
    let wanted = moved(plan.clone());
    for (codes, allowed) in [(Codes::Q8, 0.06), (Codes::Q4, 0.8)] {
        let found = moved(plan.clone().with_kv(codes));
        for ((position, key), (other, near)) in wanted.iter().zip(&found) {
            assert_eq!(position, other);
            let apart = key.iter().zip(near).map(|(x, y)| (x - y).abs());
            let apart = apart.fold(0.0, f32::max);
            assert!(apart <= allowed, "{codes}, position {position}: {apart}");
        }
    }
}
