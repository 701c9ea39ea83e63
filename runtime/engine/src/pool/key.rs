//! Names of the contents of blocks.
//!
//! Invariant: equal keys mean equal keys and values. A key is a hash over the key of the block before, the tokens of the
//! block, the attention kind and a salt. Keys come from requests of different people, so the hash is one for which nobody can
//! make two inputs that collide.

use gemma4_model::AttentionKind;
use sha2::{Digest, Sha256};

use super::PoolOptions;

/// Names the contents of a full block, tokens before it included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey([u8; 32]);

/// The keys of a sequence's full blocks. They stay with it over preemptions, so that each is computed once.
#[derive(Clone, Debug)]
pub struct BlockKeys {
    root: BlockKey,
    full: Vec<BlockKey>,
    sliding: Vec<BlockKey>,
}

impl BlockKeys {
    /// The keys of a sequence without tokens. `salt` is what else makes its keys and values differ from those of another
    /// sequence of the same tokens: the contents of media items, an adapter, or a secret that keeps tenants apart.
    #[must_use]
    pub fn new(salt: &[u8]) -> Self {
        Self { root: BlockKey(Sha256::digest(salt).into()), full: Vec::new(), sliding: Vec::new() }
    }

    /// Adds the keys of the blocks that `tokens`, the sequence from its start, fills. Tokens seen before must be unchanged.
    pub(super) fn extend(&mut self, options: &PoolOptions, tokens: &[u32]) {
        for kind in AttentionKind::ALL {
            let (block, root) = (options.block(kind), self.root);
            if block == 0 {
                continue;
            }
            let keys = match kind {
                AttentionKind::Full => &mut self.full,
                AttentionKind::Sliding => &mut self.sliding,
            };
            let known = keys.len();
            for filled in tokens.chunks_exact(block).skip(known) {
                let parent = keys.last().copied().unwrap_or(root);
                keys.push(BlockKey::of(parent, kind, filled));
            }
        }
    }

    /// The key of block number `block`; `None` if it is not full yet.
    pub(super) fn get(&self, kind: AttentionKind, block: usize) -> Option<BlockKey> {
        let keys = match kind {
            AttentionKind::Full => &self.full,
            AttentionKind::Sliding => &self.sliding,
        };
        keys.get(block).copied()
    }
}

impl BlockKey {
    fn of(parent: Self, kind: AttentionKind, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(parent.0);
        hash.update([match kind {
            AttentionKind::Full => 0_u8,
            AttentionKind::Sliding => 1,
        }]);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}
