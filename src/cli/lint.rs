//! `lint PATHS...`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};

use super::output::{note, write_atomically};
use super::{FINDINGS, Output};
use crate::diagnostic::{Diagnostic, Severity};
use crate::lint;
use crate::lint::render::{self, Batch, Format};
use crate::plan::Analysis;
use crate::words::plural;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Files, folders, globs, or names of profiles
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// How to print findings
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Fail on these too: `warnings`, `notes`, or the code of a rule
    #[arg(long, value_name = "WHAT")]
    deny: Vec<String>,
    /// Mend what can be mended safely, keeping formatting and comments
    #[arg(long)]
    fix: bool,
}

/// TOML files in a folder that are never profiles.
const OTHER_TOML: [&str; 14] = [
    "Cargo.toml",
    "pyproject.toml",
    "rustfmt.toml",
    ".rustfmt.toml",
    "clippy.toml",
    "rust-toolchain.toml",
    "deny.toml",
    "taplo.toml",
    ".taplo.toml",
    "ruff.toml",
    "uv.toml",
    "book.toml",
    "typos.toml",
    "poetry.toml",
];

/// Rounds of fixing: a fix may uncover another finding.
const MAX_ROUNDS: usize = 8;

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let deny = Deny::new(&arguments.deny)?;
    let targets = targets(&arguments.paths)?;
    if arguments.fix {
        // Nothing is written unless all can be read.
        for target in &targets {
            analyze_target(target)?;
        }
        fix(&targets)?;
    }
    let analyses: Vec<_> = targets.par_iter().map(|target| analyze_target(target)).collect();
    // Of several errors the first in the order of the targets, whoever was faster.
    let mut analyses: Vec<Analysis> = analyses.into_iter().collect::<anyhow::Result<_>>()?;
    // A parent's finding is said once, however many children it has.
    let mut seen = BTreeSet::new();
    for analysis in &mut analyses {
        let sources = &analysis.loaded.sources;
        let main = analysis.loaded.main;
        analysis.loaded.diagnostics.retain(|finding| {
            let record = sources.record(finding);
            finding.location.source == main
                || seen.insert((record.file, record.line, record.column, record.code, record.message))
        });
    }
    let batches: Vec<Batch<'_>> = analyses
        .iter()
        .map(|analysis| Batch { sources: &analysis.loaded.sources, diagnostics: &analysis.loaded.diagnostics })
        .collect();
    output.push(&render::render(arguments.format, &batches, output.colour()));
    let all = || analyses.iter().flat_map(|analysis| analysis.loaded.diagnostics.iter());
    if matches!(arguments.format, Format::Text | Format::Concise) {
        output.finish().context("cannot write the result to stdout")?;
        let files = plural(targets.len(), "profile");
        note(&format!("{files}: {}", render::tally(all())));
        let fixable = all().filter(|finding| finding.fix.is_some()).count();
        if fixable > 0 && !arguments.fix {
            note(&format!("{fixable} of them can be mended with --fix"));
        }
    }
    let failed = all().any(|finding| finding.severity == Severity::Error || deny.denies(finding));
    Ok(if failed && arguments.format != Format::Sarif { FINDINGS } else { 0 })
}

fn analyze_target(target: &str) -> anyhow::Result<Analysis> {
    let loaded = crate::profile::load(target, &[])?;
    if loaded.profile.base.get() == Some(&true) {
        // Only there to be extended: what it has must be right, what it lacks its children say.
        let mut loaded = loaded;
        loaded.diagnostics.retain(|finding| finding.code != "missing-key");
        lint::run(&mut loaded, None, None);
        return Ok(Analysis { loaded, resolved: None, budget: None, proof: None });
    }
    crate::plan::analyze_loaded(loaded)
}

/// The profiles that the paths mean, each once, in order.
fn targets(paths: &[String]) -> anyhow::Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut add = |path: String| {
        // One file under several names is one file.
        let identity = std::fs::canonicalize(&path).unwrap_or_else(|_| PathBuf::from(&path));
        if seen.insert(identity) {
            found.push(path);
        }
    };
    for argument in paths {
        let path = Path::new(argument);
        if path.is_dir() {
            let files = in_folder(path)?;
            if files.is_empty() {
                bail!("there is no profile (a .toml file) in the folder {argument}");
            }
            files.into_iter().for_each(&mut add);
        } else if path.is_file() {
            add(argument.clone());
        } else if argument.contains(['*', '?', '[', '{']) {
            let files = by_glob(argument)?;
            if files.is_empty() {
                bail!("no file matches {argument}");
            }
            files.into_iter().for_each(&mut add);
        } else {
            // A name, or a mistake that loading words better.
            add(argument.clone());
        }
    }
    Ok(found)
}

