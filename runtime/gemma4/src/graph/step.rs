//! Builds a step.

use gemma4_hlo::{Builder, Combine, ElementType, Groups, HloError, Module, Parallelism, Shape, Value};

use super::kernels::{Kernels, Operators};
use super::layers::layers;
use super::numerics::index;
use super::parameters::{ParameterRole, StepInput, StepParameter};
use super::rows::Rows;
use super::weights::{At, Weights, element_type, list};
use super::{GraphError, embedding};
use crate::config::{AttentionKind, Layer};
use crate::kv::KvLayout;
use crate::quantization::Quantization;
use crate::sharding::{ExpertSharding, Mesh};
use crate::{Config, DType};

/// The output that the pool comes back as, after the logits.
pub(super) const POOL_OUTPUT: usize = 1;

/// How the layers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LayerForm {
    /// One after the other, each with arguments of its own. On CPUs: slices of stacked weights are copied there.
    #[default]
    Unrolled,
    /// Alike layers have stacked weights, and repeated patterns of layers are loops: a fraction of the program to compile.
    Looped,
}

/// Where the per-layer-embedding table is, which is half of E2B and read in a few rows a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PerLayerTable {
    /// Among the weights.
    #[default]
    Device,
    /// In the host's memory: a step is given the rows of its tokens ([`ParameterRole::PerLayerRows`]).
    Host,
}

/// What a step is built for.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOptions {
    /// The devices. A program runs on all of them; copies of the model (`data`) do not speak with each other.
    pub mesh: Mesh,
    /// How experts are split.
    pub experts: ExpertSharding,
    /// Element type of weights and stream: float32, bfloat16 or float16.
    pub dtype: DType,
    /// How the large weights are quantized.
    pub quantization: Option<Quantization>,
    /// Layout of the cache's pages, made for `mesh.model` devices.
    pub kv: KvLayout,
    /// Pages of the pool on each device.
    pub pages: u64,
    /// `T`, token rows of the bucket.
    pub tokens: u64,
    /// `S`, sequences that a step can have tokens of.
    pub sequences: u64,
    /// `R`, rows that need logits.
    pub rows: u64,
    /// Longest sequence in tokens.
    pub max_model_len: u64,
    /// Tokens of an item of attention.
    pub query_tile: u64,
    /// How the layers are written.
    pub layers: LayerForm,
    /// Where the per-layer-embedding table is; without effect on models that have none.
    pub per_layer_table: PerLayerTable,
    /// Who computes the hot operators.
    pub kernels: Kernels,
    /// Whether the layers after the last one that owns keys and values run only for the rows that need logits, where those
    /// are fewer.
    pub fast_prefill: bool,
    /// Whether values on the way are outputs too, to compare them. Only with [`LayerForm::Unrolled`].
    pub trace: bool,
}

impl StepOptions {
    pub(super) fn element(&self) -> Result<ElementType, GraphError> {
        let element = element_type(self.dtype).filter(|element| element.bytes() > 1);
        element.ok_or(GraphError::DType(self.dtype))
    }

    /// The first of the layers that run only for the rows that need logits; `None` where all layers run for all rows.
    #[must_use]
    pub fn fast_prefill_from(&self, config: &Config) -> Option<usize> {
        let first = config.text.fast_prefill_cut();
        (self.fast_prefill && self.rows < self.tokens && first < config.text.layers.len()).then_some(first)
    }

    /// `I`, items that a step can have: every sequence may end within a tile.
    #[must_use]
    pub const fn items(&self) -> u64 {
        let whole = self.tokens / if self.query_tile == 0 { 1 } else { self.query_tile };
        whole.saturating_add(self.sequences)
    }

    /// `B`, blocks of a sequence's table: for full layers those of the longest sequence, for sliding layers those that the
    /// window and the tokens of one step reach over.
    #[must_use]
    pub fn table_blocks(&self, kind: AttentionKind, window: u64) -> u64 {
        let block = self.kv.tokens_per_block(kind).max(1);
        let all = self.max_model_len.div_ceil(block);
        match kind {
            AttentionKind::Full => all,
            AttentionKind::Sliding => window.saturating_add(self.tokens).div_ceil(block).saturating_add(1).min(all),
        }
    }

