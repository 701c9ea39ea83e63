//! Text from tokens that come one at a time.

use super::Tokenizer;
use super::decoder::Piece;

/// Turns ids into text as they come. Made by [`Tokenizer::stream`].
///
/// Invariant: the pieces in a row, [`finish`](Self::finish) included, are what [`Tokenizer::decode`] makes of all ids, and
/// every piece consists of whole characters. Work and memory do not grow with what came before.
///
/// Tokens that are bytes wait for the first token that is none: a run of bytes that is not UTF-8 as a whole is decoded to
/// replacement characters as a whole, so what its first bytes become is not known before it ends.
#[derive(Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// The run of bytes that has not ended.
    bytes: Vec<u8>,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, bytes: Vec::new() }
    }

    /// The text that is certain now that `id` has come; often the token's own, sometimes none. An id that the vocabulary
    /// does not have adds nothing, as in [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return String::new();
        }
        match self.tokenizer.piece(id) {
            None => String::new(),
            Some(Piece::Byte(byte)) => {
                self.bytes.push(byte);
                String::new()
            }
            Some(Piece::Text(text)) if self.bytes.is_empty() => text,
            Some(Piece::Text(text)) => self.finish() + &text,
        }
    }

    /// The text that still waited, at the end of the tokens. The decoder is as new afterwards.
    pub fn finish(&mut self) -> String {
        let bytes = std::mem::take(&mut self.bytes);
        String::from_utf8(bytes).unwrap_or_else(|error| "\u{fffd}".repeat(error.as_bytes().len()))
    }
}
