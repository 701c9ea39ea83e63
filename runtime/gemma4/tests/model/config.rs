//! What is read from a `config.json`, and what is refused.

use gemma4_model::config::{AttentionKind, Moe, RawConfig, Rope, VisionConfig};
use gemma4_model::{Config, ConfigError, DType};
use serde_json::{Value, json};

use crate::data::{B12, B26, B26_TOML, B31, E2B, E4B, FIXTURES, config, edited, without};

#[test]
fn both_forms_give_the_same_configuration() {
    for fixture in FIXTURES {
        let published = config(fixture.published);
        let mut newer = config(fixture.per_layer);
        // The two checkpoints hold the same numbers in different types.
        assert_eq!((published.dtype, newer.dtype), (Some(DType::Bf16), Some(DType::F32)));
        newer.dtype = published.dtype;
        assert_eq!(published, newer, "{}", fixture.name);
    }
}

#[test]
fn toml_gives_the_same_configuration() {
    let raw: RawConfig = toml::from_str(B26_TOML).expect("TOML");
    assert_eq!(Config::from_raw(&raw).expect("usable"), config(B26));
}

#[test]
fn layers_of_e2b() {
    let config = config(E2B);
    let text = &config.text;
    assert_eq!(text.layers.len(), 35);
    assert_eq!(text.num_kv_shared(), 20);
    assert_eq!(text.fast_prefill_cut(), 15);
    assert_eq!(text.owning_layers_of(AttentionKind::Sliding).count(), 12);
    assert_eq!(text.owning_layers_of(AttentionKind::Full).count(), 3);
    for (index, layer) in text.layers.iter().enumerate() {
        let full = index % 5 == 4;
        let donor = if full { 14 } else { 13 };
        assert_eq!(layer.kv_donor, (index >= 15).then_some(donor));
        assert_eq!(layer.intermediate_size, if index >= 15 { 12288 } else { 6144 });
        assert_eq!(layer.head_dim, if full { 512 } else { 256 });
        assert_eq!((layer.kv_heads, layer.k_eq_v), (1, false));
        let full_rope = Rope { theta: 1e6, angles: 64 };
        let rope = Rope { theta: 1e4, angles: 128 };
        assert_eq!(layer.rope, if full { full_rope } else { rope });
    }
    assert!(!config.bidirectional_vision);
    assert_eq!(config.tensor_prefix, "model.language_model.");
}

#[test]
fn donors_and_widths_of_e4b() {
    let text = config(E4B).text;
    assert_eq!(text.num_kv_shared(), 18);
    assert_eq!(text.layers[24].kv_donor, Some(22));
    assert_eq!(text.layers[29].kv_donor, Some(23));
    assert!(text.layers.iter().all(|layer| layer.intermediate_size == 10240));
}

#[test]
fn full_layers_of_large_models_have_heads_of_their_own() {
    for (bytes, sliding, full) in [(B12, 8, 1), (B26, 8, 2), (B31, 16, 4)] {
        let config = config(bytes);
        assert!(config.bidirectional_vision);
        for layer in &config.text.layers {
            let is_full = layer.kind == AttentionKind::Full;
            assert_eq!(layer.kv_heads, if is_full { full } else { sliding });
            assert_eq!(layer.k_eq_v, is_full);
            assert!(layer.owns_kv());
        }
    }
    let moe = Moe { experts: 128, top_k: 8, intermediate_size: 704 };
    assert_eq!(config(B26).text.moe, Some(moe));
    let unified = config(B12);
    assert!(unified.unified && matches!(unified.vision, Some(VisionConfig::Patches(_))));
}

#[test]
fn heads_of_full_layers_count_only_with_k_eq_v() {
    let bytes = edited(E2B, &[("/text_config/num_global_key_value_heads", json!(4))]);
    assert_eq!(config(&bytes), config(E2B));
}

#[test]
fn a_text_only_checkpoint_is_flat() {
    let root: Value = serde_json::from_slice(E2B).expect("JSON");
    let mut flat = root["text_config"].clone();
    flat["architectures"] = json!(["Gemma4ForCausalLM"]);
    let config = config(&serde_json::to_vec(&flat).expect("JSON"));
    assert_eq!(config.text, self::config(E2B).text);
    assert_eq!(config.tensor_prefix, "model.");
    assert_eq!((config.vision, config.audio), (None, None));
    assert_eq!(config.dtype, Some(DType::Bf16));

    flat["text_config"] = root["text_config"].clone();
    let error = Config::from_json(&serde_json::to_vec(&flat).expect("JSON"));
    assert!(matches!(error, Err(ConfigError::Contradiction { .. })));
}

