//! Regenerates what is generated, or checks that it is up to date.
//!
//! `cargo xtask generate` writes schemas/, the reference pages and the tables inside docs; `cargo xtask check` fails if
//! that would change anything; `cargo xtask estimators` runs the other estimators again
//! (scripts/estimators.py) and then generates.

mod budget_tables;
mod reference;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    match std::env::args().nth(1).as_deref() {
        Some("generate") => generate(),
        Some("check") => {
            let mut stale = 0;
            for (path, text) in generated()? {
                if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
                    say(&format!("stale: {}", path.strip_prefix(root()).unwrap_or(&path).display()));
                    stale += 1;
                }
            }
            if stale > 0 {
                say("run `cargo xtask generate` and commit what it writes");
                return Ok(ExitCode::FAILURE);
            }
            say("everything generated is up to date");
            Ok(ExitCode::SUCCESS)
        }
        Some("estimators") => {
            let output = std::process::Command::new("python3")
                .arg(root().join("scripts/estimators.py"))
                .output()
                .context("cannot start python3")?;
            if !output.status.success() {
                bail!("scripts/estimators.py failed: {}", String::from_utf8_lossy(&output.stderr));
            }
            write_if_changed(&root().join("scripts/estimators.json"), &String::from_utf8(output.stdout)?)?;
            generate()
        }
        _ => bail!("usage: cargo xtask generate | check | estimators"),
    }
}

fn generate() -> anyhow::Result<ExitCode> {
    for (path, text) in generated()? {
        write_if_changed(&path, &text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The repository's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Every generated file with the text it should have.
fn generated() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let root = root();
    // Profiles are looked up from the repository, whatever folder this is called from.
    std::env::set_current_dir(&root).context("cannot enter the repository")?;
    let mut files = vec![
        (root.join("schemas/profile.schema.json"), pretty(&gemma4ctl::profile::schema::schema())?),
        (root.join("schemas/plan.schema.json"), pretty(&gemma4_plan::schema())?),
        (root.join("schemas/openapi.json"), pretty(&gemma4_serve::openapi_example())?),
        (root.join("docs/profiles.md"), reference::profiles()),
        (root.join("docs/rules/README.md"), reference::rules()),
    ];
    for (file, sections) in [
        ("docs/api.md", vec![("fields", gemma4_serve::request_fields())]),
        ("docs/budget.md", budget_tables::sections()?),
        ("README.md", reference::readme_sections()?),
    ] {
        let path = root.join(file);
        let mut text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
        for (name, section) in sections {
            text = replace_section(&text, name, &section).with_context(|| format!("{file} has no section `{name}`"))?;
        }
        files.push((path, text));
    }
    Ok(files)
}

/// Puts `section` between `<!-- generated: NAME -->` and `<!-- end -->`.
fn replace_section(text: &str, name: &str, section: &str) -> Option<String> {
    let begin = format!("<!-- generated: {name} -->\n");
    let start = text.find(&begin)? + begin.len();
    let end = start + text.get(start..)?.find("<!-- end -->")?;
    Some(format!("{}{section}{}", &text[..start], &text[end..]))
}

fn pretty(value: &serde_json::Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn write_if_changed(path: &Path, text: &str) -> anyhow::Result<()> {
    if std::fs::read_to_string(path).ok().as_deref() == Some(text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    say(&format!("wrote {}", path.strip_prefix(root()).unwrap_or(path).display()));
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a tool for developers that talks on stderr")]
fn say(text: &str) {
    eprintln!("{text}");
}
