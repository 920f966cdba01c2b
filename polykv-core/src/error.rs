//! The error type of the whole workspace. An error names the thing, the value found and the values allowed.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The result of a call that can fail with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call was refused or failed. [`Error::kind`] says what it is about, for matching.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Refused content or a refused call; nothing was changed.
    #[error("{place}: {field} is {found}; allowed: {allowed}")]
    Invalid {
        /// What the error is about.
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
        /// Why it is not supported here.
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
    /// The shape of a tensor, or an index out of range.
    Shape,
    /// A call at the wrong moment, such as decoding before the prompt has ended.
    Order,
    /// Other content: files, prompts, options.
    Content,
    /// A file that cannot be read, written or fetched.
    Io,
    /// A correct request that this device, build or file format cannot serve.
    Unsupported,
    /// Numbers that turned into NaN or infinity.
    NotFinite,
    /// Another failure while running.
    Failed,
}

/// Characters that an error shows of a field, of a value found and of those allowed. A file's author decides how long they
/// are, and a user has to read them.
const MOST_SHOWN: usize = 1000;

fn shown(part: impl Display) -> String {
    let mut text = part.to_string();
    if let Some((end, _)) = text.char_indices().nth(MOST_SHOWN) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl Error {
    /// Refused content of a file, a prompt or an option, of kind [`ErrorKind::Content`]. The arguments are the fields of
    /// [`Error::Invalid`].
    #[must_use]
    pub fn invalid(
        place: impl Display,
        field: impl Display,
        found: impl Display,
        allowed: impl Display,
    ) -> Self {
        Self::of_kind(ErrorKind::Content, place, field, found, allowed)
    }

    /// A refused plan, policy or allocator, of kind [`ErrorKind::Plan`]. The place is `plan`, until [`Error::at`] names the
    /// file.
    #[must_use]
    pub fn plan(field: impl Display, found: impl Display, allowed: impl Display) -> Self {
        Self::of_kind(ErrorKind::Plan, "plan", field, found, allowed)
    }

    /// A budget that cannot be carried out, of kind [`ErrorKind::Budget`]. The place is `plan`, until [`Error::at`] names the
    /// file.
    #[must_use]
    pub fn budget(field: impl Display, found: impl Display, allowed: impl Display) -> Self {
        Self::of_kind(ErrorKind::Budget, "plan", field, found, allowed)
    }

    /// A tensor of a wrong shape, or an index out of range, of kind [`ErrorKind::Shape`]. The arguments are the fields of
    /// [`Error::Invalid`].
    #[must_use]
    pub fn shape(
        place: impl Display,
        field: impl Display,
        found: impl Display,
        allowed: impl Display,
    ) -> Self {
        Self::of_kind(ErrorKind::Shape, place, field, found, allowed)
    }

    /// A call at the wrong moment, of kind [`ErrorKind::Order`]. The arguments are the fields of [`Error::Invalid`].
    #[must_use]
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
            field: shown(field),
            found: shown(found),
            allowed: shown(allowed),
        }
    }

    /// A correct request that this device, build or file format cannot serve, of kind [`ErrorKind::Unsupported`].
    #[must_use]
    pub fn unsupported(what: impl Display, reason: impl Display) -> Self {
        Self::Unsupported {
            what: shown(what),
            reason: reason.to_string(),
        }
    }

    /// A file or folder that cannot be read, written or fetched, with the system's error; of kind [`ErrorKind::Io`].
    #[must_use]
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    /// The same error with another place, for callers that know which file or flag a value came from. Errors other than
    /// [`Error::Invalid`] have no place and stay as they are.
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

    /// Whether content or a request was refused (exit code 3 of the command line) rather than that something failed at run
    /// time.
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

/// Names the place of a value in the error of a [`Result`].
pub trait At<T> {
    /// The same result, where an error has the place `place` as by [`Error::at`].
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
    fn errors_name_the_place_and_are_short() {
        let refused: Result<()> = Err(Error::budget("budget.tokens", 0, "at least 1"));
        let error = refused.at("plan.yaml").unwrap_err();
        assert_eq!(
            error.to_string(),
            "plan.yaml: budget.tokens is 0; allowed: at least 1"
        );
        assert_eq!(error.kind(), ErrorKind::Budget);
        let long = "ä".repeat(1 << 20);
        let cut = format!("{}…", "ä".repeat(MOST_SHOWN));
        assert_eq!(
            Error::invalid("a", &long, &long, "b").to_string(),
            format!("a: {cut} is {cut}; allowed: b")
        );
        let failed = Error::NotFinite("scores are NaN".into()).at("plan.yaml");
        assert_eq!(failed.to_string(), "scores are NaN");
        assert!(!failed.is_refusal());
    }
}
