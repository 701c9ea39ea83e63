//! The largest dimensions that are accepted.
//!
//! Each is far above any published Gemma 4. Together they keep every count below 2^60 elements (the largest term is
//! `MAX_LAYERS * MAX_EXPERTS * 3 * MAX_INTERMEDIATE * MAX_WIDTH` < 2^60), so that bytes of any element type fit 64 bits.

/// Layers of a text model or a tower.
pub const MAX_LAYERS: u64 = 1 << 10;
/// Width of a residual stream, of per-layer embeddings, or of a projection between encoders.
pub const MAX_WIDTH: u64 = 1 << 16;
/// Width of an MLP or of an expert.
pub const MAX_INTERMEDIATE: u64 = 1 << 20;
/// Rows of an embedding table.
pub const MAX_VOCABULARY: u64 = 1 << 24;
/// Heads of a layer.
pub const MAX_HEADS: u64 = 1 << 10;
/// Width of a head.
pub const MAX_HEAD_DIM: u64 = 1 << 12;
/// Experts of a layer.
pub const MAX_EXPERTS: u64 = 1 << 12;
/// Tokens of a sequence or a window.
pub const MAX_POSITIONS: u64 = 1 << 32;
/// Sides of patches, of pooling cells and of convolutions.
pub const MAX_KERNEL: u64 = 1 << 10;
