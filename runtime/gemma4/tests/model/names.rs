//! Names and shapes against the headers of real files.

use std::collections::BTreeMap;

use gemma4_model::tensors::{Component, Role, Tensor, tensors};

use crate::data::{B26, E2B, E4B, FIXTURES, config, edited};

#[test]
fn tensors_equal_the_headers_of_tiny_checkpoints() {
    for fixture in FIXTURES {
        let expected: BTreeMap<String, (String, Vec<u64>)> =
            serde_json::from_str(fixture.tensors).expect("a tensor list");
        for form in [fixture.published, fixture.per_layer] {
            let list = tensors(&config(form));
            let found: BTreeMap<_, _> = list.iter().map(|t| (&t.name, &t.shape)).collect();
            assert_eq!(found.len(), list.len(), "{}: a name occurs twice", fixture.name);
            let expected: BTreeMap<_, _> = expected.iter().map(|(name, (_, shape))| (name, shape)).collect();
            assert_eq!(found, expected, "{}", fixture.name);
        }
    }
}

#[test]
fn unused_tensors_are_the_keys_and_values_of_sharing_layers() {
    // As listed by the reference implementation of the tiny checkpoints.
    let expected = [("tiny-e2b", 5..10), ("tiny-mm", 3..6)];
    for fixture in FIXTURES {
        let layers = expected.iter().find(|(name, _)| *name == fixture.name);
        let layers = layers.map_or(0..0, |(_, layers)| layers.clone());
        let mut unused = Vec::new();
        for layer in layers {
            for part in ["k_proj", "v_proj", "k_norm"] {
                let prefix = "model.language_model.layers";
                unused.push(format!("{prefix}.{layer}.self_attn.{part}.weight"));
            }
        }
        let list = tensors(&config(fixture.published)).into_iter();
        let found: Vec<_> = list.filter(|t| !t.used).map(|t| t.name).collect();
        assert_eq!(found, unused, "{}", fixture.name);
    }
}

#[test]
fn a_layer_of_the_language_model_has_each_role_once() {
    for bytes in [E2B, E4B, B26] {
        let list = tensors(&config(bytes));
        let mut roles: Vec<(Option<usize>, Role)> = Vec::new();
        for Tensor { component, layer, role, name, .. } in list {
            if component.is_text() {
                assert!(!roles.contains(&(layer, role)), "{name}");
                roles.push((layer, role));
            }
        }
    }
}

#[test]
fn shapes_of_a_full_layer_of_the_mixture() {
    let list = tensors(&config(B26));
    let shape = |role| {
        let tensor = list.iter().find(|t| t.layer == Some(5) && t.role == role);
        tensor.map(|t| t.shape.clone()).unwrap_or_default()
    };
    assert_eq!(shape(Role::QProj), [16 * 512, 2816]);
    assert_eq!(shape(Role::KProj), [2 * 512, 2816]);
    assert_eq!(shape(Role::VProj), [0_u64; 0]);
    assert_eq!(shape(Role::ExpertsGateUp), [128, 1408, 2816]);
    assert_eq!(shape(Role::ExpertsDown), [128, 2816, 704]);
    assert_eq!(shape(Role::RouterProj), [128, 2816]);
}

#[test]
fn an_untied_head_is_a_tensor_of_its_own() {
    let edits = [("/tie_word_embeddings", false.into()), ("/text_config/tie_word_embeddings", false.into())];
    let list = tensors(&config(&edited(B26, &edits)));
    let head = list.iter().find(|t| t.component == Component::Head).expect("a head");
    assert_eq!((head.name.as_str(), head.shape.as_slice()), ("lm_head.weight", &[262_144, 2816][..]));
}