#[test]
fn harmless_variations_are_read() {
    let same = [
        ("/text_config/rope_parameters/rope_theta", json!(10_000.0)),
        ("/text_config/something_new", json!({"deep": [1, "x", null]})),
        ("/vision_config/rope_parameters/rope_type", json!("axial")),
        ("/eos_token_id", json!(1)),
        ("/torch_dtype", json!("bfloat16")),
    ];
    for edit in same {
        assert_eq!(config(&edited(B26, std::slice::from_ref(&edit))), config(B26), "{}", edit.0);
    }
    let alias = edited(
        B26,
        &[("/text_config/expert_intermediate_size", json!(704)), ("/text_config/moe_intermediate_size", Value::Null)],
    );
    assert_eq!(config(&alias), config(B26));
    let null = edited(B26, &[("/text_config/hidden_size_per_layer_input", Value::Null)]);
    assert_eq!(config(&null), config(B26));
    let quantized = json!({"quant_method": "compressed-tensors", "config_groups": {}});
    let quantized = edited(B26, &[("/quantization_config", quantized)]);
    assert_eq!(config(&quantized).quantization.as_deref(), Some("compressed-tensors"));
}

#[test]
fn missing_keys_are_named() {
    let keys = [
        "/architectures",
        "/model_type",
        "/text_config",
        "/text_config/hidden_size",
        "/text_config/vocab_size",
        "/text_config/max_position_embeddings",
        "/text_config/sliding_window",
        "/text_config/num_hidden_layers",
        "/text_config/layer_types",
        "/text_config/num_attention_heads",
        "/text_config/num_key_value_heads",
        "/text_config/head_dim",
        "/text_config/intermediate_size",
        "/text_config/hidden_size_per_layer_input",
        "/text_config/vocab_size_per_layer_input",
        "/text_config/rope_parameters",
        "/text_config/rope_parameters/full_attention",
        "/text_config/rope_parameters/sliding_attention/rope_theta",
        "/vision_config/hidden_size",
        "/vision_config/head_dim",
        "/audio_config/output_proj_dims",
        "/audio_config/subsampling_conv_channels",
    ];
    for key in keys {
        match Config::from_json(&without(E2B, key)) {
            Err(ConfigError::Missing { field }) => {
                assert_eq!(field, key[1..].replace('/', "."));
            }
            other => panic!("{key}: {other:?}"),
        }
    }
}

/// Edits and the whole message they give.
fn refused(base: &[u8], edits: &[(&str, Value)], message: &str) {
    match Config::from_json(&edited(base, edits)) {
        Err(error) => assert_eq!(error.to_string(), message),
        Ok(_) => panic!("accepted; expected: {message}"),
    }
}

#[test]
fn absurd_values_are_named() {
    let key = "/text_config/hidden_size";
    refused(E2B, &[(key, json!(0))], "`text_config.hidden_size` is 0");
    refused(
        E2B,
        &[(key, json!(u64::MAX))],
        "`text_config.hidden_size` is 18446744073709551615, more than the 65536 that are accepted",
    );
    refused(
        E2B,
        &[("/text_config/num_hidden_layers", json!(1025))],
        "`text_config.num_hidden_layers` is 1025, more than the 1024 that are accepted",
    );
    refused(
        B31,
        &[("/text_config/num_key_value_heads", json!(12))],
        "`text_config.num_attention_heads` is 32, which is not a multiple of 12 (num_key_value_heads)",
    );
    refused(
        E2B,
        &[("/text_config/head_dim", json!(255))],
        "`text_config.head_dim` is 255, which is not a multiple of 2 (pairs of the rotary embedding)",
    );
    refused(
        E2B,
        &[("/text_config/rms_norm_eps", json!(-1.0))],
        "`text_config.rms_norm_eps` is -1; expected a finite number above 0",
    );
    refused(
        E2B,
        &[("/text_config/rope_parameters/full_attention/partial_rotary_factor", json!(1.5))],
        "`text_config.rope_parameters.full_attention.partial_rotary_factor` is 1.5; expected above 0, \
         at most 1, and enough for one pair",
    );
    refused(
        B26,
        &[("/text_config/top_k_experts", json!(129))],
        "`text_config.top_k_experts` is 129, more than the 128 that are accepted",
    );
}

