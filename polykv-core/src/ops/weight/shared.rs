//! A part of a region of bytes that others have parts of too.

use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Bytes that several weights may share, such as the content of a file: an owner and the part of it that is meant.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// The part `range` of what `owner` holds.
    ///
    /// # Errors
    /// A range that does not lie in it.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Result<Self> {
        let length = (*owner).as_ref().len();
        match range.start <= range.end && range.end <= length {
            true => Ok(Self { owner, range }),
            false => {
                let found = format!("{} to {}", range.start, range.end);
                Err(Error::invalid(
                    "bytes",
                    "range",
                    found,
                    format!("inside {length}"),
                ))
            }
        }
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The bytes.
    pub fn get(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        let owner = Arc::new(bytes);
        Self { owner, range }
    }
}

impl std::fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedBytes({:?})", self.range)
    }
}
