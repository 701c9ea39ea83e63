//! What a service is made of, and what its handlers share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use gemma4_engine::constraint::{ConstraintError, Grammars};
use gemma4_engine::engine::Engine;
use gemma4_model::chat::ChatTemplate;
use gemma4_model::generation::GenerationConfig;
use gemma4_model::output::Markers;
use gemma4_model::tokenizer::Tokenizer;
use tokio::sync::watch;

use crate::error::{ApiError, sentence};
use crate::metrics::Metrics;
use crate::options::ServeOptions;
use crate::server::ServeError;

/// All that is served.
pub struct Service {
    /// Makes the tokens.
    pub engine: Engine,
    /// Between text and tokens.
    pub tokenizer: Tokenizer,
    /// From messages to text; without it there are no chats.
    pub chat_template: Option<ChatTemplate>,
    /// What ends an answer, and how tokens are chosen if the client does not say.
    pub generation: GenerationConfig,
    /// Names and limits.
    pub options: ServeOptions,
}

/// What handlers share.
pub(crate) struct State {
    pub(crate) engine: Engine,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat_template: Option<ChatTemplate>,
    pub(crate) generation: GenerationConfig,
    /// What parsers go by; `None` without parsers.
    pub(crate) markers: Option<Markers>,
    /// Made in the background while the service starts.
    grammars: OnceLock<Result<Grammars, ConstraintError>>,
    pub(crate) options: ServeOptions,
    pub(crate) metrics: Metrics,
    /// When the service started, in seconds since 1970.
    pub(crate) created: u64,
    draining: AtomicBool,
    /// Requests whose answer is not complete.
    in_flight: watch::Sender<usize>,
}

/// Counts a request as long as it lives.
pub(crate) struct InFlight(Arc<State>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl State {
    pub(crate) fn new(service: Service) -> Result<Arc<Self>, ServeError> {
        let Service { engine, tokenizer, chat_template, generation, options } = service;
        let metrics = Metrics::new(&options, &engine.statistics())?;
        let parses = options.parsers.tool_calls || options.parsers.reasoning;
        let markers = parses.then(|| Markers::of(&tokenizer)).transpose()?;
        let in_flight = watch::Sender::new(0);
        let draining = AtomicBool::new(false);
        let created = now();
        Ok(Arc::new(Self {
            engine,
            tokenizer,
            chat_template,
            generation,
            markers,
            grammars: OnceLock::new(),
            options,
            metrics,
            created,
            draining,
            in_flight,
        }))
    }

    /// The name that a client said, or the first.
    pub(crate) fn model(&self, name: Option<String>) -> Result<String, ApiError> {
        let names = &self.options.model_names;
        match name {
            Some(name) if names.contains(&name) => Ok(name),
            Some(name) => Err(ApiError::no_such_model(&name)),
            None => Ok(names.first().cloned().unwrap_or_default()),
        }
    }

    /// What compiles grammars. The first to ask makes it, which takes a moment; others wait for it.
    pub(crate) fn grammars(&self) -> Result<&Grammars, ConstraintError> {
        let made = self.grammars.get_or_init(|| {
            let start = Instant::now();
            let made = Grammars::new(&self.tokenizer, &self.generation.eos_token_ids);
            tracing::debug!(
                seconds = start.elapsed().as_secs_f64(),
                ready = made.is_ok(),
                "looked at the vocabulary for grammars"
            );
            made
        });
        made.as_ref().map_err(Clone::clone)
    }

    /// Whether the vocabulary has the token.
    pub(crate) fn is_token(&self, token: u32) -> bool {
        usize::try_from(token).is_ok_and(|token| token < self.tokenizer.vocab_size())
    }

    pub(crate) fn encode(&self, param: &str, text: &str, special: bool) -> Result<Vec<u32>, ApiError> {
        let tokens = self.tokenizer.encode(text, special);
        tokens.map_err(|error| ApiError::invalid(param, sentence(&error.to_string())))
    }

    pub(crate) fn decode(&self, param: &str, tokens: &[u32], skip_special: bool) -> Result<String, ApiError> {
        let text = self.tokenizer.decode(tokens, skip_special);
        text.map_err(|error| ApiError::invalid(param, sentence(&error.to_string())))
    }

    /// Counts one more request.
    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.send_modify(|count| *count = count.saturating_add(1));
        InFlight(Arc::clone(self))
    }

    /// Refuses new requests from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Waits until no request is in flight.
    pub(crate) async fn idle(&self) {
        // The sender lives in `self`, so there is always an answer.
        let _ = self.in_flight.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Requests whose answer is not complete.
    pub(crate) fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
