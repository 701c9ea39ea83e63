//! Products of few rows, in the form of [`crate::dot`]: every weight is read once, in the order in which it lies in memory.

#![expect(clippy::needless_range_loop, reason = "loops over registers, of which several arrays have as many")]

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_reduce_add_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{Arithmetic, Kernel, PART, SUMS, sums_of};
use crate::matrix::Matrix;
use crate::number::Weight;

/// Registers of one row that are multiplied at a time, with sums of their own.
const DEEP: usize = 4;
/// How many bytes ahead of those that are multiplied weights are fetched for one row of input.
const AHEAD: usize = 4096;
/// Bytes that memory gives at a time.
const LINE: usize = 64;
/// Rows of the input in the largest tile.
const BAND: usize = 8;
/// Bytes of all registers.
const REGISTERS: usize = 32 * size_of::<__m512>();

/// `out[token][row] = weights[row] . inputs[token]`: products of few rows. Rows of `out` are `all` apart.
///
/// # Safety
/// The processor has the instructions of `A`.
pub(crate) unsafe fn dots<A: Arithmetic, E: Weight>(
    inputs: Matrix<'_, A::Input>,
    weights: Matrix<'_, E>,
    out: &mut [f32],
    all: usize,
) {
    let tokens = inputs.rows();
    let mut first = 0;
    while first < tokens {
        let left = tokens - first;
        // Bands as equal as can be.
        let taken = left.div_ceil(left.div_ceil(BAND));
        let (inputs, out) = (inputs.from(first), &mut out[first * all..]);
        // Tiles of at most 24 sums leave room for the factors, of which some arithmetics have two registers; fewer than twelve would
        // wait for each other.
        let is_one = size_of::<A::Factors>() == size_of::<__m512>();
        // SAFETY: the caller vouches for it.
        unsafe {
            match (taken, is_one) {
                (1, _) => A::run(Streams::<A, E> { input: inputs.row(0), weights, out }),
                (2, _) => A::run(Band::<8, 2, A, E> { inputs, weights, out, all }),
                (3, true) => A::run(Band::<8, 3, A, E> { inputs, weights, out, all }),
                (3, false) => A::run(Band::<6, 3, A, E> { inputs, weights, out, all }),
                (4, true) => A::run(Band::<6, 4, A, E> { inputs, weights, out, all }),
                (4, false) => A::run(Band::<5, 4, A, E> { inputs, weights, out, all }),
                (5, _) => A::run(Band::<4, 5, A, E> { inputs, weights, out, all }),
                (6, true) => A::run(Band::<4, 6, A, E> { inputs, weights, out, all }),
                (6, false) => A::run(Band::<3, 6, A, E> { inputs, weights, out, all }),
                (7, _) => A::run(Band::<3, 7, A, E> { inputs, weights, out, all }),
                _ => A::run(Band::<3, BAND, A, E> { inputs, weights, out, all }),
            }
        }
        first += taken;
    }
}

/// All rows of the matrix with one row of input. It takes as long as the weights take to come from memory, and memory gives most where
/// it is read at two places that lie apart, a little ahead.
struct Streams<'a, A: Arithmetic, E> {
    input: &'a [A::Input],
    weights: Matrix<'a, E>,
    out: &'a mut [f32],
}

impl<A: Arithmetic, E: Weight> Kernel<A> for Streams<'_, A, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Streams { input, weights, out } = self;
        let half = weights.rows() / 2;
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            for row in 0..half {
                [out[row], out[half + row]] = line::<A, E, 2>(input, [weights.row(row), weights.row(half + row)]);
            }
            if weights.rows() % 2 == 1 {
                [out[2 * half]] = line::<A, E, 1>(input, [weights.row(2 * half)]);
            }
        }
    }
}

/// Rows, as wide as the input, with it.
#[inline(always)]
unsafe fn line<A: Arithmetic, E: Weight, const R: usize>(input: &[A::Input], rows: [&[E]; R]) -> [f32; R] {
    let count = input.len() / PART / DEEP;
    let inputs: &[[[A::Input; PART]; DEEP]] = &input.as_chunks().0.as_chunks().0[..count];
    let mut parts: [&[[[E; PART]; DEEP]]; R] = [&[]; R];
    for row in 0..R {
        parts[row] = &rows[row].as_chunks().0.as_chunks().0[..count];
    }
    let lines_of_part = size_of::<[E; PART]>().div_ceil(LINE);
    let parts_of_line = LINE.div_ceil(size_of::<[E; PART]>());
    // SAFETY: the caller vouches for the instructions; a prefetch has no effect that can be seen, wherever it points.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); DEEP]; R];
        for at in 0..count {
            for deep in 0..DEEP {
                let input = A::input(&inputs[at][deep]);
                for row in 0..R {
                    let weights = &parts[row][at][deep];
                    if deep % parts_of_line == 0 {
                        for line in 0..lines_of_part {
                            let ahead = weights.as_ptr().wrapping_byte_add(AHEAD + line * LINE);
                            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        }
                    }
                    sums[row][deep] = A::add(sums[row][deep], A::weights(weights), input);
                }
            }
        }
        // What is left: whole registers, then elements.
        for at in (count * DEEP * PART..input.len()).step_by(PART) {
            let end = input.len().min(at + PART);
            let input = A::input(&input[at..end]);
            for row in 0..R {
                sums[row][0] = A::add(sums[row][0], A::weights(&rows[row][at..end]), input);
            }
        }
        let mut totals = [0.0; R];
        for row in 0..R {
            let [a, b, c, d] = sums[row];
            totals[row] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
        }
        totals
    }
}

