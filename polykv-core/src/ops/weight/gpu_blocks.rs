//! Weights in blocks of ggml's types in the memory of a GPU.

use super::block_type::BlockType;
use super::blocks::BlockWeight;
use crate::ops::kernels::{BlockOps, kernel};
use crate::ops::route::{MOST_GEMV_ROWS, most_tensor_bytes};
use crate::ops::tensor::matmul;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rayon::prelude::*;

/// Bytes of a weight that are unpacked to f32 at once.
const TILE_BYTES: usize = 128 << 20;

/// A weight `[rows, columns]` in blocks of one of ggml's types on a GPU: the bytes of a file in words of 32 bits, rows in
/// their order. GPUs read whole words, and the bytes of four types are no multiple of four. Their blocks are two bytes of
/// zeros longer: behind the scale that comes first, so that the integers begin with a word, or in Q6_K, where the scale comes
/// last, behind it. Nothing else changes, and a block stays one piece.
#[derive(Clone)]
pub struct GpuBlocks {
    kind: BlockType,
    columns: usize,
    /// `[rows, words]` each: one tensor, or parts of the rows where it were larger than a tensor of the device may be.
    parts: Vec<Tensor<2, Int>>,
}

impl GpuBlocks {
    /// Copies a weight to a device.
    pub fn new(weight: &BlockWeight, device: &Device) -> Self {
        Self::in_parts(weight, device, most_tensor_bytes(device))
    }

    fn in_parts(weight: &BlockWeight, device: &Device, most_bytes: usize) -> Self {
        let [rows, columns] = weight.shape();
        let (kind, blocks) = (weight.kind(), weight.blocks());
        let width = columns / kind.elements() * kind.words();
        let most = (most_bytes / size_of::<u32>() / width).max(1);
        let part = |first: usize| {
            let count = most.min(rows - first);
            let mut words = vec![0; count * width];
            let rows = words.par_chunks_exact_mut(width).enumerate();
            rows.for_each(|(row, words)| to_words(kind, blocks.row(first + row), words));
            let words = TensorData::new(words, [count, width]);
            Tensor::from_data(words, (device, DType::I32))
        };
        Self {
            kind,
            columns,
            parts: (0..rows).step_by(most).map(part).collect(),
        }
    }

    /// The type of the blocks.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// `[rows, columns]`
    pub fn shape(&self) -> [usize; 2] {
        let rows = self.parts.iter().map(|part| part.dims()[0]).sum();
        [rows, self.columns]
    }

    /// Bytes of the words.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(crate::ops::bytes).sum()
    }

    /// The device that the blocks lie on.
    pub fn device(&self) -> Device {
        self.parts[0].device()
    }

    /// `x [n, columns]` times the transpose: `[n, rows]` in f32. Of few rows of `x`, in f32, f16 or bf16, by the GEMV that
    /// unpacks blocks in registers; of more by the product of f32, to which parts of the weight are unpacked one after the
    /// other, so that it never exists as a whole.
    pub(crate) fn multiply(&self, x: Tensor<2>) -> Tensor<2> {
        let products: Vec<_> = match x.dims()[0] <= MOST_GEMV_ROWS {
            true => {
                let parts = self.parts.iter().cloned();
                parts
                    .map(|part| kernel!(BlockOps::block_gemv(x.clone(), part, self.kind)))
                    .collect()
            }
            false => {
                let x = x.cast(DType::F32);
                self.tiles()
                    .map(|tile| matmul(x.clone(), tile.transpose()))
                    .collect()
            }
        };
        joined(products, 1)
    }

    /// All numbers in f32, `[rows, columns]`.
    pub(crate) fn to_f32(&self) -> Tensor<2> {
        joined(self.tiles().collect(), 0)
    }

    /// The rows `ids [n]` in f32: `[n, columns]`. Ids must be below `rows`.
    pub(crate) fn rows(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        let mut rows = self.unpacked(&self.parts[0], ids.clone());
        let mut first = self.parts[0].dims()[0];
        for part in &self.parts[1..] {
            let here = ids.clone().greater_equal_elem(first as i64);
            let here = here.unsqueeze_dim::<2>(1).expand(rows.dims());
            // Ids of earlier parts are negative here and give any row.
            let found = self.unpacked(part, ids.clone().sub_scalar(first as i64));
            rows = rows.mask_where(here, found);
            first += part.dims()[0];
        }
        rows
    }

    /// The numbers in f32, some rows at a time.
    fn tiles(&self) -> impl Iterator<Item = Tensor<2>> {
        let bytes = TILE_BYTES.min(most_tensor_bytes(&self.device()));
        let most = (bytes / size_of::<f32>() / self.columns).max(1);
        self.parts.iter().flat_map(move |part| {
            let rows = part.dims()[0];
            (0..rows).step_by(most).map(move |first| {
                let last = rows.min(first + most);
                let ids = Tensor::arange(first as i64..last as i64, &part.device());
                self.unpacked(part, ids)
            })
        })
    }

    fn unpacked(&self, part: &Tensor<2, Int>, ids: Tensor<1, Int>) -> Tensor<2> {
        kernel!(BlockOps::block_rows(part.clone(), ids, self.kind))
    }
}

