//! How a token is chosen.

use thiserror::Error;

/// How a token is chosen. The default draws from the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the best token always.
    pub temperature: f32,
    /// How many of the best tokens are left to draw from; none for all.
    pub top_k: Option<u32>,
    /// The best tokens that together have this probability are left, in 0..=1 without 0.
    pub top_p: f32,
    /// Tokens are left that have this share of the best token's probability, in 0..=1.
    pub min_p: f32,
    /// Makes what is drawn repeatable.
    pub seed: Option<u64>,
    /// Subtracted from the logits of tokens that were generated, in -2..=2.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time that it was generated, in -2..=2.
    pub frequency_penalty: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens in the prompt or generated; above 0.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
        }
    }
}

/// A parameter out of its range.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{parameter} is {found}; expected {wanted}")]
pub struct SamplingError {
    /// Name of the parameter.
    pub parameter: &'static str,
    /// Its value.
    pub found: String,
    /// What would do.
    pub wanted: &'static str,
}

impl SamplingParams {
    /// Takes the best token always.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the best token is always taken.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        // vLLM's threshold: below it, dividing by the temperature overflows.
        self.temperature < 1e-5
    }

    pub(super) fn repeats(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    pub(super) fn penalizes(&self) -> bool {
        self.repeats() || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    pub(super) fn changes_logits(&self) -> bool {
        self.penalizes() || !self.logit_bias.is_empty()
    }

    /// Holds every parameter against its range, for a model with `vocab_size` tokens.
    ///
    /// # Errors
    /// [`SamplingError`] for the first one that is out of it.
    pub fn check(&self, vocab_size: usize) -> Result<(), SamplingError> {
        let range = |parameter, value: f32, inside: bool, wanted| {
            if inside { Ok(()) } else { Err(SamplingError { parameter, found: value.to_string(), wanted }) }
        };
        let (temperature, top_p, min_p) = (self.temperature, self.top_p, self.min_p);
        range("temperature", temperature, (0.0..=100.0).contains(&temperature), "0 to 100")?;
        range("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0, at most 1")?;
        range("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1")?;
        for (parameter, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            range(parameter, value, (-2.0..=2.0).contains(&value), "-2 to 2")?;
        }
        let repetition = self.repetition_penalty;
        range("repetition_penalty", repetition, repetition > 0.0 && repetition <= 1e6, "above 0, at most 1e6")?;
        if self.top_k == Some(0) {
            return Err(SamplingError { parameter: "top_k", found: "0".to_owned(), wanted: "1 or more, or none" });
        }
        for &(token, bias) in &self.logit_bias {
            if usize::try_from(token).map_or(true, |token| token >= vocab_size) {
                let wanted = "tokens of the model's vocabulary";
                return Err(SamplingError { parameter: "logit_bias", found: format!("token {token}"), wanted });
            }
            range("logit_bias", bias, (-100.0..=100.0).contains(&bias), "-100 to 100")?;
        }
        Ok(())
    }
}
