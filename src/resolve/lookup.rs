//! Looks up models and accelerators by the names that people write.

use std::path::Path;
use std::sync::Arc;

use crate::catalog::{self, Accelerator, AcceleratorKind, Model, Slice};
use crate::diagnostic::Diagnostic;
use crate::profile::Loaded;
use crate::profile::messages::nearest;

/// The model of a profile.
pub(super) fn find_model(
    loaded: &Loaded,
    id: &str,
    size: Option<&str>,
    findings: &mut Vec<Diagnostic>,
) -> anyhow::Result<Option<Arc<Model>>> {
    let location = loaded.locate("model.id");
    if id.starts_with('.') || id.starts_with('/') {
        // A relative path starts where it is written: at the file's folder, or for `--set` at the current one.
        let written = loaded.node("model.id").and_then(|node| loaded.sources.get(node.location.source).path.clone());
        let folder = written.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).join(id);
        return match catalog::local_model(&folder) {
            Ok(model) => Ok(Some(Arc::new(model))),
            Err(catalog::CatalogError::Checkpoint(message)) => {
                findings.push(Diagnostic::error("unusable-checkpoint", location, format!("`model.id` is not a folder with a Gemma 4 checkpoint: {message}"))
                    .help("a folder holds config.json and model.safetensors (or its shards with model.safetensors.index.json); the path starts at the profile's folder"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        };
    }
    if let Some(model) = catalog::model(id, size)? {
        return Ok(Some(model));
    }
    let names = catalog::model_names()?;
    let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut finding =
        Diagnostic::error("unknown-model", location, format!("the catalog does not know the model `{id}`"));
    finding = match nearest(id, &borrowed) {
        Some(name) => finding.help(format!("did you mean `{name}`?")),
        None => finding.help(format!(
            "known: {}; say `model.size` for a checkpoint of another name, or use a folder",
            names.join(", ")
        )),
    };
    findings.push(finding);
    Ok(None)
}

/// The accelerator of a profile, and its slice.
pub(super) fn find_accelerator(
    loaded: &Loaded,
    name: &str,
    topology: Option<&str>,
    findings: &mut Vec<Diagnostic>,
) -> anyhow::Result<Option<(Arc<Accelerator>, Slice)>> {
    let location = loaded.locate("hardware.accelerator");
    let (family, count) = match name.rsplit_once('-') {
        Some((family, count)) if !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()) => {
            (family, count.parse::<u32>().ok())
        }
        _ => (name, None),
    };
    let Some(accelerator) = catalog::accelerator(family)? else {
        let names = catalog::accelerator_names()?;
        let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut families: Vec<&str> =
            names.iter().map(|name| name.rsplit_once('-').map_or(name.as_str(), |(family, _)| family)).collect();
        families.dedup();
        let finding = Diagnostic::error(
            "unknown-accelerator",
            location,
            format!("the catalog does not know the accelerator `{name}`"),
        );
        findings.push(match nearest(name, &borrowed) {
            Some(near) => finding.help(format!("did you mean `{near}`?")),
            None => finding.help(format!("write family-chips; families: {}", families.join(", "))),
        });
        return Ok(None);
    };
    if accelerator.kind == AcceleratorKind::Cpu {
        let chips = count.unwrap_or(1);
        return Ok(Some((
            accelerator,
            Slice { chips, topology: chips.to_string(), machine_type: None, hosts: 1, host_ram_gib: None },
        )));
    }
    let sizes: Vec<String> = accelerator.slices.iter().map(|slice| format!("{family}-{}", slice.chips)).collect();
    let slice = count.and_then(|count| accelerator.slice(count)).cloned();
    let Some(slice) = slice else {
        let message = match count {
            Some(count) => format!("there is no {family} slice with {count} chips"),
            None => format!("`{name}` does not say how many chips"),
        };
        findings.push(
            Diagnostic::error("unknown-accelerator", location, message)
                .help(format!("the sizes are {}", sizes.join(", "))),
        );
        return Ok(None);
    };
    if let Some(topology) = topology
        && topology != slice.topology
    {
        findings.push(
            Diagnostic::error(
                "topology-mismatch",
                loaded.locate("hardware.topology"),
                format!("{name} is arranged as {}, not {topology}", slice.topology),
            )
            .help("leave `hardware.topology` out, or name another accelerator"),
        );
        return Ok(None);
    }
    Ok(Some((accelerator, slice)))
}
