//! The tensors of a session's file.

use super::KEY;
use super::meta::dtype_name;
use crate::files::safetensors::{self, Dtype, Entry, LENGTH_BYTES};
use crate::ops::read_error;
use crate::{Error, Result};
use ::safetensors::View;
use burn::tensor::kind::Basic;
use burn::tensor::{Bytes, DType, Shape, Tensor, TensorData};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::ops::Range;

/// The most bytes of a header: fifty tensors in each of 1,024 layers have less.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Reads a tensor's data from its device.
type Read<'a> = Box<dyn Fn() -> Result<Vec<u8>> + 'a>;

/// Tensors on their way into a file. They are read from their devices one after the other, when the file is put together.
#[derive(Default)]
pub struct Writer<'a> {
    tensors: Vec<(String, Outgoing<'a>)>,
}

struct Outgoing<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
    read: Read<'a>,
}

impl<'a> Writer<'a> {
    /// Adds a tensor of floating-point numbers.
    ///
    /// # Errors
    /// Numbers of a type that sessions do not hold.
    pub fn add<const D: usize>(&mut self, name: String, tensor: Tensor<D>) -> Result<()> {
        let dtype = tensor.dtype();
        dtype_name(dtype)?;
        let kind = match dtype {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        let shape = tensor.dims().to_vec();
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let field = name.clone();
        self.push(name, kind, shape, bytes, move || {
            let data = data_of(tensor.clone())?;
            if let Some(value) = first_not_finite(kind, data.bytes()) {
                let text = format!("a session cannot be saved: {field} holds {value}");
                return Err(Error::NotFinite(text));
            }
            Ok(data.bytes().to_vec())
        });
        Ok(())
    }

    /// Adds numbers below 2³².
    pub fn add_numbers(&mut self, name: String, shape: Vec<usize>, numbers: Vec<u32>) {
        let bytes = numbers.len() * 4;
        self.push(name, Dtype::U32, shape, bytes, move || {
            Ok(numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
        });
    }

    fn push(
        &mut self,
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: usize,
        read: impl Fn() -> Result<Vec<u8>> + 'a,
    ) {
        let outgoing = Outgoing {
            dtype,
            shape,
            bytes,
            read: Box::new(read),
        };
        self.tensors.push((name, outgoing));
    }

    /// The content of the file.
    ///
    /// # Errors
    /// A device that cannot be read, and numbers that are not finite.
    pub fn finish(self, description: String) -> Result<Vec<u8>> {
        let fault = RefCell::new(None);
        let views = self.tensors.into_iter();
        let views = views.map(|(name, tensor)| (name, Watched(tensor, &fault)));
        let metadata = HashMap::from([(KEY.to_string(), description)]);
        let content = ::safetensors::serialize(views, Some(metadata));
        match fault.into_inner() {
            Some(error) => Err(error),
            None => content.map_err(|e| Error::Failed(format!("a session's file: {e}"))),
        }
    }
}

/// A tensor whose reading may fail, which the format's library does not foresee.
struct Watched<'a, 'f>(Outgoing<'a>, &'f RefCell<Option<Error>>);

impl View for Watched<'_, '_> {
    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut fault = self.1.borrow_mut();
        if fault.is_some() {
            return Cow::default();
        }
        match (self.0.read)() {
            Ok(bytes) => bytes.into(),
            Err(error) => {
                *fault = Some(error);
                Cow::default()
            }
        }
    }

    fn data_len(&self) -> usize {
        self.0.bytes
    }
}

fn data_of<const D: usize, K: Basic>(tensor: Tensor<D, K>) -> Result<TensorData> {
    tensor.try_into_data().map_err(read_error)
}

/// The tensors of a file in memory, each of which is asked for once.
#[derive(Debug)]
pub struct Reader {
    place: String,
    content: Vec<u8>,
    description: String,
    tensors: BTreeMap<String, Entry>,
}

/// A tensor of a file that has been checked.
#[derive(Clone, Debug)]
pub struct Incoming {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    range: Range<usize>,
}

impl Reader {
    /// Reads the header of a file. `place` names the file in errors.
    ///
    /// # Errors
    /// What is no safetensors file, and one that is no session.
    pub fn new(place: &str, content: Vec<u8>) -> Result<Self> {
        let size = content.len() as u64;
        let Some(first) = content.first_chunk() else {
            return Err(safetensors::unreadable(place, format!("{size} bytes")));
        };
        let length = safetensors::header_length(place, *first, size)?;
        if length > MAX_HEADER_BYTES {
            let (found, allowed) = (
                format!("{length} bytes"),
                format!("at most {MAX_HEADER_BYTES} bytes in a session"),
            );
            return Err(Error::invalid(place, "size of the header", found, allowed));
        }
        let json = content.get(LENGTH_BYTES as usize..);
        let json = json.and_then(|rest| rest.get(..length as usize));
        let header = safetensors::read_header(place, json.unwrap_or_default(), size, Some(KEY))?;
        let Some(description) = header.metadata else {
            let allowed = format!("a session, which has {KEY} in its metadata");
            let found = "another safetensors file";
            return Err(Error::invalid(place, "content", found, allowed));
        };
        let tensors = header.tensors.into_iter();
        Ok(Self {
            place: place.to_string(),
            description,
            tensors: tensors.map(|entry| (entry.name.clone(), entry)).collect(),
            content,
        })
    }

    pub fn place(&self) -> &str {
        &self.place
    }

    pub fn description(&self) -> &str {
        &self.description
    }

    /// Bytes of the file.
    pub fn size(&self) -> usize {
        self.content.len()
    }

