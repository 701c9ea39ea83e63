//! Loads a checkpoint of about 2 GB, made on the spot, and prints time, rate and the peak of anonymous memory.
//!
//! `LOAD_BENCH_GB` changes the size (a whole number of GB). Each case runs in a process of its own, so that the peaks do not
//! mix; files are in the page cache, as after a first run. "consume" reads every byte once, as a copy to a device would.
//! Not a test: figures depend on the machine.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::tensors::tensors;
use gemma4_model::weights::{AlignedStore, Checkpoint, FileBytes, LoadOptions, Part, Selection, Strategy, Target};
use gemma4_model::{Config, DType};
use gemma4_pjrt::install::{self, Target as Platform};
use gemma4_pjrt::mapped::MappedFile;
use gemma4_pjrt::{Client, ElementType, HostBytes, Plugin, Value, environment};

const CHILD: &str = "LOAD_BENCH_CHILD";

/// Where parts go.
#[derive(Clone, Copy, PartialEq)]
enum To {
    /// Every byte is read once, as a copy to a device would.
    Reader,
    /// Devices of XLA's CPU plugin, which keep them.
    Devices,
    /// The same by way of the file of aligned parts, in which they may be already.
    AlignedDevices,
}

/// Name, devices, element type, whether pages are read ahead, workers, where to.
const CASES: [(&str, u64, DType, bool, usize, To); 12] = [
    ("one device, borrowed", 1, DType::Bf16, false, 2, To::Reader),
    ("one device, borrowed, prefetch", 1, DType::Bf16, true, 2, To::Reader),
    ("two devices, rows and columns", 2, DType::Bf16, false, 2, To::Reader),
    ("four devices, rows and columns", 4, DType::Bf16, false, 2, To::Reader),
    ("four devices, one worker", 4, DType::Bf16, false, 1, To::Reader),
    ("one device, to float32", 1, DType::F32, false, 2, To::Reader),
    ("four devices, to float32", 4, DType::F32, false, 2, To::Reader),
    ("XLA, one device, from the checkpoint", 1, DType::Bf16, false, 2, To::Devices),
    ("XLA, one device, aligned, first time", 1, DType::Bf16, false, 2, To::AlignedDevices),
    ("XLA, one device, aligned, again", 1, DType::Bf16, false, 2, To::AlignedDevices),
    ("XLA, four devices, aligned, first time", 4, DType::Bf16, false, 2, To::AlignedDevices),
    ("XLA, four devices, aligned, again", 4, DType::Bf16, false, 2, To::AlignedDevices),
];

fn main() {
    if let Ok(case) = std::env::var(CHILD) {
        let (index, folder) = case.split_once(' ').expect("index and folder");
        environment::prepare(&[environment::QUIET]).expect("quiet logs");
        return run(index.parse().expect("an index"), Path::new(folder));
    }
    let gigabytes: u64 = std::env::var("LOAD_BENCH_GB").map_or(2, |value| value.parse().expect("a whole number"));
    let folder = std::env::temp_dir().join(format!("gemma4-load-bench-{}", std::process::id()));
    let bytes = generate(&folder, gigabytes);
    println!(
        "{:<40} {:>9} {:>9} {:>10} {:>13}",
        format!("{:.2} GB", bytes as f64 / 1e9),
        "time",
        "GB/s",
        "borrowed",
        "peak RssAnon"
    );
    for index in 0..CASES.len() {
        let program = std::env::current_exe().expect("this program");
        let status = Command::new(program).env(CHILD, format!("{index} {}", folder.display())).status();
        assert!(status.expect("it starts").success());
    }
    fs::remove_dir_all(&folder).expect("removed");
}

/// Six wide layers of 164 MB for each GB, and an embedding of 134 MB.
fn config(gigabytes: u64) -> String {
    let (layers, kinds) = (6 * gigabytes, ["sliding_attention"; 5]);
    let types: Vec<&str> = (0..gigabytes).flat_map(|_| kinds.into_iter().chain(["full_attention"])).collect();
    serde_json::json!({
        "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "hidden_size": 2048, "vocab_size": 32768,
        "max_position_embeddings": 8192, "sliding_window": 512, "num_hidden_layers": layers, "layer_types": types,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 11264,
        "hidden_size_per_layer_input": 0,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    })
    .to_string()
}

