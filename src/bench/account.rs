//! What the requests of a point came to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::request::{Failure, Outcome, Sample};

/// How values are spread. Percentiles are values that were seen (nearest rank), never interpolated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Values.
    pub count: u64,
    /// The least.
    pub min: f64,
    /// Their mean.
    pub mean: f64,
    /// Half of them are no greater.
    pub p50: f64,
    /// 90 of 100 are no greater.
    pub p90: f64,
    /// 95 of 100 are no greater.
    pub p95: f64,
    /// 99 of 100 are no greater.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Distribution {
    /// Of these values; `None` without any.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let count = values.len();
        let rank = |percent: usize| {
            let rank = (count * percent).div_ceil(100).clamp(1, count);
            values.get(rank - 1).copied().unwrap_or(max)
        };
        Some(Self {
            count: count as u64,
            min,
            mean: values.iter().sum::<f64>() / count as f64,
            p50: rank(50),
            p90: rank(90),
            p95: rank(95),
            p99: rank(99),
            max,
        })
    }
}

/// Requests that failed for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// The reason, in a word.
    pub reason: String,
    /// Requests.
    pub count: u64,
    /// What one of them says.
    pub example: String,
}

/// The figures of a point. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests that were sent.
    pub requests: u64,
    /// Requests that were answered as they had to be; all that follows is theirs alone, but for `failures` and `seconds`.
    pub succeeded: u64,
    /// The others, by reason.
    pub failures: Vec<Failures>,
    /// From the first request to the end of the last answer.
    pub seconds: f64,
    /// Tokens of prompts, as the endpoint counts them; cached ones are among them.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were not computed again. `None` if the endpoint does not say so of every request.
    pub cached_prompt_tokens: Option<u64>,
    /// Tokens that were generated.
    pub output_tokens: u64,
    /// Pieces that the answers came in; fewer than tokens where a piece holds several.
    pub chunks: u64,
    /// Generated tokens by `seconds`. Tokens of prompts are never in it.
    pub output_tokens_per_second: f64,
    /// Prompt tokens that are not known to be cached, by `seconds`.
    pub prompt_tokens_per_second: f64,
    /// Requests that succeeded by `seconds`.
    pub requests_per_second: f64,
    /// Time to the first piece of an answer.
    pub ttft: Option<Distribution>,
    /// Time between tokens: of each request, the time from the first piece to the last by its tokens but one. Requests
    /// answered in one piece have none.
    pub inter_token: Option<Distribution>,
    /// Time between pieces: one value for each gap that a client sees.
    pub chunk_gap: Option<Distribution>,
    /// Time to the end of an answer.
    pub end_to_end: Option<Distribution>,
    /// How much later than planned the generator itself sent a request, at most: where this is not small, it is the
    /// generator that was measured.
    pub latest_send: f64,
}