/// All rows of the matrix with the first `T` rows of the input, `R` rows at a time; rows of `out` are `all` apart.
struct Band<'a, const R: usize, const T: usize, A: Arithmetic, E> {
    inputs: Matrix<'a, A::Input>,
    weights: Matrix<'a, E>,
    out: &'a mut [f32],
    all: usize,
}

impl<const R: usize, const T: usize, A: Arithmetic, E: Weight> Kernel<A> for Band<'_, R, T, A, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Band { inputs, weights, out, all } = self;
        // Rows of a tile lie as far apart as can be: so memory is read in as many streams.
        let each = weights.rows() / R;
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            for row in 0..each {
                tile::<R, T, A, E>(inputs, weights.from(row), each, &mut out[row..], all);
            }
            for row in each * R..weights.rows() {
                tile::<1, T, A, E>(inputs, weights.from(row), 1, &mut out[row..], all);
            }
        }
    }
}

/// `R` rows of the matrix, `each` apart, with `T` rows of the input, whose sums are `all` apart.
#[inline(always)]
unsafe fn tile<const R: usize, const T: usize, A: Arithmetic, E: Weight>(
    inputs: Matrix<'_, A::Input>,
    weights: Matrix<'_, E>,
    each: usize,
    out: &mut [f32],
    all: usize,
) {
    let width = weights.width();
    let (count, whole) = (width / PART, width / PART * PART);
    // All as long: nothing is left to check in the loop.
    let mut weight_parts: [&[[E; PART]]; R] = [&[]; R];
    for row in 0..R {
        weight_parts[row] = &weights.row(row * each)[..whole].as_chunks().0[..count];
    }
    let mut input_parts: [&[[A::Input; PART]]; T] = [&[]; T];
    for token in 0..T {
        input_parts[token] = &inputs.row(token)[..whole].as_chunks().0[..count];
    }
    // Whichever factors stay in registers while they meet the others.
    let keeps_weights = (R * T + 1) * size_of::<__m512>() + R * size_of::<A::Factors>() <= REGISTERS;
    // SAFETY: the caller vouches for the instructions; a prefetch has no effect that can be seen, wherever it points.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); T]; R];
        for at in 0..count {
            for row in 0..R {
                // Of the tile after this one.
                let ahead = weight_parts[row][at].as_ptr().wrapping_byte_add(1024);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
            if keeps_weights {
                let mut rows = [A::weights(&weight_parts[0][at]); R];
                for row in 1..R {
                    rows[row] = A::weights(&weight_parts[row][at]);
                }
                for token in 0..T {
                    let input = A::input(&input_parts[token][at]);
                    for row in 0..R {
                        sums[row][token] = A::add(sums[row][token], rows[row], input);
                    }
                }
            } else {
                let mut tokens = [A::input(&input_parts[0][at]); T];
                for token in 1..T {
                    tokens[token] = A::input(&input_parts[token][at]);
                }
                for row in 0..R {
                    let weights = A::weights(&weight_parts[row][at]);
                    for token in 0..T {
                        sums[row][token] = A::add(sums[row][token], weights, tokens[token]);
                    }
                }
            }
        }
        if whole < width {
            for row in 0..R {
                let weights = A::weights(&weights.row(row * each)[whole..]);
                for token in 0..T {
                    let input = A::input(&inputs.row(token)[whole..]);
                    sums[row][token] = A::add(sums[row][token], weights, input);
                }
            }
        }
        // Sixteen at a time, as the sums of all their lanes. They are put into memory here, each by a number that the compiler knows:
        // else it would keep them there in the loop above too.
        let mut all_sums = [[_mm512_setzero_ps(); T]; R];
        for row in 0..R {
            for token in 0..T {
                all_sums[row][token] = sums[row][token];
            }
        }
        let mut number = 0;
        while number < R * T {
            let mut some = [_mm512_setzero_ps(); SUMS];
            for at in 0..SUMS {
                if number + at < R * T {
                    some[at] = all_sums[(number + at) / T][(number + at) % T];
                }
            }
            let mut totals = [0.0_f32; SUMS];
            _mm512_storeu_ps(totals.as_mut_ptr(), sums_of(some));
            for at in 0..SUMS.min(R * T - number) {
                out[(number + at) % T * all + (number + at) / T * each] = totals[at];
            }
            number += SUMS;
        }
    }
}
