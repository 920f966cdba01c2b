//! What flags and plan files can name, in all of this process.

use polykv::Registry;
use std::sync::OnceLock;

static REGISTRY: OnceLock<Registry> = OnceLock::new();

/// Sets the registry. The first call in a process counts, and only before anything has been read.
pub fn set(registry: Registry) {
    // A second one would contradict what was already read.
    let _ = REGISTRY.set(registry);
}

/// The registry: PolyKV's own unless another one was set.
pub fn registry() -> &'static Registry {
    REGISTRY.get_or_init(Registry::default)
}