#[test]
fn contradictions_are_named() {
    refused(
        E2B,
        &[("/text_config/num_hidden_layers", json!(36))],
        "`text_config.layer_types` contradicts another field: it has 35 entries for 36 layers",
    );
    refused(
        E2B,
        &[("/text_config/num_kv_shared_layers", json!(35))],
        "`text_config.num_kv_shared_layers` contradicts another field: it is 35 of 35 layers, which \
         leaves none to borrow from",
    );
    // Layers 0 to 3 slide, so that the first full layer finds no donor.
    refused(
        E2B,
        &[("/text_config/num_kv_shared_layers", json!(31))],
        "layer 4 shares keys and values, but no full layer before the shared ones owns any",
    );
    refused(
        B26,
        &[("/text_config/enable_moe_block", json!(false))],
        "`text_config.enable_moe_block` contradicts another field: it is false, but num_experts is set",
    );
    refused(
        B26,
        &[("/text_config/expert_intermediate_size", json!(700))],
        "`text_config.moe_intermediate_size` contradicts another field: it is 704, and \
         expert_intermediate_size is 700",
    );
    refused(
        B26,
        &[("/tie_word_embeddings", json!(false))],
        "`tie_word_embeddings` contradicts another field: it is false, and true in text_config",
    );
    refused(
        B26,
        &[("/text_config/per_layer_config", json!({"05": {"head_dim": 256}}))],
        "`text_config.per_layer_config.5.head_dim` contradicts another field: it is 256, and the value \
         for full layers is 512",
    );
    refused(
        E2B,
        &[("/text_config/per_layer_config", json!({"20": {"num_key_value_heads": 2}}))],
        "`text_config.num_kv_shared_layers` contradicts another field: layer 20 has 2 key/value heads of \
         256 and borrows from a layer with 1 of 256",
    );
    refused(
        B26,
        &[("/text_config/per_layer_config", json!({"5": {}, "05": {}}))],
        "`text_config.per_layer_config.5` contradicts another field: layer 5 has two entries",
    );
    refused(
        B26,
        &[("/text_config/layer_types/29", json!("sliding_attention"))],
        "`text_config.layer_types` contradicts another field: the last layer of every Gemma 4 is \
         full_attention, and transformers runs it as such",
    );
    refused(
        B12,
        &[("/audio_config/audio_samples_per_token", json!(320))],
        "`audio_config.audio_embed_dim` contradicts another field: it is 640, and \
         audio_samples_per_token is 320",
    );
}

#[test]
fn unsupported_features_are_named() {
    let cases = [
        ("/model_type", json!("gemma4_assistant")),
        ("/text_config/model_type", json!("gemma3_text")),
        ("/text_config/layer_types/3", json!("chunked_attention")),
        ("/text_config/attention_bias", json!(true)),
        ("/text_config/attn_logit_softcapping", json!(50.0)),
        ("/text_config/hidden_activation", json!("silu")),
        ("/text_config/use_bidirectional_attention", json!("all")),
        ("/text_config/rope_parameters/full_attention/rope_type", json!("yarn")),
        ("/text_config/rope_parameters/full_attention/factor", json!(8.0)),
        ("/text_config/rope_parameters/sliding_attention/partial_rotary_factor", json!(0.5)),
        ("/vision_config/num_key_value_heads", json!(4)),
        ("/vision_config/rope_parameters/rope_type", json!("yarn")),
        ("/dtype", json!("bfloat17")),
    ];
    for (key, value) in cases {
        match Config::from_json(&edited(B26, &[(key, value)])) {
            Err(ConfigError::Unsupported { field, .. }) => {
                let path = key[1..].replace('/', ".");
                assert_eq!(field, path.replace("layer_types.3", "layer_types[3]"));
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    for key in ["30", "-1", "+5", "x", ""] {
        let entry = json!({key: {"head_dim": 512}});
        let bytes = edited(B26, &[("/text_config/per_layer_config", entry)]);
        let error = Config::from_json(&bytes);
        assert!(matches!(error, Err(ConfigError::Unsupported { .. })), "{key}: {error:?}");
    }
    // An override that is not understood must not be ignored.
    let entry = json!({"5": {"num_attention_heads": 4}});
    let bytes = edited(B26, &[("/text_config/per_layer_config", entry)]);
    assert!(matches!(Config::from_json(&bytes), Err(ConfigError::Json(_))));
}
