//! What the service is told by its caller.

use std::time::Duration;

use serde_json::Value;

/// Settings of the service. [`ServeOptions::new`] gives the usual ones.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Names of the model that clients may say; the first is the one in answers.
    pub model_names: Vec<String>,
    /// Longest sequence, prompt and output together, in tokens.
    pub max_model_len: usize,
    /// Keys that clients may send as `Authorization: Bearer`; without keys everybody is let in.
    pub api_keys: ApiKeys,
    /// Bytes of a body at most; more give 413.
    pub max_body_bytes: usize,
    /// Headers of a request at most; more give 431.
    pub max_headers: usize,
    /// Bytes of a request's line and headers at most, 8,192 or more; more give 431.
    pub max_header_bytes: usize,
    /// How long a request's headers may take to arrive, and how long a connection may be idle.
    pub header_timeout: Duration,
    /// How long a body may take to arrive; longer gives 408.
    pub body_timeout: Duration,
    /// How long a client may leave a full socket unread before its connection is ended.
    pub write_timeout: Duration,
    /// How long running requests may go on after the shutdown began.
    pub grace: Duration,
    /// Alternatives to a token that a client may ask for, at most 20.
    pub max_logprobs: usize,
    /// Logprobs of prompt tokens that one request may ask for: tokens of its prompts times `n`, each with its own and the
    /// alternatives. An answer has some 60 bytes of each.
    pub max_prompt_logprobs: usize,
    /// Answers that one request may ask for (prompts times `n`).
    pub max_choices: usize,
    /// What is told apart in the answers of chats.
    pub parsers: Parsers,
    /// What `/server_info` says: the effective settings.
    pub info: Value,
    /// Labels of the series `vllm:cache_config_info`, which gateways read: `block_size`, `num_gpu_blocks`, `cache_dtype` and
    /// others of vLLM's names.
    pub cache_config: Vec<(String, String)>,
    /// What `/version` says.
    pub version: String,
    /// What answers say of the settings that they were made with, such as the plan's digest.
    pub system_fingerprint: Option<String>,
}

impl ServeOptions {
    /// The usual limits for a model that clients call `model_name`.
    #[must_use]
    pub fn new(model_name: impl Into<String>, max_model_len: usize) -> Self {
        Self {
            model_names: vec![model_name.into()],
            max_model_len,
            api_keys: ApiKeys::default(),
            // A prompt of a million tokens as numbers, and more.
            max_body_bytes: 16 << 20,
            // As hyper's own default and uvicorn's.
            max_headers: 100,
            max_header_bytes: 64 << 10,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            max_logprobs: 20,
            // All of a prompt of 100,000 tokens with 20 alternatives each, or of a million tokens with one.
            max_prompt_logprobs: 1 << 21,
            max_choices: 1024,
            parsers: Parsers::default(),
            info: Value::Null,
            cache_config: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            system_fingerprint: None,
        }
    }
}

/// What is told apart in the answers of chats. Without a parser, what it would find is text like any other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parsers {
    /// Calls of tools.
    pub tool_calls: bool,
    /// Whether clients may leave it to the model which tool is called, if any.
    pub auto_tool_choice: bool,
    /// Reasoning.
    pub reasoning: bool,
}

/// Secrets of clients. What is kept of a key is its SHA-256, so that neither a log nor a comparison tells anything of it.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    /// Takes keys; empty ones are no keys.
    pub fn new(keys: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let keys = keys.into_iter();
        Self(keys.filter(|key| !key.as_ref().is_empty()).map(|key| digest(key.as_ref().as_bytes())).collect())
    }

    /// Whether everybody is let in.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `key` is one of them, in a time that does not depend on how much of it is right.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        use subtle::{Choice, ConstantTimeEq as _};
        let key = digest(key);
        let found = self.0.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&key));
        found.into()
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} keys", self.0.len())
    }
}

fn digest(key: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(key).into()
}
