//! What the command lines of Kubernetes and of Google's clusters take.

use std::collections::BTreeMap;

use super::root;

/// Every call has a command that the synopsis lists, its positionals, and only its flags.
pub fn check_calls(calls: &[Vec<String>]) {
    let synopsis = std::fs::read_to_string(root().join("tests/fixtures/gke/synopsis.txt")).expect("the synopsis");
    let known: BTreeMap<Vec<&str>, Vec<&str>> = synopsis
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(':').expect("a colon"))
        .map(|(command, rest)| (command.split(' ').collect(), rest.split_whitespace().collect()))
        .collect();
    for call in calls {
        let words: Vec<&str> = call.iter().map(String::as_str).collect();
        let entry =
            known.iter().filter(|(command, _)| words.starts_with(command)).max_by_key(|(command, _)| command.len());
        let (command, allowed) = entry.unwrap_or_else(|| panic!("an unknown command: {call:?}"));
        let (flags, positionals): (Vec<&str>, Vec<&str>) =
            words[command.len()..].iter().partition(|word| word.starts_with("--"));
        for flag in flags {
            let name = flag.split('=').next().expect("a name");
            assert!(allowed.contains(&name), "{name} in {call:?}");
        }
        let expected = allowed.iter().filter(|word| !word.starts_with("--"));
        let (optional, needed): (Vec<&str>, Vec<&str>) = expected.partition(|word| word.starts_with('['));
        let counts = needed.len()..=needed.len() + optional.len();
        assert!(counts.contains(&positionals.len()), "{call:?}");
    }
}
