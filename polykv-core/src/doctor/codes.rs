//! Entries in codes, and attention over them.

use super::host::Inputs;
use super::{Check, compare};
use crate::Result;
use crate::codes::Codes;
use crate::ops::coded::{Channels, CodedEntries};
use crate::ops::{Mask, read_error};
use burn::tensor::Device;

/// How far a decoded number may be from the one that was given: inputs are from −1 to 1, and a step is 1/255 or 1/15 of that range.
fn allowed(codes: Codes) -> f64 {
    match codes {
        Codes::Q8 => 0.01,
        Codes::Q4 => 0.15,
    }
}

pub fn codes(inputs: &Inputs, device: &Device, checks: &mut Vec<Check>) -> Result<()> {
    let [q, k, v] = inputs.attention(device);
    let last = q.narrow(2, Inputs::TOKENS - 1, 1);
    for (codes, coding, attention) in [
        (Codes::Q8, "entries in q8", "attention over entries in q8"),
        (Codes::Q4, "entries in q4", "attention over entries in q4"),
    ] {
        let both = [k.clone(), v.clone()];
        let coded = CodedEntries::of(
            both,
            &inputs.positions(device),
            codes,
            Channels::of(k.clone()),
        );
        let [keys, values] = [coded.keys(Inputs::TOKENS), coded.values(Inputs::TOKENS)]
            .map(|all| all.try_into_vec_as::<f32>().map_err(read_error));
        let decoded = inputs.with_entries(keys?, values?);
        let apart = decoded.farthest(inputs);
        checks.push(Check {
            name: coding,
            ok: apart <= allowed(codes),
            // Rounding to codes is no error of the device.
            max_error: None,
        });
        let (output, _) = coded.attend(last.clone(), Inputs::TOKENS, &Mask::default());
        checks.push(compare(attention, output, &decoded.attended().last_output)?);
    }
    Ok(())
}
