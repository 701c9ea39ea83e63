//! What one sequence holds of the pool.
//!
//! Invariant: a sequence holds every block of full layers from its first token on, and a gapless run of blocks of sliding
//! layers that begins at or before the oldest token its next token sees.

use std::collections::VecDeque;
use std::ops::Range;

use gemma4_model::AttentionKind;

use super::key::BlockKeys;
use super::pages::Keep;
use super::{OutOfPages, Pool, PoolOptions, ceil};

/// The pages that a sequence holds. Give them back with [`Pool::release`]; dropping them loses the pages.
#[derive(Debug)]
#[must_use = "the pages stay taken until they are released"]
pub struct SequenceBlocks {
    full: Vec<usize>,
    sliding: VecDeque<usize>,
    first_sliding: usize,
    written: usize,
    /// Sliding blocks before a place where hits are expected.
    expected: [Range<usize>; 2],
}

impl SequenceBlocks {
    /// Tokens from the start whose keys and values are written. Right after [`Pool::admit`], the tokens of the prefix hit.
    #[must_use]
    pub const fn written(&self) -> usize {
        self.written
    }

    /// Number of the first block of [`Self::pages`]: 0 for full layers.
    #[must_use]
    pub const fn first_block(&self, kind: AttentionKind) -> usize {
        match kind {
            AttentionKind::Full => 0,
            AttentionKind::Sliding => self.first_sliding,
        }
    }

    /// The pages of the blocks from [`Self::first_block`] on.
    pub fn pages(&self, kind: AttentionKind) -> impl ExactSizeIterator<Item = usize> + '_ {
        let (front, back) = match kind {
            AttentionKind::Full => (self.full.as_slice(), [].as_slice()),
            AttentionKind::Sliding => self.sliding.as_slices(),
        };
        let count = front.len() + back.len();
        (0..count).map(move |at| if at < front.len() { front[at] } else { back[at - front.len()] })
    }

    /// The page of a block; `None` if the sequence does not hold it.
    #[must_use]
    pub fn page(&self, kind: AttentionKind, block: usize) -> Option<usize> {
        match kind {
            AttentionKind::Full => self.full.get(block).copied(),
            AttentionKind::Sliding => self.sliding.get(block.checked_sub(self.first_sliding)?).copied(),
        }
    }

    fn keep(&self, sliding_block: usize) -> Keep {
        let expected = self.expected.iter().any(|blocks| blocks.contains(&sliding_block));
        if expected { Keep::Usual } else { Keep::Least }
    }
}

impl Pool {
    /// Starts a sequence of `tokens`, of which the first `prompt` came with the request, with the longest prefix of at most
    /// `most` tokens that is in the pool. At least one token is left to compute, since its logits are wanted.
    pub fn admit(&mut self, keys: &mut BlockKeys, tokens: &[u32], prompt: usize, most: usize) -> SequenceBlocks {
        let mut blocks = SequenceBlocks {
            full: Vec::new(),
            sliding: VecDeque::new(),
            first_sliding: 0,
            written: 0,
            expected: [0..0, 0..0],
        };
        if !self.options.prefix_caching {
            return blocks;
        }
        let options = self.options;
        keys.extend(&options, tokens);
        let hit = self.longest_hit(keys, tokens.len().saturating_sub(1).min(most));
        let sliding = sliding_before(&options, hit);
        blocks.first_sliding = sliding.start;
        let full = 0..hit.checked_div(options.full_block).unwrap_or(0);
        let pages = &mut self.pages;
        let mut share = |kind, block| keys.get(kind, block).and_then(|key| pages.share(key));
        blocks.full = full.filter_map(|block| share(AttentionKind::Full, block)).collect();
        blocks.sliding = sliding.clone().filter_map(|block| share(AttentionKind::Sliding, block)).collect();
        blocks.written = hit;
        // The same prompt again is hit before its last token; one that goes on, at its end.
        let step = options.hit_step();
        let again = sliding_before(&options, prompt.saturating_sub(1) / step * step);
        let goes_on = sliding_before(&options, prompt / step * step);
        blocks.expected = [sliding, again.start..goes_on.end];
        blocks
    }

