//! What functions of a template use to refuse and to pay for their work.

use minijinja::{Error, ErrorKind, State};

/// An error of a function that refuses its arguments.
pub(super) fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Takes the steps for `bytes` that a call makes or walks.
pub(super) fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(u64::try_from(bytes / 64).unwrap_or(u64::MAX))
}
