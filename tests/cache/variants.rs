//! The policies under test.

use polykv::policy::Params;

fn params(pairs: &[(&str, &str)]) -> Params {
    pairs
        .iter()
        .map(|(name, value)| (name.to_string(), serde_yaml(value)))
        .collect()
}

fn serde_yaml(text: &str) -> serde_yaml_ng::Value {
    serde_yaml_ng::from_str(text).unwrap()
}

/// Small parameters, so that a short run exercises them, beside the defaults that fit.
pub fn variants() -> Vec<(&'static str, Params)> {
    vec![
        ("streaming-llm", params(&[("sinks", "3")])),
        ("snapkv", params(&[("window", "4"), ("kernel", "3")])),
        (
            "snapkv",
            params(&[("window", "5"), ("kernel", "5"), ("pool", "avg")]),
        ),
        ("snapkv", params(&[("window", "3"), ("kernel", "1")])),
        ("tova", params(&[])),
        ("tova", params(&[("protect_last", "2")])),
        ("h2o", params(&[])),
        (
            "h2o",
            params(&[("normalize", "true"), ("recent_fraction", "0.0")]),
        ),
        ("pyramidkv", params(&[("window", "4"), ("kernel", "3")])),
        ("cake", params(&[("window", "4"), ("kernel", "3")])),
        (
            "cake",
            params(&[("window", "3"), ("kernel", "1"), ("gamma", "5.0")]),
        ),
        ("scissorhands", params(&[("history", "9"), ("recent", "3")])),
        ("scissorhands", params(&[])),
        ("d2o", params(&[("sinks", "2")])),
        (
            "d2o",
            params(&[("recent_fraction", "0.25"), ("ema", "0.8")]),
        ),
        (
            "cam",
            params(&[("window", "3"), ("sinks", "2"), ("seed", "5")]),
        ),
        ("cam", params(&[("sinks", "0")])),
        ("expected-attention", params(&[])),
        (
            "expected-attention",
            params(&[("future", "7"), ("sinks", "2"), ("epsilon", "0.0")]),
        ),
        ("lagkv", params(&[("lag", "3"), ("sinks", "2")])),
        ("lagkv", params(&[])),
        (
            "criticalkv",
            params(&[("base", "{policy: snapkv, window: 4, kernel: 3}")]),
        ),
        ("criticalkv", params(&[("base", "h2o"), ("first", "0.3")])),
        ("blend", params(&[])),
        (
            "blend",
            params(&[(
                "policies",
                "[{policy: tova, share: 1}, {policy: snapkv, share: 2, window: 4, kernel: 3}, \
                 {policy: knorm, share: 1}]",
            )]),
        ),
        ("blend", params(&[("policies", "streaming-llm:2,tova:3")])),
        ("knorm", params(&[])),
        ("keydiff", params(&[])),
        ("random", params(&[("seed", "9")])),
    ]
}
