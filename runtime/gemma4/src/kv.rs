//! Pages of the bundled engine's KV cache.
//!
//! Invariant: one pool of pages of equal size serves both attention kinds. A page holds, for all layers of **one** kind that
//! own keys and values, the keys and values of [`KvLayout::tokens_per_block`] tokens. A block (the tokens that one page
//! covers) is longer for the kind that needs fewer bytes per token.
//!
//! A layer's part of a page is `[tokens, 2, heads, head_dim]` with keys at index 0 and values at 1, or
//! `[tokens, 1, heads, head_dim]` with values alone where they come from the key projection (`k_eq_v`): there
//! K = rope(V * `k_norm`), which attention computes again from the values it reads. The parts follow one another in the
//! order of the layers.

use crate::config::{AttentionKind, TextConfig};
use crate::sharding::kv_replication;
use crate::{Config, DType};

/// Blocks are whole multiples of this many tokens, so that a block is a whole number of memory tiles (eight rows) on TPUs.
pub const TOKEN_MULTIPLE: u32 = 8;
/// The longest block that is accepted, in tokens.
pub const MAX_BLOCK_TOKENS: u32 = 1 << 16;

/// Elements of a row of the pool at most: the width of a TPU's memory tile.
const LANES: u64 = 128;

/// A layout that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The block size is not usable.
    #[error("block size {block_size}: expected a multiple of {TOKEN_MULTIPLE} up to {MAX_BLOCK_TOKENS} tokens")]
    BlockSize {
        /// The block size asked for, in tokens.
        block_size: u32,
    },
    /// The element type cannot hold keys and values.
    #[error("{0} cannot hold keys and values; supported: float32, bfloat16, float16, float8_e4m3fn, float8_e5m2")]
    DType(
        /// The type asked for.
        DType,
    ),
    /// Key/value heads neither divide by the devices nor the devices by them.
    #[error("layer {layer}: {heads} key/value heads on {devices} devices; one has to be a multiple of the other")]
    Heads {
        /// Index of the layer.
        layer: usize,
        /// Its key/value heads.
        heads: u64,
        /// Devices that a copy of the model is split over.
        devices: u64,
    },
    /// No layer owns keys and values, or a size does not fit 64 bits.
    #[error("the layers need {0}")]
    Size(
        /// What is wrong with the sizes.
        &'static str,
    ),
}

/// One layer's part of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LayerPart {
    kind: AttentionKind,
    /// 2 for keys and values, 1 for values alone.
    sides: u64,
    /// Key/value heads that each device stores.
    heads: u64,
    head_dim: u64,
    /// Bytes for one token on one device.
    token_bytes: u64,
    /// Bytes for one token of the same kind's layers before this one.
    token_bytes_before: u64,
}

/// What a page holds for one attention kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct KindLayout {
    /// Bytes for one token on one device, all owning layers of the kind together; 0 = there are none.
    token_bytes: u64,
    /// Tokens of a block; 0 = there are none.
    tokens: u64,
}

/// How much fits into a number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Sequences that fit whole.
    pub sequences: u64,
    /// Their tokens together.
    pub tokens: u64,
}

/// The layout of the cache for a model, a number of devices, an element type and a block size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    dtype: DType,
    devices: u64,
    window: u64,
    sliding: KindLayout,
    full: KindLayout,
    page_bytes: u64,
    /// By layer; `None` for layers that borrow keys and values.
    parts: Vec<Option<LayerPart>>,
}

