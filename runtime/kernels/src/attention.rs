//! Attention over the pages of the KV cache, and writing to them.
//!
//! Softmax is computed while going over the blocks (Milakov and Gimelshein 2018; Dao 2023): nothing is gathered, and a key or
//! value is widened once for all queries of an item that share its head. Only keys that some query of the item sees are read,
//! so that what else is in a page does not matter.

use std::sync::Mutex;

use crate::dot::dots;
use crate::functions::exp;
use crate::number::Number;
use crate::threads::{self, Shared};
use crate::vectors::{Lanes, fma, vectorize};

/// Element type of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// 32 bits.
    F32,
    /// The upper half of f32.
    Bf16,
    /// IEEE's 16 bits.
    F16,
    /// 8 bits, of which 3 behind the point; no infinity.
    F8E4m3fn,
    /// 8 bits, of which 2 behind the point.
    F8E5m2,
}

impl Stored {
    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::F8E4m3fn | Self::F8E5m2 => 1,
        }
    }

    /// Widens a row.
    #[inline(always)]
    fn widen(self, from: &[u8], to: &mut [f32]) {
        let narrow = |mantissa: i32, bias: i32, none: u8| {
            move |byte: u8| {
                let (sign, rest) = (f32::from_bits(0x3f80_0000 | (u32::from(byte & 0x80) << 24)), byte & 0x7f);
                let (exponent, fraction) = (i32::from(rest) >> mantissa, i32::from(rest) & ((1 << mantissa) - 1));
                let (whole, exponent) = if exponent == 0 { (0, 1) } else { (1 << mantissa, exponent) };
                let power = f32::from_bits((exponent - bias - mantissa + 127).cast_unsigned() << 23);
                #[expect(clippy::cast_precision_loss, reason = "below 16")]
                let number = (whole + fraction) as f32 * power;
                // Infinity of e5m2 counts as none: such a cache holds clamped numbers only.
                if rest >= none { f32::NAN } else { sign * number }
            }
        };
        match self {
            Self::F32 => to.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| *to = f32::from_le_bytes(*from)),
            Self::Bf16 => to.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| {
                *to = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
            }),
            Self::F16 => to.iter_mut().zip(from.as_chunks().0).for_each(|(to, from)| {
                *to = half::f16::from_le_bytes(*from).to_f32();
            }),
            Self::F8E4m3fn => to.iter_mut().zip(from).for_each(|(to, from)| *to = narrow(3, 7, 0x7f)(*from)),
            Self::F8E5m2 => to.iter_mut().zip(from).for_each(|(to, from)| *to = narrow(2, 15, 0x7c)(*from)),
        }
    }
}

/// What does not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} points outside of what there is, or has another length than it should")]
pub struct AttentionError(
    /// Which argument.
    pub &'static str,
);

/// Where a layer's keys and values lie in the pool: in each page from element `start` on, `tokens` times the keys of all heads
/// and then their values, or their values alone.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Element type.
    pub stored: Stored,
    /// Elements of a page.
    pub page: usize,
    /// First element of the layer within a page.
    pub start: usize,
    /// Tokens of a block.
    pub tokens: usize,
    /// Elements of what is stored of a token.
    pub token: usize,
}

impl Part {
    /// Bytes of what is stored of a token.
    fn range(&self, page: usize, token: usize) -> Option<std::ops::Range<usize>> {
        if token >= self.tokens {
            return None;
        }
        let within = self.start.checked_add(token.checked_mul(self.token)?)?;
        if within.checked_add(self.token)? > self.page {
            return None;
        }
        let first = page.checked_mul(self.page)?.checked_add(within)?.checked_mul(self.stored.bytes())?;
        Some(first..first.checked_add(self.token.checked_mul(self.stored.bytes())?)?)
    }
}

/// Writes tokens to their slots `[T, 2]`, page and token of the block. Slots of pages that do not exist drop theirs.
///
/// # Errors
/// [`AttentionError`] if the lengths do not fit together.
pub fn write(pool: &mut [u8], part: &Part, slots: &[i32], tokens: &[u8]) -> Result<(), AttentionError> {
    let bytes = part.token * part.stored.bytes();
    if bytes == 0 || tokens.len() != slots.len() / 2 * bytes {
        return Err(AttentionError("the slots"));
    }
    for (slot, token) in slots.as_chunks::<2>().0.iter().zip(tokens.chunks_exact(bytes)) {
        let [Ok(page), Ok(place)] = slot.map(usize::try_from) else { continue };
        if let Some(to) = part.range(page, place).and_then(|range| pool.get_mut(range)) {
            to.copy_from_slice(token);
        }
    }
    Ok(())
}

