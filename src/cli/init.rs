//! `init`: a profile to start from, after few questions.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::Output;
use super::output::{note, write_atomically};
use crate::catalog;
use crate::diagnostic::Severity;
use crate::profile::EngineKind;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Name of the profile
    #[arg(default_value = "my-gemma4")]
    name: String,
    /// Model id
    #[arg(long)]
    model: Option<String>,
    /// Accelerator, such as `v6e-4`, `h100-1` or `cpu`
    #[arg(long)]
    accelerator: Option<String>,
    /// Where to write it; `-` is stdout [default: NAME.toml, in ./profiles if there is such a folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let models = catalog::model_names()?;
    let accelerators = catalog::accelerator_names()?;
    let model = match &arguments.model {
        Some(model) => model.clone(),
        None => choose("Which model?", "--model", &models)?,
    };
    let accelerator = match &arguments.accelerator {
        Some(accelerator) => accelerator.clone(),
        None => choose("On what?", "--accelerator", &accelerators)?,
    };
    for (word, known, what) in [(&model, &models, "model"), (&accelerator, &accelerators, "accelerator")] {
        let path = what == "model" && (word.starts_with('.') || word.starts_with('/'));
        if !path && !known.contains(word) && (what == "accelerator" || catalog::model(word, None)?.is_none()) {
            bail!("the catalog does not know the {what} `{word}`; known: {}", known.join(", "));
        }
    }
    let family = accelerator.rsplit_once('-').map_or(accelerator.as_str(), |(family, _)| family);
    let kind = match catalog::accelerator(family)?.map(|accelerator| accelerator.kind) {
        Some(catalog::AcceleratorKind::Tpu) => EngineKind::VllmTpu,
        Some(catalog::AcceleratorKind::Gpu) => EngineKind::VllmGpu,
        _ => EngineKind::Bundled,
    };
    let name = arguments.name.strip_suffix(".toml").unwrap_or(&arguments.name);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        bail!(
            "`{}` is not a name for a profile: use letters, digits, `-`, `_` and `.`, and `--out` for another folder",
            arguments.name
        );
    }
    let text = profile(name, &model, &accelerator, kind);
    check(&text)?;
    let path = match &arguments.out {
        Some(path) if path.as_os_str() == "-" => {
            output.push(&text);
            return Ok(0);
        }
        Some(path) => path.clone(),
        None => {
            let folder = PathBuf::from("profiles");
            let file = format!("{name}.toml");
            if folder.is_dir() { folder.join(file) } else { PathBuf::from(file) }
        }
    };
    if path.exists() && !arguments.force {
        bail!("{} is there already; name another with --out, or replace it with --force", path.display());
    }
    write_atomically(&path, &text)?;
    note(&format!("wrote {}; next: `gemma4ctl plan {}`", path.display(), path.display()));
    Ok(0)
}

/// What is written must plan: some models cannot be split over all devices of some slices.
fn check(text: &str) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder for temporary files")?;
    let path = folder.path().join("profile.toml");
    std::fs::write(&path, text).context("cannot write a temporary file")?;
    let analysis = crate::plan::analyze(&path.display().to_string(), &[])?;
    let error = analysis.loaded.diagnostics.iter().find(|finding| finding.severity == Severity::Error);
    match error {
        None => Ok(()),
        Some(finding) => {
            let help = finding.help.as_deref().map(|help| format!("; {help}")).unwrap_or_default();
            bail!("that would not run: {}{help}", finding.message)
        }
    }
}

/// Asks on a terminal; elsewhere the flag is required.
fn choose(question: &str, flag: &str, choices: &[String]) -> anyhow::Result<String> {
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        bail!("there is no terminal to ask on; say {flag}, one of {}", choices.join(", "));
    }
    let index = dialoguer::Select::new()
        .with_prompt(question)
        .items(choices)
        .default(0)
        .max_length(12)
        .interact()
        .context("no answer")?;
    choices.get(index).cloned().context("no answer")
}

fn profile(name: &str, model: &str, accelerator: &str, kind: EngineKind) -> String {
    let engine = match kind {
        EngineKind::Bundled => "[engine]\nkind = \"bundled\"\n".to_owned(),
        _ => format!(
            "[engine]\nkind = \"{kind}\"\n# Version of vLLM; decides defaults, flags and memory rules. Pin the image by digest once it runs.\n# version = \"0.32\"\n# image = \"...@sha256:...\"\n"
        ),
    };
    let rest = match kind {
        EngineKind::Bundled => String::new(),
        _ => "\n# Text only; raise these for media.\n[multimodal]\nimage = 0\naudio = 0\nvideo = 0\n\n[cache]\n# On a disk that outlives the machine.\ncompile = \"/var/cache/gemma4ctl/xla\"\n\n[secrets]\nhf_token = { env = \"HF_TOKEN\" }\n".to_owned(),
    };
    let (length, seqs) = if kind == EngineKind::Bundled { (2048, 8) } else { (8192, 64) };
    let memory = if kind == EngineKind::Bundled && model != "builtin/smoke" && accelerator == "cpu" {
        "# Bytes for weights and KV cache.\nmemory = \"16GiB\"\n"
    } else {
        ""
    };
    let model = serde_json::Value::from(model).to_string();
    let summary = serde_json::Value::from(format!("{} on {accelerator}", model.trim_matches('"'))).to_string();
    format!(
        "name = \"{name}\"\nsummary = {summary}\n\n[model]\nid = {model}\n\n[hardware]\naccelerator = \"{accelerator}\"\n{memory}\n{engine}\n[scheduler]\n# Longest sequence, prompt and output together.\nmax_model_len = {length}\n# Most sequences at once; sizes the compiled programs.\nmax_num_seqs = {seqs}\n{rest}\n[server]\nhost = \"127.0.0.1\"\nport = 8000\n"
    )
}
