//! The programs of all sizes, recorded: what a change that means to change nothing has to leave as it is.
//!
//! A record holds the digest of the program without names, its operations counted, and its arguments. After a change that
//! is meant, `INSTA_UPDATE=always cargo test -p gemma4-model --test graphs` writes new ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use gemma4_hlo::{ElementType, Shape};
use gemma4_model::graph::{
    GraphError, Kernels, LayerForm, ParameterRole, PerLayerTable, StepGraph, StepInput, StepOptions, step,
};
use gemma4_model::kv::KvLayout;
use gemma4_model::quantization::Quantization;
use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::{Config, DType};
use sha2::{Digest as _, Sha256};

fn config(path: &str) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Config::from_json(&bytes).expect("a config")
}

fn published(size: &str) -> Config {
    config(&format!("tests/published/{size}.json"))
}

fn tiny(name: &str) -> Config {
    config(&format!("../../tests/fixtures/gemma4/{name}/bf16/config.json"))
}

fn options(config: &Config, devices: u64, dtype: DType, kv: DType, layers: LayerForm) -> StepOptions {
    StepOptions {
        mesh: Mesh { data: 1, model: devices },
        experts: ExpertSharding::Tensor,
        dtype,
        quantization: None,
        kv: KvLayout::new(config, devices, kv, 32).expect("a layout"),
        pages: 1024,
        tokens: 512,
        sequences: 16,
        rows: 16,
        max_model_len: 16_384,
        query_tile: 16,
        layers,
        per_layer_table: PerLayerTable::Device,
        kernels: Kernels::Hlo,
        fast_prefill: true,
        trace: false,
    }
}

fn record(graph: &StepGraph) -> String {
    let text = graph.module.canonical();
    let digest: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut operations: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        if let Some(operation) = line.split('"').nth(1).filter(|name| name.contains('.')) {
            *operations.entry(operation).or_default() += 1;
        }
    }
    let mut out = format!("sha256:{digest}\n");
    for (operation, count) in operations {
        writeln!(out, "{count:6} {operation}").expect("text");
    }
    for parameter in &graph.parameters {
        writeln!(out, "{} {}", parameter.name, parameter.shape).expect("text");
    }
    out
}

fn check(name: &str, config: &Config, options: &StepOptions) {
    let graph = step(config, options).expect("a step");
    // The same options, the same bytes.
    assert_eq!(step(config, options).expect("a step").module.text(), graph.module.text(), "{name}");
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, record(&graph));
    });
}

#[test]
fn loops_for_tpus() {
    for (size, devices) in [("e2b", 4), ("e4b", 4), ("12b", 4), ("26b-a4b", 4), ("31b", 8)] {
        let config = published(size);
        let options = options(&config, devices, DType::Bf16, DType::F8E4M3, LayerForm::Looped);
        check(&format!("{size}-looped-{devices}"), &config, &options);
    }
}

#[test]
fn unrolled_for_cpus() {
    for name in ["tiny-e2b", "tiny-moe", "tiny-dense", "tiny-mm", "tiny-unified"] {
        let config = tiny(name);
        let options = options(&config, 2, DType::F32, DType::F32, LayerForm::Unrolled);
        check(&format!("{name}-unrolled-2"), &config, &options);
    }
}

#[test]
fn a_decode_step_on_one_device() {
    let config = published("e2b");
    let mut options = options(&config, 1, DType::Bf16, DType::Bf16, LayerForm::Unrolled);
    (options.tokens, options.query_tile) = (16, 16);
    check("e2b-decode-unrolled-1", &config, &options);
}

/// With operators of our own and without.
#[test]
fn quantized_weights() {
    let config = published("e2b");
    let mut decode = options(&config, 1, DType::Bf16, DType::Bf16, LayerForm::Unrolled);
    (decode.tokens, decode.query_tile) = (16, 16);
    for quantization in Quantization::ALL {
        (decode.quantization, decode.kernels) = (Some(quantization), Kernels::Cpu);
        check(&format!("e2b-{quantization}-decode-unrolled-1"), &config, &decode);
    }
    let config = published("26b-a4b");
    let looped = options(&config, 4, DType::Bf16, DType::F8E4M3, LayerForm::Looped);
    for quantization in Quantization::ALL {
        let looped = StepOptions { quantization: Some(quantization), ..looped.clone() };
        check(&format!("26b-a4b-{quantization}-looped-4"), &config, &looped);
    }
}

