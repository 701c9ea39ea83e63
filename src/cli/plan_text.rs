//! A plan on one screen.

use clap::builder::styling::{AnsiColor, Style};
use gemma4_plan::{Plan, Severity};
use serde_json::Value;

use super::{Output, proof_text};
use crate::plan::diff::{Change, Difference};
use crate::words::{commas, plural, size};

/// Column at which values begin.
pub(super) const INDENT: usize = 12;

fn bold() -> Style {
    Style::new().bold()
}

pub(super) fn colour(colour: AnsiColor) -> Style {
    colour.on_default()
}

fn parameters(count: u64) -> String {
    match count {
        0..1_000_000_000 => format!("{:.1} million", count as f64 / 1e6),
        _ => format!("{:.2} billion", count as f64 / 1e9),
    }
}

fn signed_size(bytes: i64) -> String {
    format!("{}{}", if bytes < 0 { "-" } else { "" }, size(bytes.unsigned_abs()))
}

/// Adds `name` and its value, the value wrapped to the width of the terminal.
pub(super) fn row(output: &mut Output, name: &str, text: &str) {
    let bold = bold();
    let width = output.width().max(INDENT + 20) - INDENT;
    for (index, line) in wrap(text, width).into_iter().enumerate() {
        if index == 0 {
            output.line(format!("{bold}{name:<width$}{bold:#}{line}", width = INDENT));
        } else {
            output.line(format!("{:<INDENT$}{line}", ""));
        }
    }
}

/// Breaks `text` at spaces into lines of at most `width` columns, where words allow.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let columns = |text: &str| unicode_width::UnicodeWidthStr::width(text);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().map_or(0, |line| columns(line));
        if line > 0 && line + 1 + columns(word) > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// Writes the plan for people. `argument` is how the profile was named.
pub(super) fn plan(output: &mut Output, argument: &str, plan: &Plan) {
    let bold = bold();
    let summary = plan.profile.summary.as_deref().unwrap_or("");
    let title = wrap(&format!("{}  {summary}", plan.profile.name), output.width());
    for (index, line) in title.iter().enumerate() {
        let rest = line.strip_prefix(&plan.profile.name).filter(|_| index == 0);
        output.line(
            rest.map_or_else(|| line.clone(), |rest| format!("{bold}{}{bold:#}{rest}", plan.profile.name)).trim_end(),
        );
    }
    output.line("");
    row(
        output,
        "model",
        &format!(
            "{} ({}, {} parameters, {}{})",
            plan.model.id,
            plan.model.size,
            parameters(plan.model.parameters),
            plan.model.dtype,
            plan.model.quantization.as_deref().map(|name| format!(", {name} weights")).unwrap_or_default()
        ),
    );
    let devices = if plan.hardware.family == "cpu" {
        plural(plan.hardware.devices as usize, "virtual device")
    } else {
        format!(
            "{}, {}, {}",
            plan.hardware.topology,
            plural(plan.hardware.chips as usize, "chip"),
            plural(plan.hardware.devices as usize, "device")
        )
    };
    let machine = plan
        .hardware
        .machine_type
        .as_deref()
        .map(|machine| format!(", {} x {machine}", plan.hardware.hosts))
        .unwrap_or_default();
    row(output, "hardware", &format!("{} ({devices}{machine})", plan.hardware.accelerator));
    let image = plan.engine.image.as_deref().map(|image| format!(", image {image}")).unwrap_or_default();
    row(output, "engine", &format!("{} {}{image}", plan.engine.kind, plan.engine.version));
    let split = plan.sharding.tensors.iter().filter(|row| row.local_shape != row.shape).count();
    let mesh = plan.sharding.mesh;
    row(
        output,
        "sharding",
        &format!(
            "tensor {} x data {}; {split} of {} kinds of tensor are split",
            mesh.model,
            mesh.data,
            plan.sharding.tensors.len()
        ),
    );
    output.line("");
    memory(output, plan);
    proof_text::proof(output, plan);
    output.line("");
    let kv = &plan.kv_cache;
    let copies = if mesh.data > 1 { format!(" in each of {} copies", mesh.data) } else { String::new() };
    row(
        output,
        "KV cache",
        &format!(
            "{}, {} blocks of {} tokens{copies}: {} tokens, {:.2} requests of {} at once",
            kv.dtype,
            commas(kv.blocks),
            kv.block_size,
            commas(kv.tokens),
            kv.max_concurrency,
            commas(plan.scheduler.max_model_len)
        ),
    );
    if !plan.buckets.tokens.is_empty() {
        row(
            output,
            "buckets",
            &format!(
                "{} for tokens: {}; {} for requests: {}",
                plan.buckets.tokens.len(),
                ladder(&plan.buckets.tokens),
                plan.buckets.requests.len(),
                ladder(&plan.buckets.requests)
            ),
        );
    }
    let graphs = plan.buckets.graphs.map(|graphs| format!("{} to compile", commas(graphs)));
    let time = plan.buckets.compile_seconds.map(|seconds| format!("about {} when cold", duration(seconds)));
    let cache = plan.compile_cache.path.as_deref().map(|path| format!("kept in {path}"));
    let programs: Vec<String> = graphs.into_iter().chain(time).chain(cache).collect();
    if !programs.is_empty() {
        row(output, "programs", &programs.join(", "));
    }
    if let Some(speculative) = &plan.speculative {
        let mut text = format!("{}, {} draft tokens a step", speculative.method, speculative.num_tokens);
        if plan.engine.kind == "bundled" {
            text.push_str(&format!("; rows of logits for drafts: {}", ladder(&plan.buckets.logits)));
        }
        row(output, "speculation", &text);
    }
    row(output, "serves", &format!("http://{}:{}", plan.server.host, plan.server.port));
    row(output, "digest", &plan.digest);
    findings(output, plan);
    next(output, argument, plan);
}