impl KvLayout {
    /// Lays out the cache on `tp` devices.
    ///
    /// `block_size` is the number of tokens of a block of the kind with more bytes per token (the sliding layers in every
    /// published Gemma 4); the other kind's block is as many tokens as the same page holds, rounded down to a multiple of
    /// [`TOKEN_MULTIPLE`]. A device stores `max(kv_heads, tp) / tp` heads of a layer: with fewer heads than devices, heads
    /// are held more than once.
    ///
    /// # Errors
    /// [`KvError`] if the block size, the element type or the number of devices does not suit.
    pub fn new(config: &Config, tp: u64, dtype: DType, block_size: u32) -> Result<Self, KvError> {
        let fitting = block_size.is_multiple_of(TOKEN_MULTIPLE);
        if block_size == 0 || !fitting || block_size > MAX_BLOCK_TOKENS {
            return Err(KvError::BlockSize { block_size });
        }
        // Integer types need scales, for which a page has no room.
        let floats = [DType::F32, DType::Bf16, DType::F16, DType::F8E4M3, DType::F8E5M2];
        if !floats.contains(&dtype) {
            return Err(KvError::DType(dtype));
        }
        let parts = parts(&config.text, tp, dtype)?;
        let token_bytes = |kind| {
            let of_kind = parts.iter().flatten().filter(|part| part.kind == kind);
            of_kind.map(|part| part.token_bytes).fold(0, u64::saturating_add)
        };
        let (sliding, full) = (token_bytes(AttentionKind::Sliding), token_bytes(AttentionKind::Full));
        let block = u64::from(block_size);
        let page_bytes = sliding.max(full).checked_mul(block);
        let page_bytes = page_bytes.ok_or(KvError::Size("fewer bytes: a page exceeds 64 bits"))?;
        if page_bytes == 0 {
            return Err(KvError::Size("one that owns keys and values"));
        }
        let multiple = u64::from(TOKEN_MULTIPLE);
        let kind = |token_bytes| KindLayout {
            token_bytes,
            tokens: page_bytes.checked_div(token_bytes).unwrap_or(0) / multiple * multiple,
        };
        Ok(Self {
            dtype,
            devices: tp,
            window: config.text.sliding_window,
            sliding: kind(sliding),
            full: kind(full),
            page_bytes,
            parts,
        })
    }

    /// Element type of keys and values.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Devices that a copy of the model is split over.
    #[must_use]
    pub const fn devices(&self) -> u64 {
        self.devices
    }

    /// Bytes of a page on each device, the same for both kinds.
    #[must_use]
    pub const fn page_bytes_per_device(&self) -> u64 {
        self.page_bytes
    }

    /// Shape `[pages, rows, elements of a row]` of a device's pool. A token's keys and values of a layer are whole rows.
    ///
    /// The pages are not one of the two dimensions that TPUs keep in tiles, since several pages would then share a tile: the
    /// TPU compiler reads and writes such a pool in different layouts, and copies it whole between them where elements have
    /// 8 bits.
    #[must_use]
    pub fn pool_shape(&self, pages: u64) -> [u64; 3] {
        let lanes = self.lanes();
        let elements = self.elements(self.page_bytes);
        [pages, elements / lanes, lanes]
    }

    /// The row of a page at which a layer's part starts; `None` as for [`Self::block_offset`].
    #[must_use]
    pub fn block_row(&self, layer: usize) -> Option<u64> {
        Some(self.elements(self.block_offset(layer)?) / self.lanes())
    }

    /// Elements of a row: as many as a tile is wide, or fewer where a token has fewer.
    fn lanes(&self) -> u64 {
        let tokens = self.parts.iter().flatten().map(|part| self.elements(part.token_bytes));
        tokens.fold(LANES, greatest_common_divisor).max(1)
    }

    /// Elements in a number of bytes.
    fn elements(&self, bytes: u64) -> u64 {
        bytes / self.dtype.bytes(1).unwrap_or(1).max(1)
    }

    /// Bytes for one token on each device, all owning layers of the kind together; 0 if the model has none.
    #[must_use]
    pub const fn bytes_per_token(&self, kind: AttentionKind) -> u64 {
        self.kind(kind).token_bytes
    }

    /// Bytes for one token on all devices of one copy of the model together, heads held more than once included.
    #[must_use]
    pub const fn bytes_per_token_on_all_devices(&self, kind: AttentionKind) -> u64 {
        self.kind(kind).token_bytes.saturating_mul(self.devices)
    }

    /// Tokens of a block; 0 if no layer of this kind owns keys and values.
    #[must_use]
    pub const fn tokens_per_block(&self, kind: AttentionKind) -> u64 {
        self.kind(kind).tokens
    }

    /// Bytes of a page that a block of this kind leaves empty on each device, from rounding its tokens down.
    #[must_use]
    pub const fn wasted_bytes_per_page(&self, kind: AttentionKind) -> u64 {
        let kind = self.kind(kind);
        if kind.tokens == 0 {
            return 0;
        }
        self.page_bytes.saturating_sub(kind.tokens.saturating_mul(kind.token_bytes))
    }

