//! Sixteen lanes in the registers of each instruction set. Loops over arrays are vectorised by the compiler where the
//! lanes stay apart; around a reduction it draws shuffles into them, so those say what they want.

use burn::tensor::{bf16, f16};

/// Elements per vector: one register of AVX-512, two of AVX2.
pub const LANES: usize = 16;

/// Lanes of f32. A type may only be used where its instructions exist: see [`dispatch`](super::dispatch).
pub trait Vector: Copy {
    /// Whether a fused multiply-add is one instruction; elsewhere it would be a library call.
    const FMA: bool;
    /// Whether there are 32 registers of a whole vector.
    const WIDE: bool;

    fn splat(x: f32) -> Self;
    fn load(x: &[f32; LANES]) -> Self;
    fn load_f16(x: &[f16; LANES]) -> Self;
    fn load_bf16(x: &[bf16; LANES]) -> Self;
    fn load_i8(x: &[i8; LANES]) -> Self;
    /// `self · y + z`
    fn mul_add(self, y: Self, z: Self) -> Self;
    fn add(self, y: Self) -> Self;
    /// The sum of the lanes.
    fn sum(self) -> f32;
    fn lanes(self) -> [f32; LANES];
}

/// What every processor has; also NEON, whose code compilers make from it.
#[derive(Clone, Copy)]
pub struct Plain([f32; LANES]);

impl Plain {
    #[inline(always)]
    fn of<T: Copy>(x: &[T; LANES], widen: fn(T) -> f32) -> Self {
        let mut lanes = [0.0; LANES];
        for i in 0..LANES {
            lanes[i] = widen(x[i]);
        }
        Self(lanes)
    }
}

impl Vector for Plain {
    const FMA: bool = cfg!(target_arch = "aarch64");
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Self(*x)
    }

    #[inline(always)]
    fn load_f16(x: &[f16; LANES]) -> Self {
        Self::of(x, Element::widen)
    }

    #[inline(always)]
    fn load_bf16(x: &[bf16; LANES]) -> Self {
        Self::of(x, Element::widen)
    }

    #[inline(always)]
    fn load_i8(x: &[i8; LANES]) -> Self {
        Self::of(x, f32::from)
    }

    #[inline(always)]
    fn mul_add(self, y: Self, mut z: Self) -> Self {
        for i in 0..LANES {
            z.0[i] = fma::<Self>(self.0[i], y.0[i], z.0[i]);
        }
        z
    }

    #[inline(always)]
    fn add(mut self, y: Self) -> Self {
        for i in 0..LANES {
            self.0[i] += y.0[i];
        }
        self
    }

    #[inline(always)]
    fn lanes(self) -> [f32; LANES] {
        self.0
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let x = self.0;
        let mut four = [0.0; 4];
        for i in 0..4 {
            four[i] = (x[i] + x[i + 8]) + (x[i + 4] + x[i + 12]);
        }
        (four[0] + four[2]) + (four[1] + four[3])
    }
}

/// What weights and cached keys and values are stored as; arithmetic is in f32.
pub trait Element: burn::tensor::Element + bytemuck::Pod {
    fn widen(self) -> f32;

    fn load<V: Vector>(elements: &[Self; LANES]) -> V;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<V: Vector>(elements: &[Self; LANES]) -> V {
        V::load(elements)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn load<V: Vector>(elements: &[Self; LANES]) -> V {
        V::load_bf16(elements)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        // Moved into place, the exponent is 112 too small; the product also normalises subnormals.
        let size = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        // Infinities and NaN have the largest exponent in both types.
        let special = match bits & 0x7c00 {
            0x7c00 => 0x7f80_0000,
            _ => 0,
        };
        f32::from_bits(size.to_bits() | special | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn load<V: Vector>(elements: &[Self; LANES]) -> V {
        V::load_f16(elements)
    }
}

/// `a * b + c`
#[inline(always)]
pub fn fma<V: Vector>(a: f32, b: f32, c: f32) -> f32 {
    if V::FMA { a.mul_add(b, c) } else { a * b + c }
}
