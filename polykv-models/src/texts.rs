//! What evaluation and calibration share: made-up texts with facts in them, and from texts to the tokens of prompts.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

pub mod draw;
pub mod filler;
pub mod frame;
pub mod haystack;
