//! Which hub to ask, and who asks, both from the environment as Hugging Face's own tools read it.

use polykv_core::files::read_capped_text;
use polykv_core::{Error, Result};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

const ENDPOINT: &str = "https://huggingface.co";
const MAX_TOKEN_BYTES: usize = 1024;

/// Where the hub is.
pub(super) fn endpoint(variable: impl Fn(&str) -> Option<OsString>) -> String {
    match variable("HF_ENDPOINT").filter(|value| !value.is_empty()) {
        Some(value) => value.to_string_lossy().into_owned(),
        None => ENDPOINT.to_string(),
    }
}

/// A secret, which no error and no debug output shows.
#[derive(Clone)]
pub(super) struct Token(String);

impl Token {
    /// HF_TOKEN, or else the file that `hf auth login` writes, if it is there.
    ///
    /// # Errors
    /// A token with characters that no token has; a file that cannot be read.
    pub(super) fn find(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        if let Some(value) = set("HF_TOKEN") {
            return Self::parse("environment", "HF_TOKEN", &value.to_string_lossy());
        }
        let path = |name| set(name).map(PathBuf::from);
        let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
        let file = path("HF_TOKEN_PATH")
            .or_else(|| Some(path("HF_HOME")?.join("token")))
            .or_else(|| Some(caches?.join("huggingface/token")));
        let Some(file) = file.filter(|file| file.is_file()) else {
            return Ok(None);
        };
        let place = file.display().to_string();
        let text = read_capped_text(&file, MAX_TOKEN_BYTES as u64)?;
        Self::parse(&place, "token", &text)
    }

    fn parse(place: &str, field: &str, text: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > MAX_TOKEN_BYTES || !text.chars().all(|c| c.is_ascii_graphic()) {
            let found = format!("{} bytes, not all of them printable", text.len());
            let allowed =
                format!("at most {MAX_TOKEN_BYTES} letters, digits and signs without spaces");
            return Err(Error::invalid(place, field, found, allowed));
        }
        Ok(Some(Self(text.to_string())))
    }

    /// The value of the Authorization header.
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(set: &[(&str, &str)]) -> Result<Option<String>> {
        let found = |name: &str| {
            set.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).into())
        };
        Ok(Token::find(found)?.map(|token| token.header()))
    }

    #[test]
    fn the_token_comes_from_the_variable_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path).to_str().unwrap().to_string();
        std::fs::create_dir_all(at(".cache/huggingface")).unwrap();
        std::fs::create_dir_all(at("hf")).unwrap();
        std::fs::write(at(".cache/huggingface/token"), "hf_home\n").unwrap();
        std::fs::write(at("hf/token"), "hf_hf").unwrap();
        std::fs::write(at("path"), " \n").unwrap();
        let (home, hf, path) = (at(""), at("hf"), at("path"));
        let (home, hf) = (("HOME", home.as_str()), ("HF_HOME", hf.as_str()));
        let path = ("HF_TOKEN_PATH", path.as_str());
        for (set, expected) in [
            (&[][..], None),
            (&[home], Some("Bearer hf_home")),
            (&[home, hf], Some("Bearer hf_hf")),
            (&[home, hf, path], None),
            (
                &[home, hf, path, ("HF_TOKEN", "hf_env ")],
                Some("Bearer hf_env"),
            ),
            (&[("HOME", "/nonexistent")], None),
        ] {
            assert_eq!(header(set).unwrap().as_deref(), expected, "{set:?}");
        }
    }

    #[test]
    fn a_token_that_is_none_is_refused_and_not_shown() {
        for wrong in ["hf_a b", "hf_a\r\nX: y", "hf_ä", &"x".repeat(2000)] {
            let message = header(&[("HF_TOKEN", wrong)]).unwrap_err().to_string();
            assert!(message.contains("HF_TOKEN") && !message.contains("hf_a"));
        }
        let token = Token::parse("", "", "hf_secret").unwrap();
        assert_eq!(format!("{token:?}"), "Some(Token(..))");
    }

    #[test]
    fn the_endpoint_has_a_default() {
        let given = |name: &str| (name == "HF_ENDPOINT").then(|| "http://localhost:1".into());
        assert_eq!(endpoint(given), "http://localhost:1");
        assert_eq!(endpoint(|_| None), ENDPOINT);
    }
}