fn generate(folder: &Path, gigabytes: u64) -> u64 {
    fs::create_dir_all(folder).expect("a folder");
    let config = config(gigabytes);
    fs::write(folder.join("config.json"), &config).expect("written");
    let config = Config::from_json(config.as_bytes()).expect("a configuration");
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for tensor in tensors(&config) {
        let begin = end;
        end += tensor.elements() * 2;
        let entry = serde_json::json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(tensor.name, entry);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).expect("created"));
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
    file.write_all(header.as_bytes()).expect("written");
    let block: Vec<u8> = (0..1_u32 << 20).flat_map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut left = usize::try_from(end).expect("fits");
    while left > 0 {
        let piece = left.min(block.len());
        file.write_all(&block[..piece]).expect("written");
        left -= piece;
    }
    file.flush().expect("written");
    end
}

fn map(path: &Path) -> io::Result<FileBytes> {
    let file: Arc<MappedFile> = MappedFile::open(path).map_err(io::Error::other)?;
    Ok(file)
}

fn run(index: usize, folder: &Path) {
    let (name, devices, dtype, prefetch, workers, to) = CASES[index];
    let client = if to == To::Reader { None } else { client(devices) };
    if to != To::Reader && client.is_none() {
        println!("{name:<40} skipped: no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`");
        return;
    }
    let folder = PathBuf::from(folder);
    let start = Instant::now();
    let checkpoint = Checkpoint::open(&folder, Selection::default(), map).expect("opens");
    let ranks: Vec<u64> = (0..devices).collect();
    let strategy = if prefetch { Strategy::Prefetch { ahead: 256 << 20 } } else { Strategy::Lazy };
    let workers = NonZeroUsize::new(workers).expect("not zero");
    let options = LoadOptions { strategy, workers, ..LoadOptions::new(&ranks) };
    let mesh = Mesh { data: 1, model: devices };
    let target = Target { mesh, experts: ExpertSharding::Tensor, dtype, quantization: None };
    let (finished, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !finished.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let buffers = Mutex::new(Vec::new());
        let keep = |part: Part<'_>| {
            match &client {
                Some(client) => {
                    let bytes = HostBytes::new(Arc::new(part.bytes.clone()));
                    let dims: Vec<i64> = part.shape.iter().map(|size| size.cast_signed()).collect();
                    for &rank in &part.ranks {
                        let device = usize::try_from(rank).expect("a device");
                        let buffer = client.borrow(bytes.clone(), ElementType::BF16, &dims, device).expect("a buffer");
                        buffer.ready().and_then(|event| event.wait()).expect("there");
                        buffers.lock().expect("unlocked").push(buffer);
                    }
                }
                None => {
                    let (words, _) = part.bytes.as_slice().as_chunks::<8>();
                    black_box(words.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word)));
                }
            }
            ControlFlow::Continue(())
        };
        let outcome = if to == To::AlignedDevices {
            let store = AlignedStore { folder: &folder.join("aligned"), map: &map, on_progress: &|_| {} };
            checkpoint.load_aligned::<()>(&target, &options, &store, keep)
        } else {
            checkpoint.load::<()>(&target, &options, keep)
        };
        peak.fetch_max(anonymous(), Ordering::Relaxed);
        finished.store(true, Ordering::Relaxed);
        outcome.expect("loads").continue_value().expect("nobody breaks off")
    });
    let seconds = start.elapsed().as_secs_f64();
    let peak = peak.into_inner() as f64 / (1 << 20) as f64;
    let (bytes, borrowed) = (report.bytes as f64, report.borrowed_bytes as f64);
    let rate = bytes / 1e9 / seconds;
    println!("{name:<40} {seconds:>7.2} s {rate:>9.2} {:>8.0} % {peak:>9.1} MiB", 100.0 * borrowed / bytes);
}

fn client(devices: u64) -> Option<Client> {
    let found = install::find(Platform::Cpu).expect("the place of plugins")?;
    let plugin = Plugin::load(&found.path).expect("the CPU plugin");
    let client = plugin.client(&[("cpu_device_count", Value::Int(devices.cast_signed()))]).expect("devices");
    Some(client)
}

/// Bytes of memory that is no file's, from the system; 0 where it does not say.
fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}
