//! Run-time choice of the instruction set, and arithmetic that the compiler turns into vector code.

mod bytes;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use bytes::dispatch_dots;
pub use bytes::{Bytes, Dots, PlainBytes};
pub use vector::{Element, LANES, Plain, Vector, fma};
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx2Bytes, Avx512, VnniBytes};

use std::sync::OnceLock;

/// Instruction sets that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

    /// All that this processor has, in ascending order: of each every feature that [`dispatch`] compiles with.
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
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                {
                    levels.push(Self::Avx512);
                }
            }
        }
        levels
    }
}

/// Compiles a function for every level: `dispatch!(level, fn kernel(args))` calls `kernel::<V>(args)`, an
/// `#[inline(always)]` function, with the level's [`Vector`] inside a function with its target features. A kernel over
/// several element types is written `fn kernel<E: Element>(args)` and called as `kernel::<V, E>(args)`.
macro_rules! dispatch {
    ($level:expr, fn $name:ident $(<$e:ident: $bound:ident>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? ) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2 $(<$e: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            $name::<$crate::ops::flex::simd::Avx2 $(, $e)?>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
        unsafe fn avx512 $(<$e: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            $name::<$crate::ops::flex::simd::Avx512 $(, $e)?>($($arg),*)
        }
        match $level {
            // SAFETY: levels come from `Level::available`, which has seen AVX2, FMA, F16C and AVX-512 F, BW, VL and DQ on
            // this processor before it gives this one.
            #[cfg(target_arch = "x86_64")]
            $crate::ops::flex::simd::Level::Avx512 => unsafe { avx512 $(::<$e>)? ($($arg),*) },
            // SAFETY: levels come from `Level::available`, which has seen AVX2, FMA and F16C before it gives this one.
            #[cfg(target_arch = "x86_64")]
            $crate::ops::flex::simd::Level::Avx2 => unsafe { avx2 $(::<$e>)? ($($arg),*) },
            _ => $name::<$crate::ops::flex::simd::Plain $(, $e)?>($($arg),*),
        }
    }};
}
pub(super) use dispatch;

/// `e^x`, without branches; relative error below 2e-7. Cody and Waite's reduction, the polynomial of Cephes.
#[inline(always)]
pub fn exp<V: Vector>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding and subtracting 1.5 · 2²³ rounds to the nearest integer, which the sum's last bits hold: a cast would check
    // every lane for NaN.
    let rounded = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let z = rounded - 12_582_912.0;
    let r = fma::<V>(z, -0.693_359_4, x);
    let r = fma::<V>(z, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = fma::<V>(p, r, c);
    }
    let y = fma::<V>(p, r * r, r + 1.0);
    y * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// `tanh x`, without branches; relative error below 4e-7. Near 0 the polynomial of Cephes, where `e^2x` would cancel.
#[inline(always)]
pub fn tanh<V: Vector>(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [
        2.063_908_8e-2,
        -5.373_971_5e-2,
        1.333_144_2e-1,
        -3.333_328e-1,
    ] {
        p = fma::<V>(p, square, c);
    }
    let near = fma::<V>(p * square, x, x);
    let far = 1.0 - 2.0 / (exp::<V>(2.0 * x) + 1.0);
    if square < 0.390_625 { near } else { far }
}

/// Sum of products. Four independent vectors of sums hide the latency of the additions.
#[inline(always)]
pub fn dot<V: Vector, E: Element>(x: &[f32], y: &[E]) -> f32 {
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    let (x_fours, x_ones) = x.as_chunks::<4>();
    let (y_fours, y_ones) = y.as_chunks::<4>();
    let [mut a, mut b, mut c, mut d] = [V::splat(0.0); 4];
    for (x, y) in x_fours.iter().zip(y_fours) {
        a = E::load::<V>(&y[0]).mul_add(V::load(&x[0]), a);
        b = E::load::<V>(&y[1]).mul_add(V::load(&x[1]), b);
        c = E::load::<V>(&y[2]).mul_add(V::load(&x[2]), c);
        d = E::load::<V>(&y[3]).mul_add(V::load(&x[3]), d);
    }
    for (x, y) in x_ones.iter().zip(y_ones) {
        a = E::load::<V>(y).mul_add(V::load(x), a);
    }
    let mut sum = a.add(b).add(c.add(d)).sum();
    for (x, y) in x_rest.iter().zip(y_rest) {
        sum = fma::<V>(*x, y.widen(), sum);
    }
    sum
}

/// How far ahead of what is read memory is asked for. The processor's own prefetching leaves much of the bandwidth of an Intel Xeon
/// unused. There 4 to 16 KiB did about equally well, and 32 KiB worse; less means less beyond the end of a thread's part.
const AHEAD_BYTES: usize = 4096;