    /// The largest hit of at most `limit` tokens.
    fn longest_hit(&self, keys: &BlockKeys, limit: usize) -> usize {
        let options = &self.options;
        let cached = |kind, block| keys.get(kind, block).is_some_and(|key| self.pages.contains(key));
        let step = options.hit_step();
        let mut hit = limit / step * step;
        if let Some(blocks) = hit.checked_div(options.full_block) {
            let gap = (0..blocks).find(|block| !cached(AttentionKind::Full, *block));
            hit = gap.map_or(hit, |gap| gap * options.full_block / step * step);
        }
        while hit > 0 {
            // A missing block rules out every hit whose window reaches over it.
            match sliding_before(options, hit).rev().find(|block| !cached(AttentionKind::Sliding, *block)) {
                Some(gap) => hit = gap * options.sliding_block / step * step,
                None => break,
            }
        }
        hit
    }

    /// Takes the pages that a step needs to compute the tokens from [`SequenceBlocks::written`] up to `end`, and gives back
    /// the sliding blocks that none of them sees. Returns how many it gave back.
    ///
    /// # Errors
    /// [`OutOfPages`] if there are too few; then none is taken.
    pub fn reserve(&mut self, blocks: &mut SequenceBlocks, end: usize) -> Result<usize, OutOfPages> {
        let options = self.options;
        let oldest = options.oldest_sliding(blocks.written);
        let mut given_back = 0;
        while blocks.first_sliding < oldest
            && let Some(page) = blocks.sliding.pop_front()
        {
            self.pages.give_back(page, blocks.keep(blocks.first_sliding));
            blocks.first_sliding += 1;
            given_back += 1;
        }
        let full = ceil(end, options.full_block).saturating_sub(blocks.full.len());
        let held = blocks.first_sliding.saturating_add(blocks.sliding.len());
        let sliding = ceil(end, options.sliding_block).saturating_sub(held);
        let (wanted, available) = (full.saturating_add(sliding), self.pages.available());
        if wanted > available {
            return Err(OutOfPages { wanted, available });
        }
        blocks.full.extend((0..full).map_while(|_| self.pages.take()));
        blocks.sliding.extend((0..sliding).map_while(|_| self.pages.take()));
        Ok(given_back)
    }

    /// Notes that the keys and values of `tokens`, the sequence from its start, are all written. From now on its full blocks
    /// can be found.
    pub fn written(&mut self, blocks: &mut SequenceBlocks, keys: &mut BlockKeys, tokens: &[u32]) {
        let before = blocks.written;
        blocks.written = tokens.len();
        if !self.options.prefix_caching {
            return;
        }
        keys.extend(&self.options, tokens);
        for kind in AttentionKind::ALL {
            let block = self.options.block(kind);
            let filled = |tokens: usize| tokens.checked_div(block).unwrap_or(0);
            for number in filled(before)..filled(blocks.written) {
                if let (Some(page), Some(key)) = (blocks.page(kind, number), keys.get(kind, number)) {
                    self.pages.name(page, key);
                }
            }
        }
    }

    /// Gives back everything. What can be found stays so until its page is needed.
    pub fn release(&mut self, blocks: SequenceBlocks, keys: &BlockKeys) {
        // A hit needs the blocks before it, so the deepest go first.
        for page in blocks.full.iter().rev() {
            self.pages.give_back(*page, Keep::Usual);
        }
        for page in &blocks.sliding {
            self.pages.give_back(*page, Keep::Usual);
        }
        // They wait for the same hits as the full layers' blocks, so they are as recent.
        for number in blocks.expected.iter().flat_map(Range::clone).filter(|number| *number < blocks.first_sliding) {
            if let Some(key) = keys.get(AttentionKind::Sliding, number) {
                self.pages.refresh(key);
            }
        }
    }
}

/// The sliding blocks that hold the last `W - 1` tokens before `end`, a multiple of the block.
fn sliding_before(options: &PoolOptions, end: usize) -> Range<usize> {
    options.oldest_sliding(end)..end.checked_div(options.sliding_block).unwrap_or(0)
}
