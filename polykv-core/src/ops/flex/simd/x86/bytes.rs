//! Bytes in the registers of x86 processors.

use super::super::bytes::{BYTES, Bytes};
use super::super::vector::LANES;
use super::{Avx2, Avx512};
use std::arch::x86_64::*;

/// One register of AVX-512. Every use is inside a function that `dispatch_dots` compiles with AVX-512 F, BW, VL, DQ and
/// VNNI and calls only where `Dots::up_to` has found them all.
#[derive(Clone, Copy)]
pub struct VnniBytes(__m512i);

impl VnniBytes {
    #[inline(always)]
    pub fn bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        // SAFETY: AVX-512 F is there; 64 bytes are written to an array of 64, of any alignment.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), self.0) };
        bytes
    }

    /// The 32 bytes twice, 16-bit lanes of the second copy shifted right by so many bits more than those of the first.
    #[inline(always)]
    fn twice(bytes: &[u8; 32], first: u32, more: u32) -> __m512i {
        // SAFETY: AVX-512 F and BW are there; 32 bytes are read from an array of 32, of any alignment.
        unsafe {
            let both = _mm512_broadcast_i64x4(_mm256_loadu_si256(bytes.as_ptr().cast()));
            let (a, b) = (i64::from(first), i64::from(first + more));
            _mm512_srlv_epi64(both, _mm512_set_epi64(b, b, b, b, a, a, a, a))
        }
    }
}

impl Bytes for VnniBytes {
    type Floats = Avx512;

    #[inline(always)]
    fn nibbles(a: &[u8; 16], b: &[u8; 16]) -> Self {
        // SAFETY: AVX-512 F and BW are there; 16 bytes are read from each array of 16, of any alignment.
        unsafe {
            let a = _mm512_broadcast_i32x4(_mm_loadu_si128(a.as_ptr().cast()));
            let b = _mm_loadu_si128(b.as_ptr().cast());
            let all = _mm512_mask_broadcast_i32x4(a, 0xff00, b);
            let shifts = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
            Self(_mm512_and_si512(
                _mm512_srlv_epi64(all, shifts),
                _mm512_set1_epi8(15),
            ))
        }
    }

    #[inline(always)]
    fn nibbles_of_32(bytes: &[u8; 32]) -> Self {
        // SAFETY: AVX-512 F is there; only registers are read.
        Self(unsafe { _mm512_and_si512(Self::twice(bytes, 0, 4), _mm512_set1_epi8(15)) })
    }

    #[inline(always)]
    fn nibbles_of_64(bytes: &[u8; 64], side: u32) -> Self {
        // SAFETY: AVX-512 F and BW are there; 64 bytes are read from an array of 64, of any alignment.
        unsafe {
            let all = _mm512_loadu_si512(bytes.as_ptr().cast());
            let all = if side == 0 {
                all
            } else {
                _mm512_srli_epi16::<4>(all)
            };
            Self(_mm512_and_si512(all, _mm512_set1_epi8(15)))
        }
    }

    #[inline(always)]
    fn offset_by_128(a: &[u8; 32], b: &[u8; 32]) -> Self {
        // SAFETY: AVX-512 F and DQ are there; 32 bytes are read from each array of 32, of any alignment.
        unsafe {
            let a = _mm512_castsi256_si512(_mm256_loadu_si256(a.as_ptr().cast()));
            let both = _mm512_inserti64x4::<1>(a, _mm256_loadu_si256(b.as_ptr().cast()));
            Self(_mm512_xor_si512(both, _mm512_set1_epi8(-128)))
        }
    }

    #[inline(always)]
    fn with_fifth_bits(self, bits: u64) -> Self {
        // SAFETY: AVX-512 BW is there; only registers are read.
        Self(unsafe { _mm512_mask_add_epi8(self.0, bits, self.0, _mm512_set1_epi8(16)) })
    }

    #[inline(always)]
    fn with_fifth_bits_of(self, bits: &[u8; 32], first: u32) -> Self {
        // SAFETY: AVX-512 F and BW are there; only registers are read.
        unsafe {
            let set = _mm512_test_epi8_mask(Self::twice(bits, first, 1), _mm512_set1_epi8(1));
            self.with_fifth_bits(set)
        }
    }

