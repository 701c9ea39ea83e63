//! What this machine's memory and arithmetic allow.

use std::time::Instant;

use crate::threads;
#[cfg(target_arch = "x86_64")]
use crate::vectors;
use crate::vectors::{Lanes, fma, vectorize};
#[cfg(target_arch = "x86_64")]
use crate::{amx, avx512};

/// What the machine can do with all the threads that operators run on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Bytes that are read from memory each second.
    pub bytes_per_second: f64,
    /// Multiplications and additions of bfloat16 each second.
    pub operations_per_second: f64,
}

/// Elements of eight bytes that are read, 512 MiB in all: more than caches hold.
const ELEMENTS: usize = 64 << 20;
/// Elements of a piece.
const PIECE: usize = 128 << 10;
/// The best of so many tries counts, so that little looks faster than its bound.
const TRIES: usize = 8;
/// Pieces of arithmetic.
const PIECES: usize = 64;
/// Times that all sums of a piece grow.
const ROUNDS: usize = 1 << 18;

/// Measures for a second or two: reads memory in two streams for each thread, and multiplies what lies in registers.
#[must_use]
pub fn bounds() -> Bounds {
    let memory: Vec<u64> = (0..ELEMENTS as u64).collect();
    let reading = best(|| {
        threads::share(ELEMENTS / PIECE, |piece| {
            std::hint::black_box(vectorize(Read(&memory[piece * PIECE..][..PIECE])));
        });
    });
    let multiplying = best(|| {
        threads::share(PIECES, |_| {
            std::hint::black_box(multiply());
        });
    });
    Bounds {
        bytes_per_second: (ELEMENTS * size_of::<u64>()) as f64 / reading,
        operations_per_second: PIECES as f64 * multiply() / multiplying,
    }
}

fn best(work: impl Fn()) -> f64 {
    let times = (0..TRIES).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

/// Reads all elements, of two halves at a time.
struct Read<'a>(&'a [u64]);

impl Lanes for Read<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) -> u64 {
        let (upper, lower) = self.0.split_at(self.0.len() / 2);
        let mut seen = [0_u64; 32];
        for (upper, lower) in upper.as_chunks::<32>().0.iter().zip(lower.as_chunks::<32>().0) {
            for lane in 0..32 {
                seen[lane] ^= upper[lane] ^ lower[lane];
            }
        }
        seen.into_iter().fold(0, |all, lane| all ^ lane)
    }
}

/// Multiplies and adds as fast as can be. Returns how many operations that were.
fn multiply() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if vectors::has_amx() {
        // SAFETY: the processor has the instructions, and this process may use them.
        return unsafe { amx::multiply(ROUNDS) };
    }
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx512() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::run(avx512::Multiply(ROUNDS)) };
    }
    vectorize(Multiply)
}

struct Multiply;

impl Lanes for Multiply {
    type Output = f64;

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) -> f64 {
        /// Sums that grow side by side.
        const SUMS: usize = 12;
        let factors: [f32; L] = std::hint::black_box([0.5; L]);
        let mut sums = [[0.0_f32; L]; SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                for lane in 0..L {
                    sum[lane] = fma::<FUSED>(sum[lane], factors[lane], factors[lane]);
                }
            }
        }
        std::hint::black_box(sums);
        (2 * ROUNDS * SUMS * L) as f64
    }
}
