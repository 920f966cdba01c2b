//! The registers of x86 processors.

mod bytes;

pub use bytes::{Avx2Bytes, VnniBytes};

use super::vector::{LANES, Vector};
use burn::tensor::{bf16, f16};
use std::arch::x86_64::*;

/// One register of AVX-512. Every use is inside a function that `dispatch` compiles with AVX-512 F, BW, VL and DQ and
/// calls only where `Level::available` has seen them all.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

impl Vector for Avx512 {
    const FMA: bool = true;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: AVX-512 F is there where this type is used.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        // SAFETY: AVX-512 F is there; 16 f32 are read from an array of 16, of any alignment.
        Self(unsafe { _mm512_loadu_ps(x.as_ptr()) })
    }

    #[inline(always)]
    fn load_f16(x: &[f16; LANES]) -> Self {
        // SAFETY: AVX-512 F is there; 32 bytes are read from an array of 16 f16, of any alignment.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) })
    }

    #[inline(always)]
    fn load_bf16(x: &[bf16; LANES]) -> Self {
        // SAFETY: AVX-512 F is there; 32 bytes are read from an array of 16 bf16, of any alignment.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }

    #[inline(always)]
    fn load_i8(x: &[i8; LANES]) -> Self {
        // SAFETY: AVX-512 F is there; 16 bytes are read from an array of 16 i8, of any alignment.
        unsafe {
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
        }
    }

    #[inline(always)]
    fn mul_add(self, y: Self, z: Self) -> Self {
        // SAFETY: AVX-512 F is there; only registers are read.
        Self(unsafe { _mm512_fmadd_ps(self.0, y.0, z.0) })
    }

    #[inline(always)]
    fn add(self, y: Self) -> Self {
        // SAFETY: AVX-512 F is there; only registers are read.
        Self(unsafe { _mm512_add_ps(self.0, y.0) })
    }

    #[inline(always)]
    fn lanes(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: AVX-512 F is there; 16 f32 are written to an array of 16, of any alignment.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), self.0) };
        lanes
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: AVX-512 F is there; only registers are read.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
}

/// Two registers of AVX2. Every use is inside a function that `dispatch` compiles with AVX2, FMA and F16C and calls only
/// where `Level::available` has seen them all.
#[derive(Clone, Copy)]
pub struct Avx2([__m256; 2]);

impl Vector for Avx2 {
    const FMA: bool = true;
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: AVX, a part of AVX2, is there where this type is used.
        Self([unsafe { _mm256_set1_ps(x) }; 2])
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        let at = x.as_ptr();
        // SAFETY: AVX is there; twice 8 f32 are read from an array of 16, of any alignment.
        unsafe { Self([_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))]) }
    }

    #[inline(always)]
    fn load_f16(x: &[f16; LANES]) -> Self {
        let at = x.as_ptr().cast::<__m128i>();
        // SAFETY: F16C is there; twice 16 bytes are read from an array of 16 f16, of any alignment.
        unsafe {
            Self([
                _mm256_cvtph_ps(_mm_loadu_si128(at)),
                _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))),
            ])
        }
    }

    #[inline(always)]
    fn load_bf16(x: &[bf16; LANES]) -> Self {
        let at = x.as_ptr().cast::<__m128i>();
        // SAFETY: AVX2 is there; twice 16 bytes are read from an array of 16 bf16, of any alignment.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(at));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(1)));
            Self([
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ])
        }
    }

    #[inline(always)]
    fn load_i8(x: &[i8; LANES]) -> Self {
        let at = x.as_ptr();
        // SAFETY: AVX2 is there; twice 8 bytes are read from an array of 16 i8, of any alignment.
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(8).cast()));
            Self([_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)])
        }
    }

    #[inline(always)]
    fn mul_add(self, y: Self, z: Self) -> Self {
        // SAFETY: FMA is there; only registers are read.
        unsafe {
            Self([
                _mm256_fmadd_ps(self.0[0], y.0[0], z.0[0]),
                _mm256_fmadd_ps(self.0[1], y.0[1], z.0[1]),
            ])
        }
    }

    #[inline(always)]
    fn add(self, y: Self) -> Self {
        // SAFETY: AVX is there; only registers are read.
        unsafe {
            Self([
                _mm256_add_ps(self.0[0], y.0[0]),
                _mm256_add_ps(self.0[1], y.0[1]),
            ])
        }
    }

    #[inline(always)]
    fn lanes(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: AVX is there; twice 8 f32 are written to an array of 16, of any alignment.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), self.0[0]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), self.0[1]);
        }
        lanes
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: AVX and SSE3, a part of it, are there; only registers are read.
        unsafe {
            let eight = _mm256_add_ps(self.0[0], self.0[1]);
            let high = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            let one = _mm_add_ss(two, _mm_movehdup_ps(two));
            _mm_cvtss_f32(one)
        }
    }
}
