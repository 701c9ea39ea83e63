//! Attention over the pages of the KV cache, and writing to them.
//!
//! Softmax is computed while going over the blocks (Milakov and Gimelshein 2018; Dao 2023): nothing is gathered, and a key or
//! value is widened once for all queries of an item that share its head. Only keys that some query of the item sees are read,
//! so that what else is in a page does not matter.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::functions::narrow;
use crate::matrix::Matrix;
use crate::number::Number;
use crate::products::{Few, Many, PANEL, takes_apart};
use crate::softmax::{Rows, weigh};
pub use crate::stored::Stored;
use crate::threads::{self, Shared};
use crate::vectors;

#[cfg(target_arch = "x86_64")]
mod tiles;

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
        let turns = turns.as_ref().map(|(keys, turns)| (keys, turns.as_slice()));
        let out = Shared::new(out);
        let mut works = Vec::new();
        // Later items of a prompt see more keys: what takes longest comes first.
        for item in self.items.iter().rev() {
            for head in 0..self.kv_heads {
                let item = Item { of: self, remade: turns, item: *item, head, out: &out };
                let keys = item.keys()?;
                item.holds(&keys)?;
                works.extend(cut(&keys, item.item[1]).map(|keys| Work { item, keys, done: Mutex::new(None) }));
            }
        }
        let failed = Mutex::new(None);
        threads::share(works.len(), |number| {
            let work = &works[number];
            match work.item.attend(&work.keys) {
                Ok(partial) if work.is_all() => work.item.give(&partial),
                Ok(partial) => *work.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(partial),
                Err(error) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut works = works.into_iter().peekable();
        while let Some(work) = works.next() {
            let taken = |work: Work<'_, Q>| work.done.into_inner().unwrap_or_else(PoisonError::into_inner);
            let item = work.item;
            // Without a result it has been given already.
            let Some(mut whole) = taken(work) else { continue };
            while let Some(part) = works.next_if(|next| next.item.item == item.item && next.item.head == item.head) {
                if let Some(part) = taken(part) {
                    whole.add(&part);
                }
            }
            item.give(&whole);
        }
        Ok(())
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

/// Keys of one part of what a single query sees, in the order of positions: where the parts begin depends on positions alone, and
/// so do the sums.
const PART: usize = 256;

/// Rows from which on turning keys into panels pays.
const PANELS_FROM: usize = 12;

/// Rows from which on tiles pay: fewer would fill a small part of each.
#[cfg(target_arch = "x86_64")]
const TILES_FROM: usize = 16;

/// The parts that the keys of an item are attended to in: a query alone would keep one thread busy for as long as it has keys, and
/// the others idle.
fn cut(keys: &Range<usize>, count: i32) -> impl Iterator<Item = Range<usize>> + use<> {
    let (start, end) = (keys.start, keys.end);
    let each = if count == 1 { PART } else { end.max(1) };
    (start / each..end.div_ceil(each)).map(move |part| start.max(part * each)..end.min((part + 1) * each))
}

/// An item with some of its keys.
struct Work<'a, Q> {
    item: Item<'a, Q>,
    keys: Range<usize>,
    /// What came out, if there is more to come.
    done: Mutex<Option<Partial>>,
}

impl<Q: Number> Work<'_, Q> {
    /// Whether these are all keys of the item.
    fn is_all(&self) -> bool {
        self.item.keys().is_ok_and(|keys| keys == self.keys)
    }
}

/// The attention to some keys.
struct Partial {
    state: Rows,
    /// Sums of values `[rows, width]`, not divided yet.
    total: Vec<f32>,
}

impl Partial {
    fn add(&mut self, other: &Self) {
        self.state.merge(&other.state, &mut self.total, &other.total);
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

impl<Q> Clone for Item<'_, Q> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Q> Copy for Item<'_, Q> {}

impl<Q: Number> Item<'_, Q> {
    /// First row, number of rows and sequence.
    fn fields(&self) -> [usize; 3] {
        self.item.map(|field| usize::try_from(field).unwrap_or(usize::MAX))
    }

    /// Queries of the item that share its head of keys and values.
    fn rows(&self) -> usize {
        let [_, count, _] = self.fields();
        count * self.of.group
    }

    /// Position of the first row.
    fn lowest(&self) -> Result<usize, AttentionError> {
        let [first, ..] = self.fields();
        let lowest = self.of.positions.get(first).and_then(|position| usize::try_from(*position).ok());
        lowest.ok_or(AttentionError("a position"))
    }

    /// Positions that some row sees.
    fn keys(&self) -> Result<Range<usize>, AttentionError> {
        let ([_, count, _], lowest) = (self.fields(), self.lowest()?);
        let end = lowest.checked_add(count).ok_or(AttentionError("a position"))?;
        Ok((lowest + 1).saturating_sub(self.of.window)..end)
    }

    /// The pages of a sequence, and the block that the first of them is.
    fn table(&self, sequence: usize) -> Result<(&[i32], usize), AttentionError> {
        let of = self.of;
        let table = of.block_table.len().checked_div(of.first_block.len()).unwrap_or(0);
        let table = of.block_table.get(sequence.saturating_mul(table)..).and_then(|rest| rest.get(..table));
        let first_block = of.first_block.get(sequence).and_then(|first| usize::try_from(*first).ok());
        table.zip(first_block).ok_or(AttentionError("a sequence"))
    }

    /// Whether the sequence has pages for these positions.
    fn holds(&self, keys: &Range<usize>) -> Result<(), AttentionError> {
        let [.., sequence] = self.fields();
        let (table, first_block) = self.table(sequence)?;
        let end = first_block.saturating_add(table.len()).saturating_mul(self.of.part.tokens);
        if keys.end <= end { Ok(()) } else { Err(AttentionError("the block table")) }
    }

    /// Element of the queries, and of what comes out, at which a row begins.
    fn place(&self, row: usize) -> usize {
        let ([first, ..], Attention { kv_heads, group, width, .. }) = (self.fields(), self.of);
        ((first + row / group) * kv_heads + self.head) * group * width + row % group * width
    }

    fn attend(&self, range: &Range<usize>) -> Result<Partial, AttentionError> {
        #[cfg(target_arch = "x86_64")]
        if vectors::has_amx() && Q::IS_BF16 && self.of.part.stored.is_exact_as_bf16() && self.rows() >= TILES_FROM {
            return self.attend_in_tiles(range);
        }
        // Where products take keys as they lie, nothing is widened that need not be.
        if takes_apart() && self.of.part.stored.is_exact_as_bf16() {
            self.attend_as::<Q>(range)
        } else {
            self.attend_as::<f32>(range)
        }
    }

    /// With queries, keys and values as numbers of type `E`, which holds them exactly.
    fn attend_as<E: Number>(&self, range: &Range<usize>) -> Result<Partial, AttentionError> {
        let (of, lowest) = (self.of, self.lowest()?);
        let (width, block) = (of.width, of.part.tokens);
        let rows = self.rows();
        let mut queries = vec![E::default(); rows * width];
        for (row, to) in queries.chunks_exact_mut(width).enumerate() {
            let from = &of.queries[self.place(row)..][..width];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = E::narrow(from.widen()));
        }
        let (few, many) = if rows < PANELS_FROM {
            (Some(Few::new(&queries, width)), None)
        } else {
            (None, Some(Many::new(&queries, width)))
        };
        let room = block.next_multiple_of(PANEL);
        // Made where keys and values cannot be read where they lie.
        let (mut keys, mut values, mut wide) = (Vec::new(), Vec::new(), Vec::new());
        let mut scores = vec![0.0_f32; room * rows];
        let mut state = Rows::new(rows);
        let mut total = vec![0.0_f32; rows * width];

        for number in range.start / block..range.end.div_ceil(block) {
            let page = self.page(number)?;
            let (from, to) = (range.start.max(number * block), range.end.min((number + 1) * block));
            let seen = to - from;
            self.fetch_ahead(to..range.end.min(to + block));
            // For many rows, keys become panels, whose last columns may be none of a key: those get no weight.
            let columns = if rows < PANELS_FROM { seen } else { seen.next_multiple_of(PANEL) };
            let (keys, values) = if let Some(stored) = self.stored(page, from..to) {
                stored
            } else {
                keys.resize(room * width, E::default());
                values.resize(room * width, E::default());
                wide.resize(2 * width, 0.0);
                let both = keys.chunks_exact_mut(width).zip(values.chunks_exact_mut(width));
                for ((key, value), position) in both.zip(from..to) {
                    self.fetch(page, position, key, value, &mut wide)?;
                }
                (Matrix::dense(&keys[..seen * width], width), Matrix::dense(&values[..seen * width], width))
            };
            let scores = &mut scores[..rows * columns];
            if let Some(queries) = &few {
                queries.products(keys, scores);
            }
            if let Some(queries) = &many {
                queries.products(keys, scores, columns);
            }
            self.mask(lowest, &(from..to), scores, columns);
            state.add(scores);
            weigh(scores, values, &state.rescale, &mut total);
        }
        Ok(Partial { state, total })
    }

    /// The page of a block.
    fn page(&self, block: usize) -> Result<usize, AttentionError> {
        let [.., sequence] = self.fields();
        let (table, first_block) = self.table(sequence)?;
        let page = block.checked_sub(first_block).and_then(|place| table.get(place));
        page.and_then(|page| usize::try_from(*page).ok()).ok_or(AttentionError("the block table"))
    }

    /// Fetches keys and values of some positions of one block while those before are used: pages lie anywhere, so that memory does
    /// not come by itself.
    fn fetch_ahead(&self, positions: Range<usize>) {
        let Item { of, head, .. } = *self;
        let Ok(page) = self.page(positions.start / of.part.tokens) else { return };
        let bytes = of.width * of.part.stored.bytes();
        for position in positions {
            let range = of.part.range(page, position % of.part.tokens).and_then(|range| of.pool.get(range));
            let Some(token) = range else { return };
            vectors::fetch(token, head * bytes, bytes);
            if self.remade.is_none() {
                vectors::fetch(token, (of.kv_heads + head) * bytes, bytes);
            }
        }
    }

    /// Leaves each row the scores `[rows, columns]` of the keys that it sees, of which the first one has the first column.
    fn mask(&self, lowest: usize, keys: &Range<usize>, scores: &mut [f32], columns: usize) {
        for (row, scores) in scores.chunks_exact_mut(columns).enumerate() {
            // This row's keys: those up to its own place, as far as the window reaches back.
            let after = lowest + row / self.of.group + 1;
            let first = after.saturating_sub(self.of.window).clamp(keys.start, keys.end);
            scores[..first - keys.start].fill(f32::NEG_INFINITY);
            scores[after.clamp(keys.start, keys.end) - keys.start..].fill(f32::NEG_INFINITY);
        }
    }

    /// Rounds what all keys have made into the rows that come out.
    fn give(&self, partial: &Partial) {
        let width = self.of.width;
        for (row, total) in partial.total.chunks_exact(width).enumerate() {
            // SAFETY: items have rows of their own, and each head has its own part of a row.
            let out = unsafe { self.out.part(self.place(row), width) };
            let factor = 1.0 / partial.state.sum[row];
            out.iter_mut().zip(total).for_each(|(out, total)| *out = Q::narrow(total * factor));
        }
    }

    /// Keys and values of some positions of a block where they lie, if they are stored as numbers of type `E`.
    fn stored<E: Number>(&self, page: usize, positions: Range<usize>) -> Option<(Matrix<'_, E>, Matrix<'_, E>)> {
        let Item { of, head, .. } = *self;
        if self.remade.is_some() || !of.part.stored.is_same::<E>() || positions.is_empty() {
            return None;
        }
        let place = |position: usize| of.part.range(page, position % of.part.tokens);
        let bytes = of.pool.get(place(positions.start)?.start..place(positions.end - 1)?.end)?;
        let elements: &[E] = bytemuck::try_cast_slice(bytes).ok()?;
        let side = |head: usize| {
            let elements = elements.get(head * of.width..)?;
            Matrix::apart(elements, positions.len(), of.width, of.part.token)
        };
        Some((side(head)?, side(of.kv_heads + head)?))
    }

    /// Reads the key and the value of a position. `wide` has room for both.
    fn fetch<E: Number>(
        &self,
        page: usize,
        position: usize,
        key: &mut [E],
        value: &mut [E],
        wide: &mut [f32],
    ) -> Result<(), AttentionError> {
        let Item { of, head, .. } = *self;
        let stored = of.part.stored;
        let bytes = of.width * stored.bytes();
        let range = of.part.range(page, position % of.part.tokens).and_then(|range| of.pool.get(range));
        let token = range.ok_or(AttentionError("the block table"))?;
        let (wide_key, wide_value) = wide.split_at_mut(of.width);
        if let Some((keys, turns)) = self.remade {
            stored.widen(&token[head * bytes..][..bytes], wide_value);
            let each = keys.frequencies.len();
            let turns = turns.get(position * each..(position + 1) * each);
            keys.key(wide_value, turns.ok_or(AttentionError("a position"))?, wide_key);
            narrow(wide_key, key);
            narrow(wide_value, value);
        } else {
            stored.read(&token[head * bytes..][..bytes], key, wide_key);
            stored.read(&token[(of.kv_heads + head) * bytes..][..bytes], value, wide_value);
        }
        Ok(())
    }
}