    #[inline(always)]
    fn with_two_bits_of(self, bits: &[u8; 32], first: u32) -> Self {
        // SAFETY: AVX-512 F and BW are there; only registers are read.
        unsafe {
            let two = _mm512_and_si512(Self::twice(bits, first, 2), _mm512_set1_epi8(3));
            Self(_mm512_or_si512(self.0, _mm512_slli_epi16::<4>(two)))
        }
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, high: &[i8; BYTES], low: &[i8; BYTES]) -> Avx512 {
        // SAFETY: AVX-512 F and VNNI are there; 64 bytes are read from each array of 64, of any alignment.
        unsafe {
            let high = _mm512_loadu_si512(high.as_ptr().cast());
            let low = _mm512_loadu_si512(low.as_ptr().cast());
            let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), self.0, high);
            let sums = _mm512_dpbusd_epi32(_mm512_slli_epi32::<8>(sums), self.0, low);
            Avx512(_mm512_cvtepi32_ps(sums))
        }
    }

    #[inline(always)]
    fn spread_two(scales: Avx512, at: usize) -> Avx512 {
        let (a, b) = (at as i32, at as i32 + 2);
        // SAFETY: AVX-512 F is there; only registers are read, and lanes are taken modulo 16.
        Avx512(unsafe {
            let from = _mm512_set_epi32(b, b, b, b, b, b, b, b, a, a, a, a, a, a, a, a);
            _mm512_permutexvar_ps(from, scales.0)
        })
    }

    #[inline(always)]
    fn spread_four(scales: Avx512, at: usize) -> Avx512 {
        let a = at as i32;
        let (b, c, d) = (a + 1, a + 2, a + 3);
        // SAFETY: AVX-512 F is there; only registers are read, and lanes are taken modulo 16.
        Avx512(unsafe {
            let from = _mm512_set_epi32(d, d, d, d, c, c, c, c, b, b, b, b, a, a, a, a);
            _mm512_permutexvar_ps(from, scales.0)
        })
    }

    #[inline(always)]
    fn halves(pairs: [u32; LANES / 2]) -> Avx512 {
        // SAFETY: AVX-512 F is there; only registers are read.
        Avx512(unsafe { _mm512_cvtph_ps(register(pairs)) })
    }
}

/// Eight numbers in a register, without a detour through memory.
///
/// # Safety
/// AVX must be there.
#[inline(always)]
unsafe fn register(words: [u32; LANES / 2]) -> __m256i {
    let [a, b, c, d, e, f, g, h]: [i32; LANES / 2] = bytemuck::cast(words);
    // SAFETY: AVX is there, says the caller; only registers are read.
    unsafe { _mm256_setr_epi32(a, b, c, d, e, f, g, h) }
}

/// Two registers of AVX2. Every use is inside a function that `dispatch_dots` compiles with AVX2, FMA and F16C and calls
/// only where `Dots::up_to` has found them all.
#[derive(Clone, Copy)]
pub struct Avx2Bytes([__m256i; 2]);

// Written out for both halves: closures given to functions of arrays are not compiled with the features around them.
impl Bytes for Avx2Bytes {
    type Floats = Avx2;

    #[inline(always)]
    fn nibbles(a: &[u8; 16], b: &[u8; 16]) -> Self {
        #[inline(always)]
        fn of(bytes: &[u8; 16]) -> __m256i {
            // SAFETY: AVX2 is there; 16 bytes are read from an array of 16, of any alignment.
            unsafe {
                let low = _mm_loadu_si128(bytes.as_ptr().cast());
                let both = _mm256_set_m128i(_mm_srli_epi16::<4>(low), low);
                _mm256_and_si256(both, _mm256_set1_epi8(15))
            }
        }
        Self([of(a), of(b)])
    }

    #[inline(always)]
    fn nibbles_of_32(bytes: &[u8; 32]) -> Self {
        Self([nibbles(bytes, 0), nibbles(bytes, 1)])
    }

    #[inline(always)]
    fn nibbles_of_64(bytes: &[u8; 64], side: u32) -> Self {
        let halves = bytes.as_chunks::<32>().0;
        Self([nibbles(&halves[0], side), nibbles(&halves[1], side)])
    }

    #[inline(always)]
    fn offset_by_128(a: &[u8; 32], b: &[u8; 32]) -> Self {
        #[inline(always)]
        fn of(bytes: &[u8; 32]) -> __m256i {
            // SAFETY: AVX2 is there; 32 bytes are read from an array of 32, of any alignment.
            unsafe {
                let signed = _mm256_loadu_si256(bytes.as_ptr().cast());
                _mm256_xor_si256(signed, _mm256_set1_epi8(-128))
            }
        }
        Self([of(a), of(b)])
    }

