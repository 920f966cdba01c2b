//! Dot products of 8-bit numbers in integers, and how numbers of fewer bits become bytes, in the registers of each
//! instruction set.

use super::Level;
use super::vector::{LANES, Plain, Vector};

/// Bytes per vector: one register of AVX-512, two of AVX2.
pub const BYTES: usize = 64;

/// Instruction sets that integer kernels are compiled for. They are others than those of floating point: processors with
/// AVX-512 need not have its dot products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dots {
    /// What every processor of the target has.
    Baseline,
    Avx2,
    /// AVX-512 with VNNI.
    Vnni,
}

impl Dots {
    /// The best one up to `level` that this processor has: of each every feature that [`dispatch_dots`] compiles with.
    pub fn up_to(level: Level) -> Self {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if is_x86_feature_detected!("avx512vnni") => Self::Vnni,
            Level::Avx512 | Level::Avx2 => Self::Avx2,
            Level::Baseline => Self::Baseline,
        }
    }
}

/// Compiles a function for every level of [`Dots`]: `dispatch_dots!(level, fn kernel<T: Layout>(args))` calls
/// `kernel::<B, T>(args)`, an `#[inline(always)]` function, with the level's [`Bytes`] inside a function with its target
/// features.
macro_rules! dispatch_dots {
    ($level:expr, fn $name:ident<$t:ident: $bound:ident>($($arg:ident: $ty:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2<$t: $bound>($($arg: $ty),*) {
            $name::<$crate::ops::flex::simd::Avx2Bytes, $t>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        unsafe fn vnni<$t: $bound>($($arg: $ty),*) {
            $name::<$crate::ops::flex::simd::VnniBytes, $t>($($arg),*)
        }
        match $level {
            // SAFETY: levels come from `Dots::up_to`, which has seen VNNI on this processor before it gives this one, and
            // was given a `Level` that has seen AVX2, FMA, F16C and AVX-512 F, BW, VL and DQ.
            #[cfg(target_arch = "x86_64")]
            $crate::ops::flex::simd::Dots::Vnni => unsafe { vnni::<$t>($($arg),*) },
            // SAFETY: levels come from `Dots::up_to`, which was given a `Level` that has seen AVX2, FMA and F16C.
            #[cfg(target_arch = "x86_64")]
            $crate::ops::flex::simd::Dots::Avx2 => unsafe { avx2::<$t>($($arg),*) },
            _ => $name::<$crate::ops::flex::simd::PlainBytes, $t>($($arg),*),
        }
    }};
}
pub(in super::super) use dispatch_dots;

/// 64 unsigned numbers of 8 bits. A type may only be used where its instructions exist: see [`dispatch_dots`].
pub trait Bytes: Copy {
    type Floats: Vector;

    /// `[low nibbles of a, high nibbles of a, low nibbles of b, high nibbles of b]`
    fn nibbles(a: &[u8; 16], b: &[u8; 16]) -> Self;
    /// `[low nibbles, high nibbles]`
    fn nibbles_of_32(bytes: &[u8; 32]) -> Self;
    /// The low (`side` 0) or high nibbles (1) of all bytes.
    fn nibbles_of_64(bytes: &[u8; 64], side: u32) -> Self;
    /// Two runs of signed numbers, 128 added to each.
    fn offset_by_128(a: &[u8; 32], b: &[u8; 32]) -> Self;
    /// 16 more where the bit of the number is set; the number must be below 16.
    fn with_fifth_bits(self, bits: u64) -> Self;
    /// 16 more where bit `first` of `bits` (for the first 32 numbers) or bit `first + 1` (for the others) is set.
    fn with_fifth_bits_of(self, bits: &[u8; 32], first: u32) -> Self;
    /// 16 times the two bits from `first` on of `bits` (for the first 32 numbers) or those from `first + 2` on (for the
    /// others) more.
    fn with_two_bits_of(self, bits: &[u8; 32], first: u32) -> Self;
    /// Sums of products of four neighbours each with 256 times `high` and `low`, exact integers as floats. `WIDE` says that
    /// numbers reach 128 and more, for which AVX2 has no short way.
    fn dot<const WIDE: bool>(self, high: &[i8; BYTES], low: &[i8; BYTES]) -> Self::Floats;
    /// Eight times lane `at`, then eight times the one after the next; `at` is a multiple of four.
    fn spread_two(scales: Self::Floats, at: usize) -> Self::Floats;
    /// Four times each of four lanes from `at` on.
    fn spread_four(scales: Self::Floats, at: usize) -> Self::Floats;
    /// Sixteen halves by their bits, the first of each pair in the lower 16.
    fn halves(pairs: [u32; LANES / 2]) -> Self::Floats;
}

/// What every processor has.
#[derive(Clone, Copy)]
pub struct PlainBytes([u8; BYTES]);

impl PlainBytes {
    #[inline(always)]
    fn of(number: impl Fn(usize) -> u8) -> Self {
        Self(std::array::from_fn(number))
    }
}

impl Bytes for PlainBytes {
    type Floats = Plain;

    #[inline(always)]
    fn nibbles(a: &[u8; 16], b: &[u8; 16]) -> Self {
        Self::of(|i| match i / 16 {
            0 => a[i] & 15,
            1 => a[i - 16] >> 4,
            2 => b[i - 32] & 15,
            _ => b[i - 48] >> 4,
        })
    }

    #[inline(always)]
    fn nibbles_of_32(bytes: &[u8; 32]) -> Self {
        Self::of(|i| bytes[i % 32] >> (i / 32 * 4) & 15)
    }

    #[inline(always)]
    fn nibbles_of_64(bytes: &[u8; 64], side: u32) -> Self {
        Self::of(|i| bytes[i] >> (4 * side) & 15)
    }

    #[inline(always)]
    fn offset_by_128(a: &[u8; 32], b: &[u8; 32]) -> Self {
        Self::of(|i| if i < 32 { a[i] } else { b[i - 32] } ^ 128)
    }

    #[inline(always)]
    fn with_fifth_bits(self, bits: u64) -> Self {
        Self::of(|i| self.0[i] | ((bits >> i & 1) as u8 * 16))
    }

    #[inline(always)]
    fn with_fifth_bits_of(self, bits: &[u8; 32], first: u32) -> Self {
        Self::of(|i| self.0[i] | ((bits[i % 32] >> (first + i as u32 / 32) & 1) * 16))
    }

    #[inline(always)]
    fn with_two_bits_of(self, bits: &[u8; 32], first: u32) -> Self {
        Self::of(|i| self.0[i] | ((bits[i % 32] >> (first + i as u32 / 32 * 2) & 3) * 16))
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, high: &[i8; BYTES], low: &[i8; BYTES]) -> Plain {
        let mut sums = [0.0; LANES];
        for (i, sum) in sums.iter_mut().enumerate() {
            let product = |j: usize| {
                let x = 256 * i32::from(high[j]) + i32::from(low[j]);
                i32::from(self.0[j]) * x
            };
            *sum = (4 * i..4 * i + 4).map(product).sum::<i32>() as f32;
        }
        Plain::load(&sums)
    }

    #[inline(always)]
    fn spread_two(scales: Plain, at: usize) -> Plain {
        let scales = scales.lanes();
        Plain::load(&std::array::from_fn(|i| scales[at + i / 8 * 2]))
    }

    #[inline(always)]
    fn spread_four(scales: Plain, at: usize) -> Plain {
        let scales = scales.lanes();
        Plain::load(&std::array::from_fn(|i| scales[at + i / 4]))
    }

    #[inline(always)]
    fn halves(pairs: [u32; LANES / 2]) -> Plain {
        let half = |i: usize| burn::tensor::f16::from_bits((pairs[i / 2] >> (i % 2 * 16)) as u16);
        Plain::load_f16(&std::array::from_fn(half))
    }
}
