//! What one answer tells the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Metrics;
use crate::generate::Finish;
use crate::service::State;

/// The answers to one prompt: what is observed once for all of them.
pub(crate) struct Group {
    state: Arc<State>,
    n: usize,
    prompt_tokens: usize,
    max_tokens: Option<usize>,
    arrived: Instant,
    /// Tokens of the longest answer.
    longest: AtomicUsize,
    /// Whether one of its answers has begun.
    begun: AtomicBool,
}

impl Group {
    pub(crate) fn new(state: &Arc<State>, n: usize, prompt_tokens: usize, max_tokens: Option<usize>) -> Self {
        Self {
            state: Arc::clone(state),
            n,
            prompt_tokens,
            max_tokens,
            arrived: Instant::now(),
            longest: AtomicUsize::new(0),
            begun: AtomicBool::new(false),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let requests = &self.state.metrics.requests;
        requests.params_n.observe(self.n as f64);
        requests.request_max_generation_tokens.observe(self.longest.load(Ordering::Relaxed) as f64);
    }
}

/// How long the phases of an answer took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// Until its first step.
    pub(crate) queue: Duration,
    /// From then to its first token.
    pub(crate) prefill: Duration,
    /// From then to its last token.
    pub(crate) decode: Duration,
}

/// An answer's counts and times.
pub(crate) struct ChoiceStats {
    group: Arc<Group>,
    pub(crate) tokens: usize,
    pub(crate) reason: Option<&'static str>,
    cached_tokens: usize,
    scheduled: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    is_first: bool,
}

impl ChoiceStats {
    pub(crate) const fn new(group: Arc<Group>) -> Self {
        let (scheduled, first, last) = (None, None, None);
        Self { group, tokens: 0, reason: None, cached_tokens: 0, scheduled, first, last, is_first: false }
    }

    /// Its first step was planned.
    pub(crate) fn started(&mut self, at: Instant, cached_tokens: usize) {
        self.scheduled = Some(at);
        self.cached_tokens = cached_tokens;
        self.is_first = !self.group.begun.swap(true, Ordering::Relaxed);
    }

    /// Whether it is the first answer to its prompt that began: the others find the prompt in the cache, which is no news.
    pub(crate) const fn is_first(&self) -> bool {
        self.is_first
    }

    /// A token came.
    pub(crate) fn token(&mut self, metrics: &Metrics, at: Instant) {
        let requests = &metrics.requests;
        requests.generation_tokens.inc();
        match self.last {
            Some(last) => requests.inter_token.observe(at.saturating_duration_since(last).as_secs_f64()),
            None => {
                self.first = Some(at);
                requests.first_token.observe(at.saturating_duration_since(self.group.arrived).as_secs_f64());
                self.prompt(metrics);
            }
        }
        self.last = Some(at);
        self.tokens += 1;
    }

    /// The prompt was computed.
    fn prompt(&self, metrics: &Metrics) {
        let requests = &metrics.requests;
        let (prompt, cached) = (count(self.group.prompt_tokens), count(self.cached_tokens));
        requests.prompt_tokens.inc_by(prompt);
        requests.prompt_tokens_cached.inc_by(cached);
        let sources = &requests.prompt_tokens_by_source;
        sources.with_label_values(&["local_compute"]).inc_by(prompt.saturating_sub(cached));
        sources.with_label_values(&["local_cache_hit"]).inc_by(cached);
    }

    /// It ended, for `reason` or because nobody waits for it any more.
    pub(crate) fn finish(&self, metrics: &Metrics) -> Times {
        let requests = &metrics.requests;
        let now = Instant::now();
        let arrived = self.group.arrived;
        let since = |later: Instant, earlier: Instant| later.saturating_duration_since(earlier);
        requests.success.with_label_values(&[self.reason.unwrap_or("abort")]).inc();
        requests.e2e.observe(since(now, arrived).as_secs_f64());
        requests.request_prompt_tokens.observe(self.group.prompt_tokens as f64);
        requests.request_generation_tokens.observe(self.tokens as f64);
        if let Some(most) = self.group.max_tokens {
            requests.params_max_tokens.observe(most as f64);
        }
        self.group.longest.fetch_max(self.tokens, Ordering::Relaxed);
        let Some(scheduled) = self.scheduled else {
            return Times { queue: since(now, arrived), ..Times::default() };
        };
        let queue = since(scheduled, arrived);
        requests.queue.observe(queue.as_secs_f64());
        let computed = self.group.prompt_tokens.saturating_sub(self.cached_tokens);
        requests.request_computed_tokens.observe(computed as f64);
        let (Some(first), Some(last)) = (self.first, self.last) else {
            // A whole answer without a token: the logprobs of its prompt were all that was asked for.
            if self.reason.is_some_and(|reason| reason == Finish::Length.reason()) {
                self.prompt(metrics);
            }
            return Times { queue, prefill: since(now, scheduled), decode: Duration::ZERO };
        };
        let times = Times { queue, prefill: since(first, scheduled), decode: since(last, first) };
        requests.inference.observe(since(last, scheduled).as_secs_f64());
        requests.prefill.observe(times.prefill.as_secs_f64());
        requests.decode.observe(times.decode.as_secs_f64());
        if self.tokens > 1 {
            requests.per_output_token.observe(times.decode.as_secs_f64() / (self.tokens - 1) as f64);
        }
        times
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
