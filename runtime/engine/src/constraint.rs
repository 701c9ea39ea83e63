//! Grammars that outputs keep to.
//!
//! Invariants:
//! * a grammar is compiled before its request is taken in, on the thread of whoever asks, with bounds on its size; so the
//!   engine's thread never meets one that does not compile;
//! * what a place of a sequence allows depends on the tokens before it alone. Those of a draft are followed by a copy, so the
//!   sequence's own state is always that of what was sampled, and there is nothing to take back;
//! * an end token is allowed exactly where the grammar may end.
//!
//! Masks are made on the host, while the devices compute a step, and applied on the devices
//! ([`crate::runner::Runner::run_masked`]); steps in which no sequence has a grammar know nothing of them.

use std::fmt;
use std::sync::Arc;

use gemma4_model::output::ANSWER_GRAMMAR;
use gemma4_model::tokenizer::Tokenizer;
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use thiserror::Error;

/// States that the lexer of one grammar may have: 100 MB at the worst.
const MAX_LEXER_STATES: usize = 50_000;
/// Characters of a reason at most: the library quotes.
const MAX_REASON: usize = 300;
/// White space between two tokens of JSON, bounded so that no model stays in it for ever.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";
/// The key by which the library finds options in a schema.
const OPTIONS: &str = "x-guidance";

/// A grammar that cannot be compiled or followed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConstraintError {
    /// It says nothing that can be followed, or is too large.
    #[error("the grammar cannot be used: {0}")]
    Grammar(
        /// What the library says of it.
        String,
    ),
    /// It became too large while it was followed.
    #[error("the grammar cannot be followed any further: {0}; make it simpler")]
    Followed(
        /// What the library says of it.
        String,
    ),
    /// The vocabulary has nothing to end with.
    #[error(
        "the checkpoint's generation_config.json names no end token of the vocabulary; without one no grammar can end"
    )]
    NoEndToken,
}

/// What the text of an answer has to be.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerGrammar {
    /// JSON that a schema, an object, describes.
    Json(Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// Text of a grammar in llguidance's dialect of Lark.
    Lark(String),
}

impl AnswerGrammar {
    /// Any object of JSON.
    #[must_use]
    pub fn json_object() -> Self {
        Self::Json(json!({"type": "object"}))
    }

    fn compiled_from(&self) -> Result<GrammarWithLexer, ConstraintError> {
        Ok(match self {
            Self::Json(Value::Object(schema)) => {
                let mut schema = schema.clone();
                // The client's own would change what the schema means.
                if schema.insert(OPTIONS.to_owned(), json!({"whitespace_pattern": WHITE_SPACE})).is_some() {
                    return Err(ConstraintError::Grammar(format!("`{OPTIONS}` is no keyword of JSON Schema")));
                }
                GrammarWithLexer::from_json_schema(Value::Object(schema))
            }
            Self::Json(_) => return Err(ConstraintError::Grammar("a schema has to be an object".to_owned())),
            Self::Regex(regex) => GrammarWithLexer::from_regex(regex),
            Self::Choice(choices) => {
                // Strings of the grammar are strings of JSON.
                let choices: Vec<String> = choices.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                GrammarWithLexer::from_lark(format!("start: {}", choices.join(" | ")))
            }
            Self::Lark(grammar) => GrammarWithLexer::from_lark(grammar.clone()),
        })
    }
}

/// Compiles grammars for one vocabulary. Clones share everything.
#[derive(Clone)]
pub struct Grammars(Arc<ParserFactory>);

impl Grammars {
    /// For a tokenizer whose outputs end with one of `end_tokens`. It looks at every token: seconds for a large vocabulary
    /// in a build without optimization.
    ///
    /// # Errors
    /// [`ConstraintError::NoEndToken`], or [`ConstraintError::Grammar`] if the library does not take the vocabulary.
    pub fn new(tokenizer: &Tokenizer, end_tokens: &[u32]) -> Result<Self, ConstraintError> {
        let tokens = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let words = (0..tokens).map(|token| word(tokenizer, token)).collect();
        Self::of_words(words, end_tokens)
    }

