//! Attention with AMX: scores of many keys at a time, read where they lie, and weights in bfloat16.

use std::ops::Range;

use half::bf16;

use super::{AttentionError, Item, Partial, Rows};
use crate::matrix::Matrix;
use crate::number::Number;
use crate::{amx, avx512};

/// Keys at a time, if blocks are not larger: their scores and values stay in the caches.
const KEYS: usize = 256;

impl<Q: Number> Item<'_, Q> {
    /// [`Item::attend`] on a processor with AMX, for keys and values that are exact as bfloat16.
    pub(super) fn attend_in_tiles(&self, range: &Range<usize>) -> Result<Partial, AttentionError> {
        let (of, lowest) = (self.of, self.lowest()?);
        let (width, block) = (of.width, of.part.tokens);
        let rows = self.rows();
        let mut queries = vec![bf16::ZERO; rows * width];
        for (row, to) in queries.chunks_exact_mut(width).enumerate() {
            let from = &of.queries[self.place(row)..][..width];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::narrow(from.widen()));
        }
        // SAFETY: the processor has the instructions.
        let queries = unsafe { amx::Packed::here(&queries, width) };
        let (mut keys, mut values, mut wide) = (Vec::new(), Vec::new(), vec![0.0_f32; 2 * width]);
        let (mut scores, mut scratch) = (Vec::new(), amx::Scratch::default());
        let mut state = Rows::new(rows);
        let mut total = vec![0.0_f32; rows * width];

        let blocks = range.start / block..range.end.div_ceil(block);
        let each = KEYS.div_ceil(block);
        for first in blocks.clone().step_by(each) {
            let last = blocks.end.min(first + each);
            let all = range.start.max(first * block)..range.end.min(last * block);
            // Whole registers.
            let columns = all.len().next_multiple_of(avx512::SUMS);
            scores.clear();
            scores.resize(rows * columns, 0.0_f32);
            // Made where keys and values cannot be read where they lie.
            let is_stored = self.stored::<bf16>(self.page(first)?, all.start..all.start + 1).is_some();
            if !is_stored {
                keys.resize(all.len() * width, bf16::ZERO);
                values.resize(all.len() * width, bf16::ZERO);
                let both = keys.chunks_exact_mut(width).zip(values.chunks_exact_mut(width));
                for ((key, value), position) in both.zip(all.clone()) {
                    self.fetch(self.page(position / block)?, position, key, value, &mut wide)?;
                }
            }
            let mut weighed = Vec::with_capacity(each);
            for number in first..last {
                let seen = all.start.max(number * block)..all.end.min((number + 1) * block);
                let place = seen.start - all.start;
                let (keys, values) = if is_stored {
                    self.stored(self.page(number)?, seen).ok_or(AttentionError("the block table"))?
                } else {
                    let elements = place * width..(place + seen.len()) * width;
                    (Matrix::dense(&keys[elements.clone()], width), Matrix::dense(&values[elements], width))
                };
                let give = |[square]: &mut [amx::Square; 1], first: usize, row: usize| {
                    let (count, scores) = (keys.rows() - first, scores[row * columns..].chunks_mut(columns));
                    for (from, to) in square.rows(rows - row).chunks(amx::BLOCK).zip(scores) {
                        let from = &from[..count.min(amx::BLOCK)];
                        to[place + first..][..from.len()].copy_from_slice(from);
                    }
                };
                // SAFETY: the processor has the instructions.
                unsafe { amx::products(&queries, 0..rows, [amx::Lines::Elements(keys)], give) };
                weighed.push(values);
            }
            self.mask(lowest, &all, &mut scores, columns);
            state.add(&mut scores);
            // SAFETY: as above.
            unsafe { amx::weigh(&scores, &weighed, width, &state.rescale, &mut total, &mut scratch) };
        }
        Ok(Partial { state, total })
    }
}
