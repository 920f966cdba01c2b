//! The instructions on tiles, one line of assembly each, and whether they may be used.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::array::from_fn;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Four tiles of sums `[16, 16]` in f32, and room for one of activations `[16, 2 * pairs]` and one of weights `[pairs, 16, 2]`
/// in bf16.
pub trait Tiles {
    /// Whether the processor has them, the system lets this process use them, and a product comes out right.
    fn are_there() -> bool;

    /// With up to 16 pairs. The thread's tiles are free again when it is dropped.
    ///
    /// # Safety
    /// The tiles must be there, and only one such value per thread at a time.
    unsafe fn configured(pairs: usize) -> Self;

    /// All sums become zero.
    ///
    /// # Safety
    /// None beyond that of `configured`.
    unsafe fn zero(&mut self);

    /// Reads weights, of which each pair's row starts `stride` bytes after the one before.
    ///
    /// # Safety
    /// `from` must have as many rows of 64 bytes as there are pairs.
    unsafe fn load_weights(&mut self, from: *const u8, stride: usize);

    /// Adds the products of `count` tiles of activations, which follow each other in memory, to the first `count` tiles of
    /// sums.
    ///
    /// # Safety
    /// `from` must have `16 * count` rows of `4 * pairs` bytes; `count` is at most 4.
    unsafe fn add_products(&mut self, count: usize, from: *const u8, stride: usize);

    /// Writes the first `count` tiles of sums.
    ///
    /// # Safety
    /// `to` must have room for `16 * count` rows of 64 bytes; `count` is at most 4.
    unsafe fn store(&self, count: usize, to: *mut u8, stride: usize);
}

/// Those of this processor, which belong to the thread that configured them.
pub struct Hardware(PhantomData<*const ()>);

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes per row.
    widths: [u16; 16],
    heights: [u8; 16],
}

impl Tiles for Hardware {
    fn are_there() -> bool {
        static THERE: OnceLock<bool> = OnceLock::new();
        // SAFETY: the processor has the tiles, and the system lets them be used.
        *THERE.get_or_init(|| has_bf16() && request() && unsafe { multiply_rightly::<Self>() })
    }

    unsafe fn configured(pairs: usize) -> Self {
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            widths: [0; 16],
            heights: [0; 16],
        };
        let row = 4 * pairs as u16;
        // Sums, activations, weights.
        for (i, (width, height)) in [(64, 16); 4]
            .into_iter()
            .chain([(row, 16), (64, pairs as u8)])
            .enumerate()
        {
            (config.widths[i], config.heights[i]) = (width, height);
        }
        // SAFETY: the tiles are there, says the caller; 64 bytes are read.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Self(PhantomData)
    }

    #[inline(always)]
    unsafe fn zero(&mut self) {
        // SAFETY: the tiles are configured. Only these functions touch them.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn load_weights(&mut self, from: *const u8, stride: usize) {
        // SAFETY: the memory is there, says the caller.
        unsafe {
            asm!(
                "tileloadd tmm5, [{} + {}*1]",
                in(reg) from,
                in(reg) stride,
                options(nostack, readonly, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn add_products(&mut self, count: usize, from: *const u8, stride: usize) {
        macro_rules! add {
            ($sums:literal, $from:expr) => {
                asm!(
                    "tileloadd tmm4, [{} + {}*1]",
                    concat!("tdpbf16ps ", $sums, ", tmm4, tmm5"),
                    in(reg) $from,
                    in(reg) stride,
                    options(nostack, readonly, preserves_flags)
                )
            };
        }
        // SAFETY: the memory is there, says the caller.
        unsafe {
            add!("tmm0", from);
            if count > 1 {
                add!("tmm1", from.add(16 * stride));
            }
            if count > 2 {
                add!("tmm2", from.add(32 * stride));
            }
            if count > 3 {
                add!("tmm3", from.add(48 * stride));
            }
        }
    }

    #[inline(always)]
    unsafe fn store(&self, count: usize, to: *mut u8, stride: usize) {
        macro_rules! store {
            ($sums:literal, $to:expr) => {
                asm!(
                    concat!("tilestored [{} + {}*1], ", $sums),
                    in(reg) $to,
                    in(reg) stride,
                    options(nostack, preserves_flags)
                )
            };
        }
        // SAFETY: the memory is there, says the caller.
        unsafe {
            store!("tmm0", to);
            if count > 1 {
                store!("tmm1", to.add(16 * stride));
            }
            if count > 2 {
                store!("tmm2", to.add(32 * stride));
            }
            if count > 3 {
                store!("tmm3", to.add(48 * stride));
            }
        }
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        // SAFETY: the tiles are there, or this value would not be.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Whether the processor has AMX-TILE and AMX-BF16 with tiles of 16 rows of 64 bytes.
fn has_bf16() -> bool {
    let most = __cpuid_count(0, 0).eax;
    if most < 0x1d {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    let tiles = __cpuid_count(0x1d, 1);
    let (bf16, tile) = (features >> 22 & 1 == 1, features >> 24 & 1 == 1);
    let (row_bytes, rows, names) = (tiles.ebx & 0xffff, tiles.ecx & 0xffff, tiles.ebx >> 16);
    bf16 && tile && row_bytes >= 64 && rows >= 16 && names >= 8
}

/// Asks Linux for the state of tiles, which a process has to before its first use of them.
#[cfg(target_os = "linux")]
fn request() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: the call changes nothing but what the process may use; the kernel keeps all registers but these three.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn request() -> bool {
    false
}

/// Whether small integers are multiplied exactly, in whole runs and in halves.
///
/// # Safety
/// The tiles must be there.
pub unsafe fn multiply_rightly<T: Tiles>() -> bool {
    let number = |i: usize| (i * i + 3 * i) % 15;
    // Of an integer below 256 the bf16 is the upper half of the f32.
    let bits = |number: usize| ((number as f32).to_bits() >> 16) as u16;
    let x: [[u16; 32]; 64] = from_fn(|row| from_fn(|i| bits(number(5 * row + i))));
    let w: [[[u16; 2]; 16]; 16] =
        from_fn(|pair| from_fn(|lane| from_fn(|i| bits(number(7 * lane + 2 * pair + i)))));
    [8, 16].into_iter().all(|pairs| {
        let mut sums = [[f32::NAN; 16]; 64];
        // SAFETY: the tiles are there, says the caller; all arrays have the four tiles of rows, or the pairs, that are read.
        unsafe {
            let mut tiles = T::configured(pairs);
            tiles.zero();
            tiles.load_weights(w.as_ptr().cast(), 64);
            tiles.add_products(4, x.as_ptr().cast(), 64);
            tiles.store(4, sums.as_mut_ptr().cast(), 64);
        }
        (0..64).all(|row| {
            (0..16).all(|lane| {
                let terms = (0..2 * pairs).map(|i| number(5 * row + i) * number(7 * lane + i));
                sums[row][lane] == terms.sum::<usize>() as f32
            })
        })
    })
}
