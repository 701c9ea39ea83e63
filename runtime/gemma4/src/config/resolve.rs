//! From what is written to what is meant: the outer object and the language model.

use std::collections::BTreeMap;

use super::raw::{RawConfig, RawLayerConfig, RawRope, RawTextConfig};
use super::scope::Scope;
use super::{AttentionKind, Config, ConfigError, Layer, Moe, Rope, TextConfig, limits, media};
use crate::DType;

const MODEL_TYPES: &str = "gemma4, gemma4_unified, gemma4_text, gemma4_unified_text";
const TEXT_MODEL_TYPES: &str = "gemma4_text, gemma4_unified_text";

/// Resolves a whole configuration.
pub(super) fn config(raw: &RawConfig) -> Result<Config, ConfigError> {
    let outer = Scope("");
    let architecture = raw.architectures.as_deref().and_then(<[String]>::first).cloned();
    let architecture = outer.required("architectures", architecture)?;
    let model_type = outer.required("model_type", raw.model_type.as_deref())?;
    let (unified, text_only) = match model_type {
        "gemma4" => (false, false),
        "gemma4_unified" => (true, false),
        "gemma4_text" => (false, true),
        "gemma4_unified_text" => (true, true),
        other => return Err(outer.unsupported("model_type", other, MODEL_TYPES)),
    };
    let (raw_text, scope) = if text_only {
        if raw.text_config.is_some() || raw.vision_config.is_some() || raw.audio_config.is_some() {
            let reason = format!("a {model_type} has no text_config, vision_config or audio_config");
            return Err(outer.contradiction("model_type", reason));
        }
        (&raw.flat_text, outer)
    } else {
        let nested = outer.required("text_config", raw.text_config.as_ref())?;
        (nested, Scope("text_config"))
    };
    if let Some(inner) = raw_text.text_model_type.as_deref()
        && !matches!(inner, "gemma4_text" | "gemma4_unified_text")
    {
        return Err(scope.unsupported("model_type", inner, TEXT_MODEL_TYPES));
    }
    let tied = tied(raw, raw_text)?;
    let text = text(raw_text, scope, tied)?;
    let vision = raw.vision_config.as_ref();
    let vision = vision.map(|vision| media::vision(vision, raw, unified)).transpose()?;
    let audio = raw.audio_config.as_ref();
    let audio = audio.map(|audio| media::audio(audio, unified)).transpose()?;
    let bidirectional_vision = match raw_text.use_bidirectional_attention.as_deref() {
        None => false,
        Some("vision") => true,
        Some(other) => {
            return Err(scope.unsupported("use_bidirectional_attention", other, "null, vision"));
        }
    };
    Ok(Config {
        architecture,
        unified,
        text,
        vision,
        audio,
        tensor_prefix: if text_only { "model." } else { "model.language_model." },
        dtype: dtype(raw, raw_text, scope)?,
        quantization: quantization(raw)?,
        bidirectional_vision,
    })
}

/// The element type. The outer key wins: transformers leaves the type of the original training in `text_config` when a
/// model is saved in another one.
fn dtype(raw: &RawConfig, text: &RawTextConfig, text_scope: Scope) -> Result<Option<DType>, ConfigError> {
    let outer = Scope("");
    let (scope, name, value) = if let Some(value) = &raw.dtype {
        (outer, "dtype", value)
    } else if let Some(value) = &raw.torch_dtype {
        (outer, "torch_dtype", value)
    } else if let Some(value) = &text.text_dtype {
        (text_scope, "dtype", value)
    } else {
        return Ok(None);
    };
    match value.parse() {
        Ok(dtype) => Ok(Some(dtype)),
        Err(_) => Err(scope.unsupported(name, value, "torch's names, for example bfloat16")),
    }
}

fn quantization(raw: &RawConfig) -> Result<Option<String>, ConfigError> {
    let Some(quantization) = &raw.quantization_config else { return Ok(None) };
    let method = quantization.quant_method.clone();
    Scope("quantization_config").required("quant_method", method).map(Some)
}

