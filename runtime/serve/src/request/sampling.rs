//! How tokens are chosen and what ends an answer.
//!
//! What the client leaves open comes from the checkpoint's `generation_config.json`, as in vLLM, and else from OpenAI's defaults.

use gemma4_engine::sampling::SamplingParams;
use serde_json::{Map, Value};

use super::Take as _;
use super::take::{token, whole, wrong};
use crate::error::ApiError;
use crate::service::State;

/// Stop strings at most. OpenAI takes 4, vLLM any number; each costs a little for every byte.
const MAX_STOPS: usize = 16;
/// Characters of a stop string at most.
const MAX_STOP: usize = 256;
/// Stop tokens and biases at most.
const MAX_TOKENS: usize = 128;
/// Biases at most: vLLM's and OpenAI's servers take 1,024.
const MAX_BIASES: usize = 1024;
/// Characters of a salt at most.
const MAX_SALT: usize = 1024;

pub(super) fn params(state: &State, take: &mut Map<String, Value>) -> Result<SamplingParams, ApiError> {
    let defaults = &state.generation;
    let penalty = |number: f64| (-2.0..=2.0).contains(&number);
    let top_k = match take.value("top_k") {
        None => defaults.top_k,
        Some(value) => match whole(&value) {
            Some(-1) => None,
            Some(number) if (0..=i128::from(i32::MAX)).contains(&number) => u32::try_from(number).ok(),
            _ => return Err(wrong("top_k", "a whole number, -1 or more")),
        },
    };
    let seed = match take.value("seed") {
        None => None,
        Some(value) => {
            let number = whole(&value).and_then(|number| i64::try_from(number).ok());
            Some(number.ok_or_else(|| wrong("seed", "a whole number of 64 bits"))?.cast_unsigned())
        }
    };
    let temperature = take.number("temperature", |number| (0.0..=2.0).contains(&number), "0 to 2")?;
    let top_p = take.number("top_p", |number| number > 0.0 && number <= 1.0, "above 0, at most 1")?;
    // A number that is above 0 can be 0 in 32 bits.
    let top_p = top_p.map(|number| number.max(f32::MIN_POSITIVE));
    let min_p = take.number("min_p", |number| (0.0..=1.0).contains(&number), "0 to 1")?;
    let repetition = take.number("repetition_penalty", |number| (0.01..=100.0).contains(&number), "0.01 to 100")?;
    Ok(SamplingParams {
        temperature: temperature.or(defaults.temperature).unwrap_or(1.0),
        top_k: top_k.filter(|count| *count > 0),
        top_p: top_p.or(defaults.top_p).unwrap_or(1.0),
        min_p: min_p.or(defaults.min_p).unwrap_or(0.0),
        seed,
        presence_penalty: take.number("presence_penalty", penalty, "-2 to 2")?.unwrap_or(0.0),
        frequency_penalty: take.number("frequency_penalty", penalty, "-2 to 2")?.unwrap_or(0.0),
        repetition_penalty: repetition.or(defaults.repetition_penalty).unwrap_or(1.0),
        logit_bias: logit_bias(state, take)?,
    })
}

fn logit_bias(state: &State, take: &mut Map<String, Value>) -> Result<Vec<(u32, f32)>, ApiError> {
    let biases = take.object("logit_bias")?.unwrap_or_default();
    if biases.len() > MAX_BIASES {
        return Err(wrong("logit_bias", &format!("a map of at most {MAX_BIASES} tokens")));
    }
    let bias = |(key, value): (&String, &Value)| {
        let token = key.parse().ok().filter(|token| state.is_token(*token));
        let bias = value.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        Some((token?, bias? as f32))
    };
    let biases: Option<Vec<_>> = biases.iter().map(bias).collect();
    biases.ok_or_else(|| wrong("logit_bias", "a map from token ids of the vocabulary to numbers, -100 to 100"))
}

/// What ends an answer: the checkpoint's tokens unless they are ignored, and the client's.
pub(super) fn stop_tokens(
    state: &State,
    take: &mut Map<String, Value>,
    ignore_eos: bool,
) -> Result<Vec<u32>, ApiError> {
    let mut tokens = if ignore_eos { Vec::new() } else { state.generation.eos_token_ids.clone() };
    let asked = take.list("stop_token_ids")?.unwrap_or_default();
    let known = |value: &Value| token(value).filter(|token| state.is_token(*token));
    let asked: Option<Vec<u32>> = asked.iter().map(known).collect();
    match asked.filter(|asked| asked.len() <= MAX_TOKENS) {
        Some(asked) => tokens.extend(asked),
        None => return Err(wrong("stop_token_ids", &format!("at most {MAX_TOKENS} token ids of the vocabulary"))),
    }
    Ok(tokens)
}

pub(super) fn stop(take: &mut Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let strings = match take.value("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => vec![other],
    };
    let fits = |text: &String| (1..=MAX_STOP).contains(&text.chars().count());
    let text = |value: Value| match value {
        Value::String(text) => Some(text).filter(fits),
        _ => None,
    };
    let strings: Option<Vec<String>> = strings.into_iter().map(text).collect();
    strings.filter(|strings| strings.len() <= MAX_STOPS).ok_or_else(|| {
        wrong("stop", &format!("a string or at most {MAX_STOPS} of them, each of 1 to {MAX_STOP} characters"))
    })
}

/// How many alternatives to each token are wanted, by the field `name`.
pub(super) fn logprobs(state: &State, take: &mut Map<String, Value>, name: &str) -> Result<Option<usize>, ApiError> {
    let most = u64::try_from(state.options.max_logprobs).unwrap_or(u64::MAX);
    Ok(take.integer(name, 0, most)?.and_then(|count| usize::try_from(count).ok()))
}

pub(super) fn salt(take: &mut Map<String, Value>) -> Result<Vec<u8>, ApiError> {
    let salt = take.string("cache_salt")?;
    if salt.as_ref().is_some_and(|salt| !(1..=MAX_SALT).contains(&salt.chars().count())) {
        return Err(wrong("cache_salt", &format!("a string of 1 to {MAX_SALT} characters")));
    }
    Ok(salt.map(String::into_bytes).unwrap_or_default())
}
