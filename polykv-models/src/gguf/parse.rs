//! The header of a GGUF file: metadata and tensor directory, with every count checked before it is used.

use super::dequant::{GgmlType, type_name};
use super::layout::{Layout, RawTensor};
use super::value::{TensorInfo, Value, quoted, widen};
use polykv_core::{Error, Result};
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// Headers are a few MiB (the vocabulary and its merges); the cap bounds the memory a hostile file can ask for.
const MAX_HEADER_BYTES: usize = 256 << 20;
/// Array elements in the whole header. The largest vocabularies with merges and scores have about 1.5 million.
const MAX_ELEMENTS: usize = 1 << 22;
/// Tensors, and metadata values. A model of 1,024 layers has some 11,000 tensors.
pub(super) const MAX_ENTRIES: usize = 1 << 16;
const MAX_NESTING: usize = 64;
const MAX_KEY_BYTES: usize = 65_535;
const MAX_NAME_BYTES: usize = 64;
const MAX_DIMS: usize = 4;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// What the header says.
pub(super) struct Directory {
    pub values: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Byte ranges in the file that must be zero, each with what it follows.
    pub gaps: Vec<(String, Range<usize>)>,
}

/// Reads and checks the header. `source` starts at the file's first byte; nothing of the tensors' data is read.
pub(super) fn parse(place: &str, source: impl Read, file_size: u64) -> Result<Directory> {
    let file_size = usize::try_from(file_size)
        .map_err(|_| Error::invalid(place, "size", file_size, "what this machine can address"))?;
    let mut cursor = Cursor {
        place,
        source,
        end: file_size.min(MAX_HEADER_BYTES),
        at: 0,
        elements: 0,
    };
    let magic: [u8; 4] = cursor.array("magic")?;
    if magic != *b"GGUF" {
        let found = quoted(&String::from_utf8_lossy(&magic));
        return Err(Error::invalid(place, "magic", found, "\"GGUF\""));
    }
    match cursor.u32("version")? {
        2 | 3 => {}
        v if matches!(v.swap_bytes(), 1..=3) => {
            return Err(Error::unsupported("big-endian GGUF", place));
        }
        v => return Err(Error::invalid(place, "version", v, "2 or 3")),
    }
    // The smallest tensor entry: name length, one name byte, dimension count, one dimension, type, offset.
    let tensor_count = cursor.entries("tensor count", 33)?;
    // The smallest metadata entry: key length, one key byte, type, one value byte.
    let value_count = cursor.entries("metadata count", 14)?;

    let mut values = BTreeMap::new();
    for _ in 0..value_count {
        let key = cursor.string("metadata key", MAX_KEY_BYTES)?;
        let kind = cursor.u32("metadata type")?;
        let value = cursor.value(kind, &key, 0)?;
        let name = quoted(&key);
        if values.insert(key, value).is_some() {
            let found = format!("{name} twice");
            return Err(Error::invalid(place, "metadata key", found, "once"));
        }
    }
    let raw = (0..tensor_count)
        .map(|_| cursor.tensor())
        .collect::<Result<Vec<_>>>()?;
    let alignment = alignment(place, &values)?;
    let mut layout = Layout::new(place, alignment, cursor.at, file_size);
    let placed = raw
        .into_iter()
        .map(|tensor| layout.place(tensor))
        .collect::<Result<Vec<_>>>()?;
    let gaps = layout.finish()?;
    let mut tensors = BTreeMap::new();
    for (name, info) in placed {
        let shown = quoted(&name);
        if tensors.insert(name, info).is_some() {
            let found = format!("{shown} twice");
            return Err(Error::invalid(place, "tensor name", found, "once"));
        }
    }
    Ok(Directory {
        values,
        tensors,
        gaps,
    })
}

fn alignment(place: &str, values: &BTreeMap<String, Value>) -> Result<usize> {
    let Some(value) = values.get("general.alignment") else {
        return Ok(32);
    };
    value
        .as_u64()
        .filter(|a| a.is_power_of_two() && *a <= MAX_ALIGNMENT)
        .map(|a| a as usize)
        .ok_or_else(|| {
            let allowed = format!("a power of two, 1 to {MAX_ALIGNMENT}");
            Error::invalid(place, "general.alignment", value.shown(), allowed)
        })
}

struct Cursor<'a, R> {
    place: &'a str,
    source: R,
    at: usize,
    /// Where the header must have ended.
    end: usize,
    /// Array elements read so far.
    elements: usize,
}

