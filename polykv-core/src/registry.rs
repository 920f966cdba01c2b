//! The policies and allocators that plan files and command lines can name.

use crate::allocate::Allocators;
use crate::policy::{NamedPolicy, Policies};
use crate::{Allocator, Result};

/// Policies and allocators by name. The default has all policies and allocators of this crate; [`Registry::register`] and
/// [`Registry::register_allocator`] add others. Names are looked up for plan files, calibration, evaluation, reports and the
/// test harness.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Registry {
    /// The policies.
    pub policies: Policies,
    /// The allocators.
    pub allocators: Allocators,
}

impl Registry {
    /// Adds a policy under its name.
    ///
    /// # Errors
    /// What [`Policies::register`] refuses.
    pub fn register<P: NamedPolicy>(&mut self) -> Result<()> {
        self.policies.register::<P>()
    }

    /// Adds an allocator under its name.
    ///
    /// # Errors
    /// What [`Allocators::register`] refuses.
    pub fn register_allocator(&mut self, allocator: impl Allocator + 'static) -> Result<()> {
        self.allocators.register(allocator)
    }
}
