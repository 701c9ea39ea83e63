//! Tensors of the language model.

use super::{Component, List, Role};
use crate::Config;
use crate::config::{Layer, TextConfig};

pub(super) fn push(list: &mut List, config: &Config) {
    let text = &config.text;
    let prefix = config.tensor_prefix;
    let hidden = text.hidden_size;
    let layers = u64::try_from(text.layers.len()).unwrap_or(u64::MAX);
    let stacked = layers.saturating_mul(text.ple_width);

    if !text.tied_embeddings {
        // The head stands outside the model's prefix, as in every transformers model.
        let shape = [text.vocab_size, hidden];
        list.push("lm_head.weight", &shape, Component::Head, Role::Head);
    }
    list.at(prefix.to_owned(), None);
    let shape = [text.vocab_size, hidden];
    list.push("embed_tokens.weight", &shape, Component::TokenEmbedding, Role::Embedding);
    list.push("norm.weight", &[hidden], Component::Norm, Role::FinalNorm);
    if text.has_ple() {
        let table = [text.ple_vocab_size, stacked];
        let component = Component::PerLayerTable;
        list.push("embed_tokens_per_layer.weight", &table, component, Role::PerLayerTable);
        let component = Component::PerLayerProjection;
        let (name, role) = ("per_layer_model_projection.weight", Role::PerLayerModelProjection);
        list.push(name, &[stacked, hidden], component, role);
        let (name, role) = ("per_layer_projection_norm.weight", Role::PerLayerProjectionNorm);
        list.push(name, &[text.ple_width], component, role);
    }
    for (index, layer) in text.layers.iter().enumerate() {
        list.at(format!("{prefix}layers.{index}."), Some(index));
        attention(list, text, layer);
        feed_forward(list, text, layer);
        if text.has_ple() {
            per_layer_input(list, text);
        }
        list.push("layer_scalar", &[1], Component::Norm, Role::LayerScalar);
    }
}

fn attention(list: &mut List, text: &TextConfig, layer: &Layer) {
    let hidden = text.hidden_size;
    let queries = text.query_heads.saturating_mul(layer.head_dim);
    let keys = [layer.kv_width(), hidden];
    // Layers that borrow keys and values ship these all the same. vLLM 0.33 drops them while loading.
    let own = layer.owns_kv();
    let component = Component::Attention;
    list.push("self_attn.q_proj.weight", &[queries, hidden], component, Role::QProj);
    list.push_if(own, "self_attn.k_proj.weight", &keys, component, Role::KProj);
    if !layer.k_eq_v {
        list.push_if(own, "self_attn.v_proj.weight", &keys, component, Role::VProj);
    }
    list.push("self_attn.o_proj.weight", &[hidden, queries], component, Role::OProj);
    let component = Component::Norm;
    list.push("self_attn.q_norm.weight", &[layer.head_dim], component, Role::QNorm);
    list.push_if(own, "self_attn.k_norm.weight", &[layer.head_dim], component, Role::KNorm);
}

fn feed_forward(list: &mut List, text: &TextConfig, layer: &Layer) {
    let hidden = text.hidden_size;
    let norms = [
        ("input_layernorm.weight", Role::InputNorm),
        ("post_attention_layernorm.weight", Role::PostAttentionNorm),
        ("pre_feedforward_layernorm.weight", Role::PreFeedforwardNorm),
        ("post_feedforward_layernorm.weight", Role::PostFeedforwardNorm),
    ];
    for (name, role) in norms {
        list.push(name, &[hidden], Component::Norm, role);
    }
    let width = layer.intermediate_size;
    list.push("mlp.gate_proj.weight", &[width, hidden], Component::Mlp, Role::GateProj);
    list.push("mlp.up_proj.weight", &[width, hidden], Component::Mlp, Role::UpProj);
    list.push("mlp.down_proj.weight", &[hidden, width], Component::Mlp, Role::DownProj);

    let Some(moe) = &text.moe else { return };
    let norms = [
        ("post_feedforward_layernorm_1.weight", Role::PostDenseNorm),
        ("pre_feedforward_layernorm_2.weight", Role::PreExpertsNorm),
        ("post_feedforward_layernorm_2.weight", Role::PostExpertsNorm),
    ];
    for (name, role) in norms {
        list.push(name, &[hidden], Component::Norm, role);
    }
    let component = Component::Router;
    list.push("router.proj.weight", &[moe.experts, hidden], component, Role::RouterProj);
    list.push("router.scale", &[hidden], component, Role::RouterScale);
    list.push("router.per_expert_scale", &[moe.experts], component, Role::PerExpertScale);
    let component = Component::Experts;
    let width = moe.intermediate_size;
    let gate_up = [moe.experts, width.saturating_mul(2), hidden];
    // Stored as bare parameters, hence without ".weight".
    list.push("experts.gate_up_proj", &gate_up, component, Role::ExpertsGateUp);
    list.push("experts.down_proj", &[moe.experts, hidden, width], component, Role::ExpertsDown);
}

fn per_layer_input(list: &mut List, text: &TextConfig) {
    let (hidden, width) = (text.hidden_size, text.ple_width);
    let component = Component::PerLayerProjection;
    let (name, role) = ("per_layer_input_gate.weight", Role::PerLayerInputGate);
    list.push(name, &[width, hidden], component, role);
    let (name, role) = ("per_layer_projection.weight", Role::PerLayerProjection);
    list.push(name, &[hidden, width], component, role);
    let (name, role) = ("post_per_layer_input_norm.weight", Role::PostPerLayerInputNorm);
    list.push(name, &[hidden], component, role);
}
