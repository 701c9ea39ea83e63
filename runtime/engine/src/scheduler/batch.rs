//! The inputs of a step.
//!
//! Invariant: what a batch holds has the shapes of [`gemma4_model::graph::StepInput`] for the batch's [`StepShape`], and rows
//! that are not real write nowhere.

use std::ops::Range;

use gemma4_model::AttentionKind;
use gemma4_model::graph::StepInput;

use super::options::StepShape;
use super::request::{RequestId, Sequence};
use crate::pool::{PoolOptions, SequenceBlocks};

/// A place of a table that no item visits; no page has this number, so a wrong visit shows.
const NO_PAGE: i32 = -1;

/// Inputs for the layers of one attention kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindInputs {
    /// `[T, 2]`: page and token within the block.
    pub slots: Vec<i32>,
    /// `[S, B]`: pages of each sequence.
    pub block_table: Vec<i32>,
    /// `[S]`: number of the first block of each table.
    pub first_block: Vec<i32>,
}

/// What a step computes of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The request.
    pub request: RequestId,
    /// Its token rows.
    pub rows: Range<usize>,
    /// Tokens of the prompt whose logprobs are wanted: the rows of logits right before [`Self::logits`] are the distributions
    /// that they come from, one for each, in their order.
    pub scored: Vec<u32>,
    /// The rows of logits that tokens are sampled from, in the order of its tokens: none while a prompt goes on in the next
    /// step.
    pub logits: Range<usize>,
    /// Tokens of the sequence that are certain: where the token sampled from the first row of logits stands.
    pub end: usize,
    /// Tokens that may follow, computed in the last rows. Row `n + 1` of logits counts only if the token sampled from row `n`
    /// is token `n` of the draft.
    pub draft: Vec<u32>,
}

impl Part {
    /// The rows of logits of [`Self::scored`].
    #[must_use]
    pub fn scored_rows(&self) -> Range<usize> {
        self.logits.start.saturating_sub(self.scored.len())..self.logits.start
    }
}

/// A request that begins to run with a step, for the first time or again after a preemption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// The request.
    pub request: RequestId,
    /// Tokens of its prefix that prefix caching found.
    pub cached_tokens: usize,
}

/// A step that is ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    step: u64,
    shape: StepShape,
    token_ids: Vec<i32>,
    positions: Vec<i32>,
    num_tokens: [i32; 1],
    items: Vec<i32>,
    num_items: [i32; 1],
    logit_rows: Vec<i32>,
    num_logit_rows: [i32; 1],
    logit_items: Vec<i32>,
    num_logit_items: [i32; 1],
    sliding: KindInputs,
    full: KindInputs,
    parts: Vec<Part>,
    started: Vec<Started>,
}

impl Batch {
    /// Number of the step, from 0.
    #[must_use]
    pub const fn step(&self) -> u64 {
        self.step
    }

    /// The compiled step that it is for.
    #[must_use]
    pub const fn shape(&self) -> &StepShape {
        &self.shape
    }

    /// What is computed of which sequence. The index of a part is its sequence's place in tables and items.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Which of them begin to run with this step.
    #[must_use]
    pub fn started(&self) -> &[Started] {
        &self.started
    }

