//! Plan files: writing with a checksum, reading with every check.

use thiserror::Error;

use crate::digest::sha256;
use crate::{FORMAT, Plan, digest};

/// Why a file is not a plan that can be used.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The bytes are not JSON, or JSON of another shape.
    #[error("not a plan file: {0}")]
    Parse(#[from] serde_json::Error),
    /// The file was written by another version of the format.
    #[error(
        "the plan has format `{found}`, and this gemma4ctl reads `{FORMAT}`; make the plan again with `gemma4ctl plan PROFILE --out FILE`"
    )]
    Format {
        /// The format that the file names.
        found: String,
    },
    /// A byte of the file changed after it was written.
    #[error(
        "the plan was changed after it was written: its checksum is {stated}, its content gives {computed}; make the plan again rather than editing it"
    )]
    Checksum {
        /// The checksum in the file.
        stated: String,
        /// The checksum of the file's bytes.
        computed: String,
    },
    /// The checksum is right but the digest is not, so another program wrote the file.
    #[error("the plan's digest is {stated}, its content gives {computed}")]
    Digest {
        /// The digest in the file.
        stated: String,
        /// The digest of its content.
        computed: String,
    },
}

/// A checksum of the right length that stands in the file while the real one is computed.
const BLANK: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Writes `plan` as JSON, with its digest and its checksum filled in.
///
/// The checksum is taken over the whole text with its own 64 digits as zeros, so any changed byte shows.
///
/// # Errors
/// Only if a number in the plan has no JSON form (a NaN).
pub fn to_json(plan: &mut Plan) -> Result<String, serde_json::Error> {
    plan.format = FORMAT.to_owned();
    plan.digest = digest::compute(plan);
    plan.checksum = BLANK.to_owned();
    let mut text = serde_json::to_string_pretty(plan)?;
    text.push('\n');
    plan.checksum = sha256(text.as_bytes());
    Ok(text.replacen(&format!("\"checksum\": \"{BLANK}\""), &format!("\"checksum\": \"{}\"", plan.checksum), 1))
}

/// Reads a plan and checks its format, its checksum and its digest.
///
/// # Errors
/// See [`PlanError`]; each says what to do.
pub fn read(bytes: &[u8]) -> Result<Plan, PlanError> {
    // The format first: a plan of another version may not have this version's shape.
    #[derive(serde::Deserialize)]
    struct Head {
        format: String,
        checksum: String,
    }
    let head: Head = serde_json::from_slice(bytes)?;
    if head.format != FORMAT {
        return Err(PlanError::Format { found: head.format });
    }
    let text = String::from_utf8_lossy(bytes);
    let stated = format!("\"checksum\": \"{}\"", head.checksum);
    let computed = sha256(text.replacen(&stated, &format!("\"checksum\": \"{BLANK}\""), 1).as_bytes());
    if computed != head.checksum {
        return Err(PlanError::Checksum { stated: head.checksum, computed });
    }
    let plan: Plan = serde_json::from_slice(bytes)?;
    let computed = digest::compute(&plan);
    if computed != plan.digest {
        return Err(PlanError::Digest { stated: plan.digest, computed });
    }
    Ok(plan)
}
