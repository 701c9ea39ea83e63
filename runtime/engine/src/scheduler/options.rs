//! Limits of a scheduler, and the shapes of its steps.
//!
//! Invariant: options that pass the check have a shape for every step that the limits allow, and every number that a step
//! holds fits s32.

use gemma4_model::AttentionKind;
use gemma4_model::graph::StepOptions;
use thiserror::Error;

use crate::pool::{PoolError, PoolOptions};
use crate::speculation::{LONGEST_LOOKUP, SpeculationOptions};

/// Requests that wait at most, if nobody says otherwise.
const MAX_QUEUE: usize = 4096;

/// The shape of a compiled step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepShape {
    /// `T`, token rows.
    pub tokens: usize,
    /// `S`, sequences.
    pub sequences: usize,
    /// `R`, rows with logits.
    pub rows: usize,
    /// Tokens of an item of attention at most.
    pub query_tile: usize,
    /// `I`, items of attention.
    pub items: usize,
    /// `B` of full layers: blocks of a sequence's table.
    pub full_table: usize,
    /// `B` of sliding layers.
    pub sliding_table: usize,
}

/// Limits of a scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Longest sequence, prompt and output together, in tokens.
    pub max_model_len: usize,
    /// Sequences that hold pages at once.
    pub max_num_seqs: usize,
    /// Tokens of a step.
    pub max_num_batched_tokens: usize,
    /// Requests that wait at most; more are refused.
    pub max_queue: usize,
    /// `V`: token ids are below this.
    pub vocab_size: usize,
    /// Shapes of the compiled steps.
    pub shapes: Vec<StepShape>,
    /// Sizes of the KV pool.
    pub pool: PoolOptions,
    /// How drafts are made; `None` for none.
    pub speculation: Option<SpeculationOptions>,
}

/// Options that make no scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OptionsError {
    /// The pool cannot be made.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// There is no step.
    #[error("the plan has no buckets, so there is no step to run; make the plan again")]
    NoSteps,
    /// A size is 0, or beyond what a step counts.
    #[error("{what} is {found}; a scheduler needs 1 to 2^31-1")]
    Size {
        /// Which size.
        what: &'static str,
        /// What it is.
        found: u64,
    },
    /// Drafts that cannot be made.
    #[error(
        "drafts of {} tokens from n-grams of {} to {} tokens; expected num_tokens from 1 to less than max_model_len, and \
         1 <= prompt_lookup_min <= prompt_lookup_max <= {LONGEST_LOOKUP}",
        .0.num_tokens, .0.lookup_min, .0.lookup_max
    )]
    Speculation(
        /// What was asked for.
        SpeculationOptions,
    ),
    /// A step within the limits fits no shape.
    #[error(
        "no compiled step holds {tokens} tokens of {sequences} sequences, which the limits allow; \
         lower max_num_batched_tokens or max_num_seqs, or add buckets"
    )]
    Shape {
        /// Tokens of the step.
        tokens: usize,
        /// Sequences of the step.
        sequences: usize,
    },
}

impl StepShape {
    /// The shape of a step built with `options`, for a model whose window is `window` tokens.
    ///
    /// # Errors
    /// [`OptionsError::Size`] if this machine cannot count to it.
    pub fn new(options: &StepOptions, window: u64) -> Result<Self, OptionsError> {
        let table = |what, kind| match options.kv.tokens_per_block(kind) {
            0 => Ok(0),
            _ => size(what, options.table_blocks(kind, window)),
        };
        Ok(Self {
            tokens: size("a bucket of tokens", options.tokens)?,
            sequences: size("a bucket of requests", options.sequences)?,
            rows: size("a bucket of rows", options.rows)?,
            query_tile: size("the query tile", options.query_tile)?,
            items: size("the number of items", options.items())?,
            full_table: table("a table of full layers", AttentionKind::Full)?,
            sliding_table: table("a table of sliding layers", AttentionKind::Sliding)?,
        })
    }

