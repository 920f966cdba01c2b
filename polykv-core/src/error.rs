//! One error type for the whole workspace: it names the thing, the value found and the value allowed.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The result of everything in this workspace that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something was refused or failed. [`Error::kind`] tells kinds apart without reading the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Content or a call that is refused before anything is changed.
    #[error("{place}: {field} is {found}; allowed: {allowed}")]
    Invalid {
        /// What the field belongs to.
        kind: ErrorKind,
        /// The file or object that holds the field.
        place: String,
        /// The field, argument or quantity.
        field: String,
        /// The value found.
        found: String,
        /// The values allowed.
        allowed: String,
    },
    /// A file that cannot be read, written or fetched.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A correct request that this device, build or file format cannot serve.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why it cannot be had here.
        reason: String,
    },
    /// Numbers that turned into NaN or infinity while running.
    #[error("{0}")]
    NotFinite(String),
    /// Another failure while running, after everything was accepted.
    #[error("{0}")]
    Failed(String),
}

/// What an [`Error`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A plan, a policy, an allocator, their parameters or names.
    Plan,
    /// A budget that does not fit the prompt, the policies or the protected spans.
    Budget,
    /// The shape of a tensor.
    Shape,
    /// A call at the wrong moment, such as decoding before the prompt has ended.
    Order,
    /// Other content: files, prompts, options.
    Content,
    /// A file that cannot be read, written or fetched.
    Io,
    /// Something that this device, build or file format cannot serve.
    Unsupported,
    /// NaN or infinity.
    NotFinite,
    /// Another failure while running.
    Failed,
}

impl Error {
    /// Refused content of a file, a prompt or an option.
    pub fn invalid(
        place: impl Display,
        field: impl Display,
        found: impl Display,
        allowed: impl Display,
    ) -> Self {
        Self::of_kind(ErrorKind::Content, place, field, found, allowed)
    }

    /// A refused plan, policy or allocator; [`Error::at`] replaces the place `plan` by a file's name.
    pub fn plan(field: impl Display, found: impl Display, allowed: impl Display) -> Self {
        Self::of_kind(ErrorKind::Plan, "plan", field, found, allowed)
    }

    /// A budget that cannot be carried out; [`Error::at`] replaces the place `plan` by a file's name.
    pub fn budget(field: impl Display, found: impl Display, allowed: impl Display) -> Self {
        Self::of_kind(ErrorKind::Budget, "plan", field, found, allowed)
    }

    /// A tensor of a wrong shape.
    pub fn shape(
        place: impl Display,
        field: impl Display,
        found: impl Display,
        allowed: impl Display,
    ) -> Self {
        Self::of_kind(ErrorKind::Shape, place, field, found, allowed)
    }

    /// A call at the wrong moment.
    pub fn order(
        place: impl Display,
        field: impl Display,
        found: impl Display,
        allowed: impl Display,
    ) -> Self {
        Self::of_kind(ErrorKind::Order, place, field, found, allowed)
    }

    fn of_kind(
        kind: ErrorKind,
        place: impl Display,
        field: impl Display,
        found: impl Display,
        allowed: impl Display,
    ) -> Self {
        Self::Invalid {
            kind,
            place: place.to_string(),
            field: field.to_string(),
            found: found.to_string(),
            allowed: allowed.to_string(),
        }
    }

    /// Something that this device, build or file format cannot serve.
    pub fn unsupported(what: impl Display, reason: impl Display) -> Self {
        Self::Unsupported {
            what: what.to_string(),
            reason: reason.to_string(),
        }
    }

    /// What the system said of a file or folder.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    /// The same error with the place named anew, for callers that know the file or flag that the value came from. Errors
    /// that have no place stay as they are.
    #[must_use]
    pub fn at(mut self, name: impl Display) -> Self {
        if let Self::Invalid { place, .. } = &mut self {
            *place = name.to_string();
        }
        self
    }

    /// What the error is about.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { kind, .. } => *kind,
            Self::Io { .. } => ErrorKind::Io,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::NotFinite(_) => ErrorKind::NotFinite,
            Self::Failed(_) => ErrorKind::Failed,
        }
    }

    /// True when the content was refused (exit code 3 of the command line), false for a failure at run time.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Invalid { .. } | Self::Unsupported { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::InvalidData
                    | std::io::ErrorKind::IsADirectory
                    | std::io::ErrorKind::NotADirectory
                    | std::io::ErrorKind::PermissionDenied
            ),
            Self::NotFinite(_) | Self::Failed(_) => false,
        }
    }
}

/// Adds the place to errors on their way up, see [`Error::at`].
pub trait At<T> {
    /// The result, its error with the place named anew.
    ///
    /// # Errors
    /// Those of `self`.
    fn at(self, place: impl Display) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, place: impl Display) -> Result<T> {
        self.map_err(|error| error.at(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_named_at_the_edge() {
        let refused: Result<()> = Err(Error::budget("budget.tokens", 0, "at least 1"));
        let error = refused.at("plan.yaml").unwrap_err();
        assert_eq!(
            error.to_string(),
            "plan.yaml: budget.tokens is 0; allowed: at least 1"
        );
        assert_eq!(error.kind(), ErrorKind::Budget);
        let failed = Error::NotFinite("scores are NaN".into()).at("plan.yaml");
        assert_eq!(failed.to_string(), "scores are NaN");
        assert!(!failed.is_refusal());
    }
}
