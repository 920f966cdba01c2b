//! Names that may become parts of paths and addresses.

/// Longest part of a name, in bytes.
pub(super) const MAX_NAME: usize = 128;

/// A name that stays where it is put: no separators, no parent folder, not hidden, no flag.
pub(super) fn is_plain(part: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let starts = |c: char| c.is_ascii_alphanumeric() || c == '_';
    part.len() <= MAX_NAME
        && part.starts_with(starts)
        && part.chars().all(inner)
        && !part.ends_with('.')
        && !part.contains("..")
}