    /// `B` of a kind.
    pub(super) const fn table(&self, kind: AttentionKind) -> usize {
        match kind {
            AttentionKind::Full => self.full_table,
            AttentionKind::Sliding => self.sliding_table,
        }
    }

    const fn holds(&self, tokens: usize, sequences: usize, rows: usize) -> bool {
        self.tokens >= tokens && self.sequences >= sequences && self.rows >= rows
    }
}

impl SchedulerOptions {
    /// The limits of a plan whose programs are `steps`, for a model with `vocab_size` tokens and a window of `window`.
    ///
    /// # Errors
    /// [`OptionsError`] if a size is unusable or the steps do not hold what the limits allow.
    pub fn new<'a>(
        limits: &gemma4_plan::Scheduler,
        speculative: Option<&gemma4_plan::Speculative>,
        steps: impl IntoIterator<Item = &'a StepOptions>,
        vocab_size: u64,
        window: u64,
    ) -> Result<Self, OptionsError> {
        let mut shapes = Vec::new();
        let mut pool = None;
        for step in steps {
            shapes.push(StepShape::new(step, window)?);
            // All steps of a plan share one pool.
            pool = Some(PoolOptions::new(&step.kv, window, step.pages, limits.prefix_caching)?);
        }
        let options = Self {
            max_model_len: size("max_model_len", limits.max_model_len)?,
            max_num_seqs: size("max_num_seqs", limits.max_num_seqs)?,
            max_num_batched_tokens: size("max_num_batched_tokens", limits.max_num_batched_tokens)?,
            max_queue: MAX_QUEUE,
            vocab_size: size("the vocabulary", vocab_size)?,
            shapes,
            pool: pool.ok_or(OptionsError::NoSteps)?,
            speculation: speculative.map(SpeculationOptions::of_plan),
        };
        options.check()?;
        Ok(options)
    }

    pub(super) fn check(&self) -> Result<(), OptionsError> {
        for (what, found) in [
            ("max_model_len", self.max_model_len),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("the vocabulary", self.vocab_size),
        ] {
            size(what, u64::try_from(found).unwrap_or(u64::MAX))?;
        }
        if let Some(speculation) = self.speculation.filter(|speculation| !speculation.is_sound(self.max_model_len)) {
            return Err(OptionsError::Speculation(speculation));
        }
        if self.shapes.is_empty() {
            return Err(OptionsError::NoSteps);
        }
        for shape in &self.shapes {
            for (what, found) in [
                ("a bucket of tokens", shape.tokens),
                ("a bucket of requests", shape.sequences),
                ("the query tile", shape.query_tile),
                ("the number of items", shape.items),
            ] {
                size(what, u64::try_from(found).unwrap_or(u64::MAX))?;
            }
        }
        let (tokens, sequences) = (self.max_num_batched_tokens, self.max_num_seqs.min(self.max_num_batched_tokens));
        self.shape(tokens, sequences, sequences).map(|_| ()).ok_or(OptionsError::Shape { tokens, sequences })
    }

    /// Rows of logits that every step within the limits can have.
    pub(super) fn rows(&self) -> usize {
        let (tokens, sequences) = (self.max_num_batched_tokens, self.max_num_seqs.min(self.max_num_batched_tokens));
        let largest = self.shapes.iter().filter(|shape| shape.holds(tokens, sequences, sequences));
        largest.map(|shape| shape.rows).max().unwrap_or(sequences)
    }

    /// The smallest shape that holds a step.
    pub(super) fn shape(&self, tokens: usize, sequences: usize, rows: usize) -> Option<StepShape> {
        self.shapes.iter().copied().filter(|shape| shape.holds(tokens, sequences, rows)).min()
    }
}

fn size(what: &'static str, found: u64) -> Result<usize, OptionsError> {
    let counted = i32::try_from(found).ok().and_then(|found| usize::try_from(found).ok());
    counted.filter(|found| *found > 0).ok_or(OptionsError::Size { what, found })
}
