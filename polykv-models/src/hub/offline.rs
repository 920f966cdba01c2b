//! Whether anybody may be asked for a model: a flag, or what Hugging Face's tools read from the environment.

use std::ffi::OsString;

const VARIABLES: [&str; 2] = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"];

/// What forbids every request, if anything does: `--offline`, or a variable that is 1, on, yes or true.
pub(super) fn reason(
    flag: bool,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Option<&'static str> {
    let is_on = |name: &&str| {
        let value = variable(name).unwrap_or_default();
        let value = value.to_string_lossy().to_ascii_lowercase();
        ["1", "on", "yes", "true"].contains(&value.as_str())
    };
    match flag {
        true => Some("--offline"),
        false => VARIABLES.into_iter().find(is_on),
    }
}

/// As the environment of this process says.
pub(super) fn from_env(flag: bool) -> Option<&'static str> {
    reason(flag, |name| std::env::var_os(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_of_hugging_face_count() {
        for (name, value, expected) in [
            ("HF_HUB_OFFLINE", "1", Some("HF_HUB_OFFLINE")),
            ("HF_HUB_OFFLINE", "True", Some("HF_HUB_OFFLINE")),
            ("TRANSFORMERS_OFFLINE", "ON", Some("TRANSFORMERS_OFFLINE")),
            ("HF_HUB_OFFLINE", "0", None),
            ("HF_HUB_OFFLINE", "", None),
            ("OFFLINE", "1", None),
        ] {
            let found = |wanted: &str| (wanted == name).then(|| value.into());
            assert_eq!(reason(false, found), expected, "{name}={value}");
            assert_eq!(reason(true, found), Some("--offline"));
        }
    }
}
