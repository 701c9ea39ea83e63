//! Functions of lanes of f32, and rounding.

use std::arch::x86_64::{
    __m512, _CMP_NLT_UQ, _mm256_mask_storeu_epi16, _mm512_add_epi32, _mm512_add_ps, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_div_ps, _mm512_fmadd_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_slli_epi32, _mm512_sub_ps,
};
use std::marker::PhantomData;

use half::bf16;

use super::{Arithmetic, Kernel, SUMS, of_bf16};
use crate::functions::{CUBE, FACTORS, LEAST, LN_2, MOST, ROUND, TWICE_ROOT};
use crate::number::Number;

/// Which of the sixteen elements from `at` on are among the first `length`; `None` if none is. Loops ask for it rather than take
/// chunks, whose iterators the compiler leaves as calls in functions for certain instructions.
#[inline(always)]
pub(super) fn left(length: usize, at: usize) -> Option<u16> {
    match length.checked_sub(at) {
        None | Some(0) => None,
        Some(left) if left < SUMS => Some((1 << left) - 1),
        Some(_) => Some(u16::MAX),
    }
}

/// Rounded to bfloat16.
#[inline(always)]
unsafe fn rounded<A: Arithmetic>(wide: __m512) -> __m512 {
    // SAFETY: the caller vouches for the instructions.
    unsafe { of_bf16(A::round(wide)) }
}

/// `gate = gelu(gate) * up`, rounded to bfloat16 after each step.
pub(crate) struct Gated<'a> {
    pub(crate) gate: &'a mut [f32],
    pub(crate) up: &'a [f32],
}

impl<A: Arithmetic> Kernel<A> for Gated<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let mut at = 0;
        while let Some(mask) = left(self.gate.len().min(self.up.len()), at) {
            let (gate, up) = (&mut self.gate[at..], &self.up[at..]);
            // SAFETY: only elements of the mask are read and written, which are there; the caller vouches for the instructions.
            unsafe {
                let (x, up) = (_mm512_maskz_loadu_ps(mask, gate.as_ptr()), _mm512_maskz_loadu_ps(mask, up.as_ptr()));
                let product = _mm512_mul_ps(rounded::<A>(gelu(rounded::<A>(x))), rounded::<A>(up));
                _mm512_mask_storeu_ps(gate.as_mut_ptr(), mask, rounded::<A>(product));
            }
            at += SUMS;
        }
    }
}

/// [`crate::functions::softcap`].
pub(crate) struct SoftCap<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) cap: f32,
}

impl<A: Arithmetic> Kernel<A> for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let SoftCap { values, cap } = self;
        let mut at = 0;
        while let Some(mask) = left(values.len(), at) {
            let values = &mut values[at..];
            // SAFETY: only elements of the mask are read and written, which are there; the caller vouches for the instructions.
            unsafe {
                let (cap, one) = (_mm512_set1_ps(cap), _mm512_set1_ps(1.0));
                let part = _mm512_div_ps(_mm512_maskz_loadu_ps(mask, values.as_ptr()), cap);
                let power = exp(_mm512_add_ps(part, part));
                let rest = _mm512_div_ps(_mm512_set1_ps(2.0), _mm512_add_ps(power, one));
                _mm512_mask_storeu_ps(values.as_mut_ptr(), mask, _mm512_mul_ps(cap, _mm512_sub_ps(one, rest)));
            }
            at += SUMS;
        }
    }
}

/// [`crate::functions::gelu`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn gelu(x: __m512) -> __m512 {
    let cube = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(CUBE), x), x);
    let inner = _mm512_mul_ps(_mm512_set1_ps(-TWICE_ROOT), _mm512_fmadd_ps(cube, x, x));
    _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0), exp(inner)))
}

/// [`crate::functions::narrow`].
pub(crate) struct Narrow<'a> {
    pub(crate) from: &'a [f32],
    pub(crate) to: &'a mut [bf16],
}

impl<A: Arithmetic> Kernel<A> for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let mut at = 0;
        while let Some(mask) = left(self.from.len().min(self.to.len()), at) {
            let (from, to) = (&self.from[at..], &mut self.to[at..]);
            // SAFETY: only elements of the mask are read and written, which are there; the caller vouches for the instructions.
            unsafe {
                let narrow = A::round(_mm512_maskz_loadu_ps(mask, from.as_ptr()));
                _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), mask, narrow);
            }
            at += SUMS;
        }
    }
}

/// [`crate::functions::narrow_rows`].
pub(crate) struct NarrowRows<'a, W, F> {
    pub(crate) from: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) width: usize,
    pub(crate) count: usize,
    pub(crate) to: F,
    pub(crate) element: PhantomData<W>,
}

impl<'a, A: Arithmetic, W: Number, F: Fn(usize) -> &'a mut [W]> Kernel<A> for NarrowRows<'_, W, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        for row in 0..self.count {
            let from = &self.from[row * self.stride..][..self.width];
            let Some(to) = W::as_bf16_mut((self.to)(row)) else { return };
            // SAFETY: the caller vouches for the instructions.
            unsafe { Kernel::<A>::run(Narrow { from, to }) };
        }
    }
}

/// [`crate::functions::exp`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn exp(x: __m512) -> __m512 {
    let bounded = _mm512_max_ps(_mm512_set1_ps(LEAST), _mm512_min_ps(_mm512_set1_ps(MOST), x));
    let rounded = _mm512_fmadd_ps(bounded, _mm512_set1_ps(std::f32::consts::LOG2_E), _mm512_set1_ps(ROUND));
    let n = _mm512_sub_ps(rounded, _mm512_set1_ps(ROUND));
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(LN_2[0]), bounded);
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(LN_2[1]), r);
    let mut p = _mm512_set1_ps(FACTORS[0]);
    for factor in &FACTORS[1..] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*factor));
    }
    let power = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r), _mm512_set1_ps(1.0));
    let exponent = _mm512_add_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(127));
    let scaled = _mm512_mul_ps(power, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)));
    // Not below the least: also NaN.
    _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(LEAST)), scaled)
}
