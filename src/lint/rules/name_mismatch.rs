//! A profile with two names.

use super::prelude::*;

rule!("name-mismatch", Info, "the profile's name is not the name of its file");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let loaded = context.loaded;
    // `--set name=...` renames on purpose.
    let Some((name, location)) = loaded
        .profile
        .name
        .get()
        .zip(loaded.profile.name.location())
        .filter(|(_, location)| location.source == loaded.main)
    else {
        return;
    };
    let Some(stem) = loaded
        .sources
        .get(loaded.main)
        .path
        .as_deref()
        .and_then(|path| path.file_stem())
        .map(|stem| stem.to_string_lossy())
    else {
        return;
    };
    if *name != stem {
        findings.push(
            RULE.finding(location, format!("the profile calls itself `{name}`, and its file is {stem}.toml: `extends` and the command line use the file's name"))
                .help("leave `name` out, or rename the file"),
        );
    }
}
