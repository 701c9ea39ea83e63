//! Reference pages made from the schema and the rules.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::Value;

/// docs/profiles.md: every key of a profile.
pub(crate) fn profiles() -> String {
    let schema = gemma4ctl::profile::schema::schema();
    let mut text = String::from(
        "<!-- Generated from the schema by `cargo xtask generate`; do not edit. -->\n\
         # Profiles\n\n\
         A profile is a TOML file that says what you want to serve, on what, and how. Keys that it leaves out are inherited\n\
         from the profiles it extends, else taken from the engine's defaults; `gemma4ctl explain PROFILE KEY` tells which.\n\n\
         ```toml\n\
         #:schema ../schemas/profile.schema.json\n\
         name = \"my-gemma4\"\n\
         extends = [\"e2b-v6e-1\"]\n\n\
         [scheduler]\n\
         max_num_seqs = 128\n\
         ```\n\n\
         Editors that know `#:schema` (taplo, Even Better TOML) complete and check keys while you type.\n\n\
         Sizes are written with units (`\"16GiB\"` is 16 x 2^30 bytes, `\"16GB\"` is 16 x 10^9), durations too (`\"4h\"`, `\"2h30m\"`,\n\
         `\"7d\"`), and counts of tokens as a number, as `\"16K\"` (x 1,024) or as `\"16k\"` (x 1,000).\n\n\
         Tables are merged key by key over `extends`, from left to right and then the profile itself; lists are replaced, except\n\
         `lint.allow`, which grows. `--set section.key=value` wins over everything.\n\n",
    );
    let _ = writeln!(text, "## Top\n");
    table(&mut text, &schema, &schema, "");
    text
}

fn table(text: &mut String, root: &Value, section: &Value, path: &str) {
    let Some(properties) = section.get("properties").and_then(Value::as_object) else { return };
    let mut sections: Vec<(String, Value)> = Vec::new();
    let mut rows = String::new();
    for (key, property) in properties {
        let resolved = resolve(root, property);
        let description = describe(property, &resolved);
        if resolved.get("properties").is_some() {
            let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            sections.push((below, resolved));
            continue;
        }
        let _ = writeln!(rows, "| `{key}` | {} | {description} |", kind(root, &resolved));
    }
    if !rows.is_empty() {
        text.push_str("| Key | Value | What it is |\n|---|---|---|\n");
        text.push_str(&rows);
        text.push('\n');
    }
    for (below, section) in sections {
        let description = section.get("description").and_then(Value::as_str).unwrap_or("").trim().replace('\n', " ");
        let _ = writeln!(text, "## `[{below}]`\n\n{description}\n");
        table(text, root, &section, &below);
    }
}

/// Follows a reference, keeping nothing of the place that refers.
fn resolve(root: &Value, schema: &Value) -> Value {
    let reference = schema.get("$ref").or_else(|| schema.pointer("/allOf/0/$ref")).and_then(Value::as_str);
    match reference.and_then(|reference| root.pointer(reference.trim_start_matches('#'))) {
        Some(target) => target.clone(),
        None => schema.clone(),
    }
}

fn describe(property: &Value, resolved: &Value) -> String {
    let own = property.get("description").or_else(|| resolved.get("description")).and_then(Value::as_str).unwrap_or("");
    let mut text = own.split_whitespace().collect::<Vec<_>>().join(" ");
    for (word, meaning) in choices(resolved) {
        let _ = write!(text, "<br>`{word}`: {meaning}");
    }
    text.replace('|', "\\|")
}

/// The words of an enumeration with what each means.
fn choices(schema: &Value) -> Vec<(String, String)> {
    let Some(options) = schema.get("oneOf").and_then(Value::as_array) else { return Vec::new() };
    options
        .iter()
        .filter_map(|option| {
            let word = option.get("const").or_else(|| option.pointer("/enum/0"))?.as_str()?;
            let meaning = option.get("description").and_then(Value::as_str).unwrap_or("");
            Some((word.to_owned(), meaning.trim().trim_end_matches('.').to_owned()))
        })
        .collect()
}

fn kind(root: &Value, schema: &Value) -> String {
    if !choices(schema).is_empty() {
        return "one of these".to_owned();
    }
    if schema.get("anyOf").is_some() {
        return "reference".to_owned();
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let mut text = types.join(" or ");
    if types == ["array"] {
        let items = schema.get("items").map(|items| resolve(root, items)).unwrap_or_default();
        let item =
            if items.get("properties").is_some() { "tables".to_owned() } else { format!("{}s", kind(root, &items)) };
        text = format!("list of {item}");
    }
    if types == ["object"] {
        let items = schema.get("additionalProperties").map(|items| resolve(root, items)).unwrap_or_default();
        text = format!("table of {}", kind(root, &items));
    }
    let bound = |name: &str| schema.get(name).map(Value::to_string);
    match (bound("minimum"), bound("exclusiveMinimum"), bound("maximum")) {
        (_, Some(low), Some(high)) => text.push_str(&format!(", above {low}, at most {high}")),
        (Some(low), _, Some(high)) if high.len() < 8 => text.push_str(&format!(", {low} to {high}")),
        (Some(low), _, _) if low == "1" || low == "0" => text.push_str(&format!(", from {low}")),
        _ => {}
    }
    text
}

/// docs/rules/README.md: the table of all rules.
pub(crate) fn rules() -> String {
    let mut text = String::from(
        "<!-- Generated from src/lint by `cargo xtask generate`; do not edit. -->\n\
         # Rules\n\n\
         `gemma4ctl lint PATHS` checks profiles, `gemma4ctl explain CODE` shows a rule's page. The examples on each page are the\n\
         rule's tests. A rule that does not matter to you is left unsaid with a reason:\n\n\
         ```toml\n[lint]\nallow = [{ rule = \"floating-image\", reason = \"a test rig that follows the nightly\" }]\n```\n\n",
    );
    let heading = |text: &mut String, title: &str| {
        let _ = writeln!(text, "## {title}\n\n| Code | Severity | What it finds |\n|---|---|---|");
    };
    let row = |text: &mut String, rule: &gemma4ctl::lint::Rule| {
        let _ = writeln!(text, "| [{}]({}.md) | {} | {} |", rule.code, rule.code, rule.severity.as_str(), rule.summary);
    };
    heading(&mut text, "About what a profile says");
    gemma4ctl::lint::rules::RULES.iter().for_each(|rule| row(&mut text, rule));
    text.push('\n');
    heading(&mut text, "About the profile itself");
    let ours: Vec<&str> = gemma4ctl::lint::rules::RULES.iter().map(|rule| rule.code).collect();
    gemma4ctl::lint::all().filter(|rule| !ours.contains(&rule.code)).for_each(|rule| row(&mut text, rule));
    text
}

/// Real output for the README.
pub(crate) fn readme_sections() -> anyhow::Result<Vec<(&'static str, String)>> {
    let binary =
        super::root().join(format!("target/{}/gemma4ctl", if cfg!(debug_assertions) { "debug" } else { "release" }));
    let build = std::process::Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "gemma4ctl"])
        .status()
        .context("cannot start cargo")?;
    anyhow::ensure!(build.success(), "gemma4ctl does not build");
    let output = std::process::Command::new(&binary)
        .args(["plan", "turbo-stable"])
        .env("NO_COLOR", "1")
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    anyhow::ensure!(output.status.success(), "`gemma4ctl plan turbo-stable` failed");
    let text = String::from_utf8(output.stdout)?;
    Ok(vec![("plan", format!("```console\n$ gemma4ctl plan turbo-stable\n{}\n```\n", text.trim_end()))])
}
