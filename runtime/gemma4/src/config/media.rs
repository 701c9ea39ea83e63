//! Encoders of images and audio.

use super::raw::{RawAudioConfig, RawConfig, RawVisionConfig};
use super::scope::Scope;
use super::{ConfigError, limits};

/// How images become soft tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum VisionConfig {
    /// A vision transformer (E2B, E4B, 26B, 31B).
    Tower(VisionTower),
    /// Patches of pixels through one linear layer (12B).
    Patches(VisionPatchEmbedder),
}

/// A vision transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionTower {
    /// `D`.
    pub hidden_size: u64,
    /// Layers.
    pub layers: u64,
    /// Heads; queries, keys and values have the same number.
    pub heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Width of the MLP.
    pub intermediate_size: u64,
    /// Side of a patch in pixels.
    pub patch_size: u64,
    /// Side of a pooling cell in patches: a cell becomes one soft token.
    pub pooling_kernel_size: u64,
    /// Rows of each of the two position tables (x and y).
    pub position_embedding_size: u64,
    /// Whether linear layers clamp inputs and outputs to four stored scalars (E2B, E4B).
    pub clipped_linears: bool,
    /// Whether pooled features are standardized by a stored bias and scale (26B, 31B).
    pub standardized: bool,
    /// Base of the two-axis rotary embedding. 100 where it is not written, as in every published Gemma 4.
    pub rope_theta: f64,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Soft tokens of an image by default, if the configuration says.
    pub soft_tokens: Option<u64>,
}

/// The patch embedder of unified models.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionPatchEmbedder {
    /// Width of the embedding, which also enters the projection.
    pub hidden_size: u64,
    /// Side of a patch in pixels (48 in the 12B).
    pub patch_size: u64,
    /// Rows of the position table.
    pub position_embedding_size: u64,
    /// Added to the mean square in the norm before the projection.
    pub rms_norm_eps: f64,
    /// Soft tokens of an image by default, if the configuration says.
    pub soft_tokens: Option<u64>,
}

/// How audio becomes soft tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum AudioConfig {
    /// A conformer over mel features (E2B, E4B).
    Tower(AudioTower),
    /// Raw frames of samples (12B).
    Frames(AudioFrames),
}

/// A conformer.
#[derive(Clone, Debug, PartialEq)]
pub struct AudioTower {
    /// `D`.
    pub hidden_size: u64,
    /// Blocks.
    pub layers: u64,
    /// Attention heads.
    pub heads: u64,
    /// Taps of the depthwise convolution.
    pub conv_kernel_size: u64,
    /// Channels of the two subsampling convolutions.
    pub subsampling_channels: [u64; 2],
    /// Width that leaves the tower.
    pub output_size: u64,
    /// Whether linear layers clamp inputs and outputs to four stored scalars.
    pub clipped_linears: bool,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
}

/// Raw frames of audio.
#[derive(Clone, Debug, PartialEq)]
pub struct AudioFrames {
    /// Samples of a frame; a frame is one soft token (640 at 16 kHz in the 12B).
    pub samples_per_token: u64,
    /// Added to the mean square in the norm before the projection.
    pub rms_norm_eps: f64,
}

const VISION: Scope = Scope("vision_config");
const AUDIO: Scope = Scope("audio_config");

pub(super) fn vision(raw: &RawVisionConfig, outer: &RawConfig, unified: bool) -> Result<VisionConfig, ConfigError> {
    if unified { patches(raw, outer).map(VisionConfig::Patches) } else { tower(raw, outer).map(VisionConfig::Tower) }
}

fn tower(raw: &RawVisionConfig, outer: &RawConfig) -> Result<VisionTower, ConfigError> {
    let at = VISION;
    let heads = at.size("num_attention_heads", raw.num_attention_heads, limits::MAX_HEADS)?;
    if let Some(kv_heads) = raw.num_key_value_heads.filter(|&kv_heads| kv_heads != heads) {
        let supported = "the number of query heads";
        return Err(at.unsupported("num_key_value_heads", kv_heads, supported));
    }
    let rope = raw.rope_parameters.as_ref();
    if let Some(kind) = rope.and_then(|rope| rope.rope_type.as_deref())
        // The same mathematics under the published and the newer name.
        && !matches!(kind, "default" | "axial")
    {
        return Err(at.unsupported("rope_parameters.rope_type", kind, "default, axial"));
    }
    let theta = rope.and_then(|rope| rope.rope_theta).unwrap_or(100.0);
    let rows = raw.position_embedding_size;
    let soft_tokens = outer.vision_soft_tokens_per_image.or(raw.default_output_length);
    Ok(VisionTower {
        hidden_size: at.size("hidden_size", raw.hidden_size, limits::MAX_WIDTH)?,
        layers: at.size("num_hidden_layers", raw.num_hidden_layers, limits::MAX_LAYERS)?,
        heads,
        head_dim: at.size("head_dim", raw.head_dim, limits::MAX_HEAD_DIM)?,
        intermediate_size: at.size("intermediate_size", raw.intermediate_size, limits::MAX_INTERMEDIATE)?,
        patch_size: at.size("patch_size", raw.patch_size, limits::MAX_KERNEL)?,
        pooling_kernel_size: at.size("pooling_kernel_size", raw.pooling_kernel_size, limits::MAX_KERNEL)?,
        position_embedding_size: at.size("position_embedding_size", rows, limits::MAX_VOCABULARY)?,
        clipped_linears: raw.use_clipped_linears.unwrap_or(false),
        standardized: raw.standardize.unwrap_or(false),
        rope_theta: at.positive("rope_parameters.rope_theta", theta)?,
        rms_norm_eps: at.epsilon(raw.rms_norm_eps)?,
        soft_tokens,
    })
}

