//! A Gemma 4 configuration with every layer spelled out.
//!
//! Invariant: a [`Config`] made by [`Config::from_json`] or [`Config::from_raw`] is complete and consistent. Each layer
//! carries its own head width, key/value heads, MLP width and rotary parameters, so nothing after this module has to know
//! which of the two published forms of `config.json` was read, nor any rule about "full layers" or "shared layers".
//! All dimensions lie within [`limits`], which are small enough that no parameter or byte count overflows 64 bits.

mod error;
pub mod limits;
mod media;
mod raw;
mod resolve;
mod scope;

use std::fmt;

use crate::DType;

pub use error::ConfigError;
pub use media::{AudioConfig, AudioFrames, AudioTower, VisionConfig, VisionPatchEmbedder, VisionTower};
pub use raw::{
    RawAudioConfig, RawConfig, RawLayerConfig, RawQuantization, RawRope, RawRopeByKind, RawTextConfig, RawVisionConfig,
};

/// A model, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Class name, for example `Gemma4ForConditionalGeneration`.
    pub architecture: String,
    /// Whether this is the 12B kind, which takes raw image patches and raw audio frames instead of having towers.
    pub unified: bool,
    /// The language model.
    pub text: TextConfig,
    /// The image encoder, if any.
    pub vision: Option<VisionConfig>,
    /// The audio encoder, if any.
    pub audio: Option<AudioConfig>,
    /// What stands before the names of the language model's tensors: `model.language_model.`, or `model.` in a text-only
    /// checkpoint.
    pub tensor_prefix: &'static str,
    /// Element type of the weights, where the configuration names one.
    pub dtype: Option<DType>,
    /// Name of the quantization method, where there is one.
    pub quantization: Option<String>,
    /// Whether sliding layers let a query inside an image see later keys of the same image (12B, 26B, 31B).
    pub bidirectional_vision: bool,
}

/// The language model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// `H`, the width of the residual stream.
    pub hidden_size: u64,
    /// `V`, rows of the token embedding.
    pub vocab_size: u64,
    /// Longest sequence in tokens.
    pub max_position_embeddings: u64,
    /// `W`: how many keys a query of a sliding layer sees, its own included. 0 if no layer slides.
    pub sliding_window: u64,
    /// Query heads, the same for all layers.
    pub query_heads: u64,
    /// `P`, the width of the per-layer embeddings; 0 = the model has none.
    pub ple_width: u64,
    /// Rows of the per-layer embedding table; 0 = the model has none.
    pub ple_vocab_size: u64,
    /// Whether the head is the token embedding itself.
    pub tied_embeddings: bool,
    /// `c` in `c * tanh(logits / c)`.
    pub final_logit_softcap: Option<f64>,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// The experts of every layer, if there are any.
    pub moe: Option<Moe>,
    /// The layers in order.
    pub layers: Vec<Layer>,
}

/// A mixture of experts that runs beside the dense MLP of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moe {
    /// `E`, experts of a layer.
    pub experts: u64,
    /// Experts that one token uses.
    pub top_k: u64,
    /// Width of one expert.
    pub intermediate_size: u64,
}

/// What keys a layer's queries see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionKind {
    /// The last `W` keys.
    Sliding,
    /// All earlier keys.
    Full,
}

impl AttentionKind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Sliding, Self::Full];
}

impl fmt::Display for AttentionKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Sliding => "sliding",
            Self::Full => "full",
        })
    }
}

/// One layer of the language model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layer {
    /// What its queries see.
    pub kind: AttentionKind,
    /// Key/value heads. On a borrowing layer: those of its donor.
    pub kv_heads: u64,
    /// Width of a query, key or value head.
    pub head_dim: u64,
    /// Whether values come from the key projection, so that there is no `v_proj`.
    pub k_eq_v: bool,
    /// The layer whose keys and values this one uses; `None` = it computes and caches its own.
    pub kv_donor: Option<usize>,
    /// Width of the dense MLP.
    pub intermediate_size: u64,
    /// Rotary embedding.
    pub rope: Rope,
}

/// Rotary embedding of a layer over pairs `(j, j + head_dim/2)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base: pair `j` turns by `position * theta^(-2j / head_dim)`. The exponent's denominator is the whole head, also
    /// where only a part of it turns (transformers' "proportional" type).
    pub theta: f64,
    /// Pairs that turn, from `j = 0`; the remaining pairs have frequency 0. At most `head_dim / 2`.
    pub angles: u64,
}

impl Layer {
    /// Whether the layer writes keys and values of its own to the cache.
    #[must_use]
    pub const fn owns_kv(&self) -> bool {
        self.kv_donor.is_none()
    }

    /// Rows of `k_proj`: `kv_heads * head_dim`.
    #[must_use]
    pub const fn kv_width(&self) -> u64 {
        self.kv_heads.saturating_mul(self.head_dim)
    }
}

impl TextConfig {
    /// Indices of layers whose tensors have the same shapes and meaning, so that they can be stacked: same attention, heads,
    /// widths and rotary embedding, and all with or all without keys and values of their own. In the order of first layers.
    #[must_use]
    pub fn alike_layers(&self) -> Vec<Vec<usize>> {
        let mut kinds: Vec<(Layer, bool)> = Vec::new();
        let mut stacks: Vec<Vec<usize>> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            // Which layer is borrowed from changes no shape; that one is borrowed from does.
            let kind = (Layer { kv_donor: None, ..*layer }, layer.owns_kv());
            match kinds.iter().position(|known| *known == kind).and_then(|known| stacks.get_mut(known)) {
                Some(stack) => stack.push(index),
                None => {
                    kinds.push(kind);
                    stacks.push(vec![index]);
                }
            }
        }
        stacks
    }

    /// Layers that own keys and values, with their index.
    pub fn owning_layers(&self) -> impl Iterator<Item = (usize, &Layer)> {
        self.layers.iter().enumerate().filter(|(_, layer)| layer.owns_kv())
    }

    /// Owning layers of one kind, with their index.
    pub fn owning_layers_of(&self, kind: AttentionKind) -> impl Iterator<Item = (usize, &Layer)> {
        self.owning_layers().filter(move |(_, layer)| layer.kind == kind)
    }

    /// How many layers borrow keys and values.
    #[must_use]
    pub fn num_kv_shared(&self) -> usize {
        self.layers.iter().filter(|layer| !layer.owns_kv()).count()
    }

    /// Index after the last layer that owns keys and values: where fast prefill may drop rows that need no logits.
    #[must_use]
    pub fn fast_prefill_cut(&self) -> usize {
        self.layers.iter().rposition(Layer::owns_kv).map_or(0, |last| last + 1)
    }

    /// Whether the model has per-layer embeddings (E2B, E4B).
    #[must_use]
    pub const fn has_ple(&self) -> bool {
        self.ple_width > 0
    }
}

impl Config {
    /// Reads the bytes of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] for text that is not JSON, and for missing, contradictory or absurd values. Keys that are not read
    /// are ignored, since published files carry many.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigError> {
        let raw: RawConfig = serde_json::from_slice(bytes).map_err(ConfigError::Json)?;
        Self::from_raw(&raw)
    }

    /// Resolves a configuration that was read elsewhere, for example from a TOML table in the published form.
    ///
    /// # Errors
    /// [`ConfigError`] for missing, contradictory or absurd values.
    pub fn from_raw(raw: &RawConfig) -> Result<Self, ConfigError> {
        resolve::config(raw)
    }
}