/// The bar and its legend.
fn memory(output: &mut Output, plan: &Plan) {
    let memory = &plan.memory;
    let device = &memory.per_device;
    let heading = format!(
        "{} of each device usable, {:.0} % of it for weights and KV cache",
        size(device.usable),
        memory.utilization * 100.0
    );
    row(output, "memory", &heading);
    let width = output.width().saturating_sub(INDENT + 2).clamp(20, 66);
    let total = device.usable.max(device.weights.saturating_add(device.kv).saturating_add(device.programs)).max(1);
    let parts = [
        ("weights", device.weights, '█', AnsiColor::Blue),
        ("KV cache", device.kv, '▓', AnsiColor::Green),
        ("programs", device.programs, '▒', AnsiColor::Yellow),
    ];
    let mut bar = String::new();
    let mut drawn = 0;
    let mut sum = 0_u64;
    for (_, bytes, glyph, hue) in parts {
        sum = sum.saturating_add(bytes);
        // Rounding the running sum keeps the parts in proportion; what is there gets at least one cell.
        let mut end = (sum as f64 / total as f64 * width as f64).round() as usize;
        end = end.max(drawn + usize::from(bytes > 0));
        let style = colour(hue);
        bar.push_str(&format!("{style}{}{style:#}", glyph.to_string().repeat(end - drawn)));
        drawn = end;
    }
    bar.push_str(&"·".repeat(width.saturating_sub(drawn)));
    output.line(format!("{:<INDENT$}{bar}", ""));
    let mut legend: Vec<String> = parts
        .iter()
        .map(|(name, bytes, glyph, hue)| {
            let style = colour(*hue);
            format!("{style}{glyph}{style:#} {name} {}", size(*bytes))
        })
        .collect();
    legend.push(format!("· free {}", signed_size(device.free)));
    // Two entries a line where four do not fit; colours take no columns, so the plain length decides.
    let plain: usize =
        legend.iter().map(|entry| anstream::adapter::strip_str(entry).to_string().chars().count() + 2).sum();
    let entries = if plain + INDENT > output.width() { 2 } else { 4 };
    for line in legend.chunks(entries) {
        output.line(format!("{:<INDENT$}{}", "", line.join("  ")));
    }
    let errors = plan.diagnostics.iter().any(|finding| finding.severity == Severity::Error);
    let (style, verdict) = match (memory.fits, errors) {
        (true, false) => (colour(AnsiColor::Green).bold(), "fits".to_owned()),
        (true, true) => (
            colour(AnsiColor::Yellow).bold(),
            "would fit as drawn here, but the profile has errors: what is wrong in it is left out".to_owned(),
        ),
        (false, _) => (colour(AnsiColor::Red).bold(), format!("does not fit: {}", memory.reasons.join("; "))),
    };
    let width = output.width().max(INDENT + 20) - INDENT;
    for line in wrap(&verdict, width) {
        output.line(format!("{:<INDENT$}{style}{line}{style:#}", ""));
    }
}