    /// Takes a tensor of floating-point numbers out of the list; the type and the shape must be those given, where `None`
    /// allows any.
    ///
    /// # Errors
    /// A tensor that is missing, of another type or shape, or with numbers that are not finite.
    pub fn take(
        &mut self,
        name: &str,
        dtype: Option<DType>,
        shape: &[Option<usize>],
    ) -> Result<Incoming> {
        let entry = self.entry(name, shape)?;
        let found = match entry.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            _ => None,
        };
        let Some(kind) = found.filter(|found| dtype.is_none_or(|wanted| wanted == *found)) else {
            let allowed = dtype.map_or("F32, F16, BF16".into(), |dtype| format!("{dtype:?}"));
            let field = format!("dtype of tensor {name}");
            return Err(self.refuse(field, format!("{:?}", entry.dtype), allowed));
        };
        let range = self.range(&entry);
        let bytes = self.content.get(range.clone()).unwrap_or_default();
        if let Some(value) = first_not_finite(entry.dtype, bytes) {
            let field = format!("number in tensor {name}");
            return Err(self.refuse(field, value, "finite numbers"));
        }
        Ok(Incoming {
            name: entry.name,
            dtype: kind,
            shape: entry.shape,
            range,
        })
    }

    /// Takes a tensor of numbers below 2³² out of the list.
    ///
    /// # Errors
    /// A tensor that is missing or of another type or shape.
    pub fn take_numbers(&mut self, name: &str, shape: &[Option<usize>]) -> Result<Vec<u32>> {
        let entry = self.entry(name, shape)?;
        if entry.dtype != Dtype::U32 {
            let field = format!("dtype of tensor {name}");
            return Err(self.refuse(field, format!("{:?}", entry.dtype), "U32"));
        }
        let bytes = self.content.get(self.range(&entry)).unwrap_or_default();
        let (numbers, _) = bytes.as_chunks::<4>();
        Ok(numbers.iter().map(|n| u32::from_le_bytes(*n)).collect())
    }

    /// The length of an axis of a tensor that has not been taken; 1 for an axis that it does not have.
    ///
    /// # Errors
    /// A tensor that is missing.
    pub fn dim(&self, name: &str, axis: usize) -> Result<usize> {
        match self.tensors.get(name) {
            Some(entry) => Ok(entry.shape.get(axis).copied().unwrap_or(1)),
            None => Err(self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> Error {
        let field = format!("tensor {name}");
        Error::invalid(&self.place, field, "missing", "present")
    }

    /// Whether the file has a tensor that has not been taken.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// # Errors
    /// A tensor that nobody has taken.
    pub fn check_taken(&self) -> Result<()> {
        match self.tensors.keys().next() {
            None => Ok(()),
            Some(name) => {
                let field = format!("tensor {name}");
                let allowed = "tensors that the session's description tells of";
                Err(Error::invalid(&self.place, field, "present", allowed))
            }
        }
    }

    /// The data of a tensor.
    ///
    /// # Errors
    /// Data that do not have the shape, which were checked.
    pub fn data(&self, tensor: &Incoming) -> Result<TensorData> {
        let bytes = self.content.get(tensor.range.clone()).unwrap_or_default();
        let bytes = Bytes::from_bytes_vec(bytes.to_vec());
        let shape = Shape::from(tensor.shape.clone());
        TensorData::try_from_bytes(bytes, shape, tensor.dtype).map_err(|e| {
            let field = format!("tensor {}", tensor.name);
            Error::invalid(&self.place, field, e, "as its header says")
        })
    }

    fn entry(&mut self, name: &str, shape: &[Option<usize>]) -> Result<Entry> {
        let Some(entry) = self.tensors.remove(name) else {
            return Err(self.missing(name));
        };
        let fits = |(found, wanted): (&usize, &Option<usize>)| match wanted {
            Some(wanted) => found == wanted,
            // Tensors without numbers are none that a cache has.
            None => *found > 0,
        };
        let same = entry.shape.len() == shape.len() && entry.shape.iter().zip(shape).all(fits);
        match same {
            true => Ok(entry),
            false => {
                let wanted: Vec<String> = shape
                    .iter()
                    .map(|dim| dim.map_or("any".into(), |dim| dim.to_string()))
                    .collect();
                let allowed = format!("[{}]", wanted.join(", "));
                let field = format!("shape of tensor {name}");
                Err(self.refuse(field, format!("{:?}", entry.shape), allowed))
            }
        }
    }

    fn range(&self, entry: &Entry) -> Range<usize> {
        let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        start..start.saturating_add(entry.bytes)
    }

    fn refuse(&self, field: String, found: impl Display, allowed: impl Display) -> Error {
        Error::invalid(&self.place, field, found, allowed)
    }
}

/// The first number that is NaN or infinite.
fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<f32> {
    let halves = |to_f32: fn(u16) -> f32| {
        let (numbers, _) = bytes.as_chunks::<2>();
        let mut numbers = numbers.iter().map(|n| to_f32(u16::from_le_bytes(*n)));
        numbers.find(|number| !number.is_finite())
    };
    match dtype {
        Dtype::F16 => halves(|bits| half::f16::from_bits(bits).to_f32()),
        Dtype::BF16 => halves(|bits| half::bf16::from_bits(bits).to_f32()),
        _ => {
            let (numbers, _) = bytes.as_chunks::<4>();
            let mut numbers = numbers.iter().map(|n| f32::from_le_bytes(*n));
            numbers.find(|number| !number.is_finite())
        }
    }
}
