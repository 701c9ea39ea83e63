//! Proofs that were made before, in the user's cache folder.
//!
//! Invariant: a proof is found again only for the same plan, programs, compiler, options and variables that the compiler
//! reads. A file that cannot be read is as good as none: the proof is made again.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use etcetera::BaseStrategy as _;
use gemma4_engine::compile::{Devices, Identity};
use gemma4_plan::{Plan, Proof, digest};

/// Variables by which users tell XLA how to compile.
const VARIABLES: [&str; 2] = ["XLA_FLAGS", "LIBTPU_INIT_ARGS"];

/// The form of the files; raised when [`Proof`] or what goes into it changes.
const FORM: u32 = 1;

/// The place of one proof.
#[derive(Debug)]
pub(super) struct Entry {
    path: PathBuf,
}

impl Entry {
    /// The place for this proof; none where the user has no folder for caches.
    pub(super) fn new(plan: &Plan, devices: &Devices, identity: &Identity, programs: &[String]) -> Option<Self> {
        let folder = etcetera::choose_base_strategy().ok()?.cache_dir().join("gemma4ctl").join("proofs");
        let programs: Vec<String> = programs.iter().map(|text| digest::sha256(text.as_bytes())).collect();
        let variables = VARIABLES.map(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()));
        // The usable bytes decide the verdict; `cpu` takes them from the profile.
        let usable = plan.hardware.usable_hbm_bytes;
        let key = serde_json::json!([
            FORM,
            plan.digest,
            usable,
            devices.name(),
            identity.compiler,
            identity.options,
            variables,
            programs
        ]);
        let name = digest::sha256(key.to_string().as_bytes());
        Some(Entry { path: folder.join(format!("{}.json", name.trim_start_matches("sha256:"))) })
    }

    /// The proof, if it is there.
    pub(super) fn read(&self) -> Option<(PathBuf, Proof)> {
        let bytes = std::fs::read(&self.path).ok()?;
        Some((self.path.clone(), serde_json::from_slice(&bytes).ok()?))
    }

    /// Keeps a proof, whole or not at all.
    pub(super) fn write(&self, proof: &Proof) -> anyhow::Result<()> {
        let shown = self.path.display();
        let folder = self.path.parent().context("a cache without a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let mut file = tempfile::Builder::new().prefix(".proof-").tempfile_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(proof)?).with_context(|| format!("cannot write {shown}"))?;
        file.persist(&self.path).map_err(|error| error.error).with_context(|| format!("cannot write {shown}"))?;
        Ok(())
    }
}
