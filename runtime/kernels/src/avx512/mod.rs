//! What kernels for AVX-512 share, and how they multiply.
//!
//! Invariant: a kernel is one text for all processors with AVX-512 ([`Kernel`]); what differs is its [`Arithmetic`]: bfloat16 with the
//! instructions for it ([`Pairs`]), or f32 ([`Singles`]), into which everything is widened in registers. All of a kernel is
//! `#[inline(always)]`, since only then it is compiled for the instructions of the arithmetic that it runs with.

mod dots;
mod functions;
mod softmax;

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, _mm_loadu_si128, _mm_maskz_loadu_epi8, _mm256_loadu_si256,
    _mm256_maskz_loadu_epi16, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_broadcast_i64x4,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmpunord_ps_mask, _mm512_cvtepi8_epi16, _mm512_cvtepi8_epi32,
    _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_mask_mov_epi32, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps,
    _mm512_or_si512, _mm512_permutex2var_epi16, _mm512_permutex2var_ps, _mm512_permutexvar_epi16,
    _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_setr_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_f32x4, _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_srai_epi32, _mm512_srli_epi32,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpackhi_ps, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    _mm512_unpacklo_ps,
};
use std::marker::PhantomData;

use half::bf16;

pub(crate) use self::dots::dots;
pub(crate) use self::functions::{Gated, Narrow, NarrowRows, SoftCap};
pub(crate) use self::softmax::{weigh, weights_of};
use crate::number::{Kind, Number, Weight};
use crate::vectors;

/// Elements that are multiplied at a time.
pub(crate) const PART: usize = 32;
/// Lanes of a register of sums.
pub(crate) const SUMS: usize = 16;

/// How numbers are multiplied.
///
/// Every function needs a processor with the instructions of the arithmetic; none needs anything else.
pub(crate) trait Arithmetic: Sized {
    /// Elements of the rows that weights meet.
    type Input: Number;
    /// Neighbours, 32 of them, as they are multiplied. Where there are fewer, the others are 0.
    type Factors: Copy;
    /// How many elements one lane of a product of [`Self::units`] multiplies.
    const UNIT: usize;

    /// The first 32 elements of an input.
    unsafe fn input(from: &[Self::Input]) -> Self::Factors;

    /// The first 32 of weights.
    unsafe fn weights<E: Weight>(from: &[E]) -> Self::Factors;

    /// The sum and products of all elements, in no certain order.
    unsafe fn add(sum: __m512, left: Self::Factors, right: Self::Factors) -> __m512;

    /// The first elements of a row, as many as sixteen units have, in their order. Elements that are not there are 0.
    unsafe fn units<E: Weight>(from: &[E]) -> __m512i;

    /// `sum + left * right` of the units of each lane.
    unsafe fn add_units(sum: __m512, left: __m512i, right: __m512i) -> __m512;

    /// Rounded to bfloat16.
    unsafe fn round(wide: __m512) -> __m256i;

    /// The table in which [`Self::look_up`] finds sixteen numbers, which bfloat16 holds.
    unsafe fn table(numbers: __m512) -> __m512i;

    /// The numbers in the table at the places that the last four bits of 32 words say.
    unsafe fn look_up(table: __m512i, words: __m512i) -> Self::Factors;

    /// Runs a kernel with this arithmetic.
    unsafe fn run<K: Kernel<Self>>(kernel: K) -> K::Output;
}

/// Something to compute with an arithmetic.
pub(crate) trait Kernel<A> {
    /// What comes out.
    type Output;

    /// Computes it. Implementations are `#[inline(always)]`.
    unsafe fn run(self) -> Self::Output;
}

/// Runs a kernel that every arithmetic has, with the best one that there is.
///
/// # Safety
/// The processor has AVX-512.
pub(crate) unsafe fn run<O, K>(kernel: K) -> O
where
    K: Kernel<Pairs, Output = O> + Kernel<Singles<f32>, Output = O>,
{
    // SAFETY: the caller vouches for AVX-512.
    unsafe { if vectors::has_avx512_bf16() { Pairs::run(kernel) } else { Singles::<f32>::run(kernel) } }
}

/// Pairs of bfloat16, with the instruction that multiplies 32 of them and adds neighbours to sixteen sums of f32. It rounds each sum
/// to the nearest, and takes numbers below the least normal one for 0. No weights are f32.
pub(crate) struct Pairs;

impl Arithmetic for Pairs {
    type Input = bf16;
    type Factors = __m512i;
    const UNIT: usize = 2;

    #[inline(always)]
    unsafe fn input(from: &[bf16]) -> __m512i {
        // SAFETY: the caller vouches for the instructions.
        unsafe { load_some(from) }
    }

