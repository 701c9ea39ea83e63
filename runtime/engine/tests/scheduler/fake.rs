//! A model without arithmetic: the next token is a function of everything that a real one would read, and reads it through
//! the slots and block tables of the step. A wrong page, block, position or window gives other tokens.

use gemma4_engine::pool::PoolOptions;
use gemma4_engine::scheduler::{Batch, SchedulerOptions, StepShape};
use gemma4_engine::speculation::SpeculationOptions;
use gemma4_engine::steps::{DraftBucket, draft_buckets};
use gemma4_model::AttentionKind;
use gemma4_model::graph::StepInput;

/// Tokens of the model.
pub(crate) const VOCAB: usize = 97;

/// Tokens that the model generates: so few under speculation that drafts are right now and then.
fn generated(options: &SchedulerOptions) -> u64 {
    if options.speculation.is_some() { 3 } else { 97 }
}

/// A cell of a page: the value, and for whom it was written.
type Cell = Option<(AttentionKind, usize, u64)>;

/// The memory of the pool, with the pages of both kinds, as on a device.
pub(crate) struct Fake {
    pool: PoolOptions,
    generated: u64,
    pages: Vec<Vec<Cell>>,
}

fn mix(left: u64, right: u64) -> u64 {
    let mut value = left.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ right.wrapping_add(0x2545_F491_4F6C_DD1D);
    value ^= value >> 29;
    value = value.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value ^ (value >> 32)
}

fn size(value: i32) -> usize {
    usize::try_from(value).expect("a number from 0")
}

/// The token that follows when full layers hold `full` up to now, and sliding layers `sliding` in the window: one of so many.
fn next(full: &[u64], sliding: &[u64], generated: u64) -> u32 {
    let value = full.iter().chain(sliding).fold(1, |state, value| mix(state, *value));
    u32::try_from(value % generated).unwrap()
}

/// What full layers store of a token, given what they stored of the one before: a function of the whole prefix.
fn stored_full(before: u64, token: u32) -> u64 {
    mix(before, u64::from(token))
}

/// What sliding layers store of it.
fn stored_sliding(full: u64) -> u64 {
    mix(full, 0x51)
}

/// What a request generates when it is alone in the world, without any cache.
pub(crate) fn alone(options: &SchedulerOptions, prompt: &[u32], end: usize, stop: &[u32]) -> Vec<u32> {
    let window = options.pool.window;
    let (mut tokens, mut full, mut got) = (prompt.to_vec(), Vec::new(), Vec::new());
    while tokens.len() < end {
        for token in &tokens[full.len()..] {
            full.push(stored_full(full.last().copied().unwrap_or(7), *token));
        }
        let sliding: Vec<u64> = full.iter().map(|value| stored_sliding(*value)).collect();
        let token = next(&full, &sliding[full.len().saturating_sub(window)..], generated(options));
        tokens.push(token);
        got.push(token);
        if stop.contains(&token) {
            break;
        }
    }
    got
}