/// Attention of the queries of a step.
#[derive(Debug)]
pub struct Attention<'a, Q> {
    /// `[T, heads, width]`.
    pub queries: &'a [Q],
    /// The pages.
    pub pool: &'a [u8],
    /// Where the layer's keys and values lie in them.
    pub part: Part,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub width: usize,
    /// Query heads of a head of keys and values.
    pub group: usize,
    /// Places of the tokens in their sequences `[T]`.
    pub positions: &'a [i32],
    /// First row, number of rows and sequence of each item, in the order of the rows.
    pub items: &'a [[i32; 3]],
    /// Pages of each sequence, `[S, B]`.
    pub block_table: &'a [i32],
    /// The first block of each sequence's table `[S]`.
    pub first_block: &'a [i32],
    /// How many tokens a query sees, itself included.
    pub window: usize,
    /// How keys are made, where values are stored alone.
    pub remade: Option<Remade<'a, Q>>,
}

/// Keys that are values times a weight, with pairs `(j, j + width/2)` turned by the token's position times a frequency.
#[derive(Clone, Copy, Debug)]
pub struct Remade<'a, Q> {
    /// `[width]`.
    pub norm: &'a [Q],
    /// Radians for each token that the first pairs are turned by `[<= width/2]`; the others are not.
    pub frequencies: &'a [f32],
}

/// Cosine and sine of an angle.
type Turn = (f32, f32);

impl<Q: Number> Remade<'_, Q> {
    /// Cosine and sine of each frequency at the positions below `end`, `[end, frequencies]`.
    fn turns(&self, end: usize) -> Vec<Turn> {
        /// Positions of a piece.
        const PIECE: usize = 64;
        let each = self.frequencies.len();
        let mut turns = vec![(1.0, 0.0); end * each];
        let shared = Shared::new(&mut turns);
        threads::share(end.div_ceil(PIECE), |piece| {
            let positions = piece * PIECE..end.min((piece + 1) * PIECE);
            // SAFETY: pieces have positions of their own.
            let part = unsafe { shared.part(positions.start * each, positions.len() * each) };
            for (position, turns) in positions.zip(part.chunks_exact_mut(each.max(1))) {
                for (frequency, turn) in self.frequencies.iter().zip(turns) {
                    // In f32, as the angles of the queries are.
                    #[expect(clippy::cast_precision_loss, reason = "positions are below 2^24 in any model")]
                    let (sin, cos) = (position as f32 * frequency).sin_cos();
                    *turn = (cos, sin);
                }
            }
        });
        turns
    }

    /// The key of a value, rounded as a key that is stored would be.
    fn key(&self, value: &[f32], turns: &[Turn], key: &mut [f32]) {
        for ((key, value), norm) in key.iter_mut().zip(value).zip(self.norm) {
            *key = value * norm.widen();
        }
        let (left, right) = key.split_at_mut(value.len() / 2);
        for ((left, right), (cos, sin)) in left.iter_mut().zip(right).zip(turns) {
            (*left, *right) = (*left * cos - *right * sin, *right * cos + *left * sin);
        }
        key.iter_mut().for_each(|key| *key = Q::narrow(*key).widen());
    }
}

impl<Q: Number> Attention<'_, Q> {
    /// The weighted values `[T, heads, width]`; rows of no item become 0.
    ///
    /// # Errors
    /// [`AttentionError`] if the arguments do not fit together.
    pub fn run(&self, out: &mut [Q]) -> Result<(), AttentionError> {
        let row = self.kv_heads * self.group * self.width;
        let sides = if self.remade.is_some() { 1 } else { 2 };
        if self.remade.is_some_and(|keys| keys.norm.len() != self.width || keys.frequencies.len() > self.width / 2) {
            return Err(AttentionError("the keys' norm"));
        }
        if row == 0 || self.part.tokens == 0 || self.part.token != sides * self.kv_heads * self.width {
            return Err(AttentionError("the part of a page"));
        }
        if self.queries.len() != out.len() || self.queries.len() != self.positions.len() * row {
            return Err(AttentionError("the queries"));
        }
        let mut covered = 0;
        for item in self.items {
            let [first, count, _] = item.map(|field| usize::try_from(field).unwrap_or(usize::MAX));
            let end =
                first.checked_add(count).filter(|end| count > 0 && first >= covered && *end <= self.positions.len());
            covered = end.ok_or(AttentionError("an item"))?;
        }
        out.fill(Q::default());
        let turns = self.remade.map(|keys| (keys, keys.turns(self.end())));
        let failed = Mutex::new(None);
        let shared = Shared::new(out);
        threads::share(self.items.len() * self.kv_heads, |number| {
            // Later items of a prompt see more keys: what takes longest comes first.
            let item = self.items[self.items.len() - 1 - number / self.kv_heads];
            let done = vectorize(Item {
                of: self,
                remade: turns.as_ref().map(|(keys, turns)| (keys, turns.as_slice())),
                item,
                head: number % self.kv_heads,
                out: &shared,
            });
            if let Err(error) = done
                && let Ok(mut failed) = failed.lock()
            {
                *failed = Some(error);
            }
        });
        failed.into_inner().ok().flatten().map_or(Ok(()), Err)
    }

    /// One more than the largest position of an item.
    fn end(&self) -> usize {
        let last = |item: &[i32; 3]| usize::try_from(item[0] + item[1] - 1).ok();
        let position = |row: usize| self.positions.get(row).and_then(|position| usize::try_from(*position).ok());
        let end = self.items.iter().filter_map(last).filter_map(position).max().map_or(0, |position| position + 1);
        // No more keys are looked at than tables have blocks for.
        let blocks = self.block_table.len().checked_div(self.first_block.len()).unwrap_or(0);
        end.min(blocks.saturating_mul(self.part.tokens))
    }
}

