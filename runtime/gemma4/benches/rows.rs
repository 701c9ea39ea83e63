//! What the per-layer-embedding table in host memory costs a step: gathering the rows of its tokens from the mapped
//! checkpoint, and handing them to a device of XLA's CPU plugin. The table has E2B's row (35 layers of 256) and 32,768 rows,
//! which are in the page cache; tokens are drawn at random. Not a test: figures depend on the machine.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gemma4_model::tensors::{Role, tensors};
use gemma4_model::weights::{Checkpoint, FileBytes, Selection};
use gemma4_model::{Config, DType};
use gemma4_pjrt::install::{self, Target};
use gemma4_pjrt::mapped::MappedFile;
use gemma4_pjrt::{ElementType, Plugin, environment};

const ROWS: u32 = 32_768;
const RUNS: u32 = 100;

fn main() {
    environment::prepare(&[environment::QUIET]).expect("quiet logs");
    let folder = tempfile::tempdir().expect("a folder");
    generate(folder.path());
    let checkpoint = Checkpoint::open(folder.path(), Selection::default(), map).expect("a checkpoint");
    let client = install::find(Target::Cpu).expect("the place of plugins").map(|found| {
        let plugin = Plugin::load(&found.path).expect("the CPU plugin");
        plugin.client(&[]).expect("a device")
    });
    println!("| Tokens | Compute type | KiB | Gather, us | Gather and device, us |\n|---|---|---|---|---|");
    for (dtype, element) in [(DType::Bf16, ElementType::BF16), (DType::F32, ElementType::F32)] {
        let table = checkpoint.row_table(Role::PerLayerTable, dtype).expect("a table");
        for tokens in [1_u32, 32, 512, 2048] {
            let mut rows = Vec::new();
            let mut state = 1_u32;
            let mut draw = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                i32::try_from((state >> 8) % ROWS).expect("a row")
            };
            let dims = [i64::from(tokens), i64::try_from(table.row_bytes()).expect("a size")];
            let width = dims[1] / if dtype == DType::F32 { 4 } else { 2 };
            let (mut gather, mut both) = (Vec::new(), Vec::new());
            // The first run brings the memory of the rows.
            for run in 0..=RUNS {
                let ids: Vec<i32> = (0..tokens).map(|_| draw()).collect();
                let start = Instant::now();
                table.gather(&ids, &mut rows);
                let gathered = start.elapsed();
                if let Some(client) = &client {
                    let buffer = client.buffer(&rows, element, &[dims[0], width], 0).expect("a buffer");
                    buffer.ready().expect("an event").wait().expect("a copy");
                }
                if run > 0 {
                    gather.push(gathered);
                    both.push(start.elapsed());
                }
            }
            let both = if client.is_some() { shortest(&both) } else { "no plugin".to_owned() };
            println!("| {tokens} | {dtype} | {} | {} | {both} |", rows.len() / 1024, shortest(&gather));
        }
    }
}

/// In microseconds. The shortest: everything else on the machine only adds.
fn shortest(times: &[Duration]) -> String {
    let shortest = times.iter().min().copied().unwrap_or_default();
    format!("{:.1}", shortest.as_secs_f64() * 1e6)
}

fn config() -> String {
    let kinds = [["sliding_attention"; 4].as_slice(), &["full_attention"]].concat().repeat(7);
    serde_json::json!({
        "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "hidden_size": 64, "vocab_size": ROWS,
        "max_position_embeddings": 8192, "sliding_window": 512, "num_hidden_layers": 35, "layer_types": kinds,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64, "intermediate_size": 64,
        "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": ROWS,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    })
    .to_string()
}

/// A checkpoint in bfloat16, of which only the size matters.
fn generate(folder: &Path) {
    let json = config();
    fs::write(folder.join("config.json"), &json).expect("written");
    let config = Config::from_json(json.as_bytes()).expect("a configuration");
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for tensor in tensors(&config) {
        let begin = end;
        end += tensor.elements() * 2;
        let entry = serde_json::json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(tensor.name, entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).expect("created"));
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
    file.write_all(header.as_bytes()).expect("written");
    let written = io::copy(&mut io::Read::take(io::repeat(0x3c), end), &mut file).expect("written");
    assert_eq!(written, end);
    file.flush().expect("written");
}

fn map(path: &Path) -> io::Result<FileBytes> {
    let file: Arc<MappedFile> = MappedFile::open(path).map_err(io::Error::other)?;
    Ok(file)
}
