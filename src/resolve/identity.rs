//! What runs where: model, engine, hardware, and how the devices share the work.

use std::collections::BTreeMap;
use std::sync::Arc;

use gemma4_model::DType;
use gemma4_model::quantization::Quantization;
use gemma4_plan::Source;

use super::lookup;
use super::provenance::{Recorder, default, derived};
use crate::catalog::{Accelerator, AcceleratorKind, Engine, Model, Slice, Version};
use crate::diagnostic::Diagnostic;
use crate::profile::{EngineKind, ExpertSharding, Loaded, WeightDtype};

/// What runs where.
#[derive(Debug)]
pub struct Identity {
    /// Engine.
    pub engine: Arc<Engine>,
    /// Kind of the engine.
    pub kind: EngineKind,
    /// Version whose rules apply.
    pub version: Version,
    /// Version as it was written.
    pub version_text: String,
    /// Container image.
    pub image: Option<String>,
    /// Python packages installed at every start.
    pub pip: Vec<String>,
    /// Further flags.
    pub extra_args: Vec<String>,
    /// Further environment.
    pub env: BTreeMap<String, String>,
    /// Model id.
    pub model_id: String,
    /// The model.
    pub model: Arc<Model>,
    /// Architecture that the engine loads.
    pub architecture: String,
    /// Revision.
    pub revision: Option<String>,
    /// Data type of the weights.
    pub dtype: DType,
    /// Data type as it was written.
    pub dtype_word: WeightDtype,
    /// Weight quantization asked for.
    pub quantization: Option<String>,
    /// Whether code of the checkpoint may run.
    pub trust_remote_code: bool,
    /// LoRA adapters.
    pub max_loras: Option<u64>,
    /// The accelerator's family.
    pub accelerator: Arc<Accelerator>,
    /// Accelerator as it was written.
    pub accelerator_name: String,
    /// The slice; made up for a CPU.
    pub slice: Slice,
    /// Devices as the engine counts them.
    pub devices: u32,
    /// Usable bytes of one device.
    pub usable: u64,
    /// Devices that share one copy of the model.
    pub tensor: u32,
    /// Copies of the model.
    pub data: u32,
    /// How experts are split.
    pub experts: ExpertSharding,
}

impl Identity {
    /// How the bundled engine quantizes weights while it loads them, if it does.
    pub fn quantized_at_load(&self) -> Option<Quantization> {
        let name = self.quantization.as_deref().filter(|_| self.kind == EngineKind::Bundled)?;
        name.parse().ok()
    }

    /// Whether the architecture is overridden to the text-only class.
    pub fn loads_text_only_class(&self) -> bool {
        self.architecture == "Gemma4ForCausalLM"
    }
}

