//! Which vector instructions are used, decided once while running.
//!
//! Invariant: code for an instruction set runs only where the processor was found to have it. Most kernels are safe
//! code over arrays of lanes, of which the compiler makes one version for each set; products are written for AVX2
//! ([`crate::avx2`]), for AVX-512 with and without bfloat16 (`crate::avx512`) and for AMX (`crate::amx`) too. For AVX-512 the compiler
//! makes no versions: from sixteen lanes its code keeps sums in memory, slower than AVX2.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::amx;

/// Something to compute in lanes: `L` of f32 at a time, with fused multiplication and addition or without.
pub(crate) trait Lanes {
    /// What comes out.
    type Output;

    /// Computes it. Implementations are `#[inline(always)]`, and so is all that they call, since only then it is compiled
    /// for the instructions of the caller.
    fn run<const L: usize, const FUSED: bool>(self) -> Self::Output;
}

/// A set of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// What every processor of the architecture has.
    Portable,
    /// AVX2 and FMA: eight lanes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// These, and AVX-512 for words, bytes and shorter registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// These, and AVX-512's instructions for bfloat16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// These, and AMX with its instruction for bfloat16.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            if !is_x86_feature_detected!("avx512bw") || !is_x86_feature_detected!("avx512vl") {
                return Level::Avx2;
            }
            if !is_x86_feature_detected!("avx512bf16") {
                return Level::Avx512;
            }
            return if amx::request() { Level::Amx } else { Level::Avx512Bf16 };
        }
        Level::Portable
    })
}

/// Whether there are AVX2 and FMA, for kernels that are written for them.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx2() -> bool {
    level() != Level::Portable
}

/// Whether there is AVX-512, for kernels that are written for it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512() -> bool {
    matches!(level(), Level::Avx512 | Level::Avx512Bf16 | Level::Amx)
}

/// Whether there are AVX-512's instructions for bfloat16 too.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512_bf16() -> bool {
    matches!(level(), Level::Avx512Bf16 | Level::Amx)
}

/// Whether there are AVX-512 and AMX with their instructions for bfloat16, for kernels that are written for both.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_amx() -> bool {
    level() == Level::Amx
}

/// Runs `lanes` with the best instructions that there are.
pub(crate) fn vectorize<K: Lanes>(lanes: K) -> K::Output {
    match level() {
        // Without an instruction for it, a fused multiplication is a slow function.
        Level::Portable => lanes.run::<8, { cfg!(target_arch = "aarch64") }>(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` found these instructions.
        Level::Avx2 | Level::Avx512 | Level::Avx512Bf16 | Level::Amx => unsafe { avx2(lanes) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Lanes>(lanes: K) -> K::Output {
    lanes.run::<8, true>()
}

/// Brings `length` bytes from `first` on into the second cache, where there is an instruction for it.
#[inline]
pub(crate) fn fetch(bytes: &[u8], first: usize, length: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (first..first + length).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every such processor has it, and it has no effect that can be seen, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, first, length);
}

/// `a * b + c`.
#[inline(always)]
pub(crate) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The sum of all lanes, in pairs: half of them onto the other half, until one is left.
#[inline(always)]
pub(crate) fn sum<const L: usize>(mut lanes: [f32; L]) -> f32 {
    let mut half = L / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
