//! Runs steps on XLA's CPU plugin with a cache of pages, as an engine would, with the simplest bookkeeping that is right.

use std::collections::HashMap;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, Once, OnceLock};

use gemma4_model::config::AttentionKind;
use gemma4_model::graph::{Kernels, LayerForm, ParameterRole, PerLayerTable, StepGraph, StepInput, StepOptions, step};
use gemma4_model::kv::KvLayout;
use gemma4_model::quantization::{Content, Quantization};
use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::tensors::Role;
use gemma4_model::weights::{Checkpoint, FileBytes, Layout, LoadOptions, RowTable, Selection, Target};
use gemma4_model::{Config, DType};
use gemma4_pjrt::install::{self, Target as Platform};
use gemma4_pjrt::mapped::MappedFile;
use gemma4_pjrt::{Argument, Buffer, Client, CompileOptions, ElementType, HostBytes, LoadedExecutable, Plugin, Value};

pub(crate) const PAGES: u64 = 256;
const MAX_MODEL_LEN: u64 = 160;
const QUERY_TILE: u64 = 16;

/// A client with four CPU devices, or a line that says why a test is skipped.
pub(crate) fn client() -> Option<&'static Client> {
    static CLIENT: OnceLock<Option<Client>> = OnceLock::new();
    let client = CLIENT.get_or_init(|| {
        let found = install::find(Platform::Cpu).expect("the place of plugins")?;
        let plugin = Plugin::load(&found.path).expect("the CPU plugin");
        gemma4_kernels::register(plugin).expect("handlers");
        Some(plugin.client(&[("cpu_device_count", Value::Int(4))]).expect("four devices"))
    });
    static TOLD: Once = Once::new();
    if client.is_none() {
        assert!(std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
        // Written past the test harness, which keeps what passing tests print to itself.
        let why = "no CPU plugin; run `cargo run -p gemma4-pjrt --example install-cpu`";
        TOLD.call_once(|| writeln!(std::io::stderr(), "\nskipped: {why}").expect("stderr"));
    }
    client.as_ref()
}

/// How a model is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) tensor_parallel: u64,
    pub(crate) experts: ExpertSharding,
    pub(crate) dtype: DType,
    pub(crate) quantization: Option<Quantization>,
    pub(crate) kv_dtype: DType,
    pub(crate) layers: LayerForm,
    pub(crate) per_layer_table: PerLayerTable,
    pub(crate) kernels: Kernels,
    pub(crate) fast_prefill: bool,
    pub(crate) trace: bool,
}

impl Default for How {
    fn default() -> Self {
        How {
            tensor_parallel: 1,
            experts: ExpertSharding::Tensor,
            dtype: DType::F32,
            quantization: None,
            kv_dtype: DType::F32,
            layers: LayerForm::Unrolled,
            per_layer_table: PerLayerTable::Device,
            kernels: Kernels::Hlo,
            fast_prefill: true,
            trace: false,
        }
    }
}

/// What the devices have of each tensor or stack, by its role, first layer and content.
type Parts<T> = HashMap<(Role, Option<usize>, Content), T>;

pub(crate) struct Runner {
    client: &'static Client,
    pub(crate) config: Config,
    how: How,
    kv: KvLayout,
    weights: Parts<Vec<Buffer>>,
    /// The per-layer-embedding table, if it is not among the weights.
    table: Option<RowTable>,
    programs: HashMap<(u64, u64, u64), (StepGraph, LoadedExecutable)>,
    pool: Vec<Buffer>,
    free: Vec<i32>,
    sequences: Vec<Sequence>,
}

#[derive(Default)]
struct Sequence {
    tokens: usize,
    full: Vec<i32>,
    sliding: Vec<i32>,
    /// Number of the first block of `sliding`.
    first: usize,
}

/// Which rows of a step have their logits returned.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Rows {
    All,
    LastOfEach,
    /// As many of each sequence, as a step with drafts has them.
    Last(usize),
}

fn element(dtype: DType) -> ElementType {
    match dtype {
        DType::F32 => ElementType::F32,
        DType::Bf16 => ElementType::BF16,
        DType::F8E4M3 => ElementType::F8E4M3FN,
        DType::F8E5M2 => ElementType::F8E5M2,
        DType::I8 => ElementType::S8,
        DType::U16 => ElementType::U16,
        other => panic!("{other}"),
    }
}

fn dims(shape: &[u64]) -> Vec<i64> {
    shape.iter().map(|size| size.cast_signed()).collect()
}

fn number(value: usize) -> i32 {
    i32::try_from(value).expect("a small number")
}

