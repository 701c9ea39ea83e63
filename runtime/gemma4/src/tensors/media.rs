//! Tensors of the image and audio encoders. Their names do not depend on the language model's prefix.

use super::{Component, List, Role};
use crate::config::{AudioConfig, AudioTower, VisionConfig, VisionPatchEmbedder, VisionTower};

/// Colour channels of a patch.
const CHANNELS: u64 = 3;
/// Bounds that a clipped linear layer stores beside its weight.
const CLIP_BOUNDS: [&str; 4] = ["input_min", "input_max", "output_min", "output_max"];
/// A conformer's feed-forward parts widen by this factor; not a key of the configuration.
const AUDIO_FEED_FORWARD_FACTOR: u64 = 4;
/// A gated linear unit halves what enters it.
const GATED: u64 = 2;
/// Side of the subsampling convolutions' kernels; not a key of the configuration.
const SUBSAMPLING_KERNEL: u64 = 3;

pub(super) fn push_vision(list: &mut List, vision: &VisionConfig, text_hidden: u64) {
    let width = match vision {
        VisionConfig::Tower(tower) => {
            vision_tower(list, tower);
            tower.hidden_size
        }
        VisionConfig::Patches(patches) => {
            patch_embedder(list, patches);
            patches.hidden_size
        }
    };
    list.at("model.embed_vision.".to_owned(), None);
    let shape = [text_hidden, width];
    list.push("embedding_projection.weight", &shape, Component::Vision, Role::VisionProjector);
}

fn pixels(side: u64) -> u64 {
    side.saturating_mul(side).saturating_mul(CHANNELS)
}

fn vision_tower(list: &mut List, tower: &VisionTower) {
    let component = Component::Vision;
    let width = tower.hidden_size;
    list.at("model.vision_tower.".to_owned(), None);
    let shape = [width, pixels(tower.patch_size)];
    list.push("patch_embedder.input_proj.weight", &shape, component, Role::VisionPatch);
    let shape = [2, tower.position_embedding_size, width];
    let name = "patch_embedder.position_embedding_table";
    list.push(name, &shape, component, Role::VisionPositions);
    if tower.standardized {
        list.push("std_bias", &[width], component, Role::VisionStdBias);
        list.push("std_scale", &[width], component, Role::VisionStdScale);
    }
    let heads = tower.heads.saturating_mul(tower.head_dim);
    let inner = tower.intermediate_size;
    for index in 0..tower.layers {
        let layer = usize::try_from(index).ok();
        list.at(format!("model.vision_tower.encoder.layers.{index}."), layer);
        for name in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
            let name = format!("{name}_layernorm.weight");
            list.push(&name, &[width], component, Role::VisionNorm);
        }
        for name in ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] {
            list.push(name, &[tower.head_dim], component, Role::VisionNorm);
        }
        let linears = [
            ("self_attn.q_proj", [heads, width], Role::VisionQ),
            ("self_attn.k_proj", [heads, width], Role::VisionK),
            ("self_attn.v_proj", [heads, width], Role::VisionV),
            ("self_attn.o_proj", [width, heads], Role::VisionO),
            ("mlp.gate_proj", [inner, width], Role::VisionMlpGate),
            ("mlp.up_proj", [inner, width], Role::VisionMlpUp),
            ("mlp.down_proj", [width, inner], Role::VisionMlpDown),
        ];
        for (name, shape, role) in linears {
            clippable(list, tower.clipped_linears, name, shape, component, role);
        }
    }
}

/// A linear layer of a tower. Its weight is one level deeper than usual ("linear.weight") whether or not it clips.
fn clippable(list: &mut List, clipped: bool, name: &str, shape: [u64; 2], component: Component, role: Role) {
    list.push(&format!("{name}.linear.weight"), &shape, component, role);
    if clipped {
        for bound in CLIP_BOUNDS {
            list.push(&format!("{name}.{bound}"), &[], component, Role::ClipScalar);
        }
    }
}

fn patch_embedder(list: &mut List, patches: &VisionPatchEmbedder) {
    let component = Component::Vision;
    let (width, input) = (patches.hidden_size, pixels(patches.patch_size));
    list.at("model.vision_embedder.".to_owned(), None);
    // LayerNorms with bias, unlike every other norm of the model.
    for (name, size) in [("patch_ln1", input), ("patch_ln2", width), ("pos_norm", width)] {
        for part in ["weight", "bias"] {
            list.push(&format!("{name}.{part}"), &[size], component, Role::VisionNorm);
        }
    }
    list.push("patch_dense.weight", &[width, input], component, Role::VisionPatch);
    list.push("patch_dense.bias", &[width], component, Role::VisionPatchBias);
    let shape = [patches.position_embedding_size, 2, width];
    list.push("pos_embedding", &shape, component, Role::VisionPositions);
}

