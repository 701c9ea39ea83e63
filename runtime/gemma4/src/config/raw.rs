//! `config.json` as it is written: every field optional, unknown keys ignored.
//!
//! Plain serde without self-describing tricks, so that a TOML table of the same shape reads the same way.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// The outer object of a `config.json`.
///
/// A text-only checkpoint (`model_type` `gemma4_text`) has the keys of [`RawTextConfig`] at this level instead of under
/// `text_config`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RawConfig {
    /// Class names; the first one counts.
    pub architectures: Option<Vec<String>>,
    /// `gemma4`, `gemma4_unified` or, for text-only checkpoints, `gemma4_text` and `gemma4_unified_text`.
    pub model_type: Option<String>,
    /// Element type of the weights.
    pub dtype: Option<String>,
    /// The older name of `dtype`.
    pub torch_dtype: Option<String>,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: Option<bool>,
    /// The language model.
    pub text_config: Option<RawTextConfig>,
    /// The image encoder, or null.
    pub vision_config: Option<RawVisionConfig>,
    /// The audio encoder, or null.
    pub audio_config: Option<RawAudioConfig>,
    /// Soft tokens that one image gets by default.
    pub vision_soft_tokens_per_image: Option<u64>,
    /// How the weights are quantized.
    pub quantization_config: Option<RawQuantization>,
    /// The keys of a text-only checkpoint. Ignored where `text_config` exists.
    #[serde(flatten)]
    pub flat_text: RawTextConfig,
}

/// The language model's part.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RawTextConfig {
    /// `gemma4_text` or `gemma4_unified_text`. Read only under `text_config`.
    #[serde(rename = "model_type")]
    pub text_model_type: Option<String>,
    /// Element type. The outer one wins. Read only under `text_config`.
    #[serde(rename = "dtype")]
    pub text_dtype: Option<String>,
    /// Whether the head is the token embedding. Read only under `text_config`.
    #[serde(rename = "tie_word_embeddings")]
    pub text_tie_word_embeddings: Option<bool>,
    /// `H`.
    pub hidden_size: Option<u64>,
    /// `V`.
    pub vocab_size: Option<u64>,
    /// Longest sequence in tokens.
    pub max_position_embeddings: Option<u64>,
    /// `W`, in tokens, the query's own token included.
    pub sliding_window: Option<u64>,
    /// `L`.
    pub num_hidden_layers: Option<u64>,
    /// `sliding_attention` or `full_attention` for each layer.
    pub layer_types: Option<Vec<String>>,
    /// Query heads.
    pub num_attention_heads: Option<u64>,
    /// Key/value heads.
    pub num_key_value_heads: Option<u64>,
    /// Key/value heads of full layers; counts only with `attention_k_eq_v`.
    pub num_global_key_value_heads: Option<u64>,
    /// Width of a head.
    pub head_dim: Option<u64>,
    /// Width of a head on full layers.
    pub global_head_dim: Option<u64>,
    /// Deviations of single layers, keyed by the layer's index in decimal, possibly zero-padded (transformers 5.15 and newer).
    pub per_layer_config: Option<BTreeMap<String, RawLayerConfig>>,
    /// Whether full layers use one projection for keys and values.
    pub attention_k_eq_v: Option<bool>,
    /// Whether linear layers of attention have biases; no Gemma 4 does.
    pub attention_bias: Option<bool>,
    /// How many of the last layers borrow keys and values.
    pub num_kv_shared_layers: Option<u64>,
    /// Width of the MLP.
    pub intermediate_size: Option<u64>,
    /// Whether borrowing layers have an MLP of twice the width.
    pub use_double_wide_mlp: Option<bool>,
    /// `P`; an explicit null is 0. Absent is an error, since transformers then assumes 256.
    #[serde(deserialize_with = "nullable")]
    pub hidden_size_per_layer_input: Option<Option<u64>>,
    /// Rows of the per-layer embedding table.
    pub vocab_size_per_layer_input: Option<u64>,
    /// Whether layers have experts beside the dense MLP.
    pub enable_moe_block: Option<bool>,
    /// Experts of a layer.
    pub num_experts: Option<u64>,
    /// Experts a token uses.
    pub top_k_experts: Option<u64>,
    /// Width of one expert.
    pub moe_intermediate_size: Option<u64>,
    /// Another name of `moe_intermediate_size` that vLLM reads.
    pub expert_intermediate_size: Option<u64>,
    /// Logits are `c * tanh(logits / c)` with this `c`.
    pub final_logit_softcapping: Option<f64>,
    /// The same for attention scores; no Gemma 4 has it.
    pub attn_logit_softcapping: Option<f64>,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: Option<f64>,
    /// Activation of the MLP.
    pub hidden_activation: Option<String>,
    /// Rotary embedding for each layer type.
    pub rope_parameters: Option<RawRopeByKind>,
    /// null or `vision`.
    pub use_bidirectional_attention: Option<String>,
}

