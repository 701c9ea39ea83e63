//! `explain PROFILE [KEY]` and `explain CODE`.

use anyhow::bail;
use gemma4_plan::Provenance;

use super::{FINDINGS, Output, ResultFormat};
use crate::diagnostic::Severity;
use crate::lint;
use crate::lint::render::{self, Batch, Format};
use crate::plan::{Analysis, analyze, explain};
use crate::profile::messages::nearest;
use crate::profile::schema;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A profile, or the code of a lint rule
    #[arg(required_unless_present = "rules")]
    subject: Option<String>,
    /// A value of the plan, such as `scheduler.max_num_seqs`
    key: Option<String>,
    /// List all rules
    #[arg(long)]
    rules: bool,
    /// Override a value of the profile
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    format: ResultFormat,
}

pub(super) fn run(arguments: &Arguments, output: &mut Output) -> anyhow::Result<u8> {
    let json = arguments.format == ResultFormat::Json;
    let Some(subject) = arguments.subject.as_deref().filter(|_| !arguments.rules) else {
        return rules(output, json);
    };
    if arguments.key.is_none()
        && let Some(rule) = lint::find(subject)
    {
        if json {
            output.line(serde_json::to_string_pretty(&serde_json::json!({ "code": rule.code, "severity": rule.severity, "summary": rule.summary, "page": rule.page }))?);
        } else {
            output.push(rule.page);
        }
        return Ok(0);
    }
    let analysis = match analyze(subject, &arguments.set) {
        Ok(analysis) => analysis,
        Err(error) => {
            let codes: Vec<&str> = lint::all().map(|rule| rule.code).collect();
            match nearest(subject, &codes) {
                Some(near) if arguments.key.is_none() => {
                    bail!("there is no rule `{subject}`, did you mean `{near}`? As a profile: {error}")
                }
                None if arguments.key.is_none() => {
                    bail!("{error}; nor is it the code of a rule: `gemma4ctl explain --rules` lists those")
                }
                _ => return Err(error),
            }
        }
    };
    let Some(resolved) = &analysis.resolved else {
        let batch = Batch { sources: &analysis.loaded.sources, diagnostics: &analysis.loaded.diagnostics };
        output.push(&render::render(if json { Format::Json } else { Format::Text }, &[batch], output.colour()));
        return Ok(FINDINGS);
    };
    let Some(asked) = &arguments.key else {
        return all_values(&analysis, &resolved.provenance, output, json);
    };
    let key = explain::find_key(resolved, asked).map_err(|message| anyhow::anyhow!(message))?;
    let Some(entry) = resolved.provenance.get(key) else { bail!("a plan has no value `{asked}`") };
    if json {
        output.line(serde_json::to_string_pretty(&serde_json::json!({
            "key": key, "value": entry.value, "source": entry.source, "file": entry.file, "line": entry.line, "why": entry.why, "description": description(key),
        }))?);
        return Ok(0);
    }
    story(&analysis, asked, key, entry, output);
    errors(&analysis, output)
}

/// Errors of the profile, which leave the meaning of its values open.
fn errors(analysis: &Analysis, output: &mut Output) -> anyhow::Result<u8> {
    let wrong: Vec<_> =
        analysis.loaded.diagnostics.iter().filter(|finding| finding.severity == Severity::Error).cloned().collect();
    if wrong.is_empty() {
        return Ok(0);
    }
    output.line("");
    let batch = Batch { sources: &analysis.loaded.sources, diagnostics: &wrong };
    output.push(&render::render(Format::Text, &[batch], output.colour()));
    Ok(FINDINGS)
}

fn story(analysis: &Analysis, asked: &str, key: &str, entry: &Provenance, output: &mut Output) {
    if asked != key {
        output.line(format!("(`{asked}` is `{key}`)"));
    }
    output.line(format!("{key} = {}", explain::shown(&entry.value)));
    if let Some(description) = description(key) {
        output.line(format!("  {description}"));
    }
    output.line("");
    match (&entry.file, entry.line) {
        (Some(file), Some(line)) => {
            let verb = if entry.source == gemma4_plan::Source::Extends { "Inherited" } else { "Written" };
            output.line(format!("  {verb}: {file}:{line}"));
            if let Some((_, location)) = analysis.loaded.origin(key) {
                let shown = analysis.loaded.sources.shown(location.source);
                if let Some(text) = shown.lines().nth(line.saturating_sub(1) as usize) {
                    output.line(format!("    {line} | {}", text.trim()));
                }
            }
        }
        _ => output.line(format!("  {}: {}.", explain::origin(entry), entry.why)),
    }
    // What the value took the place of.
    let mut node = analysis.loaded.node(key);
    while let Some(replaced) = node.and_then(|node| node.replaced.as_deref()) {
        let (line, _) = analysis.loaded.sources.line_column(replaced.location);
        let name = &analysis.loaded.sources.get(replaced.location.source).name;
        output
            .line(format!("  It takes the place of {} ({name}:{line}).", explain::shown(&schema::node_json(replaced))));
        node = Some(replaced);
    }
    if key == "memory.block_size"
        && let Some(resolved) = &analysis.resolved
        && resolved.memory.block_size.is_some()
    {
        output.line(format!("  {}", explain::block_size_without(resolved)));
    }
    let about: Vec<_> = analysis
        .loaded
        .diagnostics
        .iter()
        .filter(|finding| analysis.loaded.node(key).is_some_and(|node| node.location == finding.location))
        .collect();
    for finding in about {
        output.line(format!("  {}: {} [{}]", finding.severity.as_str(), finding.message, finding.code));
    }
}

fn all_values(
    analysis: &Analysis,
    provenance: &std::collections::BTreeMap<String, Provenance>,
    output: &mut Output,
    json: bool,
) -> anyhow::Result<u8> {
    if json {
        output.line(serde_json::to_string_pretty(
            &serde_json::json!({ "profile": analysis.loaded.name, "provenance": provenance }),
        )?);
        return Ok(0);
    }
    let widest = provenance.keys().map(String::len).max().unwrap_or(0);
    for (key, entry) in provenance {
        let value = explain::shown(&entry.value);
        output.line(format!("{key:<widest$}  {value}  ({}: {})", explain::origin(entry), entry.why));
    }
    errors(analysis, output)
}

/// What the schema says of a key.
fn description(key: &str) -> Option<String> {
    let schema = schema::schema();
    let mut node = &schema;
    for part in key.split('.') {
        // A section is a reference to its definition.
        let reference = node.get("$ref").or_else(|| node.pointer("/allOf/0/$ref")).and_then(serde_json::Value::as_str);
        if let Some(reference) = reference {
            node = schema.pointer(reference.trim_start_matches('#'))?;
        }
        node = node.get("properties")?.get(part)?;
    }
    node.get("description")
        .and_then(serde_json::Value::as_str)
        .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn rules(output: &mut Output, json: bool) -> anyhow::Result<u8> {
    if json {
        let list: Vec<serde_json::Value> = lint::all()
            .map(|rule| serde_json::json!({ "code": rule.code, "severity": rule.severity, "summary": rule.summary }))
            .collect();
        output.line(serde_json::to_string_pretty(&serde_json::json!({ "rules": list }))?);
        return Ok(0);
    }
    let widest = lint::all().map(|rule| rule.code.len()).max().unwrap_or(0);
    for rule in lint::all() {
        output.line(format!("{:<widest$}  {:<7}  {}", rule.code, rule.severity.as_str(), rule.summary));
    }
    Ok(0)
}
