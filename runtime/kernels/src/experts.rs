//! The mixture of experts: each expert's weights are read once for all its rows, and not at all where it has none.

use std::ops::Range;

use crate::functions::{gated, narrow};
use crate::linear::{Inputs, columns};
use crate::number::Number;
use crate::threads::{self, Shared};
use crate::weights::Weights;

/// Lengths that do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} of the experts has another length than it should")]
pub struct ExpertsError(
    /// Which argument.
    pub &'static str,
);

/// What experts make of the rows of a step.
#[derive(Clone, Copy, Debug)]
pub struct Experts<'a, W> {
    /// `[T, H]`.
    pub inputs: &'a [W],
    /// The expert of each pair `[T * k]`; one that does not exist stands for none.
    pub owners: &'a [i32],
    /// What each pair's result is multiplied by `[T * k]`.
    pub shares: &'a [f32],
    /// `[E, 2I, H]`: rows of the gates, then as many of what they let through.
    pub gate_up: Weights<'a, W>,
    /// `[E, H, I]`.
    pub down: Weights<'a, W>,
    /// `H`.
    pub hidden: usize,
    /// `I`.
    pub inner: usize,
    /// `k`.
    pub top_k: usize,
}

/// Rows of one expert, which are neighbours once pairs are sorted.
struct Run {
    expert: usize,
    first: usize,
    count: usize,
}

impl<W: Number> Experts<'_, W> {
    /// `sum over k of share * down(gelu(gate(x)) * up(x))` for each row, `[T, H]`. Everything in between is rounded to the type
    /// of the weights, and the sum once more.
    ///
    /// # Errors
    /// [`ExpertsError`] if the arguments do not fit together.
    pub fn run(&self, out: &mut [W]) -> Result<(), ExpertsError> {
        let Self { hidden, inner, top_k, .. } = *self;
        let tokens = self.inputs.len().checked_div(hidden).ok_or(ExpertsError("the input"))?;
        let each = hidden.checked_mul(inner).filter(|each| *each > 0).ok_or(ExpertsError("a matrix"))?;
        let experts = self.down.len() / each;
        let rows = (self.gate_up.rows(hidden), self.down.rows(inner));
        if rows != (experts.checked_mul(2 * inner), experts.checked_mul(hidden)) {
            return Err(ExpertsError("a matrix"));
        }
        let pairs = self.owners.len();
        if Some(pairs) != tokens.checked_mul(top_k) || self.shares.len() != pairs {
            return Err(ExpertsError("the list of pairs"));
        }
        if self.inputs.len() != tokens * hidden || out.len() != self.inputs.len() {
            return Err(ExpertsError("the input"));
        }
        let (order, runs) = self.sort(experts);

        let mut rows = vec![W::default(); order.len() * hidden];
        for (pair, row) in order.iter().zip(rows.chunks_exact_mut(hidden)) {
            row.copy_from_slice(&self.inputs[pair / top_k * hidden..][..hidden]);
        }
        let inputs = of_runs(&runs, &rows, hidden);
        let mut inners = vec![W::default(); order.len() * inner];
        let shared = Shared::new(&mut inners);
        over(
            &runs,
            inner,
            |run| columns(&self.gate_up, 2, run.count, hidden),
            |number, run, columns| {
                let of = |first: usize| self.gate_up.part(&(first * inner..(first + 1) * inner), hidden);
                let (gates, ups) = (of(2 * run.expert), of(2 * run.expert + 1));
                inputs[number].parts([&gates, &ups], &columns, &(0..run.count), |[gate, up], place| {
                    gated::<W>(gate.values, up.values);
                    for (row, sums) in (run.first + place.token..).zip(gate.of_tokens()) {
                        // SAFETY: each piece has rows and columns of its own.
                        let to = unsafe { shared.part(row * inner + place.column, sums.len()) };
                        narrow(sums, to);
                    }
                });
            },
        );
        let inputs = of_runs(&runs, &inners, inner);
        let mut results = vec![0.0_f32; pairs * hidden];
        let shared = Shared::new(&mut results);
        over(
            &runs,
            hidden,
            |run| columns(&self.down, 1, run.count, inner),
            |number, run, columns| {
                let weights = self.down.part(&(run.expert * hidden..(run.expert + 1) * hidden), inner);
                inputs[number].parts([&weights], &columns, &(0..run.count), |[sums], place| {
                    for (pair, sums) in order[run.first + place.token..].iter().zip(sums.of_tokens()) {
                        // SAFETY: a pair has one expert, and each piece has columns of its own.
                        let to = unsafe { shared.part(pair * hidden + place.column, sums.len()) };
                        to.iter_mut().zip(sums).for_each(|(to, sum)| *to = W::narrow(*sum).widen());
                    }
                });
            },
        );
        let shared = Shared::new(out);
        let piece = (1_usize << 14).div_ceil(hidden * top_k.max(1));
        threads::share(tokens.div_ceil(piece), |number| {
            let mut sum = vec![0.0_f32; hidden];
            for token in number * piece..tokens.min((number + 1) * piece) {
                sum.fill(0.0);
                for pair in token * top_k..(token + 1) * top_k {
                    let (share, result) = (self.shares[pair], &results[pair * hidden..][..hidden]);
                    sum.iter_mut().zip(result).for_each(|(sum, result)| *sum += share * result);
                }
                // SAFETY: each piece has tokens of its own.
                let out = unsafe { shared.part(token * hidden, hidden) };
                out.iter_mut().zip(&sum).for_each(|(out, sum)| *out = W::narrow(*sum));
            }
        });
        Ok(())
    }

    /// Pairs that have an expert, sorted by it, and the experts that have pairs.
    fn sort(&self, experts: usize) -> (Vec<usize>, Vec<Run>) {
        let owner = |pair: usize| usize::try_from(self.owners[pair]).ok().filter(|owner| *owner < experts);
        let mut order: Vec<(usize, usize)> =
            (0..self.owners.len()).filter_map(|pair| Some((owner(pair)?, pair))).collect();
        order.sort_unstable();
        let mut runs: Vec<Run> = Vec::new();
        for (place, (expert, _)) in order.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if run.expert == *expert => run.count += 1,
                _ => runs.push(Run { expert: *expert, first: place, count: 1 }),
            }
        }
        (order.into_iter().map(|(_, pair)| pair).collect(), runs)
    }
}

/// The rows of each run as inputs.
fn of_runs<'a, W: Number>(runs: &[Run], rows: &'a [W], width: usize) -> Vec<Inputs<'a, W>> {
    runs.iter().map(|run| Inputs::new(&rows[run.first * width..][..run.count * width], width)).collect()
}

/// `piece(number of the run, run, columns)` for all runs and columns, on all threads.
fn over(runs: &[Run], width: usize, each: impl Fn(&Run) -> usize, piece: impl Fn(usize, &Run, Range<usize>) + Sync) {
    let pieces: Vec<(usize, &Run, Range<usize>)> = runs
        .iter()
        .enumerate()
        .flat_map(|(number, run)| {
            let each = each(run);
            (0..width).step_by(each).map(move |first| (number, run, first..width.min(first + each)))
        })
        .collect();
    threads::share(pieces.len(), |place| {
        let (number, run, columns) = &pieces[place];
        piece(*number, run, columns.clone());
    });
}
