//! From the body of a request to what the engine is asked.
//!
//! Invariant: what a handler sees is checked: every number is in its range, every prompt has tokens and leaves room for one.

mod chat;
mod completion;
mod message;
mod parsing;
mod sampling;
mod structured;
mod take;
mod tokenize;
mod tools;

use gemma4_engine::constraint::Constraint;
use gemma4_engine::engine::GenerationRequest;
use gemma4_engine::sampling::SamplingParams;
use gemma4_model::output::{Before, FormCalls};
use serde_json::{Map, Value};

pub(crate) use chat::chat;
pub(crate) use completion::completion;
pub(crate) use parsing::Parsing;
pub(crate) use take::{Take, object};
pub(crate) use tokenize::{detokenize, tokenize};

use crate::error::ApiError;
use crate::service::State;

/// Answers to a prompt at most: OpenAI's bound.
const MAX_N: u64 = 128;

/// A request for text that is ready to be submitted.
#[derive(Clone, Debug)]
pub(crate) struct TextRequest {
    /// The model as the client called it.
    pub(crate) model: String,
    pub(crate) prompts: Vec<Prompt>,
    /// Answers to each prompt.
    pub(crate) n: usize,
    /// All but the prompt; `max_tokens` is what the client asked for.
    pub(crate) sampling: SamplingParams,
    /// Tokens to generate, if the client bounds them.
    pub(crate) max_tokens: Option<usize>,
    /// Tokens to generate if the client does not.
    default_max_tokens: usize,
    pub(crate) min_tokens: usize,
    pub(crate) stop_tokens: Vec<u32>,
    /// Whether the checkpoint's end tokens end nothing.
    ignore_eos: bool,
    /// What the text of an answer has to be, until it is compiled.
    answer: Option<structured::Answer>,
    constraint: Option<Constraint>,
    /// Whether the client said which tool is called.
    pub(crate) named_call: bool,
    pub(crate) logprobs: Option<usize>,
    /// vLLM's field of this name: how many alternatives to each token of the prompt are shown beside the answers.
    pub(crate) prompt_logprobs: Option<usize>,
    salt: Vec<u8>,
    pub(crate) stop: Vec<String>,
    pub(crate) include_stop: bool,
    pub(crate) skip_special_tokens: bool,
    pub(crate) return_token_ids: bool,
    pub(crate) echo: bool,
    /// How a chat's answers are told apart; `None`: they are text.
    pub(crate) parsing: Option<Parsing>,
    /// `None`: one answer at the end.
    pub(crate) stream: Option<StreamOptions>,
}

/// How a stream is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamOptions {
    /// One more chunk with the token counts.
    pub(crate) include_usage: bool,
}

/// A prompt.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    /// The text for `echo`; empty without it.
    pub(crate) text: String,
}

impl TextRequest {
    /// Answers that are generated.
    pub(crate) fn choices(&self) -> usize {
        self.prompts.len().saturating_mul(self.n)
    }

    /// How many alternatives to each token of the prompt are shown among the logprobs of the answer, which begins with the
    /// prompt; `None`: it does not, or has no logprobs.
    pub(crate) fn echoed_logprobs(&self) -> Option<usize> {
        self.logprobs.filter(|_| self.echo)
    }

    /// How many alternatives to each token of the prompt are computed, if any.
    pub(crate) fn scored(&self) -> Option<usize> {
        self.prompt_logprobs.max(self.echoed_logprobs())
    }

