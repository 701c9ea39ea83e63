//! The paged KV pool of one set of devices: who holds which page, and which pages still hold something useful.
//!
//! Invariants, after every call:
//! * each page is **used** (sequences hold it), **cached** (nobody holds it, but its contents can be found by a key) or
//!   **free**; the three counts sum to all pages;
//! * a page that several sequences hold is a full block with the same tokens before and in it for all of them, and nobody
//!   writes to it: sequences write only into blocks that they took themselves and that are not full yet;
//! * what happens is a function of the calls alone: no clock, no random numbers, no order of a hash table.
//!
//! A page holds a block of one attention kind (see [`gemma4_model::kv`]); the kinds differ in the tokens of a block. Sliding
//! layers hold the blocks that the window of the next token and the tokens of the running step reach over, and give back the
//! ones behind. So a sequence needs `W + chunk` tokens of sliding blocks while its prompt is computed.
//!
//! **Prefix hits.** A full block is found by a [`BlockKey`]: a hash over everything that its keys and values depend on. A hit
//! at `n` needs all blocks of full layers below `n`, and the blocks of sliding layers that hold the last `W - 1` tokens before
//! `n`. `n` is the end of a block for both kinds, since a block that is not full cannot be shared.
//!
//! **Eviction.** When no page is free, cached pages lose their contents: first those that fell behind a window, then the
//! others, each least recently used first. Blocks at the end of a prompt, and where a prompt was hit, are where the next hit
//! is expected: they do not count as fallen behind a window, and last as long as the full layers' blocks beside them.

mod blocks;
mod key;
mod pages;

use gemma4_model::AttentionKind;
use gemma4_model::kv::KvLayout;
use thiserror::Error;

pub use blocks::SequenceBlocks;
pub use key::{BlockKey, BlockKeys};
use pages::Pages;

/// Sizes of a pool, in pages and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Pages of the pool.
    pub pages: usize,
    /// Tokens of a block of full layers; 0 if the model has none.
    pub full_block: usize,
    /// Tokens of a block of sliding layers; 0 if the model has none.
    pub sliding_block: usize,
    /// `W`: a token sees itself and the `W - 1` tokens before it in sliding layers.
    pub window: usize,
    /// Whether full blocks are kept and found again.
    pub prefix_caching: bool,
}

/// Sizes that make no pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a KV pool with {what} of {found}: expected {wanted}; make the plan again for this model")]
pub struct PoolError {
    /// Which size.
    pub what: &'static str,
    /// What it is.
    pub found: u64,
    /// What would do.
    pub wanted: &'static str,
}

/// Pages that are missing; nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{wanted} more KV pages are needed and {available} can be had; free some by ending or preempting a sequence")]
pub struct OutOfPages {
    /// Pages asked for.
    pub wanted: usize,
    /// Pages that are free or cached.
    pub available: usize,
}

/// How many pages are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Pages with nothing in them.
    pub free: usize,
    /// Pages that nobody holds but whose contents can be found.
    pub cached: usize,
    /// Pages that sequences hold.
    pub used: usize,
}

impl PoolOptions {
    /// The sizes of a pool of `pages` pages laid out as `layout`, for a model whose window is `window` tokens.
    ///
    /// # Errors
    /// [`PoolError`] for a number that this machine or a step cannot count to.
    pub fn new(layout: &KvLayout, window: u64, pages: u64, prefix_caching: bool) -> Result<Self, PoolError> {
        let size = |what, found: u64| {
            usize::try_from(found).map_err(|_| PoolError { what, found, wanted: "a number that fits this machine" })
        };
        let options = Self {
            pages: size("pages", pages)?,
            full_block: size("a block of full layers", layout.tokens_per_block(AttentionKind::Full))?,
            sliding_block: size("a block of sliding layers", layout.tokens_per_block(AttentionKind::Sliding))?,
            window: size("a window", window)?,
            prefix_caching,
        };
        options.check()?;
        Ok(options)
    }

    /// Tokens of a block; 0 if the model has no layers of this kind.
    #[must_use]
    pub const fn block(&self, kind: AttentionKind) -> usize {
        match kind {
            AttentionKind::Full => self.full_block,
            AttentionKind::Sliding => self.sliding_block,
        }
    }

    /// Pages that a sequence of `tokens` never exceeds if steps compute at most `chunk` of its tokens at once: the same
    /// number as [`KvLayout::blocks_for_sequence`], which the plan counts with.
    #[must_use]
    pub fn pages_for(&self, tokens: usize, chunk: usize) -> usize {
        let full = ceil(tokens, self.full_block);
        let kept = ceil(self.window.saturating_add(chunk), self.sliding_block).saturating_add(1);
        full.saturating_add(kept.min(ceil(tokens, self.sliding_block)))
    }

    /// Hits end at multiples of this many tokens: where a block ends for both kinds.
    fn hit_step(&self) -> usize {
        match (self.full_block, self.sliding_block) {
            (0, only) | (only, 0) => only,
            (full, sliding) => full.saturating_mul(sliding) / greatest_common_divisor(full, sliding).max(1),
        }
    }

    /// The oldest sliding block that a token at `position` sees.
    fn oldest_sliding(&self, position: usize) -> usize {
        position.saturating_add(1).saturating_sub(self.window).checked_div(self.sliding_block).unwrap_or(0)
    }

    fn check(&self) -> Result<(), PoolError> {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        // Steps count pages in s32.
        if self.pages == 0 || i32::try_from(self.pages).is_err() {
            return Err(PoolError { what: "pages", found: count(self.pages), wanted: "1 to 2^31-1" });
        }
        if self.full_block == 0 && self.sliding_block == 0 {
            return Err(PoolError { what: "blocks", found: 0, wanted: "1 token or more for one attention kind" });
        }
        if self.window == 0 {
            return Err(PoolError { what: "a window", found: 0, wanted: "1 token or more" });
        }
        Ok(())
    }
}

/// The pool.
#[derive(Debug)]
pub struct Pool {
    options: PoolOptions,
    pages: Pages,
}

impl Pool {
    /// A pool in which every page is free.
    ///
    /// # Errors
    /// [`PoolError`] if a size is 0 or too large to be counted in a step.
    pub fn new(options: PoolOptions) -> Result<Self, PoolError> {
        options.check()?;
        Ok(Self { options, pages: Pages::new(options.pages) })
    }

    /// The sizes that it was made with.
    #[must_use]
    pub const fn options(&self) -> &PoolOptions {
        &self.options
    }

    /// How many pages are in which state.
    #[must_use]
    pub fn counts(&self) -> PageCounts {
        self.pages.counts()
    }
}

/// Blocks of `block` tokens for `tokens`; 0 where the kind has no layers.
const fn ceil(tokens: usize, block: usize) -> usize {
    if block == 0 { 0 } else { tokens.div_ceil(block) }
}

const fn greatest_common_divisor(left: usize, right: usize) -> usize {
    let (mut left, mut right) = (left, right);
    while right > 0 {
        (left, right) = (right, left % right);
    }
    left
}