pub(super) fn push_audio(list: &mut List, audio: &AudioConfig, text_hidden: u64) {
    let width = match audio {
        AudioConfig::Tower(tower) => {
            audio_tower(list, tower);
            tower.output_size
        }
        AudioConfig::Frames(frames) => frames.samples_per_token,
    };
    list.at("model.embed_audio.".to_owned(), None);
    let shape = [text_hidden, width];
    list.push("embedding_projection.weight", &shape, Component::Audio, Role::AudioProjector);
}

fn audio_tower(list: &mut List, tower: &AudioTower) {
    let component = Component::Audio;
    let width = tower.hidden_size;
    let [first, second] = tower.subsampling_channels;
    list.at("model.audio_tower.".to_owned(), None);
    let kernel = SUBSAMPLING_KERNEL;
    for (layer, output, input) in [(0, first, 1), (1, second, first)] {
        let name = format!("subsample_conv_projection.layer{layer}");
        let shape = [output, input, kernel, kernel];
        list.push(&format!("{name}.conv.weight"), &shape, component, Role::AudioConv);
        list.push(&format!("{name}.norm.weight"), &[output], component, Role::AudioNorm);
    }
    // Two strides of 2 leave a quarter of the mel bins; transformers takes the first convolution's channels for the bins,
    // of which there are as many (128).
    let flattened = (first / 4).saturating_mul(second);
    let name = "subsample_conv_projection.input_proj_linear.weight";
    list.push(name, &[width, flattened], component, Role::AudioInput);
    list.push("output_proj.weight", &[tower.output_size, width], component, Role::AudioOutput);
    list.push("output_proj.bias", &[tower.output_size], component, Role::AudioOutput);
    for index in 0..tower.layers {
        let layer = usize::try_from(index).ok();
        list.at(format!("model.audio_tower.layers.{index}."), layer);
        audio_block(list, tower);
    }
}

fn audio_block(list: &mut List, tower: &AudioTower) {
    let component = Component::Audio;
    let width = tower.hidden_size;
    let wide = width.saturating_mul(AUDIO_FEED_FORWARD_FACTOR);
    let clipped = tower.clipped_linears;
    let norms = [
        "feed_forward1.pre_layer_norm",
        "feed_forward1.post_layer_norm",
        "feed_forward2.pre_layer_norm",
        "feed_forward2.post_layer_norm",
        "lconv1d.pre_layer_norm",
        "lconv1d.conv_norm",
        "norm_pre_attn",
        "norm_post_attn",
        "norm_out",
    ];
    for name in norms {
        list.push(&format!("{name}.weight"), &[width], component, Role::AudioNorm);
    }
    for part in ["feed_forward1", "feed_forward2"] {
        for (name, shape) in [("ffw_layer_1", [wide, width]), ("ffw_layer_2", [width, wide])] {
            let name = format!("{part}.{name}");
            clippable(list, clipped, &name, shape, component, Role::AudioFeedForward);
        }
    }
    for name in ["q_proj", "k_proj", "v_proj", "post"] {
        let name = format!("self_attn.{name}");
        clippable(list, clipped, &name, [width, width], component, Role::AudioAttention);
    }
    // The only linear layer of a block that never clips, so its weight is at the usual level.
    let name = "self_attn.relative_k_proj.weight";
    list.push(name, &[width, width], component, Role::AudioAttention);
    let head = width.checked_div(tower.heads).unwrap_or(0);
    list.push("self_attn.per_dim_scale", &[head], component, Role::AudioPerDimScale);
    let start = [width.saturating_mul(GATED), width];
    let role = Role::AudioConvLinear;
    clippable(list, clipped, "lconv1d.linear_start", start, component, role);
    clippable(list, clipped, "lconv1d.linear_end", [width, width], component, role);
    let shape = [width, 1, tower.conv_kernel_size];
    let name = "lconv1d.depthwise_conv1d.weight";
    list.push(name, &shape, component, Role::AudioDepthwiseConv);
}