/// Whether the head is tied; every published Gemma 4 is, so that is also what silence means.
fn tied(raw: &RawConfig, text: &RawTextConfig) -> Result<bool, ConfigError> {
    match (raw.tie_word_embeddings, text.text_tie_word_embeddings) {
        (Some(outer), Some(inner)) if outer != inner => {
            Err(Scope("").contradiction("tie_word_embeddings", format!("it is {outer}, and {inner} in text_config")))
        }
        (outer, inner) => Ok(outer.or(inner).unwrap_or(true)),
    }
}

fn text(raw: &RawTextConfig, at: Scope, tied_embeddings: bool) -> Result<TextConfig, ConfigError> {
    reject_unsupported(raw, at)?;
    let hidden_size = at.size("hidden_size", raw.hidden_size, limits::MAX_WIDTH)?;
    let kinds = layer_kinds(raw, at)?;
    let query_heads = at.size("num_attention_heads", raw.num_attention_heads, limits::MAX_HEADS)?;
    let sliding_window = if kinds.contains(&AttentionKind::Sliding) {
        at.size("sliding_window", raw.sliding_window, limits::MAX_POSITIONS)?
    } else {
        0
    };
    // Absent is not 0: transformers takes 256 then.
    let ple = at.required("hidden_size_per_layer_input", raw.hidden_size_per_layer_input)?;
    let ple_width = ple.unwrap_or(0);
    let ple_width = at.at_most("hidden_size_per_layer_input", ple_width, limits::MAX_WIDTH)?;
    let ple_vocab_size = if ple_width > 0 {
        let rows = raw.vocab_size_per_layer_input;
        at.size("vocab_size_per_layer_input", rows, limits::MAX_VOCABULARY)?
    } else {
        0
    };
    let softcap = raw.final_logit_softcapping;
    Ok(TextConfig {
        hidden_size,
        vocab_size: at.size("vocab_size", raw.vocab_size, limits::MAX_VOCABULARY)?,
        max_position_embeddings: at.size(
            "max_position_embeddings",
            raw.max_position_embeddings,
            limits::MAX_POSITIONS,
        )?,
        sliding_window,
        query_heads,
        ple_width,
        ple_vocab_size,
        tied_embeddings,
        final_logit_softcap: softcap.map(|cap| at.positive("final_logit_softcapping", cap)).transpose()?,
        rms_norm_eps: at.epsilon(raw.rms_norm_eps)?,
        moe: moe(raw, at)?,
        layers: layers(raw, at, &kinds, query_heads)?,
    })
}

/// Features that some relative of Gemma 4 has and that would change shapes or numbers unnoticed.
fn reject_unsupported(raw: &RawTextConfig, at: Scope) -> Result<(), ConfigError> {
    if raw.attention_bias == Some(true) {
        return Err(at.unsupported("attention_bias", true, "false"));
    }
    if let Some(cap) = raw.attn_logit_softcapping {
        return Err(at.unsupported("attn_logit_softcapping", cap, "null"));
    }
    match raw.hidden_activation.as_deref() {
        None | Some("gelu_pytorch_tanh") => Ok(()),
        Some(other) => Err(at.unsupported("hidden_activation", other, "gelu_pytorch_tanh")),
    }
}

fn layer_kinds(raw: &RawTextConfig, at: Scope) -> Result<Vec<AttentionKind>, ConfigError> {
    let count = at.size("num_hidden_layers", raw.num_hidden_layers, limits::MAX_LAYERS)?;
    let types = at.required("layer_types", raw.layer_types.as_ref())?;
    if u64::try_from(types.len()) != Ok(count) {
        let reason = format!("it has {} entries for {count} layers", types.len());
        return Err(at.contradiction("layer_types", reason));
    }
    let kinds = types.iter().enumerate().map(|(layer, name)| match name.as_str() {
        "sliding_attention" => Ok(AttentionKind::Sliding),
        "full_attention" => Ok(AttentionKind::Full),
        other => Err(at.unsupported(&format!("layer_types[{layer}]"), other, "sliding_attention, full_attention")),
    });
    let kinds = kinds.collect::<Result<Vec<_>, _>>()?;
    if kinds.last() != Some(&AttentionKind::Full) {
        let reason = "the last layer of every Gemma 4 is full_attention, and transformers runs it as such";
        return Err(at.contradiction("layer_types", reason));
    }
    Ok(kinds)
}

