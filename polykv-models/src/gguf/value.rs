//! The content of a GGUF header: metadata values and tensor entries.

use super::dequant::GgmlType;
use std::ops::Range;

/// A metadata value. Integers and floats of all widths are widened.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned integer.
    Uint(u64),
    /// A signed integer.
    Int(i64),
    /// A float. An f32 is widened through its shortest decimal form, so 1e-5 stays 1e-5.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    String(String),
    /// A list of values of one type.
    Array(Vec<Value>),
}

impl Value {
    /// The value of an integer of either kind that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Uint(n) => Some(*n),
            Self::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The value of an integer or a float.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Uint(n) => Some(*n as f64),
            Self::Int(n) => Some(*n as f64),
            Self::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// The value of [`Value::Bool`].
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The text of [`Value::String`].
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }

    /// The values of [`Value::Array`].
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(list) => Some(list),
            _ => None,
        }
    }

    /// A short form for errors.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Uint(n) => n.to_string(),
            Self::Int(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::String(s) => quoted(s),
            Self::Array(list) => format!("an array of {}", list.len()),
        }
    }
}

/// The directory entry of a tensor.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Row-major shape, the slowest axis first (GGUF stores the dimensions the other way round).
    pub shape: Vec<usize>,
    /// The number format.
    pub ggml_type: GgmlType,
    /// Which part of a split file holds it, from 0; 0 in a file that was not split.
    pub part: usize,
    /// Its bytes in that part.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// The number of elements: the product of the shape. It was checked against the file's size when the directory was
    /// read.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Text from a file for an error message: escaped, one line, cut.
pub(crate) fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(64).collect();
    format!("{cut:?}")
}

pub(super) fn widen(x: f32) -> f64 {
    // Rust prints the shortest decimal that reads back as the same f32, infinities and NaN included.
    x.to_string().parse().unwrap_or(f64::from(x))
}