    #[inline(always)]
    unsafe fn weights<E: Weight>(from: &[E]) -> __m512i {
        let from = &from[..from.len().min(PART)];
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            if let Some(from) = E::as_bf16(from) {
                load_some(from)
            } else if let Some(from) = E::as_int8(from) {
                // A part that is whole needs no masks.
                if let Some(whole) = from.first_chunk::<PART>() {
                    return upper_halves(whole_int8(whole.as_ptr()), whole_int8(whole.as_ptr().add(SUMS)));
                }
                let (low, high) = from.split_at(from.len().min(SUMS));
                upper_halves(widened(low), widened(high))
            } else {
                _mm512_setzero_si512()
            }
        }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512, left: __m512i, right: __m512i) -> __m512 {
        // SAFETY: the caller vouches for the instructions; all these are 64 bytes, of which every value is one.
        unsafe {
            let left = std::mem::transmute::<__m512i, __m512bh>(left);
            _mm512_dpbf16_ps(sum, left, std::mem::transmute::<__m512i, __m512bh>(right))
        }
    }

    #[inline(always)]
    unsafe fn units<E: Weight>(from: &[E]) -> __m512i {
        // SAFETY: the caller vouches for the instructions.
        unsafe { Self::weights(from) }
    }

    #[inline(always)]
    unsafe fn add_units(sum: __m512, left: __m512i, right: __m512i) -> __m512 {
        // SAFETY: the caller vouches for the instructions.
        unsafe { Self::add(sum, left, right) }
    }

    #[inline(always)]
    unsafe fn round(wide: __m512) -> __m256i {
        // SAFETY: the caller vouches for the instructions; both are 32 bytes, of which every value is one.
        unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(wide)) }
    }

    #[inline(always)]
    unsafe fn table(numbers: __m512) -> __m512i {
        // The instruction that looks up reads five bits: each number is there once for each value of the fifth.
        // SAFETY: the caller vouches for the instructions.
        unsafe { _mm512_broadcast_i64x4(Self::round(numbers)) }
    }

    #[inline(always)]
    unsafe fn look_up(table: __m512i, words: __m512i) -> __m512i {
        // SAFETY: the caller vouches for the instructions.
        unsafe { _mm512_permutexvar_epi16(words, table) }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn run<K: Kernel<Self>>(kernel: K) -> K::Output {
        // SAFETY: this is compiled for the instructions, which the caller vouches for.
        unsafe { kernel.run() }
    }
}

/// Numbers of f32. Of 32 elements of bfloat16 an instruction makes sixteen f32 where they are all even or all odd ones; so that is the
/// order of factors where inputs come from `W = bf16`, and [`spread`] has brought inputs into it. Else it is that of memory, as for
/// what is fewer than 32.
pub(crate) struct Singles<W>(PhantomData<W>);

impl<W: Number> Arithmetic for Singles<W> {
    type Input = f32;
    type Factors = [__m512; 2];
    const UNIT: usize = 1;

    #[inline(always)]
    unsafe fn input(from: &[f32]) -> [__m512; 2] {
        // SAFETY: the caller vouches for the instructions.
        unsafe { in_order(from) }
    }

    #[inline(always)]
    unsafe fn weights<E: Weight>(from: &[E]) -> [__m512; 2] {
        let Some(from) = from.first_chunk::<PART>().filter(|_| W::IS_BF16) else {
            // SAFETY: the caller vouches for the instructions.
            return unsafe { in_order(from) };
        };
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            if let Some(from) = E::as_bf16(from) {
                let all = load_some(from);
                let odd = _mm512_and_si512(all, _mm512_set1_epi32(-0x1_0000));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(all)), _mm512_castsi512_ps(odd)]
            } else if let Some(from) = E::as_int8(from) {
                let all = _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.as_ptr().cast()));
                let even = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(all));
                [_mm512_cvtepi32_ps(even), _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(all))]
            } else {
                let [low, high] = in_order(from.as_slice());
                let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
                [_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)]
            }
        }
    }

    #[inline(always)]
    unsafe fn add(sum: __m512, left: [__m512; 2], right: [__m512; 2]) -> __m512 {
        // SAFETY: the caller vouches for the instructions.
        unsafe { _mm512_fmadd_ps(left[1], right[1], _mm512_fmadd_ps(left[0], right[0], sum)) }
    }

    #[inline(always)]
    unsafe fn units<E: Weight>(from: &[E]) -> __m512i {
        // SAFETY: the caller vouches for the instructions.
        unsafe { _mm512_castps_si512(widened(&from[..from.len().min(SUMS)])) }
    }

    #[inline(always)]
    unsafe fn add_units(sum: __m512, left: __m512i, right: __m512i) -> __m512 {
        // SAFETY: the caller vouches for the instructions.
        unsafe { _mm512_fmadd_ps(_mm512_castsi512_ps(left), _mm512_castsi512_ps(right), sum) }
    }

    #[inline(always)]
    unsafe fn round(wide: __m512) -> __m256i {
        // As [`Number::narrow`] does it.
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let bits = _mm512_castps_si512(wide);
            let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let kept = _mm512_mask_mov_epi32(rounded, _mm512_cmpunord_ps_mask(wide, wide), nan);
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept))
        }
    }

    #[inline(always)]
    unsafe fn table(numbers: __m512) -> __m512i {
        // SAFETY: the caller vouches for the instructions.
        unsafe { _mm512_castps_si512(numbers) }
    }

    #[inline(always)]
    unsafe fn look_up(table: __m512i, words: __m512i) -> [__m512; 2] {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let table = _mm512_castsi512_ps(table);
            [_mm512_permutexvar_ps(words, table), _mm512_permutexvar_ps(_mm512_srli_epi32::<16>(words), table)]
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn run<K: Kernel<Self>>(kernel: K) -> K::Output {
        // SAFETY: this is compiled for the instructions, which the caller vouches for.
        unsafe { kernel.run() }
    }
}