/// One entry of `per_layer_config`. Each key overrides a dimension, so an unknown one is an error and not ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawLayerConfig {
    /// Width of a head of this layer.
    pub head_dim: Option<u64>,
    /// Key/value heads of this layer.
    pub num_key_value_heads: Option<u64>,
}

/// `rope_parameters` of the language model. Redundant scalars beside the two tables are ignored.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RawRopeByKind {
    /// Of full layers.
    pub full_attention: Option<RawRope>,
    /// Of sliding layers.
    pub sliding_attention: Option<RawRope>,
}

/// Parameters of one rotary embedding.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RawRope {
    /// Base of the frequencies.
    pub rope_theta: Option<f64>,
    /// `default`, `proportional`, or `axial` (vision).
    pub rope_type: Option<String>,
    /// Share of the head that turns.
    pub partial_rotary_factor: Option<f64>,
    /// Divisor of positions; only 1 is supported.
    pub factor: Option<f64>,
}

/// The image encoder: a vision transformer, or the raw-patch embedder of unified models.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RawVisionConfig {
    /// `D`.
    pub hidden_size: Option<u64>,
    /// Layers of the transformer.
    pub num_hidden_layers: Option<u64>,
    /// Attention heads.
    pub num_attention_heads: Option<u64>,
    /// Key/value heads; equal to the query heads in every Gemma 4.
    pub num_key_value_heads: Option<u64>,
    /// Width of a head.
    pub head_dim: Option<u64>,
    /// Width of the MLP.
    pub intermediate_size: Option<u64>,
    /// Side of a patch in pixels.
    pub patch_size: Option<u64>,
    /// Side of a pooling cell in patches.
    pub pooling_kernel_size: Option<u64>,
    /// Rows of each of the two position tables.
    pub position_embedding_size: Option<u64>,
    /// Whether linear layers clamp their inputs and outputs.
    pub use_clipped_linears: Option<bool>,
    /// Whether pooled features are standardized.
    pub standardize: Option<bool>,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: Option<f64>,
    /// Rotary embedding of the encoder.
    pub rope_parameters: Option<RawRope>,
    /// Soft tokens an image gets.
    pub default_output_length: Option<u64>,
    /// Unified: width of the patch embedding.
    pub mm_embed_dim: Option<u64>,
    /// Unified: rows of the position table.
    pub mm_posemb_size: Option<u64>,
    /// Unified: side of a model patch in pixels, `patch_size * pooling_kernel_size`.
    pub model_patch_size: Option<u64>,
    /// Unified: soft tokens an image gets.
    pub num_soft_tokens: Option<u64>,
    /// Unified: width that enters the projection.
    pub output_proj_dims: Option<u64>,
}

/// The audio encoder: a conformer, or the raw frames of unified models.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RawAudioConfig {
    /// `D`.
    pub hidden_size: Option<u64>,
    /// Conformer blocks.
    pub num_hidden_layers: Option<u64>,
    /// Attention heads.
    pub num_attention_heads: Option<u64>,
    /// Taps of the depthwise convolution.
    pub conv_kernel_size: Option<u64>,
    /// Channels of the two subsampling convolutions.
    pub subsampling_conv_channels: Option<Vec<u64>>,
    /// Width that leaves the tower.
    pub output_proj_dims: Option<u64>,
    /// Whether linear layers clamp their inputs and outputs.
    pub use_clipped_linears: Option<bool>,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: Option<f64>,
    /// Unified: samples in a frame, which is also what enters the projection.
    pub audio_embed_dim: Option<u64>,
    /// Unified: the same under the name of the published form.
    pub audio_samples_per_token: Option<u64>,
}

/// `quantization_config`; only the method's name is read here.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RawQuantization {
    /// Name of the method, for example `compressed-tensors`.
    pub quant_method: Option<String>,
}

/// Keeps "null" and "absent" apart: the field is `Some(None)` for null.
fn nullable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::<u64>::deserialize(deserializer).map(Some)
}
