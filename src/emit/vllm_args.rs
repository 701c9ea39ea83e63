//! The command line of `vllm serve`, one flag with its value a line, and as a JSON array.

use gemma4_plan::Plan;

use super::templates::shell;
use super::{Artifact, EmitError};

pub(super) fn emit(plan: &Plan) -> Result<Vec<Artifact>, EmitError> {
    if plan.engine.kind == "bundled" {
        return Err(EmitError::WrongEngine {
            target: "vllm-args",
            engine: plan.engine.kind.clone(),
            help: "the bundled engine reads the plan file itself",
        });
    }
    let mut lines: Vec<String> = Vec::new();
    for (name, value) in &plan.engine.env {
        lines.push(format!("{name}={} \\", shell(value)));
    }
    let argv = &plan.engine.argv;
    let head = argv.len().min(3);
    let mut line = argv.iter().take(head).map(|word| shell(word)).collect::<Vec<_>>().join(" ");
    for word in argv.iter().skip(head) {
        if word.starts_with("--") {
            lines.push(format!("{line} \\"));
            line = format!("  {}", shell(word));
        } else {
            line = format!("{line} {}", shell(word));
        }
    }
    lines.push(line);
    let mut text = lines.join("\n");
    text.push('\n');
    let mut notes = String::new();
    for note in &plan.engine.notes {
        notes.push_str(&format!("# {}\n", note.replace('\n', " ")));
    }
    let json = serde_json::to_string_pretty(argv).unwrap_or_default() + "\n";
    Ok(vec![Artifact::script("vllm-args.sh", format!("{notes}{text}")), Artifact::file("vllm-args.json", json)])
}