/// One item with one head of keys and values.
struct Item<'a, Q> {
    of: &'a Attention<'a, Q>,
    /// How keys are made, with the turns of all positions.
    remade: Option<(&'a Remade<'a, Q>, &'a [Turn])>,
    item: [i32; 3],
    head: usize,
    out: &'a Shared<'a, Q>,
}

impl<Q: Number> Lanes for Item<'_, Q> {
    type Output = Result<(), AttentionError>;

    #[inline(always)]
    fn run<const L: usize, const FUSED: bool>(self) -> Result<(), AttentionError> {
        let Item { of, remade, item, head, out } = self;
        let (width, group, block) = (of.width, of.group, of.part.tokens);
        let [first, count, sequence] = item.map(|field| usize::try_from(field).unwrap_or(usize::MAX));
        let lowest = of.positions.get(first).and_then(|position| usize::try_from(*position).ok());
        let lowest = lowest.ok_or(AttentionError("a position"))?;
        let end = lowest.checked_add(count).ok_or(AttentionError("a position"))?;
        let begin = (lowest + 1).saturating_sub(of.window);
        let table = of.block_table.len().checked_div(of.first_block.len()).unwrap_or(0);
        let table = of.block_table.get(sequence.saturating_mul(table)..).and_then(|rest| rest.get(..table));
        let first_block = of.first_block.get(sequence).and_then(|first| usize::try_from(*first).ok());
        let (table, first_block) = table.zip(first_block).ok_or(AttentionError("a sequence"))?;

        let rows = count * group;
        let place = |row: usize| ((first + row / group) * of.kv_heads + head) * group * width + row % group * width;
        let mut queries = vec![0.0_f32; rows * width];
        for (row, to) in queries.chunks_exact_mut(width).enumerate() {
            let from = &of.queries[place(row)..][..width];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
        }
        let (mut keys, mut values) = (vec![0.0_f32; block * width], vec![0.0_f32; block * width]);
        let mut scores = vec![0.0_f32; block * rows];
        let (mut most, mut sum) = (vec![f32::NEG_INFINITY; rows], vec![0.0_f32; rows]);
        let (mut rescale, mut total) = (vec![0.0_f32; rows], vec![0.0_f32; rows * width]);

        for number in begin / block..=(end - 1) / block {
            let page = number.checked_sub(first_block).and_then(|place| table.get(place));
            let page = page.and_then(|page| usize::try_from(*page).ok()).ok_or(AttentionError("the block table"))?;
            let (from, to) = (begin.max(number * block), end.min((number + 1) * block));
            let seen = to - from;
            let bytes = width * of.part.stored.bytes();
            for ((key, value), position) in
                keys.chunks_exact_mut(width).zip(values.chunks_exact_mut(width)).zip(from..).take(seen)
            {
                let range = of.part.range(page, position % block).and_then(|range| of.pool.get(range));
                let stored = range.ok_or(AttentionError("the block table"))?;
                match remade {
                    Some((keys, turns)) => {
                        of.part.stored.widen(&stored[head * bytes..][..bytes], value);
                        let each = keys.frequencies.len();
                        let turns = turns.get(position * each..(position + 1) * each);
                        keys.key(value, turns.ok_or(AttentionError("a position"))?, key);
                    }
                    None => {
                        of.part.stored.widen(&stored[head * bytes..][..bytes], key);
                        of.part.stored.widen(&stored[(of.kv_heads + head) * bytes..][..bytes], value);
                    }
                }
            }
            let scores = &mut scores[..seen * rows];
            dots::<L, FUSED, f32>(&queries, &keys[..seen * width], width, scores);
            for (key, scores) in (from..to).zip(scores.chunks_exact_mut(rows)) {
                for (token, scores) in scores.chunks_exact_mut(group).enumerate() {
                    if key > lowest + token || key.saturating_add(of.window) <= lowest + token {
                        scores.fill(f32::NEG_INFINITY);
                    }
                }
            }
            softmax::<L, FUSED>(scores, &mut most, &mut sum, &mut rescale);
            weigh::<L, FUSED>(scores, &values[..seen * width], width, &rescale, &mut total);
        }
        for (row, total) in total.chunks_exact(width).enumerate() {
            // SAFETY: items have rows of their own, and each head has its own part of a row.
            let out = unsafe { out.part(place(row), width) };
            let factor = 1.0 / sum[row];
            out.iter_mut().zip(total).for_each(|(out, total)| *out = Q::narrow(total * factor));
        }
        Ok(())
    }
}