fn moe(raw: &RawTextConfig, at: Scope) -> Result<Option<Moe>, ConfigError> {
    let named = raw.num_experts.is_some_and(|experts| experts > 0);
    // transformers goes by `enable_moe_block`, vLLM 0.33 by `num_experts`: they must not disagree.
    if raw.enable_moe_block == Some(false) && named {
        return Err(at.contradiction("enable_moe_block", "it is false, but num_experts is set"));
    }
    if !raw.enable_moe_block.unwrap_or(named) {
        return Ok(None);
    }
    let experts = at.size("num_experts", raw.num_experts, limits::MAX_EXPERTS)?;
    let top_k = at.size("top_k_experts", raw.top_k_experts, experts)?;
    let width = match (raw.moe_intermediate_size, raw.expert_intermediate_size) {
        (Some(one), Some(other)) if one != other => {
            let reason = format!("it is {one}, and expert_intermediate_size is {other}");
            return Err(at.contradiction("moe_intermediate_size", reason));
        }
        (one, other) => one.or(other),
    };
    let intermediate_size = at.size("moe_intermediate_size", width, limits::MAX_INTERMEDIATE)?;
    Ok(Some(Moe { experts, top_k, intermediate_size }))
}

fn layers(
    raw: &RawTextConfig,
    at: Scope,
    kinds: &[AttentionKind],
    query_heads: u64,
) -> Result<Vec<Layer>, ConfigError> {
    let head_dim = at.size("head_dim", raw.head_dim, limits::MAX_HEAD_DIM)?;
    let kv_heads = at.size("num_key_value_heads", raw.num_key_value_heads, limits::MAX_HEADS)?;
    let width = at.size("intermediate_size", raw.intermediate_size, limits::MAX_INTERMEDIATE)?;
    let k_eq_v = raw.attention_k_eq_v.unwrap_or(false);
    let overrides = overrides(raw, at, kinds.len())?;
    let first_shared = first_shared(raw, at, kinds.len())?;

    let mut layers = Vec::with_capacity(kinds.len());
    for (index, &kind) in kinds.iter().enumerate() {
        let full = kind == AttentionKind::Full;
        let own = overrides.get(&index).copied().unwrap_or_default();
        // `num_global_key_value_heads` counts only on K = V layers; elsewhere transformers and vLLM ignore it.
        let global_heads = raw.num_global_key_value_heads.filter(|_| full && k_eq_v);
        let global_dim = raw.global_head_dim.filter(|_| full);
        let entry = |name: &str| format!("per_layer_config.{index}.{name}");
        let pick = |name: &str, own: Option<u64>, global: Option<u64>, base: u64, limit: u64| {
            if let (Some(own), Some(global)) = (own, global)
                && own != global
            {
                let reason = format!("it is {own}, and the value for full layers is {global}");
                return Err(at.contradiction(&entry(name), reason));
            }
            let name = if own.is_some() { entry(name) } else { name.to_owned() };
            at.size(&name, own.or(global).or(Some(base)), limit)
        };
        let head_dim = pick("head_dim", own.head_dim, global_dim, head_dim, limits::MAX_HEAD_DIM)?;
        let kv_heads = pick("num_key_value_heads", own.num_key_value_heads, global_heads, kv_heads, limits::MAX_HEADS)?;
        at.divisible("num_attention_heads", query_heads, kv_heads, "num_key_value_heads")?;
        at.divisible("head_dim", head_dim, 2, "pairs of the rotary embedding")?;
        let shared = index >= first_shared;
        let kv_donor = if shared {
            let owners = kinds.get(..first_shared).unwrap_or_default();
            let donor = owners.iter().rposition(|&owner| owner == kind);
            Some(donor.ok_or(ConfigError::NoDonor { layer: index, kind })?)
        } else {
            None
        };
        let double = shared && raw.use_double_wide_mlp.unwrap_or(false);
        let layer = Layer {
            kind,
            kv_heads,
            head_dim,
            k_eq_v: k_eq_v && full,
            kv_donor,
            intermediate_size: if double { 2 * width } else { width },
            rope: rope(raw, kind, head_dim, at)?,
        };
        if let Some(donor) = kv_donor.and_then(|donor| layers.get(donor)) {
            same_kv_shape(index, &layer, donor, at)?;
        }
        layers.push(layer);
    }
    Ok(layers)
}

