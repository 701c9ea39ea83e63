//! Codes of findings that are made while a profile is read, before any rule can look at it.

use super::rule::Rule;
use crate::diagnostic::Severity;

macro_rules! shape {
    ($name:ident, $code:literal, $severity:ident, $summary:literal) => {
        #[doc = $summary]
        pub(super) const $name: Rule = Rule {
            code: $code,
            severity: Severity::$severity,
            summary: $summary,
            page: include_str!(concat!("../../docs/rules/", $code, ".md")),
            check: |_, _| {},
        };
    };
}

shape!(TOML_SYNTAX, "toml-syntax", Error, "the file is not TOML");
shape!(UNKNOWN_KEY, "unknown-key", Error, "a key that profiles do not have");
shape!(WRONG_TYPE, "wrong-type", Error, "a value of the wrong kind");
shape!(INVALID_VALUE, "invalid-value", Error, "a value that cannot be");
shape!(MISSING_KEY, "missing-key", Error, "the profile does not say what to serve, on what, or how");
shape!(EXTENDS_CYCLE, "extends-cycle", Error, "profiles extend one another in a circle");
shape!(EXTENDS_NOT_FOUND, "extends-not-found", Error, "a parent profile that does not exist");
shape!(UNKNOWN_MODEL, "unknown-model", Error, "a model that the catalog does not know");
shape!(UNUSABLE_CHECKPOINT, "unusable-checkpoint", Error, "a folder that holds no Gemma 4 checkpoint");
shape!(UNKNOWN_ACCELERATOR, "unknown-accelerator", Error, "an accelerator that the catalog does not know");
shape!(TOPOLOGY_MISMATCH, "topology-mismatch", Error, "a topology that the accelerator does not have");
shape!(SECRET_IN_PROFILE, "secret-in-profile", Error, "a token written into the profile");
shape!(CANNOT_SHARD, "cannot-shard", Error, "a mesh or cache layout that the model does not allow");
shape!(SUPPRESSION, "suppression", Warning, "an allowance that gives no reason or does nothing");

/// All of them.
pub(super) const RULES: &[Rule] = &[
    TOML_SYNTAX,
    UNKNOWN_KEY,
    WRONG_TYPE,
    INVALID_VALUE,
    MISSING_KEY,
    EXTENDS_CYCLE,
    EXTENDS_NOT_FOUND,
    UNKNOWN_MODEL,
    UNUSABLE_CHECKPOINT,
    UNKNOWN_ACCELERATOR,
    TOPOLOGY_MISMATCH,
    SECRET_IN_PROFILE,
    CANNOT_SHARD,
    SUPPRESSION,
];
