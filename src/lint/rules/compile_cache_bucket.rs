//! Compiled programs kept in an object store.

use super::prelude::*;

rule!("compile-cache-bucket", Warning, "a compile cache in a bucket");

/// Names that people give to folders where a bucket is mounted.
const MOUNTS: [&str; 4] = ["gcs", "gcsfuse", "gcs-fuse", "bucket"];

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let Some(path) = context.resolved.serving.compile_cache.as_deref() else { return };
    let lower = path.to_lowercase();
    let address = lower.starts_with("gs://") || lower.starts_with("s3://");
    let mounted = lower.contains("gcsfuse") || lower.split('/').any(|part| MOUNTS.contains(&part));
    if !address && !mounted {
        return;
    }
    let what = if address { "is a bucket" } else { "looks like a mounted bucket" };
    findings.push(
        RULE.finding(context.at("cache.compile"), format!("`{path}` {what}, and compile caches there were seen to miss and to be written by several hosts at once"))
            .help("keep the cache on an attached disk; to share it, copy a finished cache to that disk before the engine starts"),
    );
}