    /// Everything that is counted in the program is counted in s32, so every such count is held against that here.
    fn check(&self, config: &Config) -> Result<(), GraphError> {
        let most = u64::from(i32::MAX.unsigned_abs());
        let text = &config.text;
        let page = self.kv.page_bytes_per_device();
        let pairs = self.tokens.saturating_mul(text.moe.map_or(1, |moe| moe.top_k.max(1)));
        for (what, found) in [
            ("the number of token rows", self.tokens),
            ("the number of sequences", self.sequences),
            ("the number of rows with logits", self.rows),
            ("the longest sequence", self.max_model_len),
            ("the query tile", self.query_tile),
            ("the number of pages", self.pages),
            ("the number of devices", self.mesh.devices()),
            ("the number of bytes of a page", page),
            ("the number of pairs of tokens and experts", pairs),
            (
                "the number of rows and items",
                self.tokens.saturating_add(self.query_tile).saturating_add(self.sequences),
            ),
            ("the vocabulary", text.vocab_size),
        ] {
            if found == 0 || found > most {
                return Err(GraphError::Size { what, found, wanted: "1 to 2^31-1" });
            }
        }
        if self.kv.devices() != self.mesh.model {
            return Err(GraphError::KvDevices { laid_out: self.kv.devices(), mesh: self.mesh.model });
        }
        Ok(())
    }
}

/// A value on the way that is an output of a traced step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracePoint {
    /// What it is, such as `layer.3.attn`.
    pub name: String,
    /// Its shape on each device. Heads are those of the device; everything else is whole.
    pub shape: Shape,
}

/// A step that was built.
#[derive(Debug)]
pub struct StepGraph {
    /// The program.
    pub module: Module,
    /// Its arguments in order.
    pub parameters: Vec<StepParameter>,
    /// Outputs after the logits `[R, V]` (f32, on every device) and the pool.
    pub traces: Vec<TracePoint>,
}

/// What the parts of a step share while it is built.
pub(super) struct Step<'a> {
    pub(super) config: &'a Config,
    pub(super) options: &'a StepOptions,
    pub(super) element: ElementType,
    pub(super) kernels: Kernels,
    pub(super) kv_element: ElementType,
    pub(super) weights: Weights,
    pub(super) groups: Groups,
    /// The device's place on the model axis, an s32 scalar; `None` if it is alone there.
    pub(super) rank: Option<Value>,
    /// The rows that the layers being built run over.
    pub(super) rows: Rows,
    kinds: Vec<KindInputs>,
    traces: Vec<(String, Value)>,
}

/// What a step gets for one kind of layer.
struct KindInputs {
    kind: AttentionKind,
    slots: Value,
    block_table: Value,
    first_block: Value,
}

/// Builds one step of the language model.
///
/// # Errors
/// [`GraphError`] if the options do not suit the model or each other.
pub fn step(config: &Config, options: &StepOptions) -> Result<StepGraph, GraphError> {
    options.check(config)?;
    let element = options.element()?;
    let kv_element = element_type(options.kv.dtype()).ok_or(GraphError::DType(options.kv.dtype()))?;
    let kinds: Vec<AttentionKind> = AttentionKind::ALL
        .into_iter()
        .filter(|kind| config.text.layers.iter().any(|layer| layer.kind == *kind))
        .collect();
    let mut parameters = inputs(config, options, &kinds);
    if options.per_layer_table == PerLayerTable::Host && config.text.ple_width > 0 {
        let width = config.text.ple_width.saturating_mul(config.text.layers.len() as u64);
        let rows = Shape::new(element, [options.tokens, width]);
        parameters.push(StepParameter::new("per_layer_rows".to_owned(), ParameterRole::PerLayerRows, rows));
    }
    let pool = Shape::new(kv_element, options.kv.pool_shape(options.pages));
    parameters.push(StepParameter::new("kv_pool".to_owned(), ParameterRole::KvPool, pool));
    parameters.extend(list(config, options)?);

    let devices = options.mesh.devices();
    let parallelism = match u32::try_from(devices) {
        Ok(1) => Parallelism::Single,
        Ok(devices) => Parallelism::ManualPartitions(devices),
        Err(_) => {
            return Err(GraphError::Size { what: "the number of devices", found: devices, wanted: "1 to 2^31-1" });
        }
    };
    let mut module = Module::new("step", parallelism)?;
    let declared: Vec<_> = parameters.iter().map(StepParameter::declared).collect();
    let (mut failed, mut traces) = (None, Vec::new());
    let built = module.main(&declared, |b, arguments| {
        let outputs = Step::new(b, config, options, (element, kv_element), &parameters, arguments)
            .and_then(|mut step| Ok((step.build(b, &parameters, arguments)?, step)));
        match outputs {
            Ok((mut outputs, step)) => {
                for (name, value) in step.traces {
                    traces.push(TracePoint { name, shape: b.shape(value)?.clone() });
                    outputs.push(value);
                }
                Ok(outputs)
            }
            Err(GraphError::Hlo(error)) => Err(error),
            Err(error) => {
                failed = Some(error);
                Ok(Vec::new())
            }
        }
    });
    match failed {
        Some(error) => Err(error),
        None => {
            built?;
            Ok(StepGraph { module, parameters, traces })
        }
    }
}

