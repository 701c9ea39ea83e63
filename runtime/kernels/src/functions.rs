//! Functions of lanes of f32.

use std::marker::PhantomData;

#[cfg(target_arch = "x86_64")]
use crate::avx512;
use crate::number::Number;
#[cfg(target_arch = "x86_64")]
use crate::vectors;
use crate::vectors::{Lanes, fma, vectorize};

/// Below this, `e^x` is not a normal number: it counts as 0.
pub(crate) const LEAST: f32 = -87.3;
/// Above this, `e^x` is taken for that of this.
pub(crate) const MOST: f32 = 88.3;
/// Adding and subtracting it rounds to an integer: 1.5 * 2^23.
pub(crate) const ROUND: f32 = 12_582_912.0;
/// Minus ln 2, in two parts of which the first has few digits, so that its products with small integers are exact.
pub(crate) const LN_2: [f32; 2] = [-0.693_359_4, 2.121_944_4e-4];
/// Of the polynomial for `(e^r - r - 1) / r^2`, the highest power first.
pub(crate) const FACTORS: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `e^x` within two units in the last place; 0 below -87.3, and never more than `e^88.3`. NaN stays NaN.
///
/// `x = n ln 2 + r` with `r` in two parts of ln 2 (Cody and Waite), then the polynomial of Cephes' `expf` for `e^r`.
#[inline(always)]
pub(crate) fn exp<const L: usize, const FUSED: bool>(x: [f32; L]) -> [f32; L] {
    let mut out = [0.0; L];
    for lane in 0..L {
        let value = x[lane];
        let bounded = if value > MOST { MOST } else { value };
        let bounded = if bounded < LEAST { LEAST } else { bounded };
        let rounded = fma::<FUSED>(bounded, std::f32::consts::LOG2_E, ROUND);
        let n = rounded - ROUND;
        let r = fma::<FUSED>(n, LN_2[0], bounded);
        let r = fma::<FUSED>(n, LN_2[1], r);
        let mut p = FACTORS[0];
        for factor in &FACTORS[1..] {
            p = fma::<FUSED>(p, r, *factor);
        }
        let power = fma::<FUSED>(p * r, r, r) + 1.0;
        // `n` lies between -126 and 127, and the last bits of `rounded` are those of `n`, since those of `ROUND` are 0. A
        // conversion to integers would have to look for NaN, one lane after the other; with NaN the power stays NaN.
        let scaled = power * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
        out[lane] = if value < LEAST { 0.0 } else { scaled };
    }
    out
}

/// `2 * sqrt(2/pi)`.
pub(crate) const TWICE_ROOT: f32 = 1.595_769;
/// Of the third power.
pub(crate) const CUBE: f32 = 0.044_715;

/// The tanh form of GELU: `x/2 * (1 + tanh(y))` with `y = sqrt(2/pi) * (x + 0.044715 x^3)`, which is `x / (1 + e^-2y)`.
#[inline(always)]
pub(crate) fn gelu<const L: usize, const FUSED: bool>(x: [f32; L]) -> [f32; L] {
    let mut inner = [0.0; L];
    for lane in 0..L {
        let value = x[lane];
        inner[lane] = -TWICE_ROOT * fma::<FUSED>(CUBE * value * value, value, value);
    }
    let powers = exp::<L, FUSED>(inner);
    let mut out = [0.0; L];
    for lane in 0..L {
        out[lane] = x[lane] / (1.0 + powers[lane]);
    }
    out
}

/// `x = cap * tanh(x / cap)`.
pub(crate) fn softcap(values: &mut [f32], cap: f32) {
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx512() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::run(avx512::SoftCap { values, cap }) };
    }
    vectorize(SoftCap { values, cap });
}

struct SoftCap<'a> {
    values: &'a mut [f32],
    cap: f32,
}

impl Lanes for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        let SoftCap { values, cap } = self;
        for part in values.chunks_mut(L) {
            let mut twice = [0.0_f32; L];
            twice.iter_mut().zip(&*part).for_each(|(twice, value)| *twice = 2.0 * (value / cap));
            let powers = exp::<L, FUSED>(twice);
            for (value, power) in part.iter_mut().zip(powers) {
                *value = cap * (1.0 - 2.0 / (power + 1.0));
            }
        }
    }
}

/// Rounds each number. Those below the least normal one may become 0.
pub(crate) fn narrow<W: Number>(from: &[f32], to: &mut [W]) {
    #[cfg(target_arch = "x86_64")]
    if vectors::has_avx512()
        && let Some(to) = W::as_bf16_mut(to)
    {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::run(avx512::Narrow { from, to }) };
    }
    vectorize(Narrow { from, to });
}

/// Rounds the first `width` numbers of `count` rows that are `stride` apart, each into what `to` gives for it.
pub(crate) fn narrow_rows<'a, W: Number>(
    from: &[f32],
    stride: usize,
    width: usize,
    count: usize,
    to: impl Fn(usize) -> &'a mut [W],
) {
    #[cfg(target_arch = "x86_64")]
    if W::IS_BF16 && vectors::has_avx512() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::run(avx512::NarrowRows { from, stride, width, count, to, element: PhantomData }) };
    }
    for row in 0..count {
        narrow(&from[row * stride..][..width], to(row));
    }
}

struct Narrow<'a, W> {
    from: &'a [f32],
    to: &'a mut [W],
}

impl<W: Number> Lanes for Narrow<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        self.to.iter_mut().zip(self.from).for_each(|(to, from)| *to = W::narrow(*from));
    }
}

/// `gate = gelu(gate) * up`, rounded after each step to elements of type `W`.
pub(crate) fn gated<W: Number>(gate: &mut [f32], up: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if W::IS_BF16 && vectors::has_avx512() {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::run(avx512::Gated { gate, up }) };
    }
    vectorize(Gate::<W>::new(gate, up));
}

pub(crate) struct Gate<'a, W> {
    gate: &'a mut [f32],
    up: &'a [f32],
    element: PhantomData<W>,
}

impl<'a, W> Gate<'a, W> {
    pub(crate) fn new(gate: &'a mut [f32], up: &'a [f32]) -> Self {
        Gate { gate, up, element: PhantomData }
    }
}

impl<W: Number> Lanes for Gate<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        for (gate, up) in self.gate.chunks_mut(L).zip(self.up.chunks(L)) {
            let mut lanes = [0.0_f32; L];
            lanes.iter_mut().zip(&*gate).for_each(|(lane, gate)| *lane = W::narrow(*gate).widen());
            let bent = gelu::<L, FUSED>(lanes);
            for ((gate, bent), up) in gate.iter_mut().zip(bent).zip(up) {
                let product = W::narrow(bent).widen() * W::narrow(*up).widen();
                *gate = W::narrow(product).widen();
            }
        }
    }
}
