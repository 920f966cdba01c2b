//! Addresses and where redirects lead: what decides whether a token goes along.

use super::mask;
use polykv_core::{Error, Result};
use std::fmt;
use ureq::http::Uri;

/// An http or https address.
#[derive(Clone, Debug)]
pub(super) struct Address(Uri);

impl Address {
    /// # Errors
    /// Another scheme, no host, a user name before the host; `place` and `field` say where `text` is from.
    pub(super) fn parse(place: &str, field: &str, text: &str) -> Result<Self> {
        let wrong = || {
            let allowed = "an address https://HOST or http://HOST, without a user name";
            Error::invalid(place, field, format!("{:?}", mask::address(text)), allowed)
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        // Nothing but a host and a port: a user name before it, or a password that looks like a port, would be shown.
        let plain = uri.authority().is_some_and(|authority| {
            let port = authority.as_str().strip_prefix(authority.host());
            port.is_some_and(|port| match port.strip_prefix(':') {
                Some(port) => port.parse::<u16>().is_ok(),
                None => port.is_empty(),
            })
        });
        match (uri.scheme_str(), uri.host()) {
            (Some("http" | "https"), Some(host)) if plain && !host.is_empty() => Ok(Self(uri)),
            _ => Err(wrong()),
        }
    }

    /// Where a redirect from here to `location` leads.
    ///
    /// # Errors
    /// No address; one without encryption, if this one has it.
    pub(super) fn redirect(&self, place: &str, location: &str) -> Result<Self> {
        let (scheme, field) = (self.scheme(), "redirect");
        let absolute = match location {
            _ if location.starts_with("//") => format!("{scheme}:{location}"),
            _ if location.starts_with('/') => {
                let authority = self.0.authority().map_or("", |a| a.as_str());
                format!("{scheme}://{authority}{location}")
            }
            _ => location.to_string(),
        };
        let next = Self::parse(place, field, &absolute)?;
        match self.is_https() && !next.is_https() {
            true => {
                let found = mask::address(&absolute);
                Err(Error::invalid(place, field, found, "an https address"))
            }
            false => Ok(next),
        }
    }

    fn scheme(&self) -> &str {
        self.0.scheme_str().unwrap_or_default()
    }

    pub(super) fn is_https(&self) -> bool {
        self.scheme() == "https"
    }

    /// This machine itself.
    pub(super) fn is_loopback(&self) -> bool {
        let host = self.0.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }

    /// Scheme, host and port all agree.
    pub(super) fn same_origin(&self, other: &Self) -> bool {
        let origin = |address: &Self| {
            let usual = if address.is_https() { 443 } else { 80 };
            let host = address.0.host().map(str::to_ascii_lowercase);
            (
                address.is_https(),
                host,
                address.0.port_u16().unwrap_or(usual),
            )
        };
        origin(self) == origin(other)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse("test", "address", text).unwrap()
    }

    #[test]
    fn only_web_addresses_pass() {
        for wrong in [
            "",
            "huggingface.co",
            "ftp://a/b",
            "/a",
            "https://",
            "https://a@b/",
            "a b",
        ] {
            let error = Address::parse("environment", "HF_ENDPOINT", wrong).unwrap_err();
            assert!(
                error.to_string().contains("HF_ENDPOINT"),
                "{wrong}: {error}"
            );
        }
    }

    #[test]
    fn passwords_and_signatures_are_not_shown() {
        for text in [
            "https://me:secret@hub.example",
            "https://me:no/secret@hub.example:1/",
            "me:secret@hub.example",
            "ftp://me:secret@hub.example",
        ] {
            let error = Address::parse("environment", "HF_ENDPOINT", text).unwrap_err();
            let message = error.to_string();
            assert!(!message.contains("secret"), "{message}");
            assert!(message.contains("hub.example"), "{message}");
        }
        let base = address("https://hub.example/x");
        for location in [
            "http://cdn/x?sig=secret",
            "https://me:secret@cdn/x",
            "x?secret",
        ] {
            let message = base.redirect("x", location).unwrap_err().to_string();
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn redirects_are_followed_from_where_they_are() {
        let base = address("https://hub.example:8443/org/name/resolve/main/x");
        for (location, expected, same) in [
            ("/api/x?a=b", "https://hub.example:8443/api/x?a=b", true),
            (
                "https://HUB.example:8443/y",
                "https://hub.example:8443/y",
                true,
            ),
            ("https://hub.example/y", "https://hub.example/y", false),
            ("//cdn.example/z", "https://cdn.example/z", false),
            (
                "https://hub.example.evil/y",
                "https://hub.example.evil/y",
                false,
            ),
        ] {
            let next = base.redirect("x", location).unwrap();
            assert_eq!(next.to_string().to_lowercase(), expected);
            assert_eq!(base.same_origin(&next), same, "{location}");
        }
        assert!(address("http://a:80/").same_origin(&address("http://a/x")));
        assert!(!address("http://a/").same_origin(&address("https://a/")));
        for wrong in [
            "http://hub.example/y",
            "y",
            "",
            "https://hub.example:8443@evil/",
        ] {
            assert!(base.redirect("x", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn loopback_is_told_apart() {
        for text in ["http://127.0.0.1:9/", "http://localhost", "http://[::1]:8/"] {
            assert!(address(text).is_loopback(), "{text}");
        }
        assert!(!address("http://127.0.0.1.evil/").is_loopback());
    }
}