/// Resolves `[model]`, `[hardware]`, `[engine]` and `[parallelism]`; `None` if one of them names nothing known.
pub(super) fn identity(
    loaded: &Loaded,
    kind: EngineKind,
    engine: &Arc<Engine>,
    record: &mut Recorder<'_>,
    findings: &mut Vec<Diagnostic>,
) -> anyhow::Result<Option<Identity>> {
    let model_section = loaded.profile.model.get().cloned().unwrap_or_default();
    let hardware = loaded.profile.hardware.get().cloned().unwrap_or_default();
    let engine_section = loaded.profile.engine.get().cloned().unwrap_or_default();
    let (Some(model_id), Some(accelerator_name)) = (model_section.id.get(), hardware.accelerator.get()) else {
        return Ok(None);
    };
    record.pick("model.id", &model_section.id, Clone::clone, || default(String::new(), ""));
    record.pick("hardware.accelerator", &hardware.accelerator, Clone::clone, || default(String::new(), ""));
    record.pick("engine.kind", &engine_section.kind, |kind| kind.as_str(), || default("", ""));
    let model = lookup::find_model(loaded, model_id, model_section.size.get().map(String::as_str), findings)?;
    let hardware_found =
        lookup::find_accelerator(loaded, accelerator_name, hardware.topology.get().map(String::as_str), findings)?;
    let version_text = record.pick("engine.version", &engine_section.version, Clone::clone, || {
        default(engine.latest.to_string(), format!("the newest version of {} in the catalog", engine.kind))
    });
    let version = match version_text.parse::<Version>() {
        Ok(version) => Some(version),
        Err(message) => {
            findings.push(Diagnostic::error(
                "invalid-value",
                loaded.locate("engine.version"),
                format!("`engine.version`: {message}"),
            ));
            None
        }
    };
    if model_id.starts_with("builtin/") && kind != EngineKind::Bundled {
        let message = format!("`{model_id}` is made by gemma4ctl itself, and {kind} cannot load it");
        findings.push(
            Diagnostic::error("unknown-model", loaded.locate("model.id"), message)
                .help("use the engine `bundled`, or a published model"),
        );
    }
    let (Some(model), Some((accelerator, mut slice)), Some(version)) = (model, hardware_found, version) else {
        return Ok(None);
    };
    if let Some(size) = model_section.size.get() {
        record.record("model.size", size, Source::Profile, "written in the profile".to_owned());
    }

    record.version = version;

    // Parallelism.
    let parallelism = loaded.profile.parallelism.get().cloned().unwrap_or_default();
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let data = record.pick(
        "parallelism.data",
        &parallelism.data,
        |count| narrow(count.0),
        || default(1, "one copy of the model"),
    );
    let all_devices = slice.chips.saturating_mul(accelerator.devices_per_chip);
    let tensor = record.pick(
        "parallelism.tensor",
        &parallelism.tensor,
        |count| narrow(count.0),
        || {
            if accelerator.kind == AcceleratorKind::Cpu {
                default(1, "one virtual device")
            } else {
                derived(
                    (all_devices / data.max(1)).max(1),
                    format!("all {all_devices} devices of {accelerator_name}, divided by parallelism.data"),
                )
            }
        },
    );
    let experts = record.pick(
        "parallelism.experts",
        &parallelism.experts,
        |experts| *experts,
        || default(ExpertSharding::Tensor, "every device takes part in every expert"),
    );
    let devices = if accelerator.kind == AcceleratorKind::Cpu { tensor.saturating_mul(data) } else { all_devices };
    if accelerator.kind == AcceleratorKind::Cpu {
        slice.chips = devices;
        slice.topology = devices.to_string();
    }
    record.pick("hardware.topology", &hardware.topology, Clone::clone, || {
        derived(slice.topology.clone(), format!("the arrangement of {accelerator_name}"))
    });
    let machine_type = record.pick(
        "hardware.machine_type",
        &hardware.machine_type,
        |value| Some(value.clone()),
        || derived(slice.machine_type.clone(), format!("the machine type of {accelerator_name} in the catalog")),
    );
    slice.machine_type = machine_type;
    let from_catalog = accelerator.usable(kind, version);
    let (usable, usable_source) = match (hardware.memory.get(), from_catalog) {
        (Some(memory), _) => (memory.0, "hardware.memory in the profile".to_owned()),
        (None, Some((bytes, source))) => (bytes, source.to_owned()),
        (None, None) => (0, "unknown".to_owned()),
    };
    record.pick(
        "hardware.memory",
        &hardware.memory,
        |memory| memory.0,
        || default(usable, format!("bytes of one device: {usable_source}")),
    );

    // The model.
    let dtype_word = record.pick(
        "model.dtype",
        &model_section.dtype,
        |dtype| *dtype,
        || default(WeightDtype::Auto, "the checkpoint's own"),
    );
    let dtype = match dtype_word {
        WeightDtype::Auto => model.config.dtype.unwrap_or(DType::Bf16),
        WeightDtype::Bfloat16 => DType::Bf16,
        WeightDtype::Float16 => DType::F16,
        WeightDtype::Float32 => DType::F32,
    };
    let architecture = record.pick("model.architecture", &model_section.architecture, Clone::clone, || {
        derived(model.config.architecture.clone(), "the architecture that the checkpoint names")
    });
    let revision = record.optional(
        "model.revision",
        &model_section.revision,
        Clone::clone,
        "the newest revision when the weights are fetched",
    );
    let quantization =
        record.optional("model.quantization", &model_section.quantization, Clone::clone, "as the checkpoint is");
    let trust_remote_code = record.pick(
        "model.trust_remote_code",
        &model_section.trust_remote_code,
        |value| *value,
        || default(false, "Gemma 4 needs no code from the checkpoint"),
    );
    let max_loras = record.optional("model.max_loras", &model_section.max_loras, |count| count.0, "no adapters");

    // The container.
    let image = record.pick(
        "engine.image",
        &engine_section.image,
        |image| Some(image.clone()),
        || match (&engine.image, kind) {
            (Some(repository), EngineKind::VllmTpu | EngineKind::VllmGpu) => {
                derived(Some(format!("{repository}:v{version}.0")), "the release of engine.version")
            }
            _ => default(None, "runs without a container"),
        },
    );
    let pip =
        record.optional("engine.pip", &engine_section.pip, Clone::clone, "nothing is installed").unwrap_or_default();
    let extra_args =
        record.optional("engine.extra_args", &engine_section.extra_args, Clone::clone, "none").unwrap_or_default();
    let env: BTreeMap<String, String> = engine_section
        .env
        .get()
        .map(|map| map.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect())
        .unwrap_or_default();
    Ok(Some(Identity {
        engine: Arc::clone(engine),
        kind,
        version,
        version_text,
        image,
        pip,
        extra_args,
        env,
        model_id: model_id.clone(),
        model,
        architecture,
        revision,
        dtype,
        dtype_word,
        quantization,
        trust_remote_code,
        max_loras,
        accelerator,
        accelerator_name: accelerator_name.clone(),
        slice,
        devices,
        usable,
        tensor,
        data,
        experts,
    }))
}
