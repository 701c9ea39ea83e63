//! Any bytes as the weights of a model of one layer: opened, matched, and loaded for two ranks.
#![no_main]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use gemma4_model::DType;
use gemma4_model::quantization::Quantization;
use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::weights::{Checkpoint, FileBytes, LoadOptions, Selection, Target};
use libfuzzer_sys::fuzz_target;

const CONFIG: &str = r#"{
    "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "hidden_size": 2, "vocab_size": 2,
    "max_position_embeddings": 8, "num_hidden_layers": 1, "layer_types": ["full_attention"], "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 2, "hidden_size_per_layer_input": 0,
    "enable_moe_block": true, "num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 2,
    "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}
}"#;

static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("config.json"), CONFIG).expect("a file");
        // Only has to exist: its bytes come from the function below.
        std::fs::write(folder.path().join("model.safetensors"), b"").expect("a file");
        folder
    });
    let map = |_: &Path| -> std::io::Result<FileBytes> { Ok(Arc::new(bytes.to_vec())) };
    let Ok(checkpoint) = Checkpoint::open(folder.path(), Selection::ALL, map) else { return };
    let int8 = Some(Quantization::Int8);
    for (dtype, quantization) in [(DType::Bf16, None), (DType::F32, None), (DType::Bf16, int8)] {
        let target = Target { mesh: Mesh { data: 1, model: 2 }, experts: ExpertSharding::Tensor, dtype, quantization };
        let outcome = checkpoint.load::<()>(&target, &LoadOptions::new(&[0, 1]), |part| {
            let elements = part.shape.iter().product();
            assert_eq!(part.dtype.bytes(elements), Some(part.bytes.as_slice().len() as u64));
            ControlFlow::Continue(())
        });
        // Whatever opens can be loaded.
        assert!(outcome.is_ok());
    }
});
