//! What can only be seen from inside; the rest is in the workspace's tests/cache.rs.

use super::*;
use crate::Budget;
use crate::policy::{self, Params, Phase};
use burn::tensor::Distribution;

const SHAPE: LayerShape = LayerShape {
    batch: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    dtype: DType::F32,
};

#[test]
fn decode_writes_in_place() {
    let device = Device::flex();
    let random =
        |heads, tokens| Tensor::<4>::random([2, heads, tokens, 8], Distribution::Default, &device);
    for name in policy::names() {
        let params = match name {
            "snapkv" => Params::from([("window".into(), 4.into())]),
            _ => Params::new(),
        };
        let phases = [Phase::Prefill, Phase::Decode];
        let plan = Plan::uniform(1, name, params, Budget::Tokens(10), &phases);
        let mut cache = KvCache::new(plan, SHAPE, &device).unwrap();
        cache.begin_prefill(20).unwrap();
        cache
            .prefill(0, random(4, 20), random(2, 20), random(2, 20))
            .unwrap();
        cache.end_prefill(0).unwrap();
        // The first step may make room or compact once.
        cache
            .decode(0, random(4, 1), random(2, 1), random(2, 1))
            .unwrap();
        let address = |cache: &KvCache| cache.layers[0].addresses();
        let before = address(&cache);
        for _ in 0..15 {
            cache
                .decode(0, random(4, 1), random(2, 1), random(2, 1))
                .unwrap();
            assert_eq!(address(&cache), before, "policy {name}");
        }
    }
}