    /// Shape `[tokens, sides, heads, head_dim]` of a layer's part of a block on each device, the sides being keys and values
    /// (2) or values alone (1); `None` for a layer that borrows keys and values (look at its donor) or does not exist.
    #[must_use]
    pub fn block_shape(&self, layer: usize) -> Option<Vec<u64>> {
        let part = self.part(layer)?;
        let tokens = self.tokens_per_block(part.kind);
        Some(vec![tokens, part.sides, part.heads, part.head_dim])
    }

    /// Where a layer's part starts within a page on each device, in bytes; `None` as for [`Self::block_shape`].
    #[must_use]
    pub fn block_offset(&self, layer: usize) -> Option<u64> {
        let part = self.part(layer)?;
        Some(part.token_bytes_before.saturating_mul(self.tokens_per_block(part.kind)))
    }

    /// Pages that a sequence of `tokens` needs: all its tokens for full layers, the last `W + window_slack` for sliding
    /// layers.
    ///
    /// `window_slack` is how many tokens may be written before blocks behind the window are given back: the longest chunk
    /// of a prefill, or the draft tokens of a decode. One more sliding block is counted once the sequence is longer than
    /// that, because the window rarely starts at the start of a block.
    #[must_use]
    pub fn blocks_for_sequence(&self, tokens: u64, window_slack: u64) -> u64 {
        let full = blocks(tokens, self.full.tokens);
        let all = blocks(tokens, self.sliding.tokens);
        let kept = self.window.saturating_add(window_slack);
        // Never more than an unbounded cache takes, which is also what a sequence within the window takes.
        let sliding = blocks(kept, self.sliding.tokens).saturating_add(1).min(all);
        full.saturating_add(sliding)
    }

    /// How many sequences of `sequence_tokens` fit into `blocks` pages (see [`Self::blocks_for_sequence`] for the slack).
    #[must_use]
    pub fn capacity(&self, blocks: u64, sequence_tokens: u64, window_slack: u64) -> Capacity {
        let each = self.blocks_for_sequence(sequence_tokens, window_slack);
        let sequences = blocks.checked_div(each).unwrap_or(0);
        Capacity { sequences, tokens: sequences.saturating_mul(sequence_tokens) }
    }

    const fn kind(&self, kind: AttentionKind) -> KindLayout {
        match kind {
            AttentionKind::Sliding => self.sliding,
            AttentionKind::Full => self.full,
        }
    }

    fn part(&self, layer: usize) -> Option<&LayerPart> {
        self.parts.get(layer)?.as_ref()
    }
}

const fn greatest_common_divisor(left: u64, right: u64) -> u64 {
    let (mut left, mut right) = (left, right);
    while right > 0 {
        (left, right) = (right, left % right);
    }
    left
}

/// Blocks of `block` tokens for `tokens`; 0 where the kind has no layers.
const fn blocks(tokens: u64, block: u64) -> u64 {
    if block == 0 { 0 } else { tokens.div_ceil(block) }
}

fn parts(text: &TextConfig, tp: u64, dtype: DType) -> Result<Vec<Option<LayerPart>>, KvError> {
    let overflow = KvError::Size("fewer bytes: a token exceeds 64 bits");
    let mut before = [0_u64; 2];
    let mut parts = Vec::with_capacity(text.layers.len());
    for (index, layer) in text.layers.iter().enumerate() {
        if !layer.owns_kv() {
            parts.push(None);
            continue;
        }
        let heads = layer.kv_heads;
        let replication = kv_replication(heads, tp);
        let error = KvError::Heads { layer: index, heads, devices: tp };
        let heads = heads.saturating_mul(replication.ok_or(error)?) / tp;
        let sides = if layer.k_eq_v { 1 } else { 2 };
        let elements = heads.checked_mul(layer.head_dim).and_then(|n| n.checked_mul(sides));
        let token_bytes = elements.and_then(|elements| dtype.bytes(elements));
        let token_bytes = token_bytes.ok_or_else(|| overflow.clone())?;
        let [sliding, full] = &mut before;
        let before = match layer.kind {
            AttentionKind::Sliding => sliding,
            AttentionKind::Full => full,
        };
        parts.push(Some(LayerPart {
            kind: layer.kind,
            sides,
            heads,
            head_dim: layer.head_dim,
            token_bytes,
            token_bytes_before: *before,
        }));
        *before = before.checked_add(token_bytes).ok_or_else(|| overflow.clone())?;
    }
    Ok(parts)
}
