//! A decoder that knows nothing of PolyKV's models puts a PolyKV cache under its own attention.
//!
//! ```sh
//! cargo run --release -p polykv-cli --example embed
//! ```

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Distribution, Tensor};
use polykv::{DeviceSpec, KvCache, LayerShape, Plan};

const PLAN: &str = "
schema: 1
layers: 2
budget: {tokens: 64}
prefill:
  - {layers: 0, policy: h2o, share: 3}
  - {layers: 1, policy: snapkv, share: 1, params: {window: 8}}
decode:
  - {layers: 0-1, policy: tova}
";

/// Somebody's attention: projections of their own, heads as they like them.
#[derive(Module, Debug)]
struct MyAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    layer: usize,
}

const HIDDEN: usize = 64;
const SHAPE: LayerShape = LayerShape {
    batch: 1,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    dtype: DType::F32,
};

impl MyAttention {
    fn new(layer: usize, device: &Device) -> Self {
        let linear = |out| LinearConfig::new(HIDDEN, out).with_bias(false).init(device);
        let queries = SHAPE.heads * SHAPE.head_dim;
        let keys = SHAPE.kv_heads * SHAPE.head_dim;
        Self {
            q: linear(queries),
            k: linear(keys),
            v: linear(keys),
            out: linear(HIDDEN),
            layer,
        }
    }

    /// `[1, tokens, HIDDEN]` in and out; the only line about the cache is the one that attends.
    fn forward(
        &self,
        x: Tensor<3>,
        cache: &mut KvCache,
        prompt: bool,
    ) -> polykv::Result<Tensor<3>> {
        let [_, tokens, _] = x.dims();
        let heads = |y: Tensor<3>, heads: usize| {
            y.reshape([1, tokens, heads, SHAPE.head_dim])
                .swap_dims(1, 2)
        };
        let q = heads(self.q.forward(x.clone()), SHAPE.heads);
        let k = heads(self.k.forward(x.clone()), SHAPE.kv_heads);
        let v = heads(self.v.forward(x), SHAPE.kv_heads);
        let attended = match prompt {
            true => cache.prefill(self.layer, q, k, v)?,
            false => cache.decode(self.layer, q, k, v)?,
        };
        Ok(self
            .out
            .forward(attended.swap_dims(1, 2).reshape([1, tokens, HIDDEN])))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = DeviceSpec::Auto.open()?;
    let layers: Vec<_> = (0..2)
        .map(|layer| MyAttention::new(layer, &device))
        .collect();
    let plan = Plan::from_yaml("plan", PLAN)?;
    let mut cache = KvCache::new(plan, SHAPE, &device)?;

    let mut x = Tensor::<3>::random([1, 500, HIDDEN], Distribution::Default, &device);
    cache.begin_prefill(500)?;
    for layer in &layers {
        x = x.clone() + layer.forward(x, &mut cache, true)?;
        cache.end_prefill(layer.layer)?;
    }
    for _ in 0..20 {
        x = Tensor::random([1, 1, HIDDEN], Distribution::Default, &device);
        for layer in &layers {
            x = x.clone() + layer.forward(x, &mut cache, false)?;
        }
    }
    cache.check()?;

    let report = cache.report();
    println!("output {:?}", x.dims());
    println!(
        "seen {} tokens, kept {:?} entries per layer",
        report.seen, report.kept
    );
    println!("{} of {} bytes", report.bytes, report.full_bytes);
    Ok(())
}
