//! From a typed profile to resolved values: catalog entries looked up, defaults filled in, every value with its origin.
//!
//! After this step nobody reads the profile again, except lint rules that point into its text.

mod identity;
mod limits;
mod lookup;
mod memory;
mod provenance;
mod serving;

use std::collections::BTreeMap;

use gemma4_plan::{Multimodal, Provenance, Speculative};

use crate::catalog::{self, Version};
use crate::diagnostic::Diagnostic;
use crate::profile::{EngineKind, Loaded};
use provenance::Recorder;

pub use identity::Identity;
pub use limits::{LARGEST_MEDIA_ITEM, Limits, largest_media_item};
pub use memory::MemoryChoices;
pub use serving::{Deployment, Serving};

/// Everything that a plan is computed from.
#[derive(Debug)]
pub struct Resolved {
    /// What runs where.
    pub identity: Identity,
    /// The limits of a step.
    pub limits: Limits,
    /// Choices about device memory.
    pub memory: MemoryChoices,
    /// Speculation.
    pub speculative: Option<Speculative>,
    /// Limits of media items: image, audio, video.
    pub multimodal: Multimodal,
    /// How requests are served.
    pub serving: Serving,
    /// Where the service is deployed.
    pub deployment: Deployment,
    /// Origins.
    pub provenance: BTreeMap<String, Provenance>,
}

/// What runs where is asked for so often that it reads as part of the whole.
impl std::ops::Deref for Resolved {
    type Target = Identity;
    fn deref(&self) -> &Identity {
        &self.identity
    }
}

impl Resolved {
    /// Whether every modality is switched off.
    pub fn text_only(&self) -> bool {
        all_off(&self.multimodal)
    }

    /// Whether the model that the engine loads takes images, audio or video at all.
    pub fn is_multimodal(&self) -> bool {
        let config = &self.model.config;
        self.kind != EngineKind::Bundled
            && !self.loads_text_only_class()
            && (config.vision.is_some() || config.audio.is_some())
    }

    /// Whether vLLM on TPU runs this architecture through PyTorch rather than JAX: the 12B's class is not registered
    /// there, and the text-only class only since 0.24.
    pub fn runs_through_torch(&self) -> bool {
        let registered = self.loads_text_only_class() && self.version >= Version::new(0, 24);
        self.kind == EngineKind::VllmTpu && self.model.config.unified && !registered
    }
}

/// Whether every kind of media is limited to none.
fn all_off(limits: &Multimodal) -> bool {
    [limits.image, limits.audio, limits.video].iter().all(|limit| *limit == Some(0))
}

/// Resolves a profile. Findings are added to `loaded`; `None` means that too little is known to go on.
///
/// # Errors
/// If a catalog file of the user cannot be used.
pub fn resolve(loaded: &mut Loaded) -> anyhow::Result<Option<Resolved>> {
    let mut findings = Vec::new();
    let resolved = resolve_into(loaded, &mut findings);
    loaded.diagnostics.append(&mut findings);
    resolved
}

fn resolve_into(loaded: &Loaded, findings: &mut Vec<Diagnostic>) -> anyhow::Result<Option<Resolved>> {
    let Some(kind) = loaded.profile.engine.get().and_then(|engine| engine.kind.get()).copied() else { return Ok(None) };
    let engine = catalog::engine(kind)?;
    let mut record = Recorder::new(loaded, &engine);
    let Some(identity) = identity::identity(loaded, kind, &engine, &mut record, findings)? else { return Ok(None) };
    let multimodal = serving::multimodal(loaded, &mut record);
    let text_only = all_off(&multimodal) || identity.loads_text_only_class();
    let limits = limits::limits(loaded, &identity, &multimodal, text_only, &mut record);
    let speculative = serving::speculative(loaded, &mut record);
    let memory = memory::memory(loaded, identity.dtype, &mut record);
    let serving = serving::serving(loaded, &mut record);
    let deployment = serving::deployment(loaded, &identity.accelerator, &mut record);
    let provenance = record.finish();
    Ok(Some(Resolved { identity, limits, memory, speculative, multimodal, serving, deployment, provenance }))
}