impl<R: Read> Cursor<'_, R> {
    fn remaining(&self) -> usize {
        self.end.saturating_sub(self.at)
    }

    fn fill(&mut self, bytes: &mut [u8], field: &str) -> Result<()> {
        let length = bytes.len();
        if length > self.remaining() {
            let found = format!("{length} bytes at {}", self.at);
            let allowed = format!("inside the file or its header, {} bytes", self.end);
            return Err(Error::invalid(self.place, field, found, allowed));
        }
        self.source
            .read_exact(bytes)
            .map_err(|e| Error::io(Path::new(self.place), e))?;
        self.at = self.at.saturating_add(length);
        Ok(())
    }

    /// `length` must have been checked against what remains.
    fn take(&mut self, length: usize, field: &str) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, field)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, field)?;
        Ok(bytes)
    }

    fn u32(&mut self, field: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    fn u64(&mut self, field: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, field: &str, least: usize) -> Result<usize> {
        self.count_to(field, self.most(least))
    }

    /// A count of tensors or metadata values.
    fn entries(&mut self, field: &str, least: usize) -> Result<usize> {
        self.count_to(field, self.most(least).min(MAX_ENTRIES))
    }

    /// How many things of at least `least` bytes can follow their count.
    fn most(&self, least: usize) -> usize {
        let left = self.remaining().saturating_sub(8);
        left.checked_div(least).unwrap_or(0)
    }

    fn count_to(&mut self, field: &str, most: usize) -> Result<usize> {
        let found = self.u64(field)?;
        match usize::try_from(found) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(Error::invalid(
                self.place,
                field,
                found,
                format!("up to {most} in a file of this size"),
            )),
        }
    }

    fn string(&mut self, field: &str, most: usize) -> Result<String> {
        let length = self.count(&format!("{field} length"), 1)?;
        if length > most {
            return Err(Error::invalid(
                self.place,
                format!("{field} length"),
                length,
                format!("up to {most}"),
            ));
        }
        let bytes = self.take(length, field)?;
        String::from_utf8(bytes)
            .map_err(|e| Error::invalid(self.place, field, format!("not UTF-8: {e}"), "UTF-8"))
    }

    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value> {
        let field = "metadata value";
        Ok(match kind {
            0 => Value::Uint(u8::from_le_bytes(self.array(field)?).into()),
            1 => Value::Int(i8::from_le_bytes(self.array(field)?).into()),
            2 => Value::Uint(u16::from_le_bytes(self.array(field)?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array(field)?).into()),
            4 => Value::Uint(self.u32(field)?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array(field)?).into()),
            6 => Value::Float(widen(f32::from_le_bytes(self.array(field)?))),
            7 => match self.array::<1>(field)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [b] => return Err(Error::invalid(self.place, quoted(key), b, "0 or 1")),
            },
            8 => Value::String(self.string(field, MAX_HEADER_BYTES)?),
            9 => self.list(key, depth.saturating_add(1))?,
            10 => Value::Uint(self.u64(field)?),
            11 => Value::Int(i64::from_le_bytes(self.array(field)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(field)?)),
            other => {
                let field = format!("type of {}", quoted(key));
                return Err(Error::invalid(self.place, field, other, "0 to 12"));
            }
        })
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value> {
        let field = format!("array {}", quoted(key));
        if depth > MAX_NESTING {
            let allowed = format!("up to {MAX_NESTING}");
            return Err(Error::invalid(
                self.place,
                format!("{field} nesting"),
                depth,
                allowed,
            ));
        }
        let kind = self.u32("array type")?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        let count = self.count(&format!("{field} length"), least)?;
        self.elements = self.elements.saturating_add(count);
        if self.elements > MAX_ELEMENTS {
            let allowed = format!("up to {MAX_ELEMENTS} in all arrays");
            return Err(Error::invalid(
                self.place,
                format!("{field} length"),
                count,
                allowed,
            ));
        }
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(self.value(kind, key, depth)?);
        }
        Ok(Value::Array(list))
    }

    fn tensor(&mut self) -> Result<RawTensor> {
        let name = self.string("tensor name", MAX_NAME_BYTES)?;
        let field = |part: &str| format!("tensor {} {part}", quoted(&name));
        let dims = self.u32("dimension count")? as usize;
        if dims == 0 || dims > MAX_DIMS {
            let allowed = format!("1 to {MAX_DIMS}");
            return Err(Error::invalid(
                self.place,
                field("dimensions"),
                dims,
                allowed,
            ));
        }
        let mut shape = Vec::with_capacity(dims);
        for _ in 0..dims {
            let dim = self.u64("dimension")?;
            let dim = usize::try_from(dim)
                .ok()
                .filter(|d| *d > 0)
                .ok_or_else(|| Error::invalid(self.place, field("dimension"), dim, "above 0"))?;
            shape.push(dim);
        }
        let kind = self.u32("tensor type")?;
        let ggml_type = GgmlType::from_id(kind).ok_or_else(|| {
            let what = format!("the type of tensor {}, {}", quoted(&name), type_name(kind));
            Error::unsupported(what, self.place)
        })?;
        let block = ggml_type.block_elements();
        let row = shape.first().copied().unwrap_or(0);
        if !row.is_multiple_of(block) {
            let allowed = format!("a multiple of {block} for {}", ggml_type.name());
            return Err(Error::invalid(
                self.place,
                field("row length"),
                row,
                allowed,
            ));
        }
        let bytes = shape
            .iter()
            .try_fold(1usize, |product, dim| product.checked_mul(*dim))
            .and_then(|elements| elements.checked_div(block))
            .and_then(|blocks| blocks.checked_mul(ggml_type.block_bytes()));
        let Some(bytes) = bytes else {
            let found = format!("{shape:?}");
            return Err(Error::invalid(
                self.place,
                field("shape"),
                found,
                "a product below 2^64",
            ));
        };
        shape.reverse();
        let offset = self.u64("tensor offset")?;
        Ok(RawTensor {
            name,
            shape,
            ggml_type,
            bytes,
            offset,
        })
    }
}