/// What follows each token of a prompt, as far as the prompt goes on.
pub(crate) fn rows(options: &SchedulerOptions, prompt: &[u32]) -> Vec<u32> {
    let (mut full, mut sliding, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for token in &prompt[..prompt.len() - 1] {
        full.push(stored_full(full.last().copied().unwrap_or(7), *token));
        sliding.extend(full.last().copied().map(stored_sliding));
        rows.push(next(&full, &sliding[full.len().saturating_sub(options.pool.window)..], generated(options)));
    }
    rows
}

impl Fake {
    pub(crate) fn new(options: &SchedulerOptions) -> Self {
        let pool = options.pool;
        let block = pool.full_block.max(pool.sliding_block);
        Fake { pool, generated: generated(options), pages: vec![vec![None; block]; pool.pages] }
    }

    /// The value at a position of the sequence at `place`, read as a program reads it.
    fn read(&self, batch: &Batch, kind: AttentionKind, place: usize, position: usize) -> u64 {
        let shape = batch.shape();
        let width = if kind == AttentionKind::Full { shape.full_table } else { shape.sliding_table };
        let block = self.pool.block(kind);
        let first = size(batch.input(StepInput::FirstBlock(kind))[place]);
        let column = (position / block).checked_sub(first).expect("a block that is still held");
        assert!(column < width, "{kind}: column {column} of {width}");
        let page = size(batch.input(StepInput::BlockTable(kind))[place * width + column]);
        let (of, at, value) = self.pages[page][position % block].expect("a cell that was written");
        assert_eq!((of, at), (kind, position), "a cell of another token");
        value
    }

    fn write(&mut self, batch: &Batch, kind: AttentionKind, row: usize, position: usize, value: u64) {
        let slot = &batch.input(StepInput::Slots(kind))[row * 2..row * 2 + 2];
        self.pages[size(slot[0])][size(slot[1])] = Some((kind, position, value));
    }

    /// Runs a step, and returns a token for each row of logits.
    pub(crate) fn run(&mut self, batch: &Batch) -> Vec<u32> {
        let shape = *batch.shape();
        let count = size(batch.input(StepInput::NumTokens)[0]);
        let tokens = batch.input(StepInput::TokenIds).to_vec();
        let positions: Vec<usize> = batch.input(StepInput::Positions).iter().map(|at| size(*at)).collect();
        assert_eq!((tokens.len(), positions.len()), (shape.tokens, shape.tokens));
        assert_eq!(batch.input(StepInput::Items).len(), shape.items * 3);
        assert_eq!(batch.input(StepInput::LogitRows).len(), shape.rows);
        for kind in AttentionKind::ALL {
            let slots = batch.input(StepInput::Slots(kind));
            assert_eq!(slots.len(), shape.tokens * 2);
            let dropped = slots[count * 2..].chunks(2).all(|slot| size(slot[0]) == self.pool.pages);
            assert!(dropped, "a row that is not real would be written");
            assert_eq!(batch.input(StepInput::FirstBlock(kind)).len(), shape.sequences);
        }
        // Which sequence a row belongs to, from the items alone; they have to cover each row once, in order.
        let mut place_of = Vec::new();
        let items = &batch.input(StepInput::Items)[..size(batch.input(StepInput::NumItems)[0]) * 3];
        for item in items.chunks(3) {
            assert_eq!(size(item[0]), place_of.len());
            assert!(item[1] > 0 && size(item[1]) <= shape.query_tile);
            place_of.extend(std::iter::repeat_n(size(item[2]), size(item[1])));
        }
        assert_eq!(place_of.len(), count);
        for row in 0..count {
            let (place, position) = (place_of[row], positions[row]);
            let before = if position == 0 { 7 } else { self.read(batch, AttentionKind::Full, place, position - 1) };
            let full = stored_full(before, u32::try_from(tokens[row]).expect("a token"));
            self.write(batch, AttentionKind::Full, row, position, full);
            self.write(batch, AttentionKind::Sliding, row, position, stored_sliding(full));
        }
        // Every row attends, also those without logits.
        let attended: Vec<u32> = (0..count)
            .map(|row| {
                let (place, end) = (place_of[row], positions[row] + 1);
                let full: Vec<u64> = (0..end).map(|at| self.read(batch, AttentionKind::Full, place, at)).collect();
                let window = end.saturating_sub(self.pool.window)..end;
                let sliding: Vec<u64> = window.map(|at| self.read(batch, AttentionKind::Sliding, place, at)).collect();
                next(&full, &sliding, self.generated)
            })
            .collect();
        let rows = &batch.input(StepInput::LogitRows)[..batch.logits()];
        assert_eq!(
            batch.input(StepInput::NumLogitRows).iter().map(|rows| size(*rows)).collect::<Vec<_>>(),
            [rows.len()]
        );
        rows.iter().map(|row| attended[size(*row)]).collect()
    }
}

/// Shapes for all pairs of buckets and for drafts, with the sizes that a step of the model would have.
fn shapes(
    pool: &PoolOptions,
    max_model_len: usize,
    (tokens, requests): (&[usize], &[usize]),
    drafts: Option<usize>,
) -> Vec<StepShape> {
    let count = |sizes: &[usize]| sizes.iter().map(|size| u64::try_from(*size).unwrap()).collect::<Vec<_>>();
    let drafts = drafts.map(|drafts| draft_buckets(&count(tokens), &count(requests), u64::try_from(drafts).unwrap()));
    let pairs = tokens.iter().flat_map(|tokens| requests.iter().map(move |requests| (*tokens, *requests, *requests)));
    let size = |size: u64| usize::try_from(size).unwrap();
    let of_drafts = drafts.into_iter().flatten();
    let of_drafts = of_drafts.map(|DraftBucket { tokens, requests, rows }| (size(tokens), size(requests), size(rows)));
    let shape = |(tokens, sequences, rows): (usize, usize, usize)| {
        let query_tile = 4.min(tokens);
        let reach = (pool.window + tokens).div_ceil(pool.sliding_block) + 1;
        StepShape {
            tokens,
            sequences,
            rows,
            query_tile,
            items: tokens / query_tile + sequences,
            full_table: max_model_len.div_ceil(pool.full_block),
            sliding_table: reach.min(max_model_len.div_ceil(pool.sliding_block)),
        }
    };
    pairs.chain(of_drafts).map(shape).collect()
}

/// Options without speculation, with buckets that double up to the limits.
pub(crate) fn options(pool: PoolOptions, max_model_len: usize, tokens: usize, requests: usize) -> SchedulerOptions {
    speculating(pool, max_model_len, tokens, requests, None)
}

/// Options with drafts of so many tokens.
pub(crate) fn speculating(
    pool: PoolOptions,
    max_model_len: usize,
    tokens: usize,
    requests: usize,
    drafts: Option<usize>,
) -> SchedulerOptions {
    let ladder = |most: usize| -> Vec<usize> {
        let doubled = std::iter::successors(Some(1_usize), |size| Some(size * 2));
        doubled.take_while(|size| *size < most).chain([most]).collect()
    };
    SchedulerOptions {
        max_model_len,
        max_num_seqs: requests,
        max_num_batched_tokens: tokens,
        max_queue: 4096,
        vocab_size: VOCAB,
        shapes: shapes(&pool, max_model_len, (&ladder(tokens), &ladder(requests)), drafts),
        pool,
        speculation: drafts.map(|num_tokens| SpeculationOptions { num_tokens, lookup_min: 1, lookup_max: 3 }),
    }
}