#[test]
fn a_table_on_the_host_is_an_argument_less_and_an_input_more() {
    let size = |config: &Config, per_layer_table| {
        let options = options(config, 4, DType::Bf16, DType::F8E4M3, LayerForm::Looped);
        let graph = step(config, &StepOptions { per_layer_table, ..options }).expect("a step");
        let weights = graph.parameters.iter().filter(|one| matches!(one.role, ParameterRole::Weight { .. })).count();
        let rows = graph.parameters.into_iter().find(|one| one.role == ParameterRole::PerLayerRows);
        (weights, rows.map(|rows| rows.shape.to_string()))
    };
    let e2b = published("e2b");
    let (weights, none) = size(&e2b, PerLayerTable::Device);
    assert_eq!(none, None);
    // 512 tokens, 35 layers of 256.
    let rows = Shape::new(ElementType::Bf16, [512, 8960]).to_string();
    assert_eq!(size(&e2b, PerLayerTable::Host), (weights - 1, Some(rows)));
    // A model without a table has nothing to leave on the host.
    let dense = published("12b");
    assert_eq!(size(&dense, PerLayerTable::Host), size(&dense, PerLayerTable::Device));
}

#[test]
fn fast_prefill_changes_only_steps_that_have_rows_to_skip() {
    let text = |config: &Config, rows: u64, fast_prefill| {
        let options = options(config, 4, DType::Bf16, DType::F8E4M3, LayerForm::Looped);
        let graph = step(config, &StepOptions { rows, fast_prefill, ..options }).expect("a step");
        let items = graph.parameters.iter().find(|one| one.role == ParameterRole::Input(StepInput::LogitItems));
        (items.map(|items| items.shape.to_string()), graph.module.text())
    };
    let e2b = published("e2b");
    let (items, on) = text(&e2b, 16, true);
    assert_eq!(items, Some(Shape::new(ElementType::S32, [16, 3]).to_string()));
    assert_ne!(on, text(&e2b, 16, false).1);
    // All 512 rows are wanted.
    assert_eq!(text(&e2b, 512, true), text(&e2b, 512, false));
    // No layer borrows keys and values.
    let dense = published("12b");
    assert_eq!(text(&dense, 16, true), text(&dense, 16, false));
}

/// No published model has layers that borrow values stored alone, but a configuration may say so.
#[test]
fn borrowed_values_give_keys_too() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/published/e2b.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON");
    json["text_config"]["attention_k_eq_v"] = true.into();
    let config = Config::from_json(json.to_string().as_bytes()).expect("a config");
    for layers in [LayerForm::Unrolled, LayerForm::Looped] {
        let options = options(&config, 4, DType::Bf16, DType::F8E4M3, layers);
        assert_eq!(options.kv.block_shape(4).map(|shape| shape[1]), Some(1));
        step(&config, &options).expect("a step");
    }
}

#[test]
fn what_makes_no_step_is_refused() {
    let config = published("e2b");
    let good = options(&config, 4, DType::Bf16, DType::F8E4M3, LayerForm::Looped);
    let refused = |change: &dyn Fn(&mut StepOptions)| {
        let mut options = good.clone();
        change(&mut options);
        step(&config, &options).map(drop).expect_err("a refusal").to_string()
    };
    let size = refused(&|options| options.tokens = 0);
    assert_eq!(size, "the number of token rows is 0; a step needs 1 to 2^31-1");
    assert!(refused(&|options| options.pages = 1 << 40).contains("the number of pages is 1099511627776"));
    let large = published("31b");
    let mut page = options(&large, 1, DType::Bf16, DType::Bf16, LayerForm::Looped);
    page.kv = KvLayout::new(&large, 1, DType::Bf16, 1 << 16).expect("a layout");
    let page = step(&large, &page).map(drop).expect_err("a refusal").to_string();
    assert!(page.contains("the number of bytes of a page is"), "{page}");
    assert!(refused(&|options| options.query_tile = 0).contains("the query tile is 0"));
    assert!(refused(&|options| options.dtype = DType::I8).contains("not in"));
    // A layout for 4 devices is none for 8.
    let mut other = good.clone();
    other.mesh.model = 8;
    assert!(matches!(step(&config, &other), Err(GraphError::KvDevices { laid_out: 4, mesh: 8 })));
    // A layout of another model.
    let mut other = good;
    other.kv = KvLayout::new(&tiny("tiny-moe"), 4, DType::F8E4M3, 32).expect("a layout");
    assert!(step(&config, &other).is_err());
}
