//! What Google Cloud's command line takes.

use std::collections::BTreeSet;

const SYNOPSIS: &str = include_str!("../fixtures/gcloud/synopsis.txt");
const WIDE_FLAGS: [&str; 4] = ["--project", "--quiet", "--format", "--flatten"];

/// A call of gcloud names a known command, takes only flags that the command has, and leaves no place to chance.
pub fn check_call(call: &[String]) {
    let line = call.join(" ");
    let (command, flags) = SYNOPSIS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .find(|(command, _)| line.starts_with(&format!("{command} ")))
        .unwrap_or_else(|| panic!("no synopsis for: gcloud {line}"));
    let known: BTreeSet<&str> = flags.split_whitespace().chain(WIDE_FLAGS).collect();
    let flags = call.iter().take_while(|word| *word != "--").filter(|word| word.starts_with("--"));
    for flag in flags.clone() {
        let name = flag.split('=').next().expect("a name");
        assert!(known.contains(name), "`gcloud {command}` does not take {name}");
    }
    assert!(flags.clone().any(|flag| flag.starts_with("--project=")), "no project: {line}");
    assert!(known.contains("!zone") || flags.clone().any(|flag| flag.starts_with("--zone=")), "no zone: {line}");
}
