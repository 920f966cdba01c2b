//! What plan files and command lines can name.

use crate::allocate::Allocators;
use crate::policy::{NamedPolicy, Policies};
use crate::{Allocator, Result};

/// Policies and allocators by name. The default has all that this crate ships; [`Registry::register`] and
/// [`Registry::register_allocator`] add others, which then work wherever a name does: in plan files, calibration,
/// evaluation, reports and the test harness.
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
    /// A name that is taken.
    pub fn register<P: NamedPolicy>(&mut self) -> Result<()> {
        self.policies.register::<P>()
    }

    /// Adds an allocator under its name.
    ///
    /// # Errors
    /// A name that is taken.
    pub fn register_allocator(&mut self, allocator: impl Allocator + 'static) -> Result<()> {
        self.allocators.register(allocator)
    }
}