    /// For tokens of these bytes, of which those of control tokens follow a byte 255, which no text begins with.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn of_words(words: Vec<Vec<u8>>, end_tokens: &[u32]) -> Result<Self, ConstraintError> {
        let tokens = u32::try_from(words.len()).unwrap_or(u32::MAX);
        let ends: Vec<u32> = end_tokens.iter().copied().filter(|token| *token < tokens).collect();
        let first = *ends.first().ok_or(ConstraintError::NoEndToken)?;
        let trie = TokTrie::from(&TokRxInfo::new(tokens, first), &words).with_eos_tokens(&ends);
        // It forces no tokens: where a grammar forces text, the model decides how to cut it, as it does in all other text.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new(
            &environment,
            InferenceCapabilities::default(),
            &llguidance::earley::SlicedBiasComputer::general_slices(),
        )
        .map_err(|error| ConstraintError::Grammar(reason(&error.to_string())))?;
        factory.quiet();
        let limits =
            ParserLimits { max_lexer_states: MAX_LEXER_STATES, verbose_errors: false, ..ParserLimits::default() };
        *factory.limits_mut() = limits;
        Ok(Self(Arc::new(factory)))
    }

    /// Compiles what an output has to be: `around` is a grammar of [`gemma4_model::output::OutputForm::lark`] that refers to
    /// `answer`; without it the output is the answer alone.
    ///
    /// # Errors
    /// [`ConstraintError::Grammar`]
    pub fn compile(
        &self,
        around: Option<String>,
        answer: Option<&AnswerGrammar>,
    ) -> Result<Constraint, ConstraintError> {
        let mut grammars: Vec<GrammarWithLexer> = around.map(GrammarWithLexer::from_lark).into_iter().collect();
        if let Some(answer) = answer {
            let answer = answer.compiled_from()?;
            grammars.push(GrammarWithLexer { name: Some(ANSWER_GRAMMAR.to_owned()), ..answer });
        }
        let grammar = TopLevelGrammar { grammars, max_tokens: None };
        let matcher = Matcher::new(self.0.create_parser(grammar));
        let mut constraint = Constraint(Box::new(matcher));
        // A grammar that allows nothing at its very beginning allows nothing ever.
        let allowed = constraint.allowed().map_err(|error| match error {
            ConstraintError::Followed(why) => ConstraintError::Grammar(why),
            other => other,
        })?;
        if allowed.0.is_zero() {
            return Err(ConstraintError::Grammar("nothing fits it".to_owned()));
        }
        Ok(constraint)
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// What a token is for the library: its bytes, with a mark before those of a control token. Empty for what is no token.
fn word(tokenizer: &Tokenizer, token: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(token).unwrap_or_default();
    if !tokenizer.is_special(token) {
        return bytes;
    }
    std::iter::once(TokTrie::SPECIAL_TOKEN_MARKER).chain(bytes).collect()
}

/// A place in a grammar that an output keeps to.
#[derive(Clone)]
pub struct Constraint(Box<Matcher>);

impl Constraint {
    /// The tokens that may come next.
    pub(crate) fn allowed(&mut self) -> Result<Allowed, ConstraintError> {
        let mask = self.0.compute_mask_or_eos();
        mask.map(Allowed).map_err(|error| ConstraintError::Followed(reason(&error.to_string())))
    }

    /// Takes in the token that came next. Behind its end a grammar has no places; a token there says nothing.
    pub(crate) fn advance(&mut self, token: u32) -> Result<(), ConstraintError> {
        if self.0.is_stopped() && !self.0.is_error() {
            return Ok(());
        }
        let taken = self.0.consume_token(token);
        taken.map_err(|error| ConstraintError::Followed(reason(&error.to_string())))
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Constraint").field("stop_reason", &self.0.stop_reason()).finish_non_exhaustive()
    }
}

/// What the library says, without what it quotes of a grammar: in its first line, or in one that says so.
fn reason(text: &str) -> String {
    let told = text.lines().find_map(|line| line.strip_prefix("error: "));
    let line = told.or_else(|| text.lines().next()).unwrap_or_default();
    line.chars().take(MAX_REASON).collect::<String>().trim_end_matches('.').to_owned()
}

/// Tokens that a place allows.
#[derive(Debug)]
pub(crate) struct Allowed(SimpleVob);

impl Allowed {
    /// A bit for each token, the first token's the lowest.
    pub(crate) fn words(&self) -> &[u32] {
        self.0.as_slice()
    }

    /// Whether a token is allowed.
    pub(crate) fn has(&self, token: u32) -> bool {
        let word = usize::try_from(token / u32::BITS).ok().and_then(|at| self.words().get(at));
        word.is_some_and(|word| word >> (token % u32::BITS) & 1 == 1)
    }
}