/// A list of buckets, its regular tail in words.
fn ladder(buckets: &[u64]) -> String {
    let plain = |buckets: &[u64]| buckets.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    if buckets.len() <= 8 {
        return plain(buckets);
    }
    let step = buckets[buckets.len() - 1] - buckets[buckets.len() - 2];
    let regular = buckets.windows(2).rev().take_while(|pair| pair[1] - pair[0] == step).count();
    if regular >= 3 {
        let head = &buckets[..buckets.len() - regular];
        return format!("{}, then every {step} to {}", plain(head), buckets[buckets.len() - 1]);
    }
    format!("{} ... {}", plain(&buckets[..3]), plain(&buckets[buckets.len() - 2..]))
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

fn findings(output: &mut Output, plan: &Plan) {
    if plan.diagnostics.is_empty() {
        return;
    }
    output.line("");
    let mut shown: Vec<_> = plan.diagnostics.iter().filter(|finding| finding.severity > Severity::Info).collect();
    shown.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let notes = plan.diagnostics.len() - shown.len();
    for finding in shown {
        let (style, word) = match finding.severity {
            Severity::Error => (colour(AnsiColor::Red).bold(), "error"),
            Severity::Warning => (colour(AnsiColor::Yellow).bold(), "warning"),
            Severity::Info => (colour(AnsiColor::Cyan), "note"),
        };
        // An error comes with its way out; warnings keep theirs for `lint`.
        let help = finding.help.as_deref().filter(|_| finding.severity == Severity::Error);
        let help = help.map(|help| format!(": {help}")).unwrap_or_default();
        let text = format!("{}{help} [{}] {}:{}", finding.message, finding.code, finding.file, finding.line);
        let width = output.width().max(INDENT + 20) - INDENT;
        for (index, line) in wrap(&text, width).into_iter().enumerate() {
            if index == 0 {
                output.line(format!("{style}{word:<width$}{style:#}{line}", width = INDENT));
            } else {
                output.line(format!("{:<INDENT$}{line}", ""));
            }
        }
    }
    if notes > 0 {
        row(output, "notes", &format!("{notes} more that `gemma4ctl lint` shows"));
    }
}

fn next(output: &mut Output, argument: &str, plan: &Plan) {
    output.line("");
    let mut steps: Vec<String> = Vec::new();
    let errors = plan.diagnostics.iter().any(|finding| finding.severity == Severity::Error);
    if let Some(first) = plan.diagnostics.iter().rev().max_by_key(|finding| finding.severity) {
        let what = if errors { "mend the errors" } else { "look at the findings" };
        steps.push(format!(
            "`gemma4ctl lint {argument}` to {what}, `gemma4ctl explain {}` for the reason behind one",
            first.code
        ));
    }
    steps.push(format!("`gemma4ctl explain {argument} scheduler.max_num_seqs` tells where a value comes from"));
    if !errors {
        steps.push(format!("`gemma4ctl plan {argument} --out {}.plan.json` keeps this plan", plan.profile.name));
    }
    for (index, step) in steps.iter().enumerate() {
        row(output, if index == 0 { "next" } else { "" }, step);
    }
}

/// Writes the difference between two plans for people.
pub(super) fn difference(output: &mut Output, before: &Plan, after: &Plan, difference: &Difference) {
    let bold = bold();
    output.line(format!("{bold}{}{bold:#} -> {bold}{}{bold:#}", before.profile.name, after.profile.name));
    if difference.same && difference.changes.is_empty() && difference.consequences.is_empty() {
        output.line("no difference");
        return;
    }
    section(output, "what is changed", &difference.changes);
    section(output, "what it does", &difference.consequences);
    output.line("");
    for note in &difference.notes {
        output.line(note);
    }
}

fn section(output: &mut Output, title: &str, changes: &[Change]) {
    if changes.is_empty() {
        return;
    }
    let bold = bold();
    output.line("");
    output.line(format!("{bold}{title}{bold:#}"));
    let widest = changes.iter().map(|change| change.key.len()).max().unwrap_or(0);
    for change in changes {
        let (before, after) = (shown(&change.key, &change.before), shown(&change.key, &change.after));
        let by = change.by.map(|by| format!("  ({})", shown_by(&change.key, by, &change.before))).unwrap_or_default();
        output.line(format!("  {:<widest$}  {before} -> {after}{by}", change.key));
    }
}

fn is_bytes(key: &str) -> bool {
    key.contains("per_device") || key.ends_with("_bytes") || key.ends_with("bytes_per_token")
}

fn shown(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Number(number) if is_bytes(key) => match number.as_i64() {
            Some(bytes) if key.ends_with("bytes_per_token") => format!("{} B", commas(bytes.unsigned_abs())),
            Some(bytes) => signed_size(bytes),
            None => number.to_string(),
        },
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(number), _) if key.ends_with("seconds") => duration(number),
            (Some(number), _) => commas(number),
            (None, Some(number)) => format!("{}", (number * 100.0).round() / 100.0),
            _ => number.to_string(),
        },
        Value::String(text) => text.clone(),
        Value::Array(items) if key.starts_with("buckets") => {
            let buckets: Vec<u64> = items.iter().filter_map(Value::as_u64).collect();
            if buckets.is_empty() { "none".to_owned() } else { format!("{} ({})", buckets.len(), ladder(&buckets)) }
        }
        other => other.to_string(),
    }
}

