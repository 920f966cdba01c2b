//! The exported harness from outside: a policy that is not ours passes it, and each fault is named.

use burn::tensor::{Device, Tensor};
use polykv::policy::{
    Appended, LayerView, NamedPolicy, Needs, Params, Policies, Policy, Protect, State,
};
use polykv::testing::{Head, Oracle, check, compare};
use polykv::{Budget, Phase, Plan, Result};

/// Keeps what the last query attends to most in any head of the group, and the first token.
#[derive(Clone, Debug)]
struct Peak {
    fault: Fault,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// The definition is another one.
    Definition,
    /// Rows of a batch rank differently.
    Rows,
    /// Chunks count.
    Chunks,
    /// NaN becomes zero.
    Deaf,
    /// Each run is another one.
    Moody,
}

const FAULTS: [Fault; 6] = [
    Fault::None,
    Fault::Definition,
    Fault::Rows,
    Fault::Chunks,
    Fault::Deaf,
    Fault::Moody,
];

impl NamedPolicy for Peak {
    const NAME: &'static str = "peak";
    const SUMMARY: &'static str = "the largest attention of the last query";
    const SOURCE: Option<&'static str> = None;
    const VARIANTS: &'static [&'static str] = &["{fault: 0}"];

    fn from_params(params: &Params, _: &Policies) -> std::result::Result<Self, String> {
        let fault = params
            .get::<usize>("fault")
            .and_then(|fault| FAULTS.get(fault));
        let fault = *fault.ok_or("fault below 6")?;
        Ok(Self { fault })
    }
}

impl Policy for Peak {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn params(&self) -> Params {
        Params::new().with("fault", self.fault as usize)
    }

    fn needs(&self) -> Needs {
        Needs {
            queries: 1,
            ..Needs::default()
        }
    }

    fn protect(&self, _budget: usize) -> Protect {
        Protect {
            sinks: 1,
            recent: 0,
        }
    }

    fn append(&self, state: &mut State, appended: &Appended) -> Result<()> {
        let dims = [
            appended.shape.batch,
            appended.shape.kv_heads,
            appended.positions.len(),
        ];
        state.counts.push(0);
        let calls = state.counts.len() as f32;
        state.extend_with(Tensor::full(dims, calls, &appended.device));
        Ok(())
    }

    fn score(&self, state: &State, view: &LayerView<'_>) -> Result<Tensor<3>> {
        let row = view.attention_row()?;
        let [batch, kv_heads, _, entries] = row.dims();
        let scores = row.max_dim(2).reshape([batch, kv_heads, entries]);
        let zeros = scores.zeros_like();
        Ok(match self.fault {
            Fault::None | Fault::Definition => scores,
            Fault::Rows if batch > 1 => scores.neg(),
            Fault::Rows => scores,
            Fault::Chunks => scores * state.entries[0].clone(),
            Fault::Deaf => scores.clone().mask_where(scores.is_nan(), zeros),
            Fault::Moody => {
                static CALLS: std::sync::atomic::AtomicUsize =
                    std::sync::atomic::AtomicUsize::new(0);
                let call = CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if call.is_multiple_of(2) {
                    scores
                } else {
                    scores.neg()
                }
            }
        })
    }

    fn oracle(&self) -> Option<&dyn Oracle> {
        // Without one, what is left must find the fault.
        (!matches!(self.fault, Fault::Chunks | Fault::Moody)).then_some(self)
    }
}

impl Oracle for Peak {
    fn scores(&self, head: &Head<'_>) -> Vec<f64> {
        let rows = [0, 1, 2].map(|member| head.attention(member, head.seen() - 1));
        let most = |j: usize| {
            let all = rows.iter().map(|row| row[j]);
            all.reduce(|a, b| if a >= b { a } else { b }).unwrap()
        };
        let scores = (0..rows[0].len()).map(most);
        match self.fault {
            Fault::Definition => scores.map(|score| -score).collect(),
            _ => scores.collect(),
        }
    }
}

fn outcome(fault: Fault) -> std::result::Result<(), String> {
    let policy: std::sync::Arc<dyn Policy> = std::sync::Arc::new(Peak { fault });
    polykv::testing::check_policy(&policy, &Device::flex())
}

#[test]
fn a_policy_from_outside_passes_by_its_name() {
    let mut policies = Policies::default();
    policies.register::<Peak>().unwrap();
    check(&policies, "peak", &Device::flex()).unwrap();
    let error = check(&Policies::default(), "peak", &Device::flex()).unwrap_err();
    assert!(error.contains("no policy 'peak' is registered"), "{error}");
}

#[test]
fn each_fault_is_named() {
    outcome(Fault::None).unwrap();
    for (fault, wanted) in [
        (Fault::Definition, "from the reference"),
        (Fault::Rows, "row 0 of a batch"),
        (Fault::Chunks, "chunks of 1 tokens"),
        (Fault::Deaf, "a NaN query in prefill went unnoticed"),
    ] {
        let error = outcome(fault).unwrap_err();
        assert!(error.contains(wanted), "{fault:?}: {error}");
    }
    assert!(outcome(Fault::Moody).is_err());
}

#[test]
fn a_policy_without_an_oracle_is_not_compared() {
    let policy = std::sync::Arc::new(Peak {
        fault: Fault::Chunks,
    });
    let plan = Plan::uniform(1, policy, Budget::Tokens(9), &Phase::BOTH);
    let error = compare(&super::Case::new(plan), &Device::flex()).unwrap_err();
    assert!(
        error.to_string().contains("policy peak in the reference"),
        "{error}"
    );
}