    #[inline(always)]
    fn with_fifth_bits(self, bits: u64) -> Self {
        #[inline(always)]
        fn of(numbers: __m256i, bits: u32) -> __m256i {
            // SAFETY: AVX2 is there; only registers are read.
            unsafe {
                // Each byte gets the byte of `bits` that holds its bit, of which it keeps its own.
                let ones = 0x0101_0101_0101_0101;
                let byte = _mm256_setr_epi64x(0, ones, 2 * ones, 3 * ones);
                let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
                let bits = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), byte);
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(bits, own), own);
                _mm256_or_si256(numbers, _mm256_and_si256(set, _mm256_set1_epi8(16)))
            }
        }
        Self([
            of(self.0[0], bits as u32),
            of(self.0[1], (bits >> 32) as u32),
        ])
    }

    #[inline(always)]
    fn with_fifth_bits_of(self, bits: &[u8; 32], first: u32) -> Self {
        let low = with_bits(self.0[0], bits, first, 1);
        Self([low, with_bits(self.0[1], bits, first + 1, 1)])
    }

    #[inline(always)]
    fn with_two_bits_of(self, bits: &[u8; 32], first: u32) -> Self {
        let low = with_bits(self.0[0], bits, first, 3);
        Self([low, with_bits(self.0[1], bits, first + 2, 3)])
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, high: &[i8; BYTES], low: &[i8; BYTES]) -> Avx2 {
        #[inline(always)]
        fn of<const WIDE: bool>(numbers: __m256i, high: &[i8; 32], low: &[i8; 32]) -> __m256 {
            // SAFETY: AVX2 is there; 32 bytes are read from each array of 32, of any alignment.
            unsafe {
                let high = _mm256_loadu_si256(high.as_ptr().cast());
                let low = _mm256_loadu_si256(low.as_ptr().cast());
                let sums = if WIDE {
                    let sums = _mm256_slli_epi32::<8>(wide_dot(numbers, high));
                    _mm256_add_epi32(sums, wide_dot(numbers, low))
                } else {
                    // Two products of a number below 64 and one of at most 128 stay below 2^15; their factors are one byte.
                    let high = _mm256_maddubs_epi16(numbers, high);
                    let low = _mm256_maddubs_epi16(numbers, low);
                    let high = _mm256_madd_epi16(high, _mm256_set1_epi16(256));
                    _mm256_add_epi32(high, _mm256_madd_epi16(low, _mm256_set1_epi16(1)))
                };
                _mm256_cvtepi32_ps(sums)
            }
        }
        let (high, low) = (high.as_chunks::<32>().0, low.as_chunks::<32>().0);
        Avx2([
            of::<WIDE>(self.0[0], &high[0], &low[0]),
            of::<WIDE>(self.0[1], &high[1], &low[1]),
        ])
    }

    #[inline(always)]
    fn spread_two(scales: Avx2, at: usize) -> Avx2 {
        // SAFETY: AVX2 is there; only registers are read, and lanes are taken modulo 8.
        unsafe {
            let of = |at: usize| {
                _mm256_permutevar8x32_ps(scales.0[at / 8], _mm256_set1_epi32(at as i32))
            };
            Avx2([of(at), of(at + 2)])
        }
    }

    #[inline(always)]
    fn spread_four(scales: Avx2, at: usize) -> Avx2 {
        // SAFETY: AVX2 is there; only registers are read, and lanes are taken modulo 8.
        unsafe {
            let of = |at: usize| {
                let (a, b) = (at as i32, at as i32 + 1);
                let from = _mm256_setr_epi32(a, a, a, a, b, b, b, b);
                _mm256_permutevar8x32_ps(scales.0[at / 8], from)
            };
            Avx2([of(at), of(at + 2)])
        }
    }

    #[inline(always)]
    fn halves(pairs: [u32; LANES / 2]) -> Avx2 {
        // SAFETY: AVX2 and F16C are there; only registers are read.
        unsafe {
            let all = register(pairs);
            let high = _mm256_extracti128_si256::<1>(all);
            Avx2([
                _mm256_cvtph_ps(_mm256_castsi256_si128(all)),
                _mm256_cvtph_ps(high),
            ])
        }
    }
}

/// The low (`side` 0) or high nibbles (1).
#[inline(always)]
fn nibbles(bytes: &[u8; 32], side: u32) -> __m256i {
    // SAFETY: AVX2 is there, see `Avx2Bytes`; 32 bytes are read from an array of 32, of any alignment.
    unsafe {
        let all = _mm256_loadu_si256(bytes.as_ptr().cast());
        let all = if side == 0 {
            all
        } else {
            _mm256_srli_epi16::<4>(all)
        };
        _mm256_and_si256(all, _mm256_set1_epi8(15))
    }
}

/// 16 times what `mask` leaves of `bits`, shifted right by so many bits, more.
#[inline(always)]
fn with_bits(numbers: __m256i, bits: &[u8; 32], shift: u32, mask: i8) -> __m256i {
    // SAFETY: AVX2 is there, see `Avx2Bytes`; 32 bytes are read from an array of 32, of any alignment.
    unsafe {
        let bits = _mm256_loadu_si256(bits.as_ptr().cast());
        let bits = _mm256_srl_epi16(bits, _mm_cvtsi32_si128(shift as i32));
        let bits = _mm256_and_si256(bits, _mm256_set1_epi8(mask));
        _mm256_or_si256(numbers, _mm256_slli_epi16::<4>(bits))
    }
}

/// Sums of products of four neighbours each, through 16 bits.
///
/// # Safety
/// AVX2 must be there.
#[inline(always)]
unsafe fn wide_dot(numbers: __m256i, x: __m256i) -> __m256i {
    // SAFETY: AVX2 is there, says the caller; only registers are read.
    unsafe {
        let low = _mm256_madd_epi16(
            _mm256_cvtepu8_epi16(_mm256_castsi256_si128(numbers)),
            _mm256_cvtepi8_epi16(_mm256_castsi256_si128(x)),
        );
        let high = _mm256_madd_epi16(
            _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(numbers)),
            _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(x)),
        );
        // Neighbouring sums of two; within 128 bits low and high alternate, which the permutation undoes.
        _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(low, high))
    }
}
