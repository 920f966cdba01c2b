//! Codes, budgets of KV heads, and budgets in bytes.

use super::*;

#[test]
fn layers_state_their_codes() {
    let text =
        format!("{MIXED}kv:\n  - {{layers: 0-1, codes: q8}}\n  - {{layers: 3, codes: q4}}\n");
    let plan = build(&text).unwrap();
    let codes: Vec<_> = plan.layers.iter().map(|layer| layer.kv).collect();
    let q8 = Some(Codes::Q8);
    assert_eq!(codes, [q8, q8, None, Some(Codes::Q4)]);
    let stated = PlanFile::of(&plan, &Registry::default());
    assert_eq!(stated.kv, file(&text).kv);
    assert_ne!(plan.fingerprint(), build(MIXED).unwrap().fingerprint());
    let all = file(MIXED).with_kv(Codes::Q4).build(&Registry::default());
    let same = build(MIXED).unwrap().with_kv(Codes::Q4);
    assert_eq!(all.unwrap().layers, same.layers);

    let refused = |kv: &str| build(&format!("{MIXED}kv: {kv}")).unwrap_err().to_string();
    assert!(
        refused("[{layers: 2-4, codes: q8}]")
            .contains("kv[0].layers is 2-4; allowed: layers 0 to 3")
    );
    let twice = refused("[{layers: 0-2, codes: q8}, {layers: 2, codes: q4}]");
    assert!(
        twice.contains("kv[1].layers is 2, which repeats layer 2"),
        "{twice}"
    );
    assert!(refused("[{layers: 0, codes: q5}]").contains("q5"));
}

#[test]
fn layers_state_parts_of_their_heads() {
    let text = format!(
        "{MIXED}heads:\n  - {{layers: 0-1, parts: [2, 0.5]}}\n  - {{layers: 3, parts: [1, 1]}}\n"
    );
    let plan = build(&text).unwrap();
    let parts = |layer: usize| plan.layers[layer].heads.as_deref();
    assert_eq!(parts(0), Some(&[2.0, 0.5][..]));
    assert_eq!([parts(1), parts(2)], [parts(0), None]);
    let stated = PlanFile::of(&plan, &Registry::default());
    assert_eq!(stated.heads, file(&text).heads);
    assert_ne!(plan.fingerprint(), build(MIXED).unwrap().fingerprint());
    // Each policy of such a layer is divided by them.
    let resolved = plan.resolve(1000, &cost(4)).unwrap();
    let heads = |layer: usize| {
        let eviction = resolved.layers[layer].of(Phase::Prefill);
        eviction.map(|eviction| eviction.policy.heads())
    };
    let shares = Some(HeadBudgets::Shares(vec![2.0, 0.5]));
    assert!(heads(0).is_none_or(|found| Some(found) == shares));
    assert!((0..4).any(|layer| heads(layer) == shares), "{resolved:?}");
    assert!(plan.check_heads(2).is_ok());
    let wrong = plan.check_heads(3).unwrap_err().to_string();
    assert!(
        wrong.contains("heads of layer 0 is 2; allowed: 3 parts"),
        "{wrong}"
    );

    let refused = |heads: &str| {
        build(&format!("{MIXED}heads: {heads}"))
            .unwrap_err()
            .to_string()
    };
    for (heads, reason) in [
        (
            "[{layers: 2-4, parts: [1]}]",
            "heads[0].layers is 2-4; allowed: layers 0 to 3",
        ),
        (
            "[{layers: 0-2, parts: [1]}, {layers: 2, parts: [2]}]",
            "heads[1].layers is 2, which repeats layer 2",
        ),
        (
            "[{layers: 0, parts: [1, 0]}]",
            "heads of layer 0 is 0; allowed: parts above 0",
        ),
        ("[{layers: 0, parts: [.nan]}]", "parts above 0"),
        ("[{layers: 0, parts: []}]", "parts above 0"),
    ] {
        let found = refused(heads);
        assert!(found.contains(reason), "{found}");
    }
    for (policy, reason) in [
        ("cam", "beside policy cam"),
        ("adakv", "beside policy adakv"),
    ] {
        let text = format!(
            "{{schema: 1, layers: 2, budget: {{ratio: 0.5}}, prefill: [{{layers: 0-1, policy: {policy}}}], heads: \
             [{{layers: 1, parts: [1, 2]}}]}}"
        );
        let found = build(&text).unwrap_err().to_string();
        assert!(
            found.contains(reason) && found.contains("layer 1"),
            "{found}"
        );
    }
    let online = "{schema: 1, layers: 2, budget: {ratio: 0.5}, online: dynamic, prefill: [{layers: 0-1, policy: tova}], \
                  heads: [{layers: 1, parts: [1, 2]}]}";
    let found = build(online).unwrap_err().to_string();
    assert!(
        found.contains("dynamic beside parts of KV heads"),
        "{found}"
    );
}