impl Runner {
    pub(crate) fn new(client: &'static Client, folder: &Path, how: How) -> Self {
        let map = |path: &Path| -> std::io::Result<FileBytes> {
            let file: Arc<MappedFile> = MappedFile::open(path).map_err(std::io::Error::other)?;
            Ok(file)
        };
        let checkpoint = Checkpoint::open(folder, Selection::default(), map).expect("a checkpoint");
        let config = checkpoint.config().clone();
        let mesh = Mesh { data: 1, model: how.tensor_parallel };
        let ranks: Vec<u64> = (0..how.tensor_parallel).collect();
        let mut options = LoadOptions::new(&ranks);
        if how.layers == LayerForm::Looped {
            options.layout = Layout::Stacked;
        }
        let on_host = how.per_layer_table == PerLayerTable::Host;
        if on_host {
            options.without = &[Role::PerLayerTable];
        }
        let table = on_host.then(|| checkpoint.row_table(Role::PerLayerTable, how.dtype).expect("a table"));
        let target = Target { mesh, experts: how.experts, dtype: how.dtype, quantization: how.quantization };
        let loaded: Mutex<Parts<HashMap<u64, Buffer>>> = Mutex::default();
        let outcome = checkpoint.load::<()>(&target, &options, |part| {
            let (tensor, shape) = (part.tensors[0], dims(&part.shape));
            for &rank in &part.ranks {
                let bytes = HostBytes::new(Arc::new(part.bytes.clone()));
                let device = usize::try_from(rank).expect("a device");
                let buffer = client.borrow(bytes, element(part.dtype), &shape, device).expect("a buffer");
                let mut loaded = loaded.lock().expect("a lock");
                loaded.entry((tensor.role, tensor.layer, part.content)).or_default().insert(rank, buffer);
            }
            ControlFlow::Continue(())
        });
        assert!(outcome.expect("weights").is_continue());
        let by_rank = |mut all: HashMap<u64, Buffer>| -> Vec<Buffer> {
            ranks.iter().map(|rank| all.remove(rank).expect("a part for each rank")).collect()
        };
        let loaded = loaded.into_inner().expect("a lock");
        let weights = loaded.into_iter().map(|(key, all)| (key, by_rank(all))).collect();
        let kv = KvLayout::new(&config, how.tensor_parallel, how.kv_dtype, 8).expect("a layout");
        let width = usize::try_from(kv.page_bytes_per_device() * PAGES).expect("a small pool");
        // What was in a page before must not matter.
        let garbage: Vec<u8> = match how.kv_dtype {
            DType::F32 => 777.0_f32.to_le_bytes().repeat(width / 4),
            DType::Bf16 => vec![0x41; width],
            _ => vec![0x50; width],
        };
        let shape = dims(&kv.pool_shape(PAGES));
        let pool = (0..ranks.len())
            .map(|device| client.buffer(&garbage, element(how.kv_dtype), &shape, device).expect("a pool"))
            .collect();
        let free = (0..number(usize::try_from(PAGES).expect("pages"))).collect();
        Runner { client, config, how, kv, weights, table, programs: HashMap::new(), pool, free, sequences: Vec::new() }
    }

    pub(crate) fn add_sequence(&mut self) -> usize {
        self.sequences.push(Sequence::default());
        self.sequences.len() - 1
    }

    /// Gives the pages of a sequence back, which then has no tokens.
    pub(crate) fn release(&mut self, sequence: usize) {
        let Sequence { full, sliding, .. } = std::mem::take(&mut self.sequences[sequence]);
        self.free.extend(full.into_iter().chain(sliding));
    }

    fn options(&self, tokens: u64, sequences: u64, rows: u64) -> StepOptions {
        StepOptions {
            mesh: Mesh { data: 1, model: self.how.tensor_parallel },
            experts: self.how.experts,
            dtype: self.how.dtype,
            quantization: self.how.quantization,
            kv: self.kv.clone(),
            pages: PAGES,
            tokens,
            sequences,
            rows,
            max_model_len: MAX_MODEL_LEN,
            query_tile: QUERY_TILE.min(tokens),
            layers: self.how.layers,
            per_layer_table: self.how.per_layer_table,
            kernels: self.how.kernels,
            fast_prefill: self.how.fast_prefill,
            trace: self.how.trace,
        }
    }

