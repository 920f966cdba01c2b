//! Values with names: lists come from the registries, so that a new policy needs no line here.

use crate::registry::registry;
use burn::tensor::Device;
use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use polykv::allocate::Basis;
use polykv::models::config::SHAPES;
#[cfg(feature = "hub")]
use polykv::models::hub::{self, ALIASES, Alias, Repo};
use polykv::models::load;
use polykv::policy::Params;
use polykv::{Allocator, Codes, Phase, Storage};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// Bytes, in units of 1000 (KB, MB, GB) or 1024 (KiB, MiB, GiB).
///
/// # Errors
/// Anything else.
#[cfg(feature = "serve")]
pub fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    let wrong = || {
        format!(
            "'{text}' is no size; allowed: a whole number of B, KB, MB, GB, KiB, MiB or GiB, such as 512MB"
        )
    };
    let unit = UNITS
        .iter()
        .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
    let (number, bytes) = unit.ok_or_else(wrong)?;
    let number: u64 = number.trim().parse().map_err(|_| wrong())?;
    number
        .checked_mul(*bytes)
        .filter(|&bytes| bytes > 0)
        .ok_or_else(wrong)
}

/// How entries are kept after the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvDtype {
    /// In the type that goes with --dtype
    Cache,
    /// In codes of 8 bits
    Q8,
    /// In codes of 4 bits
    Q4,
}

impl KvDtype {
    pub fn codes(self) -> Option<Codes> {
        match self {
            Self::Cache => None,
            Self::Q8 => Some(Codes::Q8),
            Self::Q4 => Some(Codes::Q4),
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.codes().map_or("cache", Codes::name))
    }
}

/// All allocators, with their summaries as help.
pub fn allocators() -> PossibleValuesParser {
    PossibleValuesParser::new(registry().allocators.iter().map(allocator))
}

/// The allocators that need no calibration.
pub fn ready_allocators() -> PossibleValuesParser {
    let all = registry().allocators.iter();
    let ready = all.filter(|allocator| allocator.basis() != Basis::Calibration);
    PossibleValuesParser::new(ready.map(allocator))
}

fn allocator(allocator: &'static Arc<dyn Allocator>) -> PossibleValue {
    PossibleValue::new(allocator.name()).help(allocator.summary())
}

/// What can be fetched.
#[cfg(feature = "hub")]
#[derive(Clone, Debug)]
pub enum Pullable {
    BuiltIn(&'static Alias),
    Hub(Repo),
}

#[cfg(feature = "hub")]
impl FromStr for Pullable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let built_in = hub::alias(text).map(Self::BuiltIn);
        built_in
            .or_else(|| Repo::parse(text).map(Self::Hub))
            .ok_or_else(|| {
                let names: Vec<_> = ALIASES.iter().map(|alias| alias.name).collect();
                let names = names.join(", ");
                format!("no such model; allowed: {names}, ORG/NAME, ORG/NAME:FILE.gguf")
            })
    }
}

/// The published shapes.
pub fn shapes() -> PossibleValuesParser {
    PossibleValuesParser::new(SHAPES.iter().map(|(name, _)| *name))
}

/// A count that may not be zero.
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Rows of a batch that are run; what is computed only may have any number.
pub fn rows() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=65_536)
}

/// How weights and cache are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// As suits file and device.
    Auto,
    Of(Storage),
}

impl Dtype {
    /// # Errors
    /// A format that the device does not have.
    pub fn check(self, device: &Device) -> polykv::Result<()> {
        match self {
            Self::Auto => Ok(()),
            Self::Of(storage) => storage.check(device),
        }
    }

    /// The format for a model's files on a device.
    ///
    /// # Errors
    /// Files that cannot be read or are refused.
    pub fn of(self, path: &Path, device: &Device) -> polykv::Result<Storage> {
        match self {
            Self::Auto => load::preferred(path, device),
            Self::Of(storage) => Ok(storage),
        }
    }

    /// The format where there is no file.
    pub fn or_f32(self) -> Storage {
        match self {
            Self::Auto => Storage::F32,
            Self::Of(storage) => storage,
        }
    }
}

/// Number formats by name, and auto; which of them work is for the model and the device to say.
pub fn dtypes() -> impl TypedValueParser<Value = Dtype> {
    let names = ["auto"].into_iter().chain(Storage::ALL.map(Storage::name));
    PossibleValuesParser::new(names).map(|name| name.parse().map_or(Dtype::Auto, Dtype::Of))
}

/// The phases in which a policy evicts.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Phases {
    Prefill,
    Decode,
    #[default]
    Both,
}

impl Phases {
    /// The phases one by one.
    pub fn list(self) -> &'static [Phase] {
        match self {
            Self::Prefill => &[Phase::Prefill],
            Self::Decode => &[Phase::Decode],
            Self::Both => &[Phase::Prefill, Phase::Decode],
        }
    }
}

/// `key=value`, the value a YAML scalar as in a plan file.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub key: String,
    /// As it was typed.
    pub value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no setting; allowed: KEY=VALUE, as in window=32");
        let (key, value) = text.split_once('=').ok_or_else(wrong)?;
        let mut params = Params::new();
        params.set_yaml(key.trim(), value).map_err(|_| wrong())?;
        let scalar = params.are_scalars() && params.get::<()>(key.trim()).is_none();
        match scalar && !key.trim().is_empty() {
            true => Ok(Self {
                key: key.trim().to_string(),
                value: value.to_string(),
            }),
            false => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_yaml_scalars() {
        let value = |text: &str| text.parse::<Setting>().map(|setting| setting.value);
        for (text, wanted) in [
            ("window=32", "32"),
            ("recent_fraction=0.25", "0.25"),
            ("normalize=true", "true"),
            ("pool=max", "max"),
        ] {
            assert_eq!(value(text), Ok(wanted.to_string()));
        }
        for wrong in [
            "window",
            "=3",
            "window=",
            "window=[1]",
            "window={a: 1}",
            "a=: :",
        ] {
            assert!(value(wrong).unwrap_err().contains("KEY=VALUE"), "{wrong}");
        }
    }
}
