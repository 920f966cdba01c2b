//! Sessions of entries in codes that are none.

use super::{Parts, refused, saved_under};
use crate::common::uniform;
use polykv::{Budget, Codes, Phase};
use serde_json::json;

#[test]
fn wrong_codes() {
    type Spoil = fn(&mut Parts);
    let cases: [(Spoil, &[&str]); 8] = [
        // Of two words of a vector of eight numbers the second is its run.
        (
            |s| s.put("layer.0.keys", 1, f32::NAN.to_le_bytes()),
            &["keys of layer 0 is a run that is not finite"],
        ),
        (
            |s| s.put("layer.1.values", 3, f32::INFINITY.to_le_bytes()),
            &["values of layer 1 is a run that is not finite"],
        ),
        (
            |s| s.put("layer.0.channels.scale", 2, 0f32.to_le_bytes()),
            &["keys of layer 0 is a channel whose scale is not above 0"],
        ),
        (
            |s| s.put("layer.0.exact.slots", 4, 8u32.to_le_bytes()),
            &["layer.0.exact.slots is 8; allowed: below 8"],
        ),
        (
            |s| s.meta["layers"][0]["next"] = json!(8),
            &["layer.0.next is 8"],
        ),
        (
            |s| drop(s.tensors.remove("layer.1.exact.keys")),
            &["tensor layer.1.exact.keys is missing"],
        ),
        (
            |s| s.meta["layers"][0]["kv"] = json!("q8"),
            &["shape of tensor layer.0.keys"],
        ),
        (
            |s| s.meta["layers"][0]["kv"] = json!("q3"),
            &["unreadable", "q3"],
        ),
    ];
    let plan = uniform(2, "h2o", Budget::Tokens(8), &Phase::BOTH);
    for (index, (spoil, parts)) in cases.into_iter().enumerate() {
        let mut session = saved_under(plan.clone().with_kv(Codes::Q4));
        spoil(&mut session);
        refused(&format!("case {index}"), session.content(), parts);
    }
    // What a plan does not state is no part of its session.
    let mut session = saved_under(plan.clone().with_kv(Codes::Q8));
    let text = session.meta["plan"].as_str().unwrap().replace("q8", "q4");
    session.meta["plan"] = json!(text);
    refused(
        "another plan",
        session.content(),
        &["fingerprint of the plan's rules"],
    );
}
