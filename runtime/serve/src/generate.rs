//! From the engine's tokens to an answer's text.
//!
//! Invariant: the pieces of an answer, put together, are the same however they were cut; no piece shows a part of a stop
//! string or half of a character.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use gemma4_engine::engine::{EndReason, Event, Generation, Started, Token};
use gemma4_engine::sampling::Logprobs;
use gemma4_model::output::{Delta, Marker, OutputParser};
use gemma4_model::tokenizer::StreamDecoder;

use crate::error::ApiError;
use crate::metrics::{ChoiceStats, Group};
use crate::record::Details;
use crate::request::{Parsing, TextRequest};
use crate::service::State;
use crate::stop::{Found, StopStrings};

/// The next piece of an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Piece {
    /// Which answer.
    pub(crate) index: usize,
    /// What follows; often empty, while characters, stop strings or arguments are not complete. All is text if nothing is
    /// parsed.
    pub(crate) delta: Delta,
    /// Logprobs of tokens of the prompt that follow, from its second token on.
    pub(crate) prompt: Vec<Logprobs>,
    /// Tokens that follow.
    pub(crate) tokens: Vec<OutputToken>,
    /// Why nothing follows.
    pub(crate) finish: Option<Finish>,
}

/// A token of an answer.
#[derive(Clone, Debug)]
pub(crate) struct OutputToken {
    pub(crate) id: u32,
    pub(crate) logprobs: Option<Logprobs>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The checkpoint's end token.
    End,
    /// A token that the client named.
    StopToken(u32),
    /// A string that the client named.
    StopString(String),
    /// As many tokens as were asked for or fit.
    Length,
    /// The engine could not go on.
    Failed,
}

impl Finish {
    /// OpenAI's word.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::End | Self::StopToken(_) | Self::StopString(_) => "stop",
            Self::Length => "length",
            Self::Failed => "error",
        }
    }
}

/// An answer that is being made. Dropping it ends the work on it.
pub(crate) struct Choice {
    state: Arc<State>,
    details: Details,
    index: usize,
    /// `None` if no token was asked for.
    generation: Option<Generation>,
    decoder: StreamDecoder,
    stops: StopStrings,
    /// `None`: all is text.
    parser: Option<OutputParser>,
    stop_tokens: Vec<u32>,
    include_stop: bool,
    min_tokens: usize,
    /// The stop token that came: only its end follows.
    stopped_by: Option<u32>,
    ended: bool,
    stats: ChoiceStats,
}

/// Submits all answers to a request, or none.
pub(crate) fn submit(state: &Arc<State>, request: &TextRequest, details: &Details) -> Result<Vec<Choice>, ApiError> {
    let mut submitted = Vec::with_capacity(request.choices());
    for prompt in &request.prompts {
        for answer in 0..request.n {
            // Those that were submitted are cancelled if one is refused.
            submitted.push(match request.generation(prompt, answer) {
                Some(asked) => Some(state.engine.submit(asked)?),
                None => None,
            });
        }
    }
    details.set(|facts| {
        facts.choices = submitted.len();
        facts.prompt_tokens = request.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    });
    let groups = request.prompts.iter().flat_map(|prompt| {
        let group = Arc::new(Group::new(state, request.n, prompt.tokens.len(), request.max_tokens));
        std::iter::repeat_n(group, request.n)
    });
    let choices = submitted.into_iter().zip(groups).enumerate().map(|(index, (generation, group))| Choice {
        state: Arc::clone(state),
        details: details.clone(),
        index,
        generation,
        decoder: state.tokenizer.stream(request.skip_special_tokens),
        stops: StopStrings::new(&request.stop, request.include_stop),
        parser: request.parsing.as_ref().map(Parsing::parser),
        stop_tokens: request.stop_tokens.clone(),
        include_stop: request.include_stop,
        min_tokens: request.min_tokens,
        stopped_by: None,
        ended: false,
        stats: ChoiceStats::new(group),
    });
    Ok(choices.collect())
}

/// The pieces of all answers as they come.
pub(crate) fn pieces(choices: Vec<Choice>) -> BoxStream<'static, Piece> {
    let pieces = |choice: Choice| {
        stream::unfold(choice, |mut choice| async move { choice.next().await.map(|piece| (piece, choice)) }).boxed()
    };
    stream::select_all(choices.into_iter().map(pieces)).boxed()
}

