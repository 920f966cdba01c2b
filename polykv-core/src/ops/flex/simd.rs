//! Run-time choice of the instruction set, and arithmetic that the compiler turns into vector code.

use burn::tensor::{bf16, f16};
use std::sync::OnceLock;

/// Instruction sets that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What every processor of the target has.
    Baseline,
    Avx2,
    Avx512,
}

impl Level {
    /// The best one that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| *Self::available().last().unwrap_or(&Self::Baseline))
    }

    /// All that this processor has, in ascending order.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut levels = vec![Self::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                    levels.push(Self::Avx512);
                }
            }
        }
        levels
    }
}

/// Compiles a function for every level: `dispatch!(level, fn kernel(args))` calls `kernel::<FMA>(args)`, an
/// `#[inline(always)]` function, inside a function with the level's target features. `FMA` says whether fused
/// multiply-add is one instruction; without it `mul_add` would be a library call. A kernel over several element types
/// is written `fn kernel<E: Element>(args)` and called as `kernel::<FMA, E>(args)`.
macro_rules! dispatch {
    ($level:expr, fn $name:ident $(<$e:ident: $bound:ident>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? ) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2 $(<$e: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            $name::<true $(, $e)?>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
        unsafe fn avx512 $(<$e: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            $name::<true $(, $e)?>($($arg),*)
        }
        match $level {
            // SAFETY: `Level::available` has seen the features on this processor.
            #[cfg(target_arch = "x86_64")]
            $crate::ops::flex::simd::Level::Avx512 => unsafe { avx512 $(::<$e>)? ($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            $crate::ops::flex::simd::Level::Avx2 => unsafe { avx2 $(::<$e>)? ($($arg),*) },
            _ => $name::<{ cfg!(target_arch = "aarch64") } $(, $e)?>($($arg),*),
        }
    }};
}
pub(super) use dispatch;

/// Elements per vector of the kernels: one register of AVX-512, two of AVX2.
pub const LANES: usize = 16;

/// What weights and cached keys and values are stored as; arithmetic is in f32.
pub trait Element: burn::tensor::Element + bytemuck::Pod {
    fn widen(self) -> f32;

    /// Sixteen at once. `FMA` stands for AVX2's companions, F16C among them.
    #[inline(always)]
    fn widen_all<const FMA: bool>(elements: &[Self; LANES]) -> [f32; LANES] {
        let mut wide = [0.0; LANES];
        for i in 0..LANES {
            wide[i] = elements[i].widen();
        }
        wide
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        // Moved into place, the exponent is 112 too small; the product also normalises subnormals.
        let size = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        // Infinities and NaN have the largest exponent in both types.
        let special = if bits & 0x7c00 == 0x7c00 {
            0x7f80_0000
        } else {
            0
        };
        f32::from_bits(size.to_bits() | special | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn widen_all<const FMA: bool>(elements: &[Self; LANES]) -> [f32; LANES] {
        let mut wide = [0.0; LANES];
        #[cfg(target_arch = "x86_64")]
        if FMA {
            use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
            for half in 0..2 {
                // SAFETY: `FMA` on this architecture means that F16C was seen; both halves lie inside the arrays.
                unsafe {
                    let bits = _mm_loadu_si128(elements.as_ptr().add(half * 8).cast());
                    _mm256_storeu_ps(wide.as_mut_ptr().add(half * 8), _mm256_cvtph_ps(bits));
                }
            }
            return wide;
        }
        for i in 0..LANES {
            wide[i] = elements[i].widen();
        }
        wide
    }
}

/// `a * b + c`
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x`, without branches; relative error below 2e-7. Cody and Waite's reduction, the polynomial of Cephes.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding and subtracting 1.5 · 2²³ rounds to the nearest integer.
    let z = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = fma::<FMA>(z, -0.693_359_4, x);
    let r = fma::<FMA>(z, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = fma::<FMA>(p, r, c);
    }
    let y = fma::<FMA>(p, r * r, r + 1.0);
    y * f32::from_bits(((z as i32 + 127) << 23) as u32)
}

/// The sum of the lanes.
#[inline(always)]
pub fn reduce(lanes: [f32; LANES]) -> f32 {
    let mut eight = [0.0f32; 8];
    for i in 0..8 {
        eight[i] = lanes[i] + lanes[i + 8];
    }
    let [a, b, c, d, e, f, g, h] = eight;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

/// `x · y + sums`, lane by lane. Vectors go by value: those that are indexed by a variable would live in memory.
#[inline(always)]
pub fn fma_all<const FMA: bool>(
    x: &[f32; LANES],
    y: [f32; LANES],
    mut sums: [f32; LANES],
) -> [f32; LANES] {
    for i in 0..LANES {
        sums[i] = fma::<FMA>(x[i], y[i], sums[i]);
    }
    sums
}

/// Sum of products. Four independent vectors of sums hide the latency of the additions.
#[inline(always)]
pub fn dot<const FMA: bool, E: Element>(x: &[f32], y: &[E]) -> f32 {
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    let (x_fours, x_ones) = x.as_chunks::<4>();
    let (y_fours, y_ones) = y.as_chunks::<4>();
    let [mut a, mut b, mut c, mut d] = [[0.0f32; LANES]; 4];
    for (x, y) in x_fours.iter().zip(y_fours) {
        a = fma_all::<FMA>(&x[0], E::widen_all::<FMA>(&y[0]), a);
        b = fma_all::<FMA>(&x[1], E::widen_all::<FMA>(&y[1]), b);
        c = fma_all::<FMA>(&x[2], E::widen_all::<FMA>(&y[2]), c);
        d = fma_all::<FMA>(&x[3], E::widen_all::<FMA>(&y[3]), d);
    }
    for (x, y) in x_ones.iter().zip(y_ones) {
        a = fma_all::<FMA>(x, E::widen_all::<FMA>(y), a);
    }
    for i in 0..LANES {
        a[i] = (a[i] + b[i]) + (c[i] + d[i]);
    }
    let mut sum = reduce(a);
    for (x, y) in x_rest.iter().zip(y_rest) {
        sum = fma::<FMA>(*x, y.widen(), sum);
    }
    sum
}

/// Sums of products of `x` with four rows of its length, which are in cache: `x` is read once for all of them. From
/// memory one row after the other is faster, since processors fetch ahead along one stream.
#[inline(always)]
pub fn dots<const FMA: bool, E: Element>(x: &[f32], rows: [&[E]; 4]) -> [f32; 4] {
    let chunks = x.as_chunks::<LANES>().0;
    let [a, b, c, d] = rows.map(|row| row.as_chunks::<LANES>().0);
    let [mut p, mut q, mut r, mut s] = [[0.0f32; LANES]; 4];
    for ((((x, a), b), c), d) in chunks.iter().zip(a).zip(b).zip(c).zip(d) {
        p = fma_all::<FMA>(x, E::widen_all::<FMA>(a), p);
        q = fma_all::<FMA>(x, E::widen_all::<FMA>(b), q);
        r = fma_all::<FMA>(x, E::widen_all::<FMA>(c), r);
        s = fma_all::<FMA>(x, E::widen_all::<FMA>(d), s);
    }
    let mut sums = [reduce(p), reduce(q), reduce(r), reduce(s)];
    let done = chunks.len() * LANES;
    for (sum, row) in sums.iter_mut().zip(rows) {
        for (x, y) in x[done..].iter().zip(&row[done..]) {
            *sum = fma::<FMA>(*x, y.widen(), *sum);
        }
    }
    sums
}

/// Replaces scores by `e^(score − max)` and returns their sum.
#[inline(always)]
pub fn exp_sum<const FMA: bool>(scores: &mut [f32], max: f32) -> f32 {
    let mut sums = [0.0; 16];
    let (chunks, rest) = scores.as_chunks_mut::<16>();
    for chunk in chunks {
        for i in 0..16 {
            chunk[i] = exp::<FMA>(chunk[i] - max);
            sums[i] += chunk[i];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for score in rest {
        *score = exp::<FMA>(*score - max);
        sum += *score;
    }
    sum
}

/// The largest element.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let mut most = [f32::MIN; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            most[i] = larger(chunk[i], most[i]);
        }
    }
    for (i, x) in rest.iter().enumerate() {
        most[i] = larger(*x, most[i]);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            most[i] = larger(most[i], most[i + width]);
        }
        width /= 2;
    }
    most[0]
}

/// One instruction, unlike `f32::max`, which looks for NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}
