//! A decoder that knows nothing of PolyKV's models puts a PolyKV cache under its own attention: two sequences side by side,
//! a plan of its own, another scale than 1/√head_dim.
//!
//! ```sh
//! cargo run --release -p own-attention
//! ```

// The burn that PolyKV is built with; what it derives looks for this name.
use polykv::burn;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Distribution, Tensor};
use polykv::{DeviceSpec, KvCache, LayerShape, ModelFacts, PlanFile, Registry, Result};

/// One budget of 2 · 64 entries, three quarters of them in the first layer.
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

const BATCH: usize = 2;
const HIDDEN: usize = 64;
const SHAPE: LayerShape = LayerShape {
    batch: BATCH,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    dtype: DType::F32,
};

/// Somebody's attention: projections of their own, heads as they like them.
#[derive(Module, Debug)]
struct MyAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl MyAttention {
    fn new(device: &Device) -> Self {
        let linear = |out| LinearConfig::new(HIDDEN, out).with_bias(false).init(device);
        let queries = SHAPE.heads * SHAPE.head_dim;
        let keys = SHAPE.kv_heads * SHAPE.head_dim;
        Self {
            q: linear(queries),
            k: linear(keys),
            v: linear(keys),
            out: linear(HIDDEN),
        }
    }

    /// `[BATCH, tokens, HIDDEN]` in and out. Where attention over keys and values would stand, `attend` stands.
    fn forward(
        &self,
        x: Tensor<3>,
        attend: impl FnOnce(Tensor<4>, Tensor<4>, Tensor<4>) -> Result<Tensor<4>>,
    ) -> Result<Tensor<3>> {
        let [batch, tokens, _] = x.dims();
        let heads = |y: Tensor<3>, heads: usize| {
            y.reshape([batch, tokens, heads, SHAPE.head_dim])
                .swap_dims(1, 2)
        };
        let q = heads(self.q.forward(x.clone()), SHAPE.heads);
        let k = heads(self.k.forward(x.clone()), SHAPE.kv_heads);
        let v = heads(self.v.forward(x), SHAPE.kv_heads);
        let attended = attend(q, k, v)?.swap_dims(1, 2);
        Ok(self.out.forward(attended.reshape([batch, tokens, HIDDEN])))
    }
}

fn main() -> Result<()> {
    let device = DeviceSpec::Auto.open()?;
    let layers = [MyAttention::new(&device), MyAttention::new(&device)];
    let plan = PlanFile::from_yaml(PLAN)?.build(&Registry::default())?;
    let mut cache = KvCache::new(plan, SHAPE, &device)?;
    let mut facts = ModelFacts::default();
    facts.scale = Some(0.3);
    cache.set_facts(&facts);

    // A prompt, layer by layer: every layer is cut when the whole prompt has gone through it.
    let random = |tokens| Tensor::random([BATCH, tokens, HIDDEN], Distribution::Default, &device);
    let mut x: Tensor<3> = random(500);
    let mut prompt = cache.prompt(500)?;
    for (index, layer) in layers.iter().enumerate() {
        x = x.clone() + layer.forward(x, |q, k, v| prompt.attend(index, q, k, v))?;
        prompt.end_layer(index)?;
    }
    prompt.finish()?;

    // Then token by token: each layer drops an entry for every one that comes.
    for _ in 0..20 {
        x = random(1);
        for (index, layer) in layers.iter().enumerate() {
            x = x.clone() + layer.forward(x, |q, k, v| cache.decode(index, q, k, v))?;
        }
    }

    let report = cache.report()?;
    println!("output {:?}", x.dims());
    println!(
        "seen {} tokens, kept {:?} entries per layer",
        report.seen, report.kept
    );
    println!("{} of {} bytes", report.bytes, report.full_bytes);
    Ok(())
}