fn shown_by(key: &str, by: f64, before: &Value) -> String {
    let sign = if by < 0.0 { "-" } else { "+" };
    let percent = before
        .as_f64()
        .filter(|before| *before > 0.0)
        .map(|before| format!(", {by:+.1} %", by = by / before * 100.0))
        .unwrap_or_default();
    let magnitude = by.abs();
    if key.contains("per_device") || key.ends_with("_bytes") {
        format!("{sign}{}{percent}", size(magnitude as u64))
    } else if magnitude.fract() == 0.0 {
        format!("{sign}{}{percent}", commas(magnitude as u64))
    } else {
        format!("{sign}{}{percent}", (magnitude * 100.0).round() / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every shipped profile, and budgets at the edges, draw without a panic and within the terminal.
    #[test]
    fn every_plan_can_be_drawn() {
        for (name, _) in crate::profile::list() {
            let mut drawn = crate::plan::analyze(&name, &[]).expect("an analysis").plan().expect("a plan");
            for [weights, kv, programs] in
                [[0, 0, 0], [1, 1, 1], [u64::MAX, 1, 1], [1, u64::MAX, u64::MAX], [1 << 35, 1, 0]]
            {
                let device = &mut drawn.memory.per_device;
                (device.weights, device.kv, device.programs) = (weights, kv, programs);
                let mut output = Output::default();
                plan(&mut output, &name, &drawn);
            }
        }
    }

    #[test]
    fn ladders_say_their_tail_in_words() {
        assert_eq!(ladder(&[16, 32, 64]), "16 32 64");
        assert_eq!(
            ladder(&[16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 2560]),
            "16 32 64 128 256 512, then every 512 to 2560"
        );
        assert_eq!(ladder(&[1, 2, 4, 8, 16, 32, 64, 128, 256]), "1 2 4 ... 128 256");
        assert_eq!(wrap("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrap("unbreakable", 4), ["unbreakable"]);
    }
}