    /// Pages for the tokens up to `end` of a sequence; those of sliding layers that no later token sees are given back.
    fn reserve(&mut self, sequence: usize, end: usize) {
        let block = |kind| usize::try_from(self.kv.tokens_per_block(kind)).expect("a block");
        let (full, sliding) = (block(AttentionKind::Full), block(AttentionKind::Sliding));
        let window = usize::try_from(self.config.text.sliding_window).expect("a window");
        let state = &mut self.sequences[sequence];
        while state.full.len() * full < end {
            state.full.push(self.free.pop().expect("a page"));
        }
        let oldest = (state.tokens + 1).saturating_sub(window) / sliding;
        while state.first < oldest && !state.sliding.is_empty() {
            // The next page that is asked for is this one.
            self.free.push(state.sliding.remove(0));
            state.first += 1;
        }
        while (state.first + state.sliding.len()) * sliding < end {
            state.sliding.push(self.free.pop().expect("a page"));
        }
    }

    /// One step over chunks of sequences, in a bucket of `tokens` rows. Returns logits of the rows asked for, and traces.
    pub(crate) fn step(
        &mut self,
        bucket: u64,
        chunks: &[(usize, &[i32])],
        rows: Rows,
    ) -> (Vec<Vec<f32>>, Vec<Vec<Vec<f32>>>) {
        let sequences = 8;
        let wanted = match rows {
            Rows::All => bucket,
            Rows::LastOfEach => sequences,
            Rows::Last(count) => sequences * u64::try_from(count).expect("a small number"),
        };
        let options = self.options(bucket, sequences, wanted);
        let size = |count: u64| usize::try_from(count).expect("a size");
        for (sequence, tokens) in chunks {
            let end = self.sequences[*sequence].tokens + tokens.len();
            self.reserve(*sequence, end);
        }

        let (mut ids, mut positions, mut items, mut logit_rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut logit_items = Vec::new();
        let mut slots: HashMap<AttentionKind, Vec<i32>> = HashMap::new();
        let mut tables: HashMap<AttentionKind, (Vec<i32>, Vec<i32>)> = HashMap::new();
        for kind in AttentionKind::ALL {
            let blocks = size(options.table_blocks(kind, self.config.text.sliding_window));
            tables.insert(kind, (vec![-1; size(sequences) * blocks], vec![0; size(sequences)]));
        }
        for (place, (sequence, tokens)) in chunks.iter().enumerate() {
            let state = &self.sequences[*sequence];
            let first = ids.len();
            for (offset, token) in tokens.iter().enumerate() {
                let position = state.tokens + offset;
                ids.push(*token);
                positions.push(number(position));
                for (kind, pages, before) in
                    [(AttentionKind::Full, &state.full, 0), (AttentionKind::Sliding, &state.sliding, state.first)]
                {
                    let block = size(self.kv.tokens_per_block(kind));
                    let slot = [pages[position / block - before], number(position % block)];
                    slots.entry(kind).or_default().extend(slot);
                }
            }
            let tile = size(options.query_tile);
            for start in (0..tokens.len()).step_by(tile) {
                items.extend([number(first + start), number(tile.min(tokens.len() - start)), number(place)]);
            }
            let wanted = logit_rows.len();
            match rows {
                Rows::All => logit_rows.extend((first..ids.len()).map(number)),
                Rows::LastOfEach => logit_rows.push(number(ids.len() - 1)),
                Rows::Last(count) => {
                    logit_rows.extend((ids.len() - count.min(tokens.len())..ids.len()).map(number));
                }
            }
            for start in (wanted..logit_rows.len()).step_by(tile) {
                let count = tile.min(logit_rows.len() - start);
                logit_items.extend([number(start), number(count), number(place)]);
            }
            for (kind, pages, before) in
                [(AttentionKind::Full, &state.full, 0), (AttentionKind::Sliding, &state.sliding, state.first)]
            {
                let blocks = size(options.table_blocks(kind, self.config.text.sliding_window));
                assert!(pages.len() <= blocks, "{kind}: {} pages in a table of {blocks}", pages.len());
                let (table, firsts) = tables.get_mut(&kind).expect("a table");
                table[place * blocks..place * blocks + pages.len()].copy_from_slice(pages);
                firsts[place] = number(before);
            }
        }
        let (count, wanted_rows, item_count) = (ids.len(), logit_rows.len(), items.len() / 3);
        // Rows that are not real: any token, and slots that do not exist.
        ids.resize(size(bucket), 7);
        positions.resize(size(bucket), 0);
        items.resize(size(options.items()) * 3, 0);
        let logit_item_count = logit_items.len() / 3;
        logit_rows.resize(size(wanted), 0);
        logit_items.resize(size(wanted) * 3, 0);
        let nowhere = number(size(PAGES));
        slots.values_mut().for_each(|slots| {
            while slots.len() < size(bucket) * 2 {
                slots.extend([nowhere, 0]);
            }
        });

        let key = (bucket, sequences, wanted);
        if !self.programs.contains_key(&key) {
            let graph = step(&self.config, &options).expect("a step");
            let compile = match self.how.tensor_parallel {
                1 => CompileOptions::default(),
                devices => CompileOptions::manual_spmd(&(0..devices.cast_signed()).collect::<Vec<_>>()),
            };
            let text = graph.module.text();
            let program = self.client.compile(text.as_bytes(), &compile);
            let program = program.unwrap_or_else(|error| panic!("{error}\n{text}"));
            self.programs.insert(key, (graph, program));
        }
        let (graph, program) = &self.programs[&key];

        let input = |input: StepInput| -> Vec<i32> {
            match input {
                StepInput::TokenIds => ids.clone(),
                StepInput::Positions => positions.clone(),
                StepInput::NumTokens => vec![number(count)],
                StepInput::Items => items.clone(),
                StepInput::NumItems => vec![number(item_count)],
                StepInput::Slots(kind) => slots[&kind].clone(),
                StepInput::BlockTable(kind) => tables[&kind].0.clone(),
                StepInput::FirstBlock(kind) => tables[&kind].1.clone(),
                StepInput::LogitRows => logit_rows.clone(),
                StepInput::NumLogitRows => vec![number(wanted_rows)],
                StepInput::LogitItems => logit_items.clone(),
                StepInput::NumLogitItems => vec![number(logit_item_count)],
            }
        };
        let devices = self.pool.len();
        let mut inputs: Vec<Vec<Option<Buffer>>> = Vec::new();
        for device in 0..devices {
            let made = graph.parameters.iter().map(|parameter| match parameter.role {
                ParameterRole::Input(which) => {
                    let values = input(which);
                    Some(self.client.buffer_of(&values, &dims(parameter.shape.dims()), device).expect("an input"))
                }
                ParameterRole::PerLayerRows => {
                    let mut rows = Vec::new();
                    self.table.as_ref().expect("a table").gather(&ids, &mut rows);
                    let (element, shape) = (element(self.how.dtype), dims(parameter.shape.dims()));
                    Some(self.client.buffer(&rows, element, &shape, device).expect("rows"))
                }
                _ => None,
            });
            inputs.push(made.collect());
        }
        let mut pools: Vec<Option<Buffer>> = std::mem::take(&mut self.pool).into_iter().map(Some).collect();
        let mut arguments: Vec<Vec<Argument<'_>>> = Vec::new();
        for device in 0..devices {
            let mut of_device = Vec::new();
            for (at, parameter) in graph.parameters.iter().enumerate() {
                of_device.push(match &parameter.role {
                    ParameterRole::Input(_) | ParameterRole::PerLayerRows => {
                        Argument::Keep(inputs[device][at].as_ref().expect("an input"))
                    }
                    ParameterRole::KvPool => Argument::Donate(pools[device].take().expect("a pool")),
                    ParameterRole::Weight { role, layers, content } => {
                        let buffers = &self.weights[&(*role, layers.first().copied(), *content)];
                        Argument::Keep(&buffers[device])
                    }
                });
            }
            arguments.push(of_device);
        }
        let outputs = program.execute(arguments).expect("a step that runs");
        for (sequence, tokens) in chunks {
            self.sequences[*sequence].tokens += tokens.len();
        }
        let vocabulary = usize::try_from(self.config.text.vocab_size).expect("a vocabulary");
        let mut logits = Vec::new();
        let mut traces = vec![Vec::new(); graph.traces.len()];
        for (device, of_device) in outputs.into_iter().enumerate() {
            for (index, buffer) in of_device.into_iter().enumerate() {
                match index {
                    0 if device == 0 => {
                        let values: Vec<f32> = buffer.to_vec().expect("logits");
                        logits = values.chunks(vocabulary).take(wanted_rows).map(<[f32]>::to_vec).collect();
                    }
                    0 => {}
                    1 => self.pool.push(buffer),
                    index => traces[index - 2].push(buffer.to_vec::<f32>().expect("a trace")),
                }
            }
        }
        (logits, traces)
    }

    /// Names of the traces, in the order of what [`Self::step`] returns.
    pub(crate) fn trace_names(&self) -> Vec<(String, Vec<u64>)> {
        let (graph, _) = self.programs.values().next().expect("a program");
        graph.traces.iter().map(|point| (point.name.clone(), point.shape.dims().to_vec())).collect()
    }
}

pub(crate) fn argmax(logits: &[f32]) -> i32 {
    let best = logits.iter().enumerate().max_by(|left, right| left.1.total_cmp(right.1)).expect("logits");
    number(best.0)
}

pub(crate) fn distance(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    // NaN must not pass for close.
    left.iter()
        .zip(right)
        .map(|(left, right)| (left - right).abs())
        .fold(0.0, |most, next| if next <= most { most } else { next })
}