impl Choice {
    /// The next piece; `None` after the one with a finish.
    async fn next(&mut self) -> Option<Piece> {
        if self.ended {
            return None;
        }
        loop {
            let event = match &mut self.generation {
                Some(generation) => generation.next().await,
                None => return Some(self.end(Piece::default(), Finish::Length)),
            };
            match event {
                Some(Event::Started(started)) => self.started(&started),
                Some(Event::Prompt(prompt)) => {
                    self.details.set(|facts| facts.prompt_logprobs += prompt.len());
                    return Some(Piece { index: self.index, prompt, ..Piece::default() });
                }
                Some(Event::Token(token)) => return Some(self.token(token)),
                Some(Event::End(end)) => {
                    let finish = match end.reason {
                        EndReason::Stop => match self.stopped_by {
                            Some(token) if !self.state.generation.eos_token_ids.contains(&token) => {
                                Finish::StopToken(token)
                            }
                            _ => Finish::End,
                        },
                        EndReason::Length => Finish::Length,
                        EndReason::Failed(reason) => {
                            tracing::error!(reason, "a request failed in the engine");
                            Finish::Failed
                        }
                    };
                    return Some(self.end(Piece::default(), finish));
                }
                None => return Some(self.end(Piece::default(), Finish::Failed)),
            }
        }
    }

    fn started(&mut self, started: &Started) {
        self.stats.started(started.at, started.cached_tokens);
        if self.stats.is_first() {
            self.details.set(|facts| facts.cached_tokens += started.cached_tokens);
        }
    }

    fn token(&mut self, token: Token) -> Piece {
        let Token { id, logprobs, at } = token;
        self.stats.token(&self.state.metrics, at);
        let tokens = vec![OutputToken { id, logprobs }];
        let mut piece = Piece { index: self.index, tokens, ..Piece::default() };
        // The engine generates none of them before `min_tokens`.
        if self.stop_tokens.contains(&id) {
            self.stopped_by = Some(id);
            if !self.include_stop {
                return piece;
            }
        }
        let marker = self.marker(id);
        let text = if marker.is_some() { self.decoder.finish() } else { self.decoder.push(id) };
        let found = if self.stats.tokens <= self.min_tokens {
            Found { text: self.stops.pass(&text), stop: None }
        } else {
            self.stops.push(&text)
        };
        piece.delta = self.parsed(found.text);
        if let Some(stop) = found.stop {
            return self.end(piece, Finish::StopString(stop));
        }
        if let Some(marker) = marker {
            // No stop string goes across a marker.
            let held = self.stops.finish();
            piece.delta.append(self.parsed(held));
            piece.delta.append(self.parser.as_mut().map(|parser| parser.marker(marker)).unwrap_or_default());
        }
        piece
    }

    /// The marker that a token is, if it means something now.
    fn marker(&self, id: u32) -> Option<Marker> {
        let marker = self.state.markers.as_ref()?.get(id)?;
        self.parser.as_ref().is_some_and(|parser| parser.takes(marker)).then_some(marker)
    }

    fn parsed(&mut self, text: String) -> Delta {
        match &mut self.parser {
            Some(parser) => parser.text(&text),
            None => Delta { text, ..Delta::default() },
        }
    }

    /// Adds what was held back, and ends.
    fn end(&mut self, mut piece: Piece, mut finish: Finish) -> Piece {
        if !matches!(finish, Finish::StopString(_)) {
            let mut found = self.stops.push(&self.decoder.finish());
            match found.stop {
                Some(stop) if self.stats.tokens > self.min_tokens => finish = Finish::StopString(stop),
                _ => found.text += &self.stops.finish(),
            }
            piece.delta.append(self.parsed(found.text));
        }
        if let Some(parser) = &mut self.parser {
            piece.delta.append(parser.finish());
        }
        // Cancels the rest, if a stop string ended it.
        self.generation = None;
        self.ended = true;
        self.stats.reason = Some(finish.reason());
        piece.index = self.index;
        piece.finish = Some(finish);
        piece
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        let times = self.stats.finish(&self.state.metrics);
        let (tokens, reason) = (self.stats.tokens, self.stats.reason.unwrap_or("abort"));
        self.details.set(|facts| {
            facts.output_tokens += tokens;
            facts.queue = facts.queue.max(times.queue);
            facts.prefill = facts.prefill.max(times.prefill);
            facts.decode = facts.decode.max(times.decode);
            if !facts.finish.contains(&reason) {
                facts.finish.push(reason);
            }
        });
    }
}
