//! The profiles that are built into the binary. A test holds this list against the folder.

/// A profile in the binary.
#[derive(Debug, Clone, Copy)]
pub struct Builtin {
    /// Its name, with folder and without `.toml`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! builtin {
    ($($name:literal),* $(,)?) => {
        /// Every shipped profile; names with a slash are bases that others extend.
        pub const BUILTIN: &[Builtin] = &[$(Builtin { name: $name, text: include_str!(concat!("../../profiles/", $name, ".toml")) }),*];
    };
}

builtin![
    "base/bundled-cpu",
    "base/e4b-b200",
    "base/gemma4-26b-v6e-4",
    "base/gemma4-v6e",
    "base/seed-12b-v6e",
    "cpu-e2b",
    "e2b-v6e-1",
    "e2b-v6e-4",
    "e4b-b200",
    "e4b-b200-fast-prefill",
    "e4b-v6e-1",
    "e4b-v6e-4",
    "12b-v6e-1",
    "12b-v6e-4",
    "31b-v6e-8",
    "baseline-may-08",
    "peak-may-13",
    "smoke",
    "turbo-stable",
];
