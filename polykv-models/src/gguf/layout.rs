//! Where the tensors of a GGUF file lie.

use super::dequant::GgmlType;
use super::value::{TensorInfo, quoted};
use polykv_core::{Error, Result};
use std::ops::Range;

/// A tensor as the header describes it.
pub(super) struct RawTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub ggml_type: GgmlType,
    pub bytes: usize,
    pub offset: u64,
}

/// Where tensors lie. Writers put one after the other, each at the next multiple of the alignment, and end the file
/// after the last one; whatever else a header says is not what was written.
pub(super) struct Layout<'a> {
    place: &'a str,
    alignment: usize,
    file_size: usize,
    /// Where the header ends in the file.
    header: usize,
    /// Where data begin in the file.
    start: usize,
    /// Where the last tensor ends, from `start` on.
    end: usize,
    last: String,
    gaps: Vec<(String, Range<usize>)>,
}

impl<'a> Layout<'a> {
    /// The layout of a file whose header ends at `header`.
    pub fn new(place: &'a str, alignment: usize, header: usize, file_size: usize) -> Self {
        let mut layout = Self {
            place,
            alignment,
            file_size,
            header,
            start: header.next_multiple_of(alignment),
            end: 0,
            last: "the header".to_owned(),
            gaps: Vec::new(),
        };
        layout.gap(header);
        layout
    }

    /// Notes the bytes from `from` up to the alignment, as far as the file goes.
    fn gap(&mut self, from: usize) {
        let to = from.next_multiple_of(self.alignment).min(self.file_size);
        if from < to {
            self.gaps.push((self.last.clone(), from..to));
        }
    }

    /// The next tensor of the file.
    pub fn place(&mut self, tensor: RawTensor) -> Result<(String, TensorInfo)> {
        let field = format!("tensor {} offset", quoted(&tensor.name));
        let start = self.end.next_multiple_of(self.alignment);
        if tensor.offset != start as u64 {
            let allowed = format!("{start}, after {}", self.last);
            return Err(Error::invalid(self.place, field, tensor.offset, allowed));
        }
        let data = self.file_size.saturating_sub(self.start);
        let end = start.checked_add(tensor.bytes).filter(|end| *end <= data);
        let Some(end) = end else {
            let found = format!("{start} with {} bytes", tensor.bytes);
            let allowed = format!("inside the {data} bytes of data");
            return Err(Error::invalid(self.place, field, found, allowed));
        };
        self.end = end;
        self.last = format!("tensor {}", quoted(&tensor.name));
        let range = self.start.saturating_add(start)..self.start.saturating_add(end);
        self.gap(range.end);
        let info = TensorInfo {
            shape: tensor.shape,
            ggml_type: tensor.ggml_type,
            part: 0,
            range,
        };
        Ok((tensor.name, info))
    }

    /// Checks that the file ends where its last tensor does, or where a next one would begin.
    pub fn finish(self) -> Result<Vec<(String, Range<usize>)>> {
        let end = match self.end {
            0 => self.header,
            end => self.start.saturating_add(end),
        };
        let padded = end.next_multiple_of(self.alignment);
        if (end..=padded).contains(&self.file_size) {
            return Ok(self.gaps);
        }
        let found = format!("{} bytes", self.file_size);
        let allowed = format!("{end} to {padded}, where {} ends", self.last);
        Err(Error::invalid(self.place, "size", found, allowed))
    }
}