/// Widens a row into the order in which [`Singles`] has factors: of every 32 elements the even ones in front of the odd ones, where
/// they are bfloat16. What is left at the end of a row stays.
///
/// # Safety
/// The processor has AVX-512.
pub(crate) unsafe fn spread<W: Number>(from: &[W], to: &mut [f32]) {
    // SAFETY: the caller vouches for it.
    unsafe { Singles::<W>::run(Spread { from, to }) }
}

struct Spread<'a, W> {
    from: &'a [W],
    to: &'a mut [f32],
}

impl<W: Number> Kernel<Singles<W>> for Spread<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Spread { from, to } = self;
        let count = from.len().min(to.len()) / PART;
        let (parts, wide) = (&from.as_chunks::<PART>().0[..count], &mut to.as_chunks_mut::<PART>().0[..count]);
        for at in 0..count {
            // SAFETY: the caller vouches for the instructions; both are 128 bytes.
            wide[at] = unsafe { std::mem::transmute::<[__m512; 2], [f32; PART]>(Singles::<W>::weights(&parts[at])) };
        }
        for at in count * PART..from.len().min(to.len()) {
            to[at] = from[at].widen();
        }
    }
}

/// Up to 32 elements, and 0 in place of those that are missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn load_some(from: &[bf16]) -> __m512i {
    if let Some(whole) = from.first_chunk::<PART>() {
        // SAFETY: 64 bytes.
        return unsafe { _mm512_loadu_si512(whole.as_ptr().cast()) };
    }
    let mask = (1_u32 << from.len()) - 1;
    // SAFETY: only elements of the mask are read, which are there.
    unsafe { _mm512_maskz_loadu_epi16(mask, from.as_ptr().cast()) }
}

/// The first 32 elements as f32 in their order, and 0 in place of those that are missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn in_order<E: Weight>(from: &[E]) -> [__m512; 2] {
    let (low, high) = from.split_at(from.len().min(SUMS));
    [widened(low), widened(&high[..high.len().min(SUMS)])]
}

/// Up to sixteen elements as f32, and 0 in place of those that are missing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn widened<E: Weight>(from: &[E]) -> __m512 {
    let mask = if from.len() < SUMS { (1 << from.len()) - 1 } else { u16::MAX };
    // SAFETY: elements of the mask are there.
    unsafe { of_mask(from.as_ptr(), mask) }
}

/// Sixteen elements as f32, and 0 in place of those that are not in the mask.
///
/// # Safety
/// Elements of the mask are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn of_mask<E: Weight>(from: *const E, mask: u16) -> __m512 {
    // SAFETY: only elements of the mask are read, which the caller vouches for; they are of the kind that they say.
    unsafe {
        match E::KIND {
            Kind::F32 => _mm512_maskz_loadu_ps(mask, from.cast()),
            Kind::Bf16 => of_bf16(_mm256_maskz_loadu_epi16(mask, from.cast())),
            Kind::Int8 => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, from.cast()))),
        }
    }
}

/// Sixteen integers as f32.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn whole_int8(from: *const i8) -> __m512 {
    // SAFETY: the caller vouches for it.
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(from.cast()) }))
}

/// Sixteen bfloat16 as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn of_bf16(narrow: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
}

/// The upper halves of two registers of f32.
static HALVES: [u16; 2 * SUMS] = {
    let mut halves = [0; 2 * SUMS];
    let mut at = 0;
    while at < 2 * SUMS {
        halves[at] = 2 * at as u16 + 1;
        at += 1;
    }
    halves
};