/// Profiles below a folder, sorted. Hidden folders and build outputs are left out.
fn in_folder(folder: &Path) -> anyhow::Result<Vec<String>> {
    let walk = walkdir::WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter().filter_entry(|entry| {
        let name = entry.file_name().to_string_lossy();
        let outputs = entry.file_type().is_dir() && (name == "target" || name == "node_modules");
        entry.depth() == 0 || !(name.starts_with('.') || outputs)
    });
    files(walk, |path| {
        path.extension().is_some_and(|extension| extension == "toml")
            && !path.file_name().is_some_and(|name| OTHER_TOML.contains(&name.to_string_lossy().as_ref()))
    })
}

/// Files that match a glob, sorted; the walk starts at the part before the first wildcard.
fn by_glob(pattern: &str) -> anyhow::Result<Vec<String>> {
    let glob = globset::GlobBuilder::new(pattern.trim_start_matches("./"))
        .literal_separator(true)
        .build()
        .with_context(|| format!("`{pattern}` is not a glob"))?
        .compile_matcher();
    let fixed: PathBuf = Path::new(pattern)
        .components()
        .take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']))
        .collect();
    let root = if fixed.as_os_str().is_empty() { PathBuf::from(".") } else { fixed };
    if !root.exists() {
        return Ok(Vec::new());
    }
    files(walkdir::WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter(), |path| glob.is_match(path))
}

/// The files of a walk that are wanted. A place that cannot be read is an error: leaving it out would look like a pass.
fn files(
    walk: impl Iterator<Item = walkdir::Result<walkdir::DirEntry>>,
    wanted: impl Fn(&Path) -> bool,
) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in walk {
        let entry = match entry {
            // A link to a folder above is walked already.
            Err(error) if error.loop_ancestor().is_some() => continue,
            entry => entry.context("cannot look through a folder")?,
        };
        let path = entry.path().strip_prefix("./").unwrap_or(entry.path());
        if entry.file_type().is_file() && wanted(path) {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

/// Applies safe fixes to the files that were named, until nothing changes.
fn fix(targets: &[String]) -> anyhow::Result<()> {
    let named: BTreeSet<PathBuf> = targets.iter().filter_map(|target| std::fs::canonicalize(target).ok()).collect();
    let mut total = 0;
    let mut files = BTreeSet::new();
    for target in targets {
        for _ in 0..MAX_ROUNDS {
            let analysis = analyze_target(target)?;
            let sources = &analysis.loaded.sources;
            let diagnostics: Vec<Diagnostic> = analysis
                .loaded
                .diagnostics
                .iter()
                .filter(|finding| {
                    let path = finding.fix.as_ref().and_then(|fix| sources.get(fix.location.source).path.as_deref());
                    path.and_then(|path| std::fs::canonicalize(path).ok()).is_some_and(|path| named.contains(&path))
                })
                .cloned()
                .collect();
            let (texts, count) = lint::fix::apply(sources, &diagnostics);
            if count == 0 {
                break;
            }
            for (path, text) in texts {
                let before =
                    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                write_atomically(&path, &text)?;
                // A fix that makes a file worse is our mistake; the author's text comes back.
                let errors = |analysis: &Analysis| {
                    analysis.loaded.diagnostics.iter().filter(|finding| finding.severity == Severity::Error).count()
                };
                if analyze_target(target).map_or(true, |after| errors(&after) > errors(&analysis)) {
                    write_atomically(&path, &before)?;
                    bail!(
                        "the fixes for {} would have made it worse, so it was left as it was; please report this",
                        path.display()
                    );
                }
                files.insert(path);
            }
            total += count;
        }
    }
    note(&format!("mended {} in {}", plural(total, "finding"), plural(files.len(), "file")));
    Ok(())
}

/// What fails a run beside errors.
struct Deny {
    least: Option<Severity>,
    codes: Vec<String>,
}

impl Deny {
    fn new(words: &[String]) -> anyhow::Result<Self> {
        let mut deny = Deny { least: None, codes: Vec::new() };
        for word in words.iter().flat_map(|word| word.split(',')) {
            match word {
                "warning" | "warnings" => {
                    deny.least = Some(deny.least.map_or(Severity::Warning, |least| least.min(Severity::Warning)))
                }
                "info" | "note" | "notes" | "all" => deny.least = Some(Severity::Info),
                "error" | "errors" => {}
                code if lint::find(code).is_some() => deny.codes.push(code.to_owned()),
                other => {
                    let codes: Vec<&str> = lint::all().map(|rule| rule.code).collect();
                    let hint = crate::profile::messages::nearest(other, &codes).map_or_else(
                        || "`gemma4ctl explain --rules` lists the codes".to_owned(),
                        |near| format!("did you mean `{near}`?"),
                    );
                    bail!(
                        "--deny takes `warnings`, `notes` or the code of a rule, and `{other}` is none of them; {hint}"
                    );
                }
            }
        }
        Ok(deny)
    }

    fn denies(&self, finding: &Diagnostic) -> bool {
        self.least.is_some_and(|least| finding.severity >= least) || self.codes.iter().any(|code| code == finding.code)
    }
}
