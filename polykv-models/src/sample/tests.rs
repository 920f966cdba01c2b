use super::*;

fn sampling(change: impl Fn(&mut SamplingParams)) -> Sampler {
    let mut params = SamplingParams {
        temperature: 1.0,
        seed: 7,
        ..SamplingParams::default()
    };
    change(&mut params);
    Sampler::new(params).unwrap()
}

/// How often each of four tokens with probabilities 0.5, 0.3, 0.15, 0.05 is drawn.
fn shares(mut sampler: Sampler) -> [f64; 4] {
    let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
    let mut counts = [0u32; 4];
    for _ in 0..20_000 {
        counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1;
    }
    counts.map(|n| f64::from(n) / 20_000.0)
}

fn assert_near(found: [f64; 4], expected: [f64; 4]) {
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 0.015, "{found:?} {expected:?}");
    }
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    let mut sampler = Sampler::new(SamplingParams::default()).unwrap();
    assert_eq!(sampler.sample(&[0.0, 3.0, 3.0, 1.0], &[]).unwrap(), 1);
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -9.0], &[]).unwrap(), 1);
}

#[test]
fn draws_follow_the_distribution() {
    assert_near(shares(sampling(|_| ())), [0.5, 0.3, 0.15, 0.05]);
    assert_near(
        shares(sampling(|p| p.top_k = Some(2))),
        [0.625, 0.375, 0.0, 0.0],
    );
    assert_near(
        shares(sampling(|p| p.top_k = Some(99))),
        [0.5, 0.3, 0.15, 0.05],
    );
    assert_near(
        shares(sampling(|p| p.top_p = 0.7)),
        [0.625, 0.375, 0.0, 0.0],
    );
    assert_near(shares(sampling(|p| p.top_p = 1e-6)), [1.0, 0.0, 0.0, 0.0]);
    assert_near(
        shares(sampling(|p| p.min_p = Some(0.2))),
        [0.526, 0.316, 0.158, 0.0],
    );
    assert_near(
        shares(sampling(|p| p.min_p = Some(1.0))),
        [1.0, 0.0, 0.0, 0.0],
    );
    // Half the temperature squares the weights.
    assert_near(
        shares(sampling(|p| p.temperature = 0.5)),
        [0.685, 0.247, 0.062, 0.007],
    );
}

#[test]
fn top_p_over_a_large_vocabulary() {
    // Equal weights, so the nucleus is the lower ids; 0.5 of 4000 needs more than one round of sorting.
    let logits = vec![0.0f32; 4000];
    let mut sampler = sampling(|p| p.top_p = 0.5);
    for _ in 0..200 {
        assert!(sampler.sample(&logits, &[]).unwrap() < 2000);
    }
}

#[test]
fn penalty_reads_the_recent_history() {
    let penal = |last_n| {
        Sampler::new(SamplingParams {
            repeat_penalty: 2.0,
            repeat_last_n: last_n,
            ..SamplingParams::default()
        })
        .unwrap()
    };
    let logits = [4.0, 3.0, -1.0];
    assert_eq!(penal(64).sample(&logits, &[0, 0, 99]).unwrap(), 1);
    assert_eq!(penal(1).sample(&logits, &[0, 2]).unwrap(), 0);
    assert_eq!(penal(0).sample(&logits, &[0]).unwrap(), 0);
    // A negative logit is lowered too.
    assert_eq!(penal(64).sample(&[-1.0, -1.5], &[0]).unwrap(), 1);
}

#[test]
fn bias_and_penalties_of_what_was_chosen() {
    let logits = [1.0, 0.9, 0.1];
    let greedy = |change: &dyn Fn(&mut SamplingParams)| {
        let mut params = SamplingParams::default();
        change(&mut params);
        let mut sampler = Sampler::new(params).unwrap();
        // The prompt is not penalised.
        [(); 5].map(|()| sampler.sample(&logits, &[1, 1, 1]).unwrap())
    };
    assert_eq!(greedy(&|p| p.logit_bias = vec![(2, 2.0), (7, 9.0)]), [2; 5]);
    assert_eq!(greedy(&|p| p.presence_penalty = 0.5), [0, 1, 0, 0, 0]);
    assert_eq!(greedy(&|p| p.frequency_penalty = 0.5), [0, 1, 0, 1, 2]);
}

#[test]
fn log_probabilities_are_those_of_the_softmax() {
    let logits = [0.5f32, 0.3, 0.15, 0.05].map(|p| 7.0 + p.ln());
    let (own, top) = log_probabilities(&logits, 2, 2);
    assert!((own - 0.15f32.ln()).abs() < 1e-6, "{own}");
    let ids: Vec<u32> = top.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [0, 1]);
    assert!((top[1].1 - 0.3f32.ln()).abs() < 1e-6);
    assert_eq!(log_probabilities(&logits, 0, 9).1.len(), 4);
}

#[test]
fn same_seed_same_tokens() {
    let logits: Vec<f32> = (0..100u8).map(|i| f32::from(i % 7)).collect();
    let run = |seed| {
        let mut sampler = sampling(|p| p.seed = seed);
        (0..50)
            .map(|_| sampler.sample(&logits, &[]).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn broken_logits_are_errors() {
    for temperature in [0.0, 1.0] {
        let mut sampler = sampling(|p| p.temperature = temperature);
        for logits in [
            &[0.0, f32::NAN][..],
            &[f32::INFINITY],
            &[],
            &[f32::NEG_INFINITY; 3],
        ] {
            assert!(sampler.sample(logits, &[]).is_err());
        }
        assert_eq!(sampler.sample(&[f32::MAX, f32::MIN], &[]).unwrap(), 0);
    }
}

#[test]
fn parameters_are_checked() {
    type Change = fn(&mut SamplingParams);
    let changes: [(&str, Change); 11] = [
        ("frequency_penalty", |p| p.frequency_penalty = 2.1),
        ("presence_penalty", |p| p.presence_penalty = f32::NAN),
        ("logit_bias of token 3", |p| p.logit_bias = vec![(3, 101.0)]),
        ("temperature", |p| p.temperature = -1.0),
        ("temperature", |p| p.temperature = f32::NAN),
        ("top_k", |p| p.top_k = Some(0)),
        ("top_p", |p| p.top_p = 0.0),
        ("top_p", |p| p.top_p = 1.5),
        ("min_p", |p| p.min_p = Some(f32::NAN)),
        ("repeat_penalty", |p| p.repeat_penalty = 0.0),
        ("repeat_penalty", |p| p.repeat_penalty = f32::INFINITY),
    ];
    for (field, change) in changes {
        let mut params = SamplingParams::default();
        change(&mut params);
        let error = Sampler::new(params).err().unwrap();
        assert!(error.is_refusal() && error.to_string().contains(field));
    }
}
