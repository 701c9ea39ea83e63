//! Products of some rows on one thread: rows of the input are brought into the form that this processor wants, once for as many matrices
//! as they meet.

use std::marker::PhantomData;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use half::bf16;

use crate::blocked::Blocked;
use crate::dot::Dots;
use crate::matrix::Matrix;
#[cfg(target_arch = "x86_64")]
use crate::number::Kind;
use crate::number::{Number, Weight};
use crate::threads::{self, Shared};
#[cfg(target_arch = "x86_64")]
use crate::vectors;
use crate::vectors::vectorize;
#[cfg(target_arch = "x86_64")]
use crate::{
    avx2,
    avx512::{self, Pairs, Singles},
    int8::in_bf16,
    panels,
};

/// Elements between widened rows: one line of memory, and some more.
const LINE: usize = 32;

/// Rows that [`spread`] has widened, for weights of their own type.
pub(crate) struct Wide {
    values: Vec<f32>,
    width: usize,
    /// Distance of neighbouring rows.
    stride: usize,
}

impl Wide {
    /// Rows of `width` elements, on all threads if they are worth it.
    pub(crate) fn new<W: Number>(rows: &[W], width: usize) -> Self {
        // Rows that lie a power of two apart would push each other out of the caches.
        let stride = if takes_apart() { width + LINE } else { width };
        let count = rows.len().checked_div(width).unwrap_or(0);
        let mut values = vec![0.0; count * stride];
        // Whole rows, about as many elements as are worth a thread.
        let each = ((1 << 15) / width.max(1)).max(1);
        let shared = Shared::new(&mut values);
        threads::share(count.div_ceil(each), |piece| {
            for row in piece * each..count.min((piece + 1) * each) {
                // SAFETY: pieces have rows of their own.
                spread(&rows[row * width..][..width], unsafe { shared.part(row * stride, width) });
            }
        });
        Wide { values, width, stride }
    }

    /// Some of them.
    pub(crate) fn part(&self, rows: &Range<usize>) -> Matrix<'_, f32> {
        let values = self.values.get(rows.start * self.stride..).unwrap_or_default();
        Matrix::apart(values, rows.len(), self.width, self.stride).unwrap_or(Matrix::dense(&[], self.width))
    }
}

/// Widens a row into the order in which [`few_of`] takes it for weights of its own type.
pub(crate) fn spread<W: Number>(from: &[W], to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx512() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::spread(from, to) };
    }
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx2() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx2::spread(from, to) };
    }
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
}

/// Columns of a panel of weights: the sums of so many neighbours are written at a time.
pub(crate) const PANEL: usize = 16;

/// Whether products of few rows take inputs as they are.
pub(crate) fn takes_narrow<W: Number>() -> bool {
    #[cfg(target_arch = "x86_64")]
    return W::IS_BF16 && vectors::has_avx512_bf16();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether products take rows of a matrix that lie apart as they are, rather than a copy of them.
pub(crate) fn takes_apart() -> bool {
    #[cfg(target_arch = "x86_64")]
    return vectors::has_avx512();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A few rows of the input of products with weights of the same type on one thread.
pub(crate) enum Few<'a, X> {
    /// As they are.
    Plain(Matrix<'a, X>),
    /// Widened.
    Wide(Wide),
}

impl<'a, X: Number> Few<'a, X> {
    /// Rows of `width` elements.
    pub(crate) fn new(rows: &'a [X], width: usize) -> Self {
        if takes_narrow::<X>() || !X::IS_BF16 {
            return Few::Plain(Matrix::dense(rows, width));
        }
        Few::Wide(Wide::new(rows, width))
    }

    /// `out[token][row] = weights[row] . inputs[token]`.
    pub(crate) fn products(&self, weights: Matrix<'_, X>, out: &mut [f32]) {
        match self {
            Few::Plain(rows) => few_of::<X, X, X>(*rows, weights, out),
            Few::Wide(wide) => few_of::<X, f32, X>(wide.part(&(0..wide.values.len() / wide.stride)), weights, out),
        }
    }
}

/// `out[token][row] = weights[row] . inputs[token]`, with inputs for elements of `W`, and weights that may be integers. Inputs that are
/// not of that type are f32, as [`spread`] has set them.
pub(crate) fn few_of<W: Number, X: Number, E: Weight>(inputs: Matrix<'_, X>, weights: Matrix<'_, E>, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(inputs) = inputs.map(X::as_bf16)
        && vectors::has_avx512_bf16()
        && E::KIND != Kind::F32
    {
        // SAFETY: the processor has the instructions.
        unsafe {
            if inputs.rows() == 1 {
                return avx512::dots::<Pairs, E>(inputs, weights, out, weights.rows());
            }
            let all = weights.rows();
            in_bf16(weights, inputs.rows(), |first, weights| {
                avx512::dots::<Pairs, bf16>(inputs, weights, &mut out[first..], all);
            });
        }
        return;
    }
    let Some(inputs) = inputs.map(X::as_f32) else {
        let wide = Wide::new(&inputs.values(), inputs.width());
        return few_of::<X, f32, E>(wide.part(&(0..inputs.rows())), weights, out);
    };
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx512() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::dots::<Singles<W>, E>(inputs, weights, out, weights.rows()) };
    }
    let (inputs, weights, width) = (&*inputs.values(), &*weights.values(), weights.width());
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx2() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx2::dots::<W, E>(inputs, weights, width, out) };
    }
    vectorize(Dots { inputs, weights, width, out });
}

/// Rows of the input of products of many rows with weights of `E` on one thread.
pub(crate) struct Many<'a, X, E> {
    rows: ManyRows<'a, X>,
    weights: PhantomData<E>,
}

enum ManyRows<'a, X> {
    /// As they are.
    Plain(&'a [X]),
    /// As panels.
    #[cfg(target_arch = "x86_64")]
    Panels(panels::Packed),
}

impl<'a, X: Number, E: Weight> Many<'a, X, E> {
    /// Rows of `width` elements.
    pub(crate) fn new(inputs: &'a [X], width: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if vectors::has_avx512() {
            // SAFETY: the processor has the instructions.
            let rows = ManyRows::Panels(unsafe { panels::Packed::here(inputs, width, E::KIND == Kind::F32) });
            return Many { rows, weights: PhantomData };
        }
        let _ = width;
        Many { rows: ManyRows::Plain(inputs), weights: PhantomData }
    }

    /// `out[token][row] = weights[row] . inputs[token]` with rows of `out` `stride` apart, a multiple of [`PANEL`].
    pub(crate) fn products(&self, weights: Matrix<'_, E>, out: &mut [f32], stride: usize) {
        let inputs = match &self.rows {
            ManyRows::Plain(inputs) => inputs,
            #[cfg(target_arch = "x86_64")]
            ManyRows::Panels(inputs) => {
                // SAFETY: who has panels may use the instructions.
                return unsafe { panels::products(inputs, 0..inputs.rows(), weights, out, stride) };
            }
        };
        let (weights, width) = (&*weights.values(), weights.width());
        #[cfg(target_arch = "x86_64")]
        if vectors::has_avx2() {
            // SAFETY: the processor has the instructions.
            return unsafe { avx2::blocked(inputs, weights, width, out, stride) };
        }
        vectorize(Blocked { inputs, weights, width, out, stride });
    }
}
