//! Texts for messages without what is secret in addresses: the user and password before a host, and queries, which
//! hold the signatures of stored files.

/// An address without user, password and query.
pub(super) fn address(text: &str) -> String {
    // Whatever stands before the last @ may be part of a password, in an address that is badly written as well.
    let text = match text.rsplit_once('@') {
        Some((before, host)) => match before.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://***@{host}"),
            None => format!("***@{host}"),
        },
        None => text.to_string(),
    };
    match text.split_once('?') {
        Some((before, _)) => format!("{before}?..."),
        None => text,
    }
}

/// A text of another program, whose addresses are shown as [`address`] shows them.
pub(super) fn addresses(text: &str) -> String {
    let word = |word: &str| match word.contains("://") {
        true => address(word),
        false => word.to_string(),
    };
    text.split_whitespace()
        .map(word)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out() {
        for (text, shown) in [
            ("https://hub.example/x", "https://hub.example/x"),
            ("https://me:secret@hub.example", "https://***@hub.example"),
            (
                "https://me:sec/ret@x@hub.example",
                "https://***@hub.example",
            ),
            ("me:secret@hub.example", "***@hub.example"),
            ("https://cdn/x?sig=secret", "https://cdn/x?..."),
            (
                "https://me:sec?ret@cdn/x?sig=secret",
                "https://***@cdn/x?...",
            ),
        ] {
            assert_eq!(address(text), shown);
        }
        assert_eq!(
            addresses("ERROR: no  x@1 at\nhttp://me:secret@h/ (gone)"),
            "ERROR: no x@1 at http://***@h/ (gone)"
        );
    }
}
