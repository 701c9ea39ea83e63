//! Root-mean-square norms.

use std::marker::PhantomData;

use crate::number::Number;
use crate::threads::{self, Shared};
use crate::vectors::{Lanes, fma, sum, vectorize};

/// Elements that are worth a thread.
const PIECE: usize = 1 << 15;

/// What does not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a norm over {width} of {inputs} elements does not go with {others} residuals and {outputs} outputs")]
pub struct NormError {
    /// Elements of the input.
    pub inputs: usize,
    /// Elements of what is added; as many as of the input where nothing is.
    pub others: usize,
    /// Elements of the output.
    pub outputs: usize,
    /// Elements of the weight.
    pub width: usize,
}

/// `out = x / sqrt(mean(x^2) + eps) * weight`, rounded, and `residual` added to that if there is one. The mean is over rows of as
/// many elements as there are weights.
///
/// # Errors
/// [`NormError`] if lengths do not fit together.
pub fn rms_norm<W: Number>(
    x: &[W],
    weight: &[W],
    residual: Option<&[W]>,
    eps: f32,
    out: &mut [W],
) -> Result<(), NormError> {
    let (width, others) = (weight.len(), residual.map_or(x.len(), <[W]>::len));
    if width == 0 || !x.len().is_multiple_of(width) || out.len() != x.len() || others != x.len() {
        return Err(NormError { inputs: x.len(), others, outputs: out.len(), width });
    }
    let each = (PIECE / width).max(1) * width;
    let length = x.len();
    let out = Shared::new(out);
    threads::share(length.div_ceil(each), |number| {
        let range = number * each..length.min((number + 1) * each);
        // SAFETY: pieces do not overlap.
        let out = unsafe { out.part(range.start, range.len()) };
        let residual = residual.map(|residual| &residual[range.clone()]);
        vectorize(Norm { x: &x[range], weight, residual, eps, out, element: PhantomData });
    });
    Ok(())
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(crate) fn inverse_root<const L: usize, const FUSED: bool>(x: &[f32], eps: f32) -> f32 {
    let (whole, rest) = x.as_chunks::<L>();
    let mut squares = [0.0_f32; L];
    for part in whole {
        for lane in 0..L {
            squares[lane] = fma::<FUSED>(part[lane], part[lane], squares[lane]);
        }
    }
    let total = sum(squares) + rest.iter().map(|x| x * x).sum::<f32>();
    #[expect(clippy::cast_precision_loss, reason = "widths are far below 2^24")]
    let width = x.len() as f32;
    1.0 / (total / width + eps).sqrt()
}

struct Norm<'a, W> {
    x: &'a [W],
    weight: &'a [W],
    residual: Option<&'a [W]>,
    eps: f32,
    out: &'a mut [W],
    element: PhantomData<W>,
}

impl<W: Number> Lanes for Norm<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        let width = self.weight.len();
        let mut wide = vec![0.0_f32; width];
        for (row, (x, out)) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)).enumerate() {
            wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = x.widen());
            let scale = inverse_root::<L, FUSED>(&wide, self.eps);
            for ((out, wide), weight) in out.iter_mut().zip(&wide).zip(self.weight) {
                *out = W::narrow(wide * scale * weight.widen());
            }
            if let Some(residual) = self.residual {
                for (out, residual) in out.iter_mut().zip(&residual[row * width..]) {
                    *out = W::narrow(out.widen() + residual.widen());
                }
            }
        }
    }
}
