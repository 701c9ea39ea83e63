//! Any bytes as a config.json or as the header of a safetensors file.
#![no_main]

use gemma4_model::{Config, checkpoint, tensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = Config::from_json(bytes) {
        // Enough to reach the arithmetic; a model of a thousand layers takes long to list.
        if config.text.layers.len() <= 64 {
            let _ = tensors::parameters(&config);
        }
    }
    let _ = checkpoint::header_of(bytes);
});