impl std::fmt::Debug for GpuBlocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ([rows, columns], kind) = (self.shape(), self.kind);
        write!(f, "GpuBlocks[{rows}, {columns}] in {kind}")
    }
}

/// One tensor is not copied.
fn joined(mut tensors: Vec<Tensor<2>>, axis: usize) -> Tensor<2> {
    match tensors.len() {
        1 => tensors.remove(0),
        _ => Tensor::cat(tensors, axis),
    }
}

/// A row's blocks as words, see [`GpuBlocks`].
fn to_words(kind: BlockType, row: &[u8], words: &mut [i32]) {
    let blocks = row.chunks_exact(kind.bytes());
    for (block, words) in blocks.zip(words.chunks_exact_mut(kind.words())) {
        let (scale, rest) = block.split_at(match kind {
            BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => 2,
            _ => 0,
        });
        let pieces = scale.chunks(4).chain(rest.chunks(4));
        for (word, piece) in words.iter_mut().zip(pieces) {
            let mut bytes = [0; 4];
            bytes[..piece.len()].copy_from_slice(piece);
            *word = i32::from_le_bytes(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_the_bytes_and_two_zeros_at_most() {
        for kind in BlockType::ALL {
            let bytes: Vec<u8> = (1..=kind.bytes() as u8)
                .chain(1..=kind.bytes() as u8)
                .collect();
            let mut words = vec![-1; 2 * kind.words()];
            to_words(kind, &bytes, &mut words);
            for words in words.chunks_exact(kind.words()) {
                let found: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                let zeros = found.len() - kind.bytes();
                assert!(zeros <= 2, "{kind}");
                let kept: Vec<u8> = found.iter().copied().filter(|&byte| byte != 0).collect();
                assert_eq!(kept, bytes[..kind.bytes()], "{kind}");
                // Integers of the types with a scale of two bytes in front begin with a word.
                if matches!(kind, BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0) {
                    assert_eq!(found[..5], [1, 2, 0, 0, 3], "{kind}");
                }
            }
        }
    }

    /// Where a weight is larger than a tensor may be.
    #[cfg(all(feature = "wgpu", feature = "flex"))]
    #[test]
    fn parts_are_as_good_as_the_whole() {
        let device = match crate::DeviceSpec::Wgpu(0).open() {
            Ok(device) => device,
            Err(error) if std::env::var_os("POLYKV_REQUIRE_WGPU").is_some() => panic!("{error}"),
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let values: Vec<f32> = (0..11 * 64).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
        let weight = BlockWeight::quantize(BlockType::Q8_0, [11, 64], &values).unwrap();
        let whole = GpuBlocks::new(&weight, &device);
        let parts = GpuBlocks::in_parts(&weight, &device, 4 * 2 * 9 * 4 + 3);
        assert_eq!((whole.parts.len(), parts.parts.len()), (1, 3));
        assert_eq!(
            (whole.shape(), whole.bytes()),
            (parts.shape(), parts.bytes())
        );
        let read = |tensor: Tensor<2>| tensor.try_into_vec_as::<f32>().unwrap();
        for rows in [1, 12] {
            let x = Tensor::<1, Int>::arange(0..rows * 64, &device).float();
            let x = x.sin().reshape([rows as usize, 64]);
            let found = read(parts.multiply(x.clone()));
            assert_eq!(found, read(whole.multiply(x)), "{rows} rows");
        }
        let ids = Tensor::<1, Int>::from_data([3, 10, 4, 0, 8, 7], &device);
        assert_eq!(read(parts.rows(ids.clone())), read(whole.rows(ids)));
        assert_eq!(read(parts.to_f32()), read(whole.to_f32()));
    }
}