/// Turns scores `[keys, rows]` into weights, relative to the largest score of each row so far; `rescale` is what weights of
/// earlier blocks have to be multiplied by.
#[inline(always)]
fn softmax<const L: usize, const FUSED: bool>(
    scores: &mut [f32],
    most: &mut [f32],
    sum: &mut [f32],
    rescale: &mut [f32],
) {
    let rows = most.len();
    let whole = rows / L * L;
    let mut first = 0;
    while first < rows {
        // The last rows may be fewer than lanes.
        let count = if first < whole { L } else { rows - first };
        let load = |from: &[f32], else_: f32| -> [f32; L] {
            std::array::from_fn(|lane| if lane < count { from[first + lane] } else { else_ })
        };
        let old = load(most, 0.0);
        let mut new = old;
        for scores in scores.chunks_exact(rows) {
            let scores = load(scores, 0.0);
            for lane in 0..L {
                new[lane] = if scores[lane] > new[lane] { scores[lane] } else { new[lane] };
            }
        }
        // A row that has seen no key yet stays without weights.
        let shift: [f32; L] = std::array::from_fn(|lane| if new[lane] == f32::NEG_INFINITY { 0.0 } else { new[lane] });
        let factor = exp::<L, FUSED>(std::array::from_fn(|lane| old[lane] - shift[lane]));
        let mut added = [0.0_f32; L];
        for scores in scores.chunks_exact_mut(rows) {
            let weights = load(scores, f32::NEG_INFINITY);
            let weights = exp::<L, FUSED>(std::array::from_fn(|lane| weights[lane] - shift[lane]));
            for lane in 0..L {
                added[lane] += weights[lane];
            }
            scores[first..first + count].copy_from_slice(&weights[..count]);
        }
        for lane in 0..count {
            most[first + lane] = new[lane];
            rescale[first + lane] = factor[lane];
            sum[first + lane] = fma::<FUSED>(sum[first + lane], factor[lane], added[lane]);
        }
        first += count;
    }
}

/// `total[row] = total[row] * rescale[row] + sum over keys of weights[key][row] * values[key]`.
#[inline(always)]
fn weigh<const L: usize, const FUSED: bool>(
    weights: &[f32],
    values: &[f32],
    width: usize,
    rescale: &[f32],
    total: &mut [f32],
) {
    let rows = rescale.len();
    let mut row = 0;
    while row < rows {
        row += match rows - row {
            1 => weigh_rows::<L, FUSED, 1>(weights, values, width, rescale, total, row),
            2 | 3 => weigh_rows::<L, FUSED, 2>(weights, values, width, rescale, total, row),
            _ => weigh_rows::<L, FUSED, 4>(weights, values, width, rescale, total, row),
        };
    }
}

/// [`weigh`] for `R` rows from `row` on. Returns `R`.
#[inline(always)]
fn weigh_rows<const L: usize, const FUSED: bool, const R: usize>(
    weights: &[f32],
    values: &[f32],
    width: usize,
    rescale: &[f32],
    total: &mut [f32],
    row: usize,
) -> usize {
    let rows = rescale.len();
    let whole = width / L * L;
    let mut first = 0;
    while first < whole {
        let mut sums: [[f32; L]; R] = std::array::from_fn(|at| {
            let from = &total[(row + at) * width + first..][..L];
            std::array::from_fn(|lane| from[lane] * rescale[row + at])
        });
        for (weights, values) in weights.chunks_exact(rows).zip(values.chunks_exact(width)) {
            let values: &[f32] = &values[first..][..L];
            let weights: &[f32] = &weights[row..][..R];
            for at in 0..R {
                for lane in 0..L {
                    sums[at][lane] = fma::<FUSED>(weights[at], values[lane], sums[at][lane]);
                }
            }
        }
        for at in 0..R {
            total[(row + at) * width + first..][..L].copy_from_slice(&sums[at]);
        }
        first += L;
    }
    for at in row..row + R {
        for column in whole..width {
            let mut sum = total[at * width + column] * rescale[at];
            for (weights, values) in weights.chunks_exact(rows).zip(values.chunks_exact(width)) {
                sum += weights[at] * values[column];
            }
            total[at * width + column] = sum;
        }
    }
    R
}
