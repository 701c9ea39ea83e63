//! Packages installed while the service starts.

use super::prelude::*;

rule!("pip-at-start", Warning, "Python packages installed at every start");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    // Options such as `--upgrade` are not packages.
    let packages: Vec<_> = context
        .strings("engine.pip")
        .into_iter()
        .filter(|(text, _)| !text.starts_with('-') && !text.trim().is_empty())
        .collect();
    let what = match packages.as_slice() {
        [] => return,
        [_] => "a package is installed at every start: it needs".to_owned(),
        several => format!("{} packages are installed at every start: they need", several.len()),
    };
    let version = &context.resolved.version_text;
    findings.push(
        RULE.finding(
            context.at("engine.pip"),
            format!("{what} the network and time, and what runs is no longer the {version} of the image"),
        )
        .help("build an image with the packages in it, and pin that image by digest"),
    );
    for (package, location) in packages {
        let message = match package.split_once("git+") {
            Some((_, address)) if !is_fixed(address) => {
                format!("`{package}` is the newest commit of a branch, and changes by itself")
            }
            None if !is_pinned(package) => format!("`{package}` has no exact version, and changes by itself"),
            _ => continue,
        };
        findings.push(
            RULE.finding(location, message)
                .help("name an exact version (`package==1.2.3`) or a full commit (`git+https://...@COMMIT`)"),
        );
    }
}

/// Whether a git address ends in a commit or in a tag that is a version.
fn is_fixed(address: &str) -> bool {
    let address = address.split('#').next().unwrap_or(address);
    // `git+ssh://git@host/path` has an `@` of its own, before the path.
    let last = address.rsplit('/').next().unwrap_or(address);
    let Some((_, revision)) = last.rsplit_once('@') else { return false };
    let commit = revision.len() >= 7 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    let version = revision.contains('.') && revision.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    commit || version
}

/// Whether a requirement names one version or one file.
fn is_pinned(requirement: &str) -> bool {
    let exact = requirement.split_once("==").is_some_and(|(_, version)| !version.contains('*'));
    exact || requirement.contains(".whl") || requirement.contains(".tar.gz") || requirement.starts_with(['.', '/'])
}
