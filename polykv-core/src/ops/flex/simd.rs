//! Run-time choice of the instruction set, and arithmetic that the compiler turns into vector code.

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
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                    levels.push(Self::Avx512);
                }
            }
        }
        levels
    }
}

/// Compiles a function for every level: `dispatch!(level, kernel(args))` calls `kernel::<FMA>(args)`, an
/// `#[inline(always)]` function, inside a function with the level's target features. `FMA` says whether fused
/// multiply-add is one instruction; without it `mul_add` would be a library call.
macro_rules! dispatch {
    ($level:expr, fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? ) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
            $name::<true>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
        unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
            $name::<true>($($arg),*)
        }
        match $level {
            // SAFETY: `Level::available` has seen the features on this processor.
            #[cfg(target_arch = "x86_64")]
            $crate::ops::flex::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            $crate::ops::flex::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
            _ => $name::<{ cfg!(target_arch = "aarch64") }>($($arg),*),
        }
    }};
}
pub(super) use dispatch;

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

/// Sum of products.
#[inline(always)]
pub fn dot<const FMA: bool>(x: &[f32], y: &[f32]) -> f32 {
    // Four independent vectors of sums hide the latency of the additions. They are separate arrays with constant
    // indices only, so that the compiler keeps them in registers.
    let mut sums = [[0.0f32; 16]; 4];
    let (x, x_rest) = x.as_chunks::<64>();
    let (y, y_rest) = y.as_chunks::<64>();
    for (x, y) in x.iter().zip(y) {
        for (part, sums) in sums.iter_mut().enumerate() {
            for i in 0..16 {
                sums[i] = fma::<FMA>(x[part * 16 + i], y[part * 16 + i], sums[i]);
            }
        }
    }
    let [mut a, b, c, d] = sums;
    for i in 0..16 {
        a[i] = (a[i] + b[i]) + (c[i] + d[i]);
    }
    let mut half = [0.0f32; 8];
    for i in 0..8 {
        half[i] = a[i] + a[i + 8];
    }
    let mut rest = 0.0;
    for (x, y) in x_rest.iter().zip(y_rest) {
        rest = fma::<FMA>(*x, *y, rest);
    }
    let [a, b, c, d, e, f, g, h] = half;
    rest + (((a + e) + (b + f)) + ((c + g) + (d + h)))
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
    let mut most = [f32::MIN; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            most[i] = if chunk[i] > most[i] {
                chunk[i]
            } else {
                most[i]
            };
        }
    }
    rest.iter().chain(&most).copied().fold(f32::MIN, f32::max)
}
