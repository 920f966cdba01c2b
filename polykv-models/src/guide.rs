//! Answers that follow a grammar: before a token is chosen, those that may not come next are excluded.
//!
//! [`Guide`] is what generation asks; whoever embeds the library may bring another one. With the feature `guided`,
//! [`Guides`] makes guides from JSON schemas and from descriptions of tools, by the crate llguidance.

#[cfg(feature = "guided")]
mod grammar;

#[cfg(feature = "guided")]
pub use grammar::{CallForm, Guides};

use polykv_core::Result;
use std::fmt;

/// Says which tokens may come next in one answer.
pub trait Guide: Send + Sync + fmt::Debug {
    /// Sets the logits of tokens that may not come next to minus infinity. `logits` has one for each row of the model's
    /// embedding.
    ///
    /// # Errors
    /// A grammar that is too complex to follow here.
    fn mask(&mut self, logits: &mut [f32]) -> Result<()>;

    /// Takes the token that was chosen. Returns whether the answer is complete with it.
    ///
    /// # Errors
    /// A token that may not come next.
    fn push(&mut self, token: u32) -> Result<bool>;

    /// A copy that goes on by itself from where this one is.
    fn copy(&self) -> Box<dyn Guide>;
}

impl Clone for Box<dyn Guide> {
    fn clone(&self) -> Self {
        self.copy()
    }
}
