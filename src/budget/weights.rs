//! Where each tensor lives, by the rules of the engine that loads it, and what that costs a device.

use gemma4_model::quantization::{GROUP, Quantization, arrays};
use gemma4_model::sharding::{self, Mesh};
use gemma4_model::tensors::{Component, Role, Tensor};
use gemma4_plan::{MemoryTerm, TensorPlacement};

use super::placed::{Placed, Weights};
use super::{Impossible, term, vllm_gpu, vllm_tpu};
use crate::catalog::TensorKind;
use crate::profile::{EngineKind, ExpertSharding, Placement};
use crate::resolve::Resolved;

/// Places every tensor that the engine loads.
///
/// # Errors
/// If the mesh does not divide what it must.
pub(super) fn place_all(resolved: &Resolved) -> Result<Weights, Impossible> {
    let tp = u64::from(resolved.tensor);
    check_heads(resolved)?;
    let mut rows: Vec<TensorPlacement> = Vec::new();
    let mut terms: Vec<(Component, u64)> = Vec::new();
    let mut device_bytes = 0_u64;
    let mesh = Mesh { data: u64::from(resolved.data), model: tp };
    let experts = match resolved.experts {
        ExpertSharding::Tensor => sharding::ExpertSharding::Tensor,
        ExpertSharding::Expert => sharding::ExpertSharding::Expert,
    };
    for TensorKind { tensor, layers, count } in &resolved.model.kinds {
        let placed = match resolved.kind {
            EngineKind::VllmTpu => vllm_tpu::place(resolved, tensor)?,
            EngineKind::VllmGpu => vllm_gpu::place(resolved, tensor),
            EngineKind::Bundled => place_bundled(resolved, tensor, &mesh, experts)?,
        };
        let Some(placed) = placed else { continue };
        let bytes = placed.bytes.or_else(|| resolved.dtype.bytes(placed.elements()));
        let bytes = bytes.unwrap_or(u64::MAX).saturating_mul(*count);
        device_bytes = device_bytes.saturating_add(bytes);
        match terms.iter_mut().find(|(component, _)| *component == tensor.component) {
            Some((_, sum)) => *sum = sum.saturating_add(bytes),
            None => terms.push((tensor.component, bytes)),
        }
        rows.push(row(tensor, layers, placed, bytes));
    }
    let mut terms: Vec<MemoryTerm> = terms
        .into_iter()
        .map(|(component, bytes)| {
            term("weights", component_name(component), bytes, "shapes", resolved.model.source.clone())
        })
        .collect();
    let buffers = match resolved.kind {
        EngineKind::VllmTpu => vllm_tpu::buffers(resolved),
        EngineKind::VllmGpu => vllm_gpu::buffers(resolved),
        EngineKind::Bundled => Vec::new(),
    };
    for buffer in buffers {
        device_bytes = device_bytes.saturating_add(buffer.bytes);
        terms.push(buffer);
    }
    Ok(Weights { rows, device_bytes, terms })
}

/// Places a tensor as the bundled engine does, if it loads it.
fn place_bundled(
    resolved: &Resolved,
    tensor: &Tensor,
    mesh: &Mesh,
    experts: sharding::ExpertSharding,
) -> Result<Option<Placed>, Impossible> {
    let on_host = resolved.memory.per_layer_embeddings == Placement::Host && tensor.role == Role::PerLayerTable;
    if !tensor.used || !tensor.component.is_text() || on_host {
        return Ok(None);
    }
    let placement = sharding::place(&resolved.model.config, tensor, mesh, experts)
        .map_err(|error| Impossible { key: "parallelism.tensor", message: error.to_string() })?;
    let arrays = arrays(tensor, &placement, resolved.dtype, resolved.quantized_at_load());
    let bytes = arrays.iter().fold(0, |sum: u64, array| sum.saturating_add(array.bytes()));
    let replicated = placement.replicated_kv();
    let replicated = replicated.then(|| format!("each KV head stands on {} devices", placement.replication));
    let quantized = resolved.quantized_at_load().and_then(|quantization| quantization.of(tensor, &placement));
    let quantized = quantized.map(|quantization| match quantization {
        Quantization::Int8 => format!("{quantization}, with a float32 for each row"),
        Quantization::Int4 => format!("{quantization}, with a bfloat16 for each {GROUP} weights of a row"),
    });
    let notes: Vec<String> = quantized.into_iter().chain(replicated).collect();
    Ok(Some(Placed {
        split: placement.split_dimension(),
        local_shape: placement.local_shape,
        copies: 1,
        bytes: Some(bytes),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    }))
}

/// The rules that every engine shares: query heads divide, KV heads divide or are divided.
fn check_heads(resolved: &Resolved) -> Result<(), Impossible> {
    let tp = u64::from(resolved.tensor);
    let text = &resolved.model.config.text;
    let key = "parallelism.tensor";
    if tp == 0 || !text.query_heads.is_multiple_of(tp) {
        return Err(Impossible { key, message: format!("{} query heads do not divide by {tp}", text.query_heads) });
    }
    for layer in &text.layers {
        let heads = layer.kv_heads;
        if if heads >= tp { heads % tp != 0 } else { tp % heads.max(1) != 0 } {
            return Err(Impossible {
                key,
                message: format!("{heads} KV heads and {tp} devices: one has to be a multiple of the other"),
            });
        }
    }
    Ok(())
}

/// A row of the sharding table.
fn row(tensor: &Tensor, layers: &[u32], placed: Placed, device_bytes: u64) -> TensorPlacement {
    let split = |dimension| (placed.split == Some(dimension)).then(|| "model".to_owned());
    TensorPlacement {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        spec: (0..tensor.shape.len()).map(split).collect(),
        local_shape: placed.local_shape,
        layers: layers.to_vec(),
        device_bytes,
        note: placed.note,
    }
}

/// A component in words.
pub(super) fn component_name(component: Component) -> &'static str {
    match component {
        Component::TokenEmbedding => "token embedding",
        Component::Head => "output head",
        Component::PerLayerTable => "per-layer-embedding table",
        Component::PerLayerProjection => "per-layer projections",
        Component::Attention => "attention",
        Component::Mlp => "MLP",
        Component::Experts => "experts",
        Component::Router => "router",
        Component::Norm => "norms and scalars",
        Component::Vision => "vision",
        Component::Audio => "audio",
    }
}