impl Figures {
    /// Of all requests of a point, that took `seconds` together.
    pub fn of(outcomes: Vec<Outcome>, seconds: Duration) -> Self {
        let requests = outcomes.len() as u64;
        let latest_send = outcomes.iter().map(|outcome| outcome.sent_late.as_secs_f64()).fold(0.0, f64::max);
        let (mut samples, mut failures) = (Vec::new(), BTreeMap::<&'static str, Failures>::new());
        for outcome in outcomes {
            match outcome.result {
                Ok(sample) => samples.push(sample),
                Err(failure) => note(&mut failures, failure),
            }
        }
        let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>();
        let times = |of: fn(&Sample) -> Duration| {
            Distribution::of(samples.iter().map(|sample| of(sample).as_secs_f64()).collect())
        };
        let (prompt_tokens, output_tokens) = (sum(|sample| sample.prompt_tokens), sum(|sample| sample.output_tokens));
        let cached_prompt_tokens =
            samples.iter().map(|sample| sample.cached_tokens).sum::<Option<u64>>().filter(|_| !samples.is_empty());
        let seconds = seconds.as_secs_f64();
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        Self {
            requests,
            succeeded: samples.len() as u64,
            failures: failures.into_values().collect(),
            seconds,
            prompt_tokens,
            cached_prompt_tokens,
            output_tokens,
            chunks: sum(|sample| sample.chunks),
            output_tokens_per_second: rate(output_tokens),
            prompt_tokens_per_second: rate(prompt_tokens.saturating_sub(cached_prompt_tokens.unwrap_or(0))),
            requests_per_second: rate(samples.len() as u64),
            ttft: times(|sample| sample.ttft),
            inter_token: Distribution::of(samples.iter().filter_map(Sample::inter_token).collect()),
            chunk_gap: Distribution::of(samples.iter().flat_map(|sample| sample.gaps.iter().copied()).collect()),
            end_to_end: times(|sample| sample.end_to_end),
            latest_send,
        }
    }

    /// Whether every request was answered as it had to be.
    pub fn passed(&self) -> bool {
        self.requests > 0 && self.succeeded == self.requests
    }

    /// Whether not one request reached the endpoint.
    pub fn is_unreachable(&self) -> bool {
        self.succeeded == 0 && self.failures.iter().all(|failures| failures.reason == super::request::NO_CONNECTION)
    }
}

fn note(failures: &mut BTreeMap<&'static str, Failures>, failure: Failure) {
    let Failure { reason, message } = failure;
    let first = || Failures { reason: reason.to_owned(), count: 0, example: message };
    failures.entry(reason).or_insert_with(first).count += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ttft: u64, end: u64, cached: Option<u64>) -> Outcome {
        let milliseconds = Duration::from_millis;
        let sample = Sample {
            ttft: milliseconds(ttft),
            last: milliseconds(end),
            end_to_end: milliseconds(end),
            gaps: vec![(end - ttft) as f64 / 1000.0],
            chunks: 2,
            prompt_tokens: 10,
            cached_tokens: cached,
            output_tokens: 5,
        };
        Outcome { result: Ok(sample), sent_late: Duration::ZERO }
    }

    fn failure(reason: &'static str) -> Outcome {
        let failure = Failure { reason, message: format!("{reason} it was") };
        Outcome { result: Err(failure), sent_late: Duration::from_millis(3) }
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let distribution = Distribution::of((1..=200).rev().map(f64::from).collect()).expect("values");
        let Distribution { count, min, mean, p50, p90, p95, p99, max } = distribution;
        assert_eq!((count, min, mean, max), (200, 1.0, 100.5, 200.0));
        assert_eq!((p50, p90, p95, p99), (100.0, 180.0, 190.0, 198.0));
        let one = Distribution::of(vec![7.0]).expect("a value");
        assert_eq!((one.p50, one.p99, one.max), (7.0, 7.0, 7.0));
        assert_eq!(Distribution::of(Vec::new()), None);
    }

    #[test]
    fn failures_are_in_no_figure_but_their_own() {
        let outcomes = vec![
            sample(100, 500, Some(4)),
            failure("cut-off"),
            sample(200, 1000, Some(0)),
            failure("http-500"),
            failure("cut-off"),
        ];
        let figures = Figures::of(outcomes, Duration::from_secs(2));
        assert_eq!((figures.requests, figures.succeeded, figures.passed()), (5, 2, false));
        let counts: Vec<_> = figures.failures.iter().map(|found| (found.reason.as_str(), found.count)).collect();
        assert_eq!(counts, [("cut-off", 2), ("http-500", 1)]);
        assert_eq!((figures.prompt_tokens, figures.cached_prompt_tokens, figures.output_tokens), (20, Some(4), 10));
        assert_eq!((figures.output_tokens_per_second, figures.prompt_tokens_per_second), (5.0, 8.0));
        assert_eq!(figures.ttft.expect("values").max, 0.2);
        assert_eq!(figures.inter_token.expect("values").max, 0.2);
        assert_eq!(figures.latest_send, 0.003);
    }

    #[test]
    fn cached_tokens_that_one_answer_does_not_tell_are_unknown() {
        let figures = Figures::of(vec![sample(1, 2, Some(4)), sample(1, 2, None)], Duration::from_secs(1));
        assert_eq!(figures.cached_prompt_tokens, None);
        assert_eq!(figures.prompt_tokens_per_second, 20.0);
    }
}