fn first_shared(raw: &RawTextConfig, at: Scope, layers: usize) -> Result<usize, ConfigError> {
    let shared = raw.num_kv_shared_layers.unwrap_or(0);
    let own = usize::try_from(shared).ok().and_then(|shared| layers.checked_sub(shared));
    own.filter(|&own| own > 0).ok_or_else(|| {
        let reason = format!("it is {shared} of {layers} layers, which leaves none to borrow from");
        at.contradiction("num_kv_shared_layers", reason)
    })
}

fn same_kv_shape(index: usize, layer: &Layer, donor: &Layer, at: Scope) -> Result<(), ConfigError> {
    if (layer.kv_heads, layer.head_dim) == (donor.kv_heads, donor.head_dim) {
        return Ok(());
    }
    let reason = format!(
        "layer {index} has {} key/value heads of {} and borrows from a layer with {} of {}",
        layer.kv_heads, layer.head_dim, donor.kv_heads, donor.head_dim
    );
    Err(at.contradiction("num_kv_shared_layers", reason))
}

/// `per_layer_config` by index. Keys may be zero-padded ("04"), as transformers 5.23 writes them.
fn overrides(raw: &RawTextConfig, at: Scope, layers: usize) -> Result<BTreeMap<usize, RawLayerConfig>, ConfigError> {
    let mut by_index = BTreeMap::new();
    for (key, entry) in raw.per_layer_config.iter().flatten() {
        let digits = key.bytes().all(|byte| byte.is_ascii_digit());
        let index = key.parse().ok().filter(|&index: &usize| digits && index < layers);
        let Some(index) = index else {
            let field = format!("per_layer_config.{key}");
            return Err(at.unsupported(&field, key, "the index of a layer in decimal"));
        };
        if by_index.insert(index, *entry).is_some() {
            let field = format!("per_layer_config.{key}");
            return Err(at.contradiction(&field, format!("layer {index} has two entries")));
        }
    }
    Ok(by_index)
}

/// "default" turns the whole head; "proportional" turns `int(factor * head_dim // 2)` pairs and keeps the exponent's
/// denominator at the whole head, which is what [`Rope`] says.
fn rope(raw: &RawTextConfig, kind: AttentionKind, head_dim: u64, at: Scope) -> Result<Rope, ConfigError> {
    let by_kind = at.required("rope_parameters", raw.rope_parameters.as_ref())?;
    let (name, rope) = match kind {
        AttentionKind::Full => ("rope_parameters.full_attention", &by_kind.full_attention),
        AttentionKind::Sliding => ("rope_parameters.sliding_attention", &by_kind.sliding_attention),
    };
    let rope: &RawRope = at.required(name, rope.as_ref())?;
    let path = |key: &str| format!("{name}.{key}");
    let theta = at.required(&path("rope_theta"), rope.rope_theta)?;
    let theta = at.positive(&path("rope_theta"), theta)?;
    if let Some(factor) = rope.factor.filter(|&factor| factor != 1.0) {
        return Err(at.unsupported(&path("factor"), factor, "1"));
    }
    let share = rope.partial_rotary_factor;
    let angles = match rope.rope_type.as_deref() {
        None | Some("default") => {
            if let Some(share) = share.filter(|&share| share != 1.0) {
                let supported = "1 with rope_type default";
                return Err(at.unsupported(&path("partial_rotary_factor"), share, supported));
            }
            head_dim / 2
        }
        Some("proportional") => turning_pairs(share.unwrap_or(1.0), head_dim).ok_or_else(|| {
            let expected = "above 0, at most 1, and enough for one pair";
            let field = at.path(&path("partial_rotary_factor"));
            ConfigError::OutOfRange { field, value: share.unwrap_or(1.0), expected }
        })?,
        Some(other) => {
            return Err(at.unsupported(&path("rope_type"), other, "default, proportional"));
        }
    };
    Ok(Rope { theta, angles })
}

/// `None` unless the share lies in (0, 1] and at least one pair turns. The casts are exact: `head_dim` is at most 4096.
fn turning_pairs(share: f64, head_dim: u64) -> Option<u64> {
    let in_range = share.is_finite() && share > 0.0 && share <= 1.0;
    let pairs = in_range.then(|| (share * head_dim as f64 / 2.0).floor() as u64)?;
    (pairs > 0).then_some(pairs)
}
