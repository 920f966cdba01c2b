//! One error type for the whole workspace: it names the thing, the value found and the value allowed.

use std::fmt::Display;
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

/// Why something was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Content that is refused before anything is changed.
    #[error("{place}: {field} is {found}; allowed: {allowed}")]
    Invalid {
        /// The file or object that holds the field.
        place: String,
        field: String,
        found: String,
        allowed: String,
    },
    /// A file that cannot be read, written or fetched.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A correct request that this device, build or file format cannot serve.
    #[error("{what} is not supported: {reason}")]
    Unsupported { what: String, reason: String },
    /// A failure while running, after everything was accepted.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    pub fn invalid(
        place: impl Display,
        field: impl Display,
        found: impl Display,
        allowed: impl Display,
    ) -> Self {
        Self::Invalid {
            place: place.to_string(),
            field: field.to_string(),
            found: found.to_string(),
            allowed: allowed.to_string(),
        }
    }

    pub fn unsupported(what: impl Display, reason: impl Display) -> Self {
        Self::Unsupported {
            what: what.to_string(),
            reason: reason.to_string(),
        }
    }

    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source,
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
            Self::Failed(_) => false,
        }
    }
}