fn patches(raw: &RawVisionConfig, outer: &RawConfig) -> Result<VisionPatchEmbedder, ConfigError> {
    let at = VISION;
    let hidden_size = at.size("mm_embed_dim", raw.mm_embed_dim, limits::MAX_WIDTH)?;
    if let Some(width) = raw.output_proj_dims.filter(|&width| width != hidden_size) {
        // Nothing lies between the last norm and the projection that could change the width.
        let reason = format!("it is {width}, and mm_embed_dim is {hidden_size}");
        return Err(at.contradiction("output_proj_dims", reason));
    }
    let product = match (raw.patch_size, raw.pooling_kernel_size) {
        (Some(patch), Some(pool)) => Some(patch.saturating_mul(pool)),
        _ => None,
    };
    let patch_size = raw.model_patch_size.or(product);
    let patch_size = at.size("model_patch_size", patch_size, limits::MAX_KERNEL)?;
    if let Some(product) = product.filter(|&product| product != patch_size) {
        let reason = format!("it is {patch_size}; patch_size * pooling_kernel_size is {product}");
        return Err(at.contradiction("model_patch_size", reason));
    }
    let rows = at.size("mm_posemb_size", raw.mm_posemb_size, limits::MAX_VOCABULARY)?;
    Ok(VisionPatchEmbedder {
        hidden_size,
        patch_size,
        position_embedding_size: rows,
        rms_norm_eps: at.epsilon(raw.rms_norm_eps)?,
        soft_tokens: outer.vision_soft_tokens_per_image.or(raw.num_soft_tokens),
    })
}

pub(super) fn audio(raw: &RawAudioConfig, unified: bool) -> Result<AudioConfig, ConfigError> {
    let at = AUDIO;
    let rms_norm_eps = at.epsilon(raw.rms_norm_eps)?;
    if unified {
        let (embed, samples) = (raw.audio_embed_dim, raw.audio_samples_per_token);
        if let (Some(embed), Some(samples)) = (embed, samples)
            && embed != samples
        {
            // Frames go to the projection as they are.
            let reason = format!("it is {embed}, and audio_samples_per_token is {samples}");
            return Err(at.contradiction("audio_embed_dim", reason));
        }
        let samples = at.size("audio_embed_dim", embed.or(samples), limits::MAX_WIDTH)?;
        return Ok(AudioConfig::Frames(AudioFrames { samples_per_token: samples, rms_norm_eps }));
    }
    let hidden_size = at.size("hidden_size", raw.hidden_size, limits::MAX_WIDTH)?;
    let heads = at.size("num_attention_heads", raw.num_attention_heads, limits::MAX_HEADS)?;
    at.divisible("hidden_size", hidden_size, heads, "num_attention_heads")?;
    let name = "subsampling_conv_channels";
    let channels = at.required(name, raw.subsampling_conv_channels.as_deref())?;
    let &[first, second] = channels else {
        return Err(at.unsupported(name, format!("{} entries", channels.len()), "two entries"));
    };
    let first = at.size(name, Some(first), limits::MAX_WIDTH)?;
    let second = at.size(name, Some(second), limits::MAX_WIDTH)?;
    at.divisible(name, first, 4, "the two strides of 2")?;
    Ok(AudioConfig::Tower(AudioTower {
        hidden_size,
        layers: at.size("num_hidden_layers", raw.num_hidden_layers, limits::MAX_LAYERS)?,
        heads,
        conv_kernel_size: at.size("conv_kernel_size", raw.conv_kernel_size, limits::MAX_KERNEL)?,
        subsampling_channels: [first, second],
        output_size: at.size("output_proj_dims", raw.output_proj_dims, limits::MAX_WIDTH)?,
        clipped_linears: raw.use_clipped_linears.unwrap_or(false),
        rms_norm_eps,
    }))
}