#[test]
fn bytes_are_shared_by_what_entries_cost() {
    let cost = EntryCost {
        bytes: 16,
        coded: [8, 4],
        ..cost(4)
    };
    let mut plan = build(
        "{schema: 1, layers: 4, budget: {bytes: 3200}, prefill: [{layers: 0-3, policy: tova}]}",
    )
    .unwrap();
    let budgets = |plan: &Plan| -> Vec<Option<usize>> {
        let resolved = plan.resolve(1000, &cost).unwrap();
        resolved
            .layers
            .iter()
            .map(|layer| layer.budget(Phase::Prefill))
            .collect()
    };
    assert_eq!(budgets(&plan), [Some(50); 4]);
    assert_eq!(budgets(&plan.clone().with_kv(Codes::Q8)), [Some(100); 4]);
    // Beside its codes, a layer in four bits has nine entries in floats.
    let q4 = (3200 - 4 * 9 * 16) / 4 / 4;
    assert_eq!(budgets(&plan.clone().with_kv(Codes::Q4)), [Some(q4); 4]);
    plan.layers[0].kv = Some(Codes::Q4);
    plan.layers[1].kv = Some(Codes::Q8);
    // What the layers hold after a prompt, and one entry of each.
    let bytes = |plan: &Plan, prompt: usize| {
        let resolved = plan.resolve(prompt, &cost).unwrap();
        let layers = resolved.layers.iter().enumerate();
        let one = |(layer, rules): (usize, &LayerEvictions)| {
            let size = plan.entry_bytes(layer, &cost);
            let held = rules.budget(Phase::Prefill).unwrap_or(prompt);
            [held * size + cost.bytes_beside(rules.kv), size]
        };
        layers
            .map(one)
            .fold([0, 0], |[a, b], [c, d]| [a + c, b + d])
    };
    let [held, more] = bytes(&plan, 1000);
    assert!(held <= 3200 && held + more > 3200, "{held}");
    // A layer that keeps everything is charged with its own bytes.
    plan.layers[0].prefill = Rule::Keep;
    let [held, more] = bytes(&plan, 300);
    assert!(held <= 3200 && held + more > 3200, "{held}");
    let refused = plan.resolve(1000, &cost).unwrap_err().to_string();
    let named = "bytes of 1 full layers at 1000 tokens is 4000; allowed: at most the total of 3056";
    assert!(refused.contains(named), "{refused}");
    plan.allow_full_extra = true;
    let held = bytes(&plan, 1000)[0] - 4000 - cost.bytes_beside(Some(Codes::Q4));
    assert!((2250..=2292).contains(&held), "{held}");
}

#[test]
fn an_allocator_that_looks_at_layers_needs_one_size_of_entries() {
    let text = "{schema: 1, layers: 2, budget: {bytes: 999}, online: cake, prefill: [{layers: 0-1, policy: cake}]}";
    let mut plan = build(text).unwrap();
    plan = plan.with_kv(Codes::Q8);
    plan.check().unwrap();
    plan.layers[0].kv = None;
    let refused = plan.check().unwrap_err().to_string();
    assert!(
        refused.contains("different formats beside allocator cake"),
        "{refused}"
    );
    plan.budget = Budget::Tokens(10);
    plan.check().unwrap();
}
