//! Sessions that are none, or of something else.

#[path = "forged_codes.rs"]
mod codes;

use super::{MODEL, info, load, prompt};
use crate::common::{policy, uniform};
use crate::world::World;
use polykv::{Budget, KvCache, Phase, Plan, Session};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

const KEY: &str = "polykv-session";

/// A session in parts, to be changed.
struct Parts {
    meta: Value,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Parts {
    fn of(content: &[u8]) -> Self {
        let (_, metadata) = safetensors::SafeTensors::read_metadata(content).unwrap();
        let text = &metadata.metadata().as_ref().unwrap()[KEY];
        let tensors = safetensors::SafeTensors::deserialize(content).unwrap();
        let tensors = tensors.iter().map(|(name, tensor)| {
            let shape = tensor.shape().to_vec();
            let data = tensor.data().to_vec();
            (name.to_string(), (tensor.dtype(), shape, data))
        });
        Self {
            meta: serde_json::from_str(text).unwrap(),
            tensors: tensors.collect(),
        }
    }

    fn content(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let metadata = HashMap::from([(KEY.to_string(), self.meta.to_string())]);
        safetensors::serialize(views, Some(metadata)).unwrap()
    }

    fn tensor(&mut self, name: &str) -> &mut (Dtype, Vec<usize>, Vec<u8>) {
        self.tensors.get_mut(name).unwrap()
    }

    /// Overwrites one number of a tensor.
    fn put(&mut self, name: &str, index: usize, number: [u8; 4]) {
        self.tensor(name).2[4 * index..4 * index + 4].copy_from_slice(&number);
    }
}

fn world() -> World {
    World::new(2, 20, 0)
}

/// H2O in both phases of two layers, eight entries each.
fn saved() -> Parts {
    saved_under(uniform(2, "h2o", Budget::Tokens(8), &Phase::BOTH))
}

fn saved_under(plan: Plan) -> Parts {
    let mut cache = world().cache(plan.clone()).unwrap();
    prompt(&world(), &mut cache, 20);
    let mut known = info(&plan);
    known.tokens = vec![(0..20).collect()];
    Parts::of(&cache.to_session(&known).unwrap())
}

fn refused(what: &str, content: Vec<u8>, parts: &[&str]) {
    let error = match load(&world(), content) {
        Ok(_) => panic!("{what} is accepted"),
        Err(error) => error,
    };
    assert!(error.is_refusal(), "{what}: {error}");
    for part in parts {
        let text = error.to_string();
        assert!(text.contains(part), "{what}: no '{part}' in {text}");
    }
}

/// A way into the description, what is put there, and what the error says.
fn descriptions() -> Vec<(&'static str, Value, &'static [&'static str])> {
    vec![
        ("/version", json!(2), &["version is 2; allowed: 1"]),
        ("/model", json!("b"), &["model is 'b'", "'a model'"]),
        ("/plan", json!("{"), &["not a plan"]),
        (
            "/rules",
            json!("0"),
            &["fingerprint of the plan's rules is 0"],
        ),
        (
            "/attention",
            json!("x"),
            &["attention is x", "scale of the head"],
        ),
        ("/batch", json!(0), &["batch is 0; allowed: 1 to"]),
        ("/batch", json!(2), &["first positions is 1; allowed: 2"]),
        ("/heads", json!(3), &["heads is 3", "multiple of kv_heads"]),
        ("/heads", json!(8), &["heads is 8; allowed: 4"]),
        ("/kv_heads", json!(4), &["shape of tensor layer.0.keys"]),
        (
            "/head_dim",
            json!(1u64 << 60),
            &["head_dim is", "allowed: 1 to"],
        ),
        ("/head_dim", json!(4), &["shape of tensor layer.0.keys"]),
        ("/dtype", json!("f64"), &["dtype is 'f64'", "bf16"]),
        (
            "/dtype",
            json!("f16"),
            &["dtype of tensor layer.0.keys is F32", "F16"],
        ),
        ("/seen", json!(0), &["seen is 0"]),
        ("/seen", json!(1u64 << 40), &["seen is", "1 to 2147483647"]),
        (
            "/seen",
            json!(21),
            &["shape of tensor tokens is [1, 20]", "[1, 21]"],
        ),
        (
            "/first/0",
            json!(i32::MAX),
            &["first position is 2147483647"],
        ),
        ("/spans", json!([[3, 3]]), &["spans is 3 to 3"]),
        ("/spans", json!([[5, 9], [8, 12]]), &["spans is 8 to 12"]),
        ("/pending", json!([1, 2]), &["pending tokens is 2"]),
        ("/pending", json!([-1]), &["description is unreadable"]),
        ("/layers", json!([]), &["layers is 0"]),
        ("/layers/0/window", json!(0), &["window of layer 0 is 0"]),
        (
            "/layers/0/window",
            json!(30),
            &["window of layer 0 is 30; allowed: none"],
        ),
        (
            "/layers/1/window",
            json!(5),
            &["entries of layer 1 is 8; allowed: 1 to 4"],
        ),
        (
            "/layers/0/capacity",
            json!(-1),
            &["description is unreadable"],
        ),
        (
            "/layers/0/prefill_budget",
            json!(null),
            &["prefill budget of layer 0 is none"],
        ),
        (
            "/layers/0/decode_budget",
            json!(0),
            &["decode budget of layer 0 is 0"],
        ),
        (
            "/layers/0/decode_budget",
            json!(9),
            &["decode budgets of all layers is 17", "16"],
        ),
        (
            "/layers/0/decode_budget",
            json!(1u64 << 50),
            &["decode budget of layer 0"],
        ),
        (
            "/layers/0/queries",
            json!(3),
            &["tensor layer.0.queries is missing"],
        ),
        (
            "/layers/0/prefill/entries",
            json!(2),
            &["layer.0.prefill.entries.1 is missing"],
        ),
        (
            "/layers/0/prefill/entries",
            json!(0),
            &["tensor layer.0.prefill.entries.0 is present"],
        ),
        (
            "/layers/0/prefill/entries",
            json!(65),
            &["prefill state of layer 0.entries is 65"],
        ),
        (
            "/layers/0/prefill/counts",
            json!([1]),
            &["prefill state of layer 0 is 1 counts", "h2o"],
        ),
        (
            "/layers/0/decode/counts",
            json!([1]),
            &["decode state of layer 0 is 1 counts", "nothing"],
        ),
    ]
}

#[test]
fn wrong_descriptions() {
    for (way, value, parts) in descriptions() {
        let mut session = saved();
        let what = format!("{way} = {value}");
        *session.meta.pointer_mut(way).expect(way) = value;
        refused(&what, session.content(), parts);
    }
    let mut session = saved();
    session.meta["more"] = json!(1);
    refused("more", session.content(), &["unknown field `more`"]);
    let mut deep = json!({"entries": 0, "rows": 0, "sequence": 0, "counts": [], "members": []});
    for _ in 0..20 {
        deep = json!({"entries": 0, "rows": 0, "sequence": 0, "counts": [], "members": [deep]});
    }
    let mut session = saved();
    session.meta["layers"][0]["prefill"] = deep;
    refused("deep", session.content(), &["at most 8 deep"]);
}

#[test]
fn wrong_tensors() {
    type Spoil = fn(&mut Parts);
    let cases: [(Spoil, &[&str]); 14] = [
        (
            |s| s.put("layer.0.keys", 3, f32::NAN.to_le_bytes()),
            &["number in tensor layer.0.keys is NaN", "finite"],
        ),
        (
            |s| s.put("layer.1.values", 0, f32::INFINITY.to_le_bytes()),
            &["tensor layer.1.values is inf"],
        ),
        (
            |s| s.put("layer.1.prefill.entries.0", 0, f32::NAN.to_le_bytes()),
            &["tensor layer.1.prefill.entries.0 is NaN"],
        ),
        (
            |s| s.put("layer.0.positions", 5, 20u32.to_le_bytes()),
            &["positions of layer 0 is 20; allowed: below 20"],
        ),
        (
            |s| s.put("layer.0.positions", 5, u32::MAX.to_le_bytes()),
            &["positions of layer 0 is 4294967295"],
        ),
        (
            |s| {
                let first = s.tensor("layer.0.positions").2[..4].try_into().unwrap();
                s.put("layer.0.positions", 1, first);
            },
            &["twice in a head", "each position once"],
        ),
        (
            |s| s.meta["layers"][0]["heads_agree"] = json!(true),
            &["different in the heads of a row"],
        ),
        (
            |s| drop(s.tensors.remove("layer.1.keys")),
            &["tensor layer.1.keys is missing"],
        ),
        (
            |s| {
                let keys = s.tensors["layer.1.keys"].clone();
                s.tensors.insert("layer.2.keys".into(), keys);
            },
            &["tensor layer.2.keys is present"],
        ),
        (
            |s| s.tensor("layer.0.keys").1 = vec![1, 2, 4, 16],
            &[
                "shape of tensor layer.0.keys is [1, 2, 4, 16]",
                "[1, 2, any, 8]",
            ],
        ),
        (
            |s| s.tensor("layer.0.values").1 = vec![1, 2, 64],
            &["shape of tensor layer.0.values"],
        ),
        (
            |s| s.tensor("layer.0.positions").0 = Dtype::I32,
            &["dtype of tensor layer.0.positions is I32; allowed: U32"],
        ),
        (
            |s| s.tensor("layer.0.keys").0 = Dtype::I32,
            &["dtype of tensor layer.0.keys is I32; allowed: F32"],
        ),
        (
            |s| *s.tensor("layer.0.keys") = (Dtype::F32, vec![1, 2, 0, 8], vec![]),
            &["shape of tensor layer.0.keys is [1, 2, 0, 8]"],
        ),
    ];
    for (index, (spoil, parts)) in cases.into_iter().enumerate() {
        let mut session = saved();
        spoil(&mut session);
        refused(&format!("case {index}"), session.content(), parts);
    }
}

#[test]
fn files_that_are_no_session() {
    let content = saved().content();
    for end in 0..content.len() {
        refused(&format!("{end} bytes"), content[..end].to_vec(), &[]);
    }
    let mut longer = content.clone();
    longer.push(0);
    refused("longer", longer, &["bytes of tensors"]);
    let mut huge = content.clone();
    huge[..8].copy_from_slice(&(17u64 << 20).to_le_bytes());
    huge.resize(18 << 20, b' ');
    refused("header", huge, &["size of the header", "16777216"]);
    let other = safetensors::serialize::<&str, TensorView<'_>, _>([], None).unwrap();
    refused("weights", other, &["another safetensors file", KEY]);
    let dir = tempfile::tempdir().unwrap();
    let error = Session::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("a directory"), "{error}");
}

/// Each cache differs from the session's in one way.
#[test]
fn other_caches_refuse_the_session() {
    let session = Session::from_bytes("a.session", saved().content()).unwrap();
    let plan = |name: &str, budget| uniform(2, name, Budget::Tokens(budget), &Phase::BOTH);
    let refused = |cache: &mut KvCache, parts: &[&str]| {
        let error = cache.load(&session, MODEL).unwrap_err();
        assert!(error.is_refusal(), "{error}");
        for part in ["a.session"].iter().chain(parts) {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
        assert_eq!((cache.seen(), cache.kv_bytes()), (0, 0));
    };
    for plan in [plan("h2o", 9), plan("tova", 8), Plan::full(2), {
        let policy = policy("h2o", "{normalize: true}");
        Plan::uniform(2, policy, Budget::Tokens(8), &Phase::BOTH)
    }] {
        let mut cache = world().cache(plan).unwrap();
        refused(&mut cache, &["fingerprint of the plan's rules"]);
    }
    let own = || plan("h2o", 8);
    let three = uniform(3, "h2o", Budget::Tokens(8), &Phase::BOTH);
    let mut cache = World {
        layers: 3,
        ..world()
    }
    .cache(three)
    .unwrap();
    refused(&mut cache, &["layers is 2; allowed: 3"]);
    let mut other = world();
    other.shape.dtype = burn::tensor::DType::F16;
    refused(
        &mut other.cache(own()).unwrap(),
        &["dtype is f32; allowed: f16"],
    );
    let mut other = world();
    other.shape.batch = 2;
    refused(
        &mut other.cache(own()).unwrap(),
        &["batch is 1; allowed: 2"],
    );
    let mut other = world();
    other.window = Some(40);
    let mut cache = other.cache(own()).unwrap();
    refused(&mut cache, &["window of layer 0 is none; allowed: 40"]);
    let mut cache = world().cache(own()).unwrap();
    let mut facts = polykv::ModelFacts::default();
    facts.softcap = Some(30.0);
    cache.set_facts(&facts);
    refused(
        &mut cache,
        &["soft-cap none; allowed: scale of the head, soft-cap 30"],
    );

    let mut cache = world().cache(own()).unwrap();
    let error = cache.load(&session, "another").unwrap_err().to_string();
    assert!(error.contains("'another'"), "{error}");
    cache.load(&session, MODEL).unwrap();
    let error = cache.load(&session, MODEL).unwrap_err().to_string();
    assert!(error.contains("load after 20 tokens"), "{error}");
}

/// Statistics that another policy could have.
#[test]
fn statistics_of_another_policy() {
    let states = |name: &str, params: &str| {
        let plan = Plan::uniform(2, policy(name, params), Budget::Tokens(40), &Phase::BOTH);
        let mut cache = world().cache(plan.clone()).unwrap();
        prompt(&world(), &mut cache, 20);
        Parts::of(&cache.to_session(&info(&plan)).unwrap())
    };
    let kinds = [
        ("scissorhands", "{history: 9, recent: 3}"),
        ("expected-attention", "{}"),
        ("d2o", "{sinks: 2}"),
        ("blend", "{}"),
        ("criticalkv", "{}"),
        ("tova", "{}"),
    ];
    for (name, params) in kinds {
        for (other, its_params) in kinds {
            if name == other {
                continue;
            }
            let (mut session, foreign) = (states(name, params), states(other, its_params));
            let is_state = |key: &str| key.contains("prefill") || key.contains("decode");
            session.tensors.retain(|key, _| !is_state(key));
            let theirs = foreign.tensors.into_iter();
            session
                .tensors
                .extend(theirs.filter(|(key, _)| is_state(key)));
            for layer in 0..2 {
                for phase in ["prefill", "decode"] {
                    session.meta["layers"][layer][phase] =
                        foreign.meta["layers"][layer][phase].clone();
                }
            }
            let what = format!("{name} with {other}'s");
            refused(&what, session.content(), &["state of layer 0", name]);
        }
    }
}