    /// What the engine is asked for answer `index` to `prompt`; `None` if there is nothing to compute. The first answer
    /// brings the logprobs of the prompt for all of them.
    pub(crate) fn generation(&self, prompt: &Prompt, index: usize) -> Option<GenerationRequest> {
        let max_tokens = self.max_tokens.unwrap_or(self.default_max_tokens);
        let prompt_logprobs = self.scored().filter(|_| index == 0 && prompt.tokens.len() > 1);
        let mut sampling = self.sampling.clone();
        let offset = u64::try_from(index).unwrap_or_default();
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(offset));
        (max_tokens > 0 || prompt_logprobs.is_some()).then(|| GenerationRequest {
            prompt: prompt.tokens.clone(),
            max_tokens,
            min_tokens: self.min_tokens,
            stop_tokens: self.stop_tokens.clone(),
            sampling,
            constraint: self.constraint.clone(),
            logprobs: self.logprobs,
            prompt_logprobs,
            salt: self.salt.clone(),
        })
    }

    /// What both endpoints have; `fields` holds nothing else.
    fn common(state: &State, mut fields: Map<String, Value>) -> Result<Self, ApiError> {
        let take = &mut fields;
        let model = state.model(take.string("model")?)?;
        let n = take.integer("n", 1, MAX_N)?.unwrap_or(1);
        let stream = stream(take)?;
        let prompt_logprobs = sampling::logprobs(state, take, "prompt_logprobs")?;
        if prompt_logprobs.is_some() && stream.is_some() {
            let message =
                "`prompt_logprobs` and `stream` do not go together; a stream has them with `echo` and `logprobs`.";
            return Err(ApiError::invalid("prompt_logprobs", message));
        }
        let min_tokens = take.size("min_tokens", 0)?.unwrap_or_default();
        let (stop, include_stop) = (sampling::stop(take)?, take.flag("include_stop_str_in_output")?.unwrap_or(false));
        let ignore_eos = take.flag("ignore_eos")?.unwrap_or(false);
        let stop_tokens = sampling::stop_tokens(state, take, ignore_eos)?;
        let request = Self {
            model,
            prompts: Vec::new(),
            n: usize::try_from(n).unwrap_or(usize::MAX),
            sampling: sampling::params(state, take)?,
            max_tokens: None,
            default_max_tokens: usize::MAX,
            min_tokens,
            stop_tokens,
            ignore_eos,
            answer: structured::take(take)?,
            constraint: None,
            named_call: false,
            logprobs: None,
            prompt_logprobs,
            salt: sampling::salt(take)?,
            stop,
            include_stop,
            skip_special_tokens: take.flag("skip_special_tokens")?.unwrap_or(true),
            return_token_ids: take.flag("return_token_ids")?.unwrap_or(false),
            echo: false,
            parsing: None,
            stream,
        };
        match fields.keys().next() {
            // The table of fields says more than the code; a test holds the two together.
            Some(name) => Err(ApiError::unsupported(name.as_str(), "it is not implemented")),
            None => Ok(request),
        }
    }

    /// Compiles what the answers have to be.
    fn constrain(&mut self, state: &State, before: Before, calls: Option<FormCalls>) -> Result<(), ApiError> {
        self.constraint = structured::constraint(state, before, calls, self.answer.take())?;
        if self.constraint.is_some() && self.ignore_eos {
            let why = "an answer that has a grammar, or has to call a tool, ends where its grammar does";
            return Err(ApiError::unsupported("ignore_eos", why));
        }
        Ok(())
    }

    /// Sets the prompts and bounds the tokens, as vLLM does: what was asked for has to fit, the default is cut to fit.
    fn with_prompts(
        mut self,
        state: &State,
        param: &str,
        prompts: Vec<Prompt>,
        default_max_tokens: usize,
    ) -> Result<Self, ApiError> {
        let longest = state.options.max_model_len;
        let least = self.max_tokens.unwrap_or(1);
        for prompt in &prompts {
            let tokens = prompt.tokens.len();
            if tokens == 0 {
                return Err(ApiError::invalid(param, "The prompt has no tokens."));
            }
            if let Some(token) = prompt.tokens.iter().find(|token| !state.is_token(**token)) {
                return Err(ApiError::invalid(param, format!("Token {token} is outside of the vocabulary.")));
            }
            if tokens.saturating_add(least) > longest {
                return Err(ApiError::context_length(
                    param,
                    format!(
                        "The longest sequence has {longest} tokens; the prompt has {tokens}, and {least} or more are to \
                         be generated."
                    ),
                ));
            }
        }
        self.prompts = prompts;
        let choices = self.choices();
        if choices > state.options.max_choices {
            let message =
                format!("{choices} answers in one request (prompts x n); at most {} do.", state.options.max_choices);
            return Err(ApiError::invalid("n", message));
        }
        self.bound_scores(state)?;
        if let Some(limit) = state.generation.max_new_tokens.and_then(|limit| usize::try_from(limit).ok()) {
            self.max_tokens = self.max_tokens.map(|tokens| tokens.min(limit));
            self.default_max_tokens = default_max_tokens.min(limit);
        } else {
            self.default_max_tokens = default_max_tokens;
        }
        // The longest sequence bounds the default in the engine.
        let most = self.max_tokens.unwrap_or(self.default_max_tokens);
        if self.min_tokens > most {
            let message = format!("`min_tokens` is {}, above `max_tokens`, which is {most}.", self.min_tokens);
            return Err(ApiError::invalid("min_tokens", message));
        }
        Ok(self)
    }

    /// Holds what the logprobs of prompts would fill against the limit: they are kept until the answer is written.
    fn bound_scores(&self, state: &State) -> Result<(), ApiError> {
        let limit = state.options.max_prompt_logprobs;
        let tokens = self.prompts.iter().map(|prompt| prompt.tokens.len()).sum::<usize>().saturating_mul(self.n);
        let asked = [("prompt_logprobs", self.prompt_logprobs), ("logprobs", self.echoed_logprobs())];
        for (name, count) in asked {
            let entries = count.map_or(0, |count| tokens.saturating_mul(count.saturating_add(1)));
            if entries > limit {
                let message = format!(
                    "`{name}` asks for {entries} logprobs of prompt tokens (tokens x n x one more than `{name}`); at most \
                     {limit} do."
                );
                return Err(ApiError::invalid(name, message));
            }
        }
        Ok(())
    }
}

fn stream(take: &mut Map<String, Value>) -> Result<Option<StreamOptions>, ApiError> {
    let stream = take.flag("stream")?.unwrap_or(false);
    let Some(mut options) = take.object("stream_options")? else {
        return Ok(stream.then(StreamOptions::default));
    };
    if !stream {
        return Err(ApiError::invalid("stream_options", "`stream_options` needs `stream`."));
    }
    let include_usage = options.flag("include_usage")?.unwrap_or(false);
    for (name, value) in options {
        let idle = name == "include_obfuscation" || name == "continuous_usage_stats";
        match (idle, value) {
            (true, Value::Null | Value::Bool(false)) => {}
            (true, _) => return Err(ApiError::unsupported(format!("stream_options.{name}"), "it is not implemented")),
            (false, _) => return Err(ApiError::unknown_field(format!("stream_options.{name}"))),
        }
    }
    Ok(Some(StreamOptions { include_usage }))
}