/// The arguments that say what a step is about.
fn inputs(config: &Config, options: &StepOptions, kinds: &[AttentionKind]) -> Vec<StepParameter> {
    let (tokens, sequences) = (options.tokens, options.sequences);
    let mut inputs = vec![
        StepParameter::input(StepInput::TokenIds, &[tokens]),
        StepParameter::input(StepInput::Positions, &[tokens]),
        StepParameter::input(StepInput::NumTokens, &[]),
        StepParameter::input(StepInput::Items, &[options.items(), 3]),
        StepParameter::input(StepInput::NumItems, &[]),
        StepParameter::input(StepInput::LogitRows, &[options.rows]),
        StepParameter::input(StepInput::NumLogitRows, &[]),
    ];
    if options.fast_prefill_from(config).is_some() {
        inputs.push(StepParameter::input(StepInput::LogitItems, &[options.rows, 3]));
        inputs.push(StepParameter::input(StepInput::NumLogitItems, &[]));
    }
    for &kind in kinds {
        let blocks = options.table_blocks(kind, config.text.sliding_window);
        inputs.push(StepParameter::input(StepInput::Slots(kind), &[tokens, 2]));
        inputs.push(StepParameter::input(StepInput::BlockTable(kind), &[sequences, blocks]));
        inputs.push(StepParameter::input(StepInput::FirstBlock(kind), &[sequences]));
    }
    inputs
}

/// The argument with this role, if there is one.
fn argument(parameters: &[StepParameter], arguments: &[Value], role: &ParameterRole) -> Option<Value> {
    let at = parameters.iter().position(|parameter| parameter.role == *role)?;
    arguments.get(at).copied()
}

impl<'a> Step<'a> {
    fn new(
        b: &mut Builder,
        config: &'a Config,
        options: &'a StepOptions,
        (element, kv_element): (ElementType, ElementType),
        parameters: &[StepParameter],
        arguments: &[Value],
    ) -> Result<Self, GraphError> {
        let input = |input: StepInput| {
            let value = argument(parameters, arguments, &ParameterRole::Input(input));
            value.ok_or_else(|| GraphError::Weight { role: input.name(), layer: None })
        };
        let mut weights = Weights::default();
        let stacked = options.layers == LayerForm::Looped;
        for (parameter, value) in parameters.iter().zip(arguments) {
            if let ParameterRole::Weight { role, layers, content } = &parameter.role {
                weights.insert((*role, *content), layers, stacked, *value);
            }
        }
        let (data, model) = (options.mesh.data, options.mesh.model);
        let device = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let groups: Vec<Vec<u32>> =
            (0..data).map(|copy| (0..model).map(|rank| device(copy * model + rank)).collect()).collect();
        let rank = if model > 1 {
            let partition = b.partition_id()?;
            let partition = b.convert(partition, ElementType::S32)?;
            let model = index(b, model)?;
            Some(b.remainder(partition, model)?)
        } else {
            None
        };
        let mut rows = Rows::new(
            options.tokens,
            input(StepInput::NumTokens)?,
            (input(StepInput::TokenIds)?, input(StepInput::Positions)?),
            (input(StepInput::Items)?, input(StepInput::NumItems)?),
            argument(parameters, arguments, &ParameterRole::PerLayerRows),
        );
        rows.turn(b, &config.text.layers)?;
        let mut kinds: Vec<KindInputs> = Vec::new();
        for layer in &config.text.layers {
            if kinds.iter().any(|known| known.kind == layer.kind) {
                continue;
            }
            kinds.push(KindInputs {
                kind: layer.kind,
                slots: input(StepInput::Slots(layer.kind))?,
                block_table: input(StepInput::BlockTable(layer.kind))?,
                first_block: input(StepInput::FirstBlock(layer.kind))?,
            });
        }
        Ok(Step {
            config,
            options,
            element,
            kernels: options.kernels.for_element(element),
            kv_element,
            weights,
            groups: Groups::new(groups),
            rank,
            rows,
            kinds,
            traces: Vec::new(),
        })
    }

