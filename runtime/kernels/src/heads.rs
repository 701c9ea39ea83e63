//! Heads of queries, keys and values between their products and the cache: normed, and turned by their positions.

use std::marker::PhantomData;

use crate::norm::inverse_root;
use crate::number::Number;
use crate::threads::{self, Shared};
use crate::vectors::{Lanes, vectorize};

/// Elements that are worth a thread.
const PIECE: usize = 1 << 14;

/// What does not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} of the heads has another length than it should")]
pub struct HeadsError(
    /// Which argument.
    pub &'static str,
);

/// Heads of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a, W> {
    /// `[T, heads * width]`.
    pub x: &'a [W],
    /// The weight of their norm `[width]`, for those that are turned; others have none.
    pub norm: Option<&'a [W]>,
}

/// What pairs `(j, j + width/2)` of each token are turned by, `[T, width/2]` both.
#[derive(Clone, Copy, Debug)]
pub struct Turns<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

/// Each head becomes `x / sqrt(mean(x^2) + eps)`, times the norm's weight and turned where there is one, rounded after either.
/// The sides of a token are neighbours in `out` `[T, all heads * width]`, one after the other.
///
/// # Errors
/// [`HeadsError`] if lengths do not fit together.
pub fn norm_heads<W: Number>(
    sides: &[Side<'_, W>],
    turns: Turns<'_>,
    width: usize,
    eps: f32,
    out: &mut [W],
) -> Result<(), HeadsError> {
    let half = width / 2;
    let tokens = turns.cos.len().checked_div(half).ok_or(HeadsError("a turn"))?;
    if turns.cos.len() != tokens * half || turns.sin.len() != turns.cos.len() || width != 2 * half {
        return Err(HeadsError("a turn"));
    }
    for side in sides {
        if side.norm.is_some_and(|norm| norm.len() != width) {
            return Err(HeadsError("a norm"));
        }
        if !side.x.len().is_multiple_of((tokens * width).max(1)) || tokens == 0 && !side.x.is_empty() {
            return Err(HeadsError("a side"));
        }
    }
    if out.len() != sides.iter().map(|side| side.x.len()).sum::<usize>() {
        return Err(HeadsError("the output"));
    }
    let row = out.len().checked_div(tokens).unwrap_or(0);
    let each = (PIECE / row.max(1)).max(1);
    let out = Shared::new(out);
    threads::share(tokens.div_ceil(each), |piece| {
        let (first, end) = (piece * each, tokens.min((piece + 1) * each));
        // SAFETY: pieces have tokens of their own.
        let out = unsafe { out.part(first * row, (end - first) * row) };
        vectorize(Heads { sides, turns, width, tokens, first, eps, out, element: PhantomData });
    });
    Ok(())
}

/// The tokens of a piece.
struct Heads<'a, W> {
    sides: &'a [Side<'a, W>],
    turns: Turns<'a>,
    width: usize,
    /// All tokens.
    tokens: usize,
    /// The first of the piece.
    first: usize,
    eps: f32,
    out: &'a mut [W],
    element: PhantomData<W>,
}

impl<W: Number> Lanes for Heads<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) {
        let Heads { sides, turns, width, tokens, mut first, eps, mut out, .. } = self;
        let mut wide = vec![0.0_f32; width];
        while !out.is_empty() {
            let turn = first * (width / 2)..(first + 1) * (width / 2);
            for side in sides {
                let row = side.x.len() / tokens;
                let (to, others) = std::mem::take(&mut out).split_at_mut(row);
                out = others;
                let heads = side.x[first * row..(first + 1) * row].chunks_exact(width);
                for (x, to) in heads.zip(to.chunks_exact_mut(width)) {
                    normed::<L, FUSED, W>(x, side.norm, eps, &mut wide);
                    if side.norm.is_some() {
                        turned(&mut wide, &turns.cos[turn.clone()], &turns.sin[turn.clone()]);
                    }
                    to.iter_mut().zip(&wide).for_each(|(to, wide)| *to = W::narrow(*wide));
                }
            }
            first += 1;
        }
    }
}

/// The norm of a head, rounded, in f32.
#[inline(always)]
fn normed<const L: usize, const FUSED: bool, W: Number>(x: &[W], norm: Option<&[W]>, eps: f32, wide: &mut [f32]) {
    wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = x.widen());
    let scale = inverse_root::<L, FUSED>(wide, eps);
    match norm {
        Some(norm) => {
            wide.iter_mut().zip(norm).for_each(|(wide, norm)| *wide = W::narrow(*wide * scale * norm.widen()).widen());
        }
        None => wide.iter_mut().for_each(|wide| *wide = W::narrow(*wide * scale).widen()),
    }
}

/// Turns each pair.
#[inline(always)]
fn turned(wide: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (left, right) = wide.split_at_mut(cos.len());
    for (((left, right), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
        (*left, *right) = (*left * cos - *right * sin, *right * cos + *left * sin);
    }
}
