//! What evaluation and calibration share: made-up texts with facts in them, and from texts to the tokens of prompts.

pub mod draw;
pub mod filler;
pub mod frame;
pub mod haystack;