/// Asks for the memory behind `values` that will be read soon if memory is read in order.
#[inline(always)]
pub fn fetch_ahead<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = values.as_ptr().cast::<i8>().wrapping_add(AHEAD_BYTES);
        for line in (0..size_of_val(values)).step_by(64) {
            // SAFETY: SSE is part of the target, and a hint may name any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Sums of products of `x` with four rows of its length, which are in cache: `x` is read once for all of them. From
/// memory one row after the other is faster, since processors fetch ahead along one stream.
#[inline(always)]
pub fn dots<V: Vector, X: Element, E: Element>(x: &[X], rows: [&[E]; 4]) -> [f32; 4] {
    let (chunks, x_rest) = x.as_chunks::<LANES>();
    let [a, b, c, d] = rows.map(|row| row.as_chunks::<LANES>().0);
    let [mut p, mut q, mut r, mut s] = [V::splat(0.0); 4];
    for ((((x, a), b), c), d) in chunks.iter().zip(a).zip(b).zip(c).zip(d) {
        let x = X::load::<V>(x);
        p = E::load::<V>(a).mul_add(x, p);
        q = E::load::<V>(b).mul_add(x, q);
        r = E::load::<V>(c).mul_add(x, r);
        s = E::load::<V>(d).mul_add(x, s);
    }
    let mut sums = [p.sum(), q.sum(), r.sum(), s.sum()];
    for (sum, row) in sums.iter_mut().zip(rows) {
        for (x, y) in x_rest.iter().zip(&row[chunks.len() * LANES..]) {
            *sum = fma::<V>(x.widen(), y.widen(), *sum);
        }
    }
    sums
}

/// Sums of products of each of `R` rows with each of `N` others of their length, added in the order of [`dots`].
#[inline(always)]
pub fn grid<V: Vector, E: Element, const R: usize, const N: usize>(
    rows: [&[E]; R],
    others: [&[f32]; N],
) -> [[f32; N]; R] {
    let row_chunks = rows.map(|row| row.as_chunks::<LANES>().0);
    let other_chunks = others.map(|other| other.as_chunks::<LANES>().0);
    let chunks = row_chunks[0].len();
    assert!(row_chunks.iter().all(|row| row.len() == chunks));
    assert!(other_chunks.iter().all(|other| other.len() == chunks));
    let mut sums = [[V::splat(0.0); N]; R];
    for chunk in 0..chunks {
        let mut loaded = [V::splat(0.0); R];
        for r in 0..R {
            fetch_ahead(&row_chunks[r][chunk]);
            loaded[r] = E::load::<V>(&row_chunks[r][chunk]);
        }
        for n in 0..N {
            let other = V::load(&other_chunks[n][chunk]);
            for r in 0..R {
                sums[r][n] = loaded[r].mul_add(other, sums[r][n]);
            }
        }
    }
    // No closures: what is not inlined there is compiled for any processor.
    let mut found = [[0.0; N]; R];
    for r in 0..R {
        for n in 0..N {
            found[r][n] = sums[r][n].sum();
            for i in chunks * LANES..rows[r].len() {
                found[r][n] = fma::<V>(others[n][i], rows[r][i].widen(), found[r][n]);
            }
        }
    }
    found
}

/// Replaces scores by `e^(score − max)` and returns their sum.
#[inline(always)]
pub fn exp_sum<V: Vector>(scores: &mut [f32], max: f32) -> f32 {
    let mut sums = [0.0; 16];
    let (chunks, rest) = scores.as_chunks_mut::<16>();
    for chunk in chunks {
        for i in 0..16 {
            chunk[i] = exp::<V>(chunk[i] - max);
            sums[i] += chunk[i];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for score in rest {
        *score = exp::<V>(*score - max);
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
pub fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    /// A processor that lacks a feature which a function is compiled with runs into an instruction that it does not know.
    #[test]
    fn every_feature_that_is_compiled_with_is_asked_for() {
        for source in [include_str!("simd.rs"), include_str!("simd/bytes.rs")] {
            let mut enabled = source
                .split("target_feature(enable = \"")
                .skip(1)
                .peekable();
            assert!(enabled.peek().is_some());
            for features in enabled {
                for feature in features.split('"').next().unwrap().split(',') {
                    let asked = format!("is_x86_feature_detected!(\"{feature}\")");
                    let simd = include_str!("simd.rs");
                    assert!(
                        simd.contains(&asked) || source.contains(&asked),
                        "{feature} is not asked for"
                    );
                }
            }
        }
    }
}