/// The upper halves of 32 f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn upper_halves(low: __m512, high: __m512) -> __m512i {
    // SAFETY: 64 bytes.
    let halves = unsafe { _mm512_loadu_si512(HALVES.as_ptr().cast()) };
    _mm512_permutex2var_epi16(_mm512_castps_si512(low), halves, _mm512_castps_si512(high))
}

/// The sum of all lanes of each register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn sums_of(lanes: [__m512; SUMS]) -> __m512 {
    // Two registers become one with half the lanes of either, four times over. Pairs first, within quarters.
    let mut pairs = [_mm512_setzero_ps(); 8];
    for (at, pair) in pairs.iter_mut().enumerate() {
        let (left, right) = (lanes[at], lanes[at + 8]);
        *pair = _mm512_add_ps(_mm512_unpacklo_ps(left, right), _mm512_unpackhi_ps(left, right));
    }
    let mut fours = [_mm512_setzero_ps(); 4];
    for (at, four) in fours.iter_mut().enumerate() {
        let (left, right) = (pairs[at], pairs[at + 4]);
        *four = _mm512_add_ps(_mm512_unpacklo_ps(left, right), _mm512_unpackhi_ps(left, right));
    }
    // Each quarter of `fours[at]` now holds the sums of a quarter of the registers `at`, `at + 4`, `at + 8` and `at + 12`.
    let mut eights = [_mm512_setzero_ps(); 2];
    for (at, eight) in eights.iter_mut().enumerate() {
        let (left, right) = (fours[at], fours[at + 2]);
        let (low, high) = (_mm512_shuffle_f32x4::<0x88>(left, right), _mm512_shuffle_f32x4::<0xdd>(left, right));
        *eight = _mm512_add_ps(low, high);
    }
    let [left, right] = eights;
    let (low, high) = (_mm512_shuffle_f32x4::<0x88>(left, right), _mm512_shuffle_f32x4::<0xdd>(left, right));
    let mixed = _mm512_add_ps(low, high);
    // Quarters begin with the registers 0, 2, 1 and 3, and within a quarter every fourth follows.
    let order = _mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
    _mm512_permutexvar_ps(order, mixed)
}

/// Rows of sixteen pairs become columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn turn(rows: [__m512i; SUMS]) -> [__m512i; SUMS] {
    let mut twos = [_mm512_setzero_si512(); SUMS];
    for at in (0..SUMS).step_by(2) {
        twos[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
        twos[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
    }
    // Within quarters: columns 0, 1, 2 and 3 of each quarter, of four rows.
    let mut fours = [_mm512_setzero_si512(); SUMS];
    for at in (0..SUMS).step_by(4) {
        fours[at] = _mm512_unpacklo_epi64(twos[at], twos[at + 2]);
        fours[at + 1] = _mm512_unpackhi_epi64(twos[at], twos[at + 2]);
        fours[at + 2] = _mm512_unpacklo_epi64(twos[at + 1], twos[at + 3]);
        fours[at + 3] = _mm512_unpackhi_epi64(twos[at + 1], twos[at + 3]);
    }
    let mut columns = [_mm512_setzero_si512(); SUMS];
    for at in 0..4 {
        let [a, b, c, d] = [fours[at], fours[at + 4], fours[at + 8], fours[at + 12]];
        // Quarters 0 and 2, then 1 and 3, of eight rows.
        let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (evens, odds) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        columns[at] = _mm512_shuffle_i32x4::<0x88>(even, evens);
        columns[at + 4] = _mm512_shuffle_i32x4::<0x88>(odd, odds);
        columns[at + 8] = _mm512_shuffle_i32x4::<0xdd>(even, evens);
        columns[at + 12] = _mm512_shuffle_i32x4::<0xdd>(odd, odds);
    }
    columns
}

/// Multiplies and adds what lies in registers, so many times over. Gives how many operations that were.
pub(crate) struct Multiply(pub(crate) usize);

impl<A: Arithmetic> Kernel<A> for Multiply {
    type Output = f64;

    #[inline(always)]
    unsafe fn run(self) -> f64 {
        /// Sums that grow side by side.
        const SIDE: usize = 24;
        let Multiply(rounds) = self;
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let factor = _mm512_set1_epi32(std::hint::black_box(0x3f00_3f00));
            let mut sums = [_mm512_setzero_ps(); SIDE];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = A::add_units(*sum, factor, factor);
                }
            }
            std::hint::black_box(sums);
        }
        (2 * rounds * SIDE * SUMS * A::UNIT) as f64
    }
}
