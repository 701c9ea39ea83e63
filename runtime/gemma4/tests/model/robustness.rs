//! No input makes the crate panic or overflow (tests run with overflow checks).

use gemma4_model::checkpoint::header_of;
use gemma4_model::config::RawConfig;
use gemma4_model::kv::KvLayout;
use gemma4_model::sharding::{ExpertSharding, Mesh, check_mesh};
use gemma4_model::tensors::parameters;
use gemma4_model::{Config, DType};
use serde_json::{Value, json};

use crate::data::{B12, B26_TOML, E2B, FIXTURES};

/// A linear congruential generator (the constants are Knuth's for MMIX), so that every run is the same.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        let (factor, step) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);
        self.0 = self.0.wrapping_mul(factor).wrapping_add(step);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }

    /// Changes, inserts, removes or repeats a few bytes.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] = u8::try_from(self.below(256)).expect("a byte"),
                1 => bytes[at] = b"0123456789{}[]\",:.-eE"[self.below(21)],
                2 => bytes.insert(at, b'0' + u8::try_from(self.below(10)).expect("a digit")),
                3 => {
                    bytes.remove(at);
                }
                _ => {
                    let end = (at + self.below(40)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
    }
}

/// Runs everything that a configuration can be given to.
fn exercise(config: &Config) {
    let counts = parameters(config);
    assert!(counts.on_disk() >= counts.total() && counts.total() >= counts.text());
    assert!(counts.on_disk() < 1 << 60, "limits promise this");
    for (model, experts) in [(3, ExpertSharding::Expert), (8, ExpertSharding::Tensor)] {
        let _ = check_mesh(config, &Mesh { data: 1, model }, experts);
        if let Ok(layout) = KvLayout::new(config, model, DType::F32, 1 << 16) {
            let _ = layout.capacity(u64::MAX, config.text.max_position_embeddings, u64::MAX);
        }
    }
}

#[test]
fn mutated_configurations() {
    let mut random = Random(1);
    let mut accepted = 0;
    for fixture in &FIXTURES {
        for original in [fixture.published, fixture.per_layer] {
            for _ in 0..600 {
                let mut bytes = original.to_vec();
                random.mutate(&mut bytes);
                if let Ok(config) = Config::from_json(&bytes) {
                    accepted += 1;
                    exercise(&config);
                }
            }
        }
    }
    // Mutations that nothing survives, or that change nothing, would test nothing.
    assert!((300..5700).contains(&accepted), "{accepted}");
}

/// Calls `visit` with every JSON pointer of a value.
fn pointers(value: &Value, at: &str, visit: &mut impl FnMut(&str)) {
    visit(at);
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| pointers(value, &format!("{at}/{key}"), visit));
        }
        Value::Array(list) => {
            // The entries of a list are alike.
            let items = list.iter().enumerate().take(2);
            items.for_each(|(key, value)| pointers(value, &format!("{at}/{key}"), visit));
        }
        _ => {}
    }
}

#[test]
fn extreme_values_in_every_field() {
    let extremes = [
        json!(0),
        json!(1),
        json!(-1),
        json!(65536),
        json!(1 << 20),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(5e-324),
        json!([]),
        json!({}),
        json!(true),
        Value::Null,
    ];
    for bytes in [E2B, B12, FIXTURES[1].published, FIXTURES[3].per_layer] {
        let original: Value = serde_json::from_slice(bytes).expect("JSON");
        let mut all = Vec::new();
        pointers(&original, "", &mut |pointer| all.push(pointer.to_owned()));
        for pointer in all {
            for extreme in &extremes {
                let mut changed = original.clone();
                *changed.pointer_mut(&pointer).expect("it exists") = extreme.clone();
                let bytes = serde_json::to_vec(&changed).expect("JSON");
                if let Ok(config) = Config::from_json(&bytes) {
                    exercise(&config);
                }
            }
        }
    }
}

#[test]
fn the_largest_configuration_does_not_overflow() {
    let text = json!({
        "hidden_size": 1 << 16, "vocab_size": 1 << 24, "max_position_embeddings": 1_u64 << 32,
        "sliding_window": 1_u64 << 32, "num_hidden_layers": 1024,
        "layer_types": vec!["full_attention"; 1024], "num_attention_heads": 1024,
        "num_key_value_heads": 1024, "head_dim": 4096, "intermediate_size": 1 << 20,
        "hidden_size_per_layer_input": 1 << 16, "vocab_size_per_layer_input": 1 << 24,
        "enable_moe_block": true, "num_experts": 4096, "top_k_experts": 4096,
        "moe_intermediate_size": 1 << 20, "tie_word_embeddings": false,
        "rope_parameters": {"full_attention": {"rope_theta": 1e6}},
        "model_type": "gemma4_text", "architectures": ["x"],
    });
    let config = Config::from_json(text.to_string().as_bytes()).expect("within the limits");
    exercise(&config);
}

#[test]
fn mutated_toml() {
    let mut random = Random(2);
    for _ in 0..1000 {
        let mut bytes = B26_TOML.as_bytes().to_vec();
        random.mutate(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(config) = toml::from_str::<RawConfig>(&text).map(|raw| Config::from_raw(&raw))
            && let Ok(config) = config
        {
            exercise(&config);
        }
    }
}

#[test]
fn mutated_headers() {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}"#;
    let mut original = (header.len() as u64).to_le_bytes().to_vec();
    original.extend(header.as_bytes());
    original.extend([0; 16]);
    assert_eq!(header_of(&original).map(|tensors| tensors.len()).ok(), Some(2));
    let mut random = Random(3);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut bytes = original.clone();
        random.mutate(&mut bytes);
        if let Ok(tensors) = header_of(&bytes) {
            accepted += 1;
            for tensor in tensors {
                assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
            }
        }
    }
    assert!((200..19_000).contains(&accepted), "{accepted}");
}
