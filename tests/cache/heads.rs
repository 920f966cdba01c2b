//! Budgets per KV head.

use super::{BOTH, data, decode, prefill};
use crate::common::{each_policy, policy, uniform};
use burn::tensor::Device;
use polykv::testing::{Case, Windows, cache, compare, kept};
use polykv::{Budget, ErrorKind, KvCache, Phase, Plan, Rule};

const BUDGET: usize = 14;

fn divided(params: &str, phases: &[Phase]) -> Plan {
    let policy = policy("adakv", params);
    Plan::uniform(1, policy, Budget::Tokens(BUDGET), phases)
}

fn after(plan: Plan, steps: usize) -> KvCache {
    let data = data(1, 60 + steps, 7);
    let cache = cache(plan, &Device::flex()).unwrap();
    let (mut cache, _) = prefill(cache, &data, 0..60, 60).unwrap();
    decode(&mut cache, &data, 60..60 + steps).unwrap();
    cache
}

/// A head with more entries costs what one with fewer saves: the bytes are those of the same budget in all heads.
#[test]
fn heads_hold_what_they_need_in_as_many_bytes() {
    for steps in [0, 1, 25] {
        let mut even = after(uniform(1, "h2o", Budget::Tokens(BUDGET), &BOTH), steps);
        for floor in [0.0, 0.2, 1.0] {
            let plan = divided(&format!("{{base: h2o, floor: {floor}}}"), &BOTH);
            let mut cache = after(plan, steps);
            let held = cache.layers()[0].head_entries();
            assert_eq!(held.iter().sum::<usize>(), 2 * BUDGET, "{held:?}");
            assert_eq!(held[0] == held[1], floor == 1.0, "{held:?}");
            let (found, wanted) = (cache.report().unwrap(), even.report().unwrap());
            assert_eq!(found.bytes, wanted.bytes);
            assert_eq!(found.kept, wanted.kept);
            let ends = [held[0].min(held[1]), held[0].max(held[1])];
            assert_eq!(found.kept_heads, [ends]);
            assert_eq!(found.divided_heads(), (floor < 1.0).then_some(ends));
            assert_eq!(found.full_bytes, wanted.full_bytes);
            // A head's statistics are those of its entries.
            assert!(
                found.aux_bytes <= wanted.aux_bytes + 64,
                "{found:?} {wanted:?}"
            );
        }
    }
}

/// A layer of a plan that states parts is a layer under `per-head` with the same parts.
#[test]
fn parts_of_a_plan_divide_every_policy() {
    for own in each_policy() {
        if !own.can_be_divided() {
            continue;
        }
        let mut plan = Plan::uniform(2, own.clone(), Budget::Tokens(BUDGET), &BOTH);
        plan.layers[1].heads = Some([3.0, 1.0].into());
        plan.check().unwrap();
        for windows in [
            vec![None, None],
            vec![None, Some(19)],
            vec![Some(9), Some(40)],
        ] {
            let windows = Windows {
                layers: windows,
                softcap: None,
            };
            let case = Case {
                windows,
                ..Case::new(plan.clone())
            };
            let difference = compare(&case, &Device::flex()).unwrap();
            let right = difference.output < 1e-5 && difference.kept == 0;
            assert!(right, "{}: {difference:?}", own.name());
        }
    }
    let mut plan = uniform(1, "knorm", Budget::Tokens(BUDGET), &BOTH);
    plan.layers[0].heads = Some([3.0, 1.0].into());
    assert_eq!(after(plan.clone(), 9).layers()[0].head_entries(), [21, 7]);
    plan.layers[0].heads = Some([3.0, 1.0, 1.0].into());
    let refused = cache(plan, &Device::flex()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Plan, "{refused}");
}

#[test]
fn shares_are_met_and_positions_say_where_a_head_ends() {
    let policy = policy("per-head", "{base: knorm, shares: [3, 1]}");
    let cache = after(Plan::uniform(1, policy, Budget::Tokens(BUDGET), &BOTH), 9);
    let layer = &cache.layers()[0];
    assert_eq!(layer.head_entries(), [21, 7]);
    assert_eq!((layer.entries(), layer.entries_mean()), (21, 14.0));
    let positions = layer.positions().unwrap();
    assert_eq!(positions.dims(), [1, 2, 21]);
    let positions: Vec<i64> = positions.try_into_vec_as().unwrap();
    assert_eq!(positions.iter().filter(|&&p| p == -1).count(), 14);
    let lengths: Vec<usize> = kept(&cache, 0).unwrap().iter().map(Vec::len).collect();
    assert_eq!(lengths, [21, 7]);
    assert_eq!(layer.keys().unwrap().dims()[2], 21);
}

/// A division over heads beside other rules, other budgets, and in one phase only, over several prompts.
#[test]
fn divisions_beside_other_rules_equal_the_reference() {
    let ada = || Rule::evict(policy("adakv", "{base: h2o, floor: 0.1}"));
    let shares = || Rule::evict(policy("per-head", "{base: tova, shares: [1, 2]}"));
    let other = || Rule::evict(policy("d2o", "{}"));
    for (prefill, decode) in [
        (ada(), Rule::Keep),
        (Rule::Keep, ada()),
        (ada(), shares()),
        (shares(), ada()),
        (ada(), other()),
        (other(), ada()),
    ] {
        let mut plan = Plan::full(2);
        plan.budget = Budget::Tokens(24);
        plan.allow_full_extra = true;
        plan.layers[0].prefill = prefill;
        plan.layers[0].decode = decode;
        let case = Case {
            prompt: 31,
            chunk: 9,
            steps: 17,
            rounds: 3,
            ..Case::new(plan)
        };
        let found = compare(&case, &Device::flex()).unwrap();
        assert!(found.output < 1e-5 && found.kept == 0, "{found:?}");
    }
}

#[test]
fn shares_for_other_heads_are_refused_by_name() {
    let policy = policy("per-head", "{shares: [1, 2, 3]}");
    let plan = Plan::uniform(1, policy, Budget::Tokens(40), &BOTH);
    let error = cache(plan, &Device::flex()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Plan);
    let wanted = "prefill shares of the heads of layer 0 is 3; allowed: 2, one per KV head";
    assert!(error.to_string().contains(wanted), "{error}");
}

/// What `by-head` keeps in a head is what that head's policy keeps alone under the same parts.
#[test]
fn wide_and_narrow_heads_have_policies_of_their_own() {
    let alone = |name: &str, params: &str| {
        let mut plan = Plan::uniform(1, policy(name, params), Budget::Tokens(BUDGET), &BOTH);
        plan.layers[0].heads = Some([1.0, 3.0].into());
        kept(&after(plan, 0), 0).unwrap()
    };
    let both = alone("by-head", "{wide: tova, narrow: knorm}");
    let [wide, narrow] = [alone("tova", "{}"), alone("knorm", "{}")];
    assert_eq!(both, [narrow[0].clone(), wide[1].clone()]);
    assert_ne!(both, wide);
    assert_ne!(both, narrow);
    // Without parts a list says which heads are wide.
    let even = |params: &str| {
        let plan = Plan::uniform(1, policy("by-head", params), Budget::Tokens(BUDGET), &BOTH);
        kept(&after(plan, 0), 0).unwrap()
    };
    let [all, first, none] = ["", ", heads: [0]", ", heads: []"]
        .map(|heads| even(&format!("{{wide: tova, narrow: knorm{heads}}}")));
    assert_eq!(first, [all[0].clone(), none[1].clone()]);
    assert_ne!(all, none);
}