    fn build(
        &mut self,
        b: &mut Builder,
        parameters: &[StepParameter],
        arguments: &[Value],
    ) -> Result<Vec<Value>, GraphError> {
        let given = |role: &ParameterRole| {
            let value = argument(parameters, arguments, role);
            value.ok_or_else(|| GraphError::Weight { role: format!("{role:?}"), layer: None })
        };
        let pool = given(&ParameterRole::KvPool)?;
        let wanted = given(&ParameterRole::Input(StepInput::LogitRows))?;
        let real = given(&ParameterRole::Input(StepInput::NumLogitRows))?;
        let all = self.config.text.layers.len();
        let from = self.options.fast_prefill_from(self.config);

        let embedded = b.scope("embed", |b| embedding::embed(b, self))?;
        self.trace_global("embed", embedded);
        let (mut stream, pool) = layers(b, self, 0..from.unwrap_or(all), (embedded, embedded), pool)?;
        if let Some(from) = from {
            let items = given(&ParameterRole::Input(StepInput::LogitItems))?;
            let num_items = given(&ParameterRole::Input(StepInput::NumLogitItems))?;
            let wanted = (wanted, self.options.rows, real);
            let (rows, embedded) = b.scope("fast_prefill", |b| {
                self.rows = self.rows.take(b, wanted, (items, num_items))?;
                self.rows.turn(b, self.config.text.layers.get(from..).unwrap_or_default())?;
                Ok::<_, GraphError>((b.take(stream, wanted.0, 0)?, b.take(embedded, wanted.0, 0)?))
            })?;
            // The pool comes back as it was: nothing is written to it.
            (stream, _) = layers(b, self, from..all, (rows, embedded), pool)?;
        }
        let logits = b.scope("logits", |b| {
            let rows = if from.is_some() { stream } else { b.take(stream, wanted, 0)? };
            embedding::logits(b, self, rows, real)
        })?;
        Ok(vec![logits, pool])
    }

    /// The hot operators for the rows that layers run over.
    pub(super) const fn operators(&self) -> Operators {
        Operators { kernels: self.kernels, real: self.rows.real }
    }

    /// The layer that is being built, or its counterpart in the first repetition.
    pub(super) fn layer(&self, at: At) -> Result<Layer, GraphError> {
        let layer = at.representative();
        self.config.text.layers.get(layer).copied().ok_or(GraphError::KvLayout { layer })
    }

    /// The layer whose keys and values a layer uses.
    fn owner(&self, layer: usize) -> usize {
        self.config.text.layers.get(layer).and_then(|layer| layer.kv_donor).unwrap_or(layer)
    }

    /// The layer whose keys and values a layer uses, and where its weights are.
    pub(super) fn owner_layer(&self, at: At) -> Result<(At, Layer), GraphError> {
        let layer = self.layer(at)?;
        // A donor is the same for all repetitions of a loop.
        let of = layer.kv_donor.map_or(at, At::Layer);
        Ok((of, self.layer(of)?))
    }

    /// Key/value heads that each device has of a layer.
    pub(super) fn kv_heads(&self, at: At) -> Result<u64, GraphError> {
        let layer = self.owner(at.representative());
        let heads = self.options.kv.block_shape(layer).and_then(|shape| shape.get(2).copied());
        heads.filter(|heads| *heads > 0).ok_or(GraphError::KvLayout { layer })
    }

    /// The row of a page at which a layer's keys and values begin, as an s32 scalar.
    pub(super) fn page_row(&self, b: &mut Builder, at: At) -> Result<Value, GraphError> {
        at.linear(b, |layer| self.options.kv.block_row(self.owner(layer)))
    }

    /// The sum of `x` over the devices of the model axis.
    pub(super) fn sum(&self, b: &mut Builder, x: Value) -> Result<Value, HloError> {
        if self.rank.is_some() { b.all_reduce(x, &self.groups, Combine::Add) } else { Ok(x) }
    }

    fn kind(&self, kind: AttentionKind) -> Result<&KindInputs, GraphError> {
        let found = self.kinds.iter().find(|known| known.kind == kind);
        found.ok_or_else(|| GraphError::Weight { role: format!("inputs for {kind} attention"), layer: None })
    }

    pub(super) fn slots(&self, kind: AttentionKind) -> Result<Value, GraphError> {
        Ok(self.kind(kind)?.slots)
    }

    pub(super) fn block_table(&self, kind: AttentionKind) -> Result<Value, GraphError> {
        Ok(self.kind(kind)?.block_table)
    }

    pub(super) fn first_block(&self, kind: AttentionKind) -> Result<Value, GraphError> {
        Ok(self.kind(kind)?.first_block)
    }

    /// Makes a value an output, if the step is traced.
    pub(super) fn trace(&mut self, at: At, what: &str, value: Value) {
        if let At::Layer(layer) = at {
            self.trace_global(&format!("layer.{layer}.{what}"), value);
        }
    }

    pub(super) fn trace_global(&mut self, name: &str, value: Value) {
        if self.options.trace && self.options.layers == LayerForm::Unrolled {
            self.traces.push((name.to_owned(), value));
        }
    }
}