    /// Token rows that are real.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.parts.last().map_or(0, |part| part.rows.end)
    }

    /// Rows of logits that are real.
    #[must_use]
    pub fn logits(&self) -> usize {
        self.parts.last().map_or(0, |part| part.logits.end)
    }

    /// The values of an input, in row-major order; a scalar is one value.
    #[must_use]
    pub fn input(&self, input: StepInput) -> &[i32] {
        match input {
            StepInput::TokenIds => &self.token_ids,
            StepInput::Positions => &self.positions,
            StepInput::NumTokens => &self.num_tokens,
            StepInput::Items => &self.items,
            StepInput::NumItems => &self.num_items,
            StepInput::LogitRows => &self.logit_rows,
            StepInput::NumLogitRows => &self.num_logit_rows,
            StepInput::LogitItems => &self.logit_items,
            StepInput::NumLogitItems => &self.num_logit_items,
            StepInput::Slots(kind) => &self.kind(kind).slots,
            StepInput::BlockTable(kind) => &self.kind(kind).block_table,
            StepInput::FirstBlock(kind) => &self.kind(kind).first_block,
        }
    }

    const fn kind(&self, kind: AttentionKind) -> &KindInputs {
        match kind {
            AttentionKind::Full => &self.full,
            AttentionKind::Sliding => &self.sliding,
        }
    }

    pub(super) fn new(
        step: u64,
        shape: StepShape,
        pool: &PoolOptions,
        pieces: &[Piece<'_>],
        started: Vec<Started>,
    ) -> Self {
        let mut batch = Self {
            step,
            shape,
            token_ids: Vec::with_capacity(shape.tokens),
            positions: Vec::with_capacity(shape.tokens),
            num_tokens: [0],
            items: Vec::with_capacity(shape.items * 3),
            num_items: [0],
            logit_rows: Vec::with_capacity(shape.rows),
            logit_items: Vec::with_capacity(shape.rows * 3),
            num_logit_rows: [0],
            num_logit_items: [0],
            sliding: KindInputs::new(shape, AttentionKind::Sliding, pool, pieces),
            full: KindInputs::new(shape, AttentionKind::Full, pool, pieces),
            parts: Vec::with_capacity(pieces.len()),
            started,
        };
        for (place, piece) in pieces.iter().enumerate() {
            batch.add(place, piece);
        }
        batch.num_tokens = [s32(batch.token_ids.len())];
        batch.num_items = [s32(batch.items.len() / 3)];
        batch.num_logit_rows = [s32(batch.logit_rows.len())];
        batch.num_logit_items = [s32(batch.logit_items.len() / 3)];
        batch.token_ids.resize(shape.tokens, 0);
        batch.positions.resize(shape.tokens, 0);
        batch.items.resize(shape.items * 3, 0);
        batch.logit_rows.resize(shape.rows, 0);
        batch.logit_items.resize(shape.rows * 3, 0);
        batch
    }

    fn add(&mut self, place: usize, piece: &Piece<'_>) {
        let first = self.token_ids.len();
        let range = piece.range();
        let (count, end) = (range.len(), range.start + piece.count);
        let tokens = piece.sequence.tokens.get(range.start..end).unwrap_or_default();
        self.token_ids.extend(tokens.iter().chain(piece.draft).map(|token| token.cast_signed()));
        self.positions.extend(range.map(s32));
        items(&mut self.items, first..first + count, self.shape.query_tile, place);
        let logits = self.logit_rows.len();
        // Those of a prompt end where the one begins that a token is sampled from: so they lie side by side, as the rows of a
        // draft do.
        let scored = piece.scored();
        let start = piece.blocks.written();
        self.logit_rows.extend(scored.clone().map(|position| s32(first + (position - start))));
        if piece.is_last() {
            self.logit_rows.extend((piece.count - 1..count).map(|row| s32(first + row)));
        }
        items(&mut self.logit_items, logits..self.logit_rows.len(), self.shape.query_tile, place);
        // Each is the distribution of the token behind it.
        let scored = piece.sequence.tokens.get(scored.start + 1..scored.end + 1).unwrap_or_default().to_vec();
        self.parts.push(Part {
            request: piece.sequence.id,
            rows: first..first + count,
            logits: logits + scored.len()..self.logit_rows.len(),
            scored,
            end,
            draft: piece.draft.to_vec(),
        });
    }
}

/// Adds items of at most `tile` rows for these rows of the sequence at `place`.
fn items(to: &mut Vec<i32>, rows: Range<usize>, tile: usize, place: usize) {
    for start in rows.clone().step_by(tile.max(1)) {
        to.extend([s32(start), s32(tile.min(rows.end - start)), s32(place)]);
    }
}

/// The tokens of a sequence that a step computes.
pub(super) struct Piece<'a> {
    pub(super) sequence: &'a Sequence,
    pub(super) blocks: &'a SequenceBlocks,
    pub(super) count: usize,
    /// What may follow the sequence's last token; only with it.
    pub(super) draft: &'a [u32],
}

impl Piece<'_> {
    /// Their places in the sequence, those of the draft included.
    fn range(&self) -> Range<usize> {
        let start = self.blocks.written();
        start..start + self.tokens()
    }

    /// Token rows.
    pub(super) const fn tokens(&self) -> usize {
        self.count + self.draft.len()
    }

    /// Rows of logits.
    pub(super) fn rows(&self) -> usize {
        self.scored().len() + if self.is_last() { 1 + self.draft.len() } else { 0 }
    }

    /// Places in the sequence whose logits give logprobs of its prompt.
    fn scored(&self) -> Range<usize> {
        let start = self.blocks.written();
        self.sequence.scored(start..start + self.count)
    }

    /// Whether the sequence's last token is among them, so that the next one can be sampled.
    fn is_last(&self) -> bool {
        self.blocks.written() + self.count == self.sequence.tokens.len()
    }
}

impl KindInputs {
    fn new(shape: StepShape, kind: AttentionKind, pool: &PoolOptions, pieces: &[Piece<'_>]) -> Self {
        let (block, width) = (pool.block(kind), shape.table(kind));
        let mut inputs = Self::default();
        if block == 0 {
            return inputs;
        }
        // A page that does not exist drops what is written to it.
        let nowhere = s32(pool.pages);
        for piece in pieces {
            for position in piece.range() {
                let page = piece.blocks.page(kind, position / block);
                inputs.slots.extend([page.map_or(nowhere, s32), s32(position % block)]);
            }
            let end = inputs.block_table.len() + width;
            inputs.block_table.extend(piece.blocks.pages(kind).take(width).map(s32));
            inputs.block_table.resize(end, NO_PAGE);
            inputs.first_block.push(s32(piece.blocks.first_block(kind)));
        }
        while inputs.slots.len() < shape.tokens * 2 {
            inputs.slots.extend([nowhere, 0]);
        }
        inputs.block_table.resize(shape.sequences * width, NO_PAGE);
        inputs.first_block.resize(shape.sequences, 0);
        inputs
    }
}

/// A count of a step. The check of the options keeps all of them below 2^31.
fn s32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
