//! An image that is another one tomorrow.

use super::prelude::*;

rule!("floating-image", Warning, "an image tag that moves");

/// Words in tags that publishers move from build to build.
const MOVING: [&str; 9] = ["latest", "nightly", "main", "master", "dev", "edge", "stable", "release", "gemma4"];

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    // An image that follows from `engine.version` names a release.
    if !context.is_set("engine.image") {
        return;
    }
    let Some(image) = context.resolved.image.as_deref() else { return };
    if image.contains("@sha256:") {
        return;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    let message = match name.split_once(':') {
        None => format!("`{image}` has no tag, which means `latest`: the next pull may bring another build"),
        Some((_, tag)) if moves(tag) => format!("the tag `{tag}` moves: the next pull may bring another build"),
        Some(_) => return,
    };
    findings.push(
        RULE.finding(context.at("engine.image"), message)
            .help("pin the build that was tested, as NAME@sha256:DIGEST; `docker image inspect --format '{{.RepoDigests}}' IMAGE` prints it"),
    );
}

/// Whether a tag has a word that moves, and neither a version, a date nor a commit that holds it still.
fn moves(tag: &str) -> bool {
    let parts = || tag.split(['-', '_']);
    parts().any(|part| MOVING.contains(&part.to_lowercase().as_str())) && !parts().any(holds_still)
}

fn holds_still(part: &str) -> bool {
    let digits = part.bytes().filter(u8::is_ascii_digit).count();
    let version =
        digits > 0 && part.contains('.') && part.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    let date = (part.len() == 8 && digits == 8) || (part.len() == 4 && digits == 4 && part.starts_with("20"));
    let commit = (7..=40).contains(&part.len()) && digits > 0 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    version || date || commit
}
