//! Text to token ids and back.
//!
//! Invariant: ids and texts are those of Hugging Face's tokenizers for the same `tokenizer.json`; the library is theirs.
//! The streaming decoder is our own: see [`StreamDecoder`].

pub(crate) mod config;
mod decoder;
mod stream;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::Model;

use crate::files::FileError;
use config::TokenizerConfig;
use decoder::{Decoder, Piece};
pub use stream::StreamDecoder;

/// The tokenizer of a checkpoint. Clones share everything.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    decoder: Decoder,
    bos: Option<u32>,
    /// Whether `tokenizer_config.json` asks for a first token that `tokenizer.json` does not put there itself.
    prepends_bos: bool,
}

/// A tokenizer that cannot be used, or a text that it cannot encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `tokenizer.json` is absent, or not a tokenizer.
    #[error("{}: cannot be opened as a tokenizer; fetch the file again", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Something in a file asks for what is not supported.
    #[error("{}: `{field}` is not supported: {found}; use the tokenizer of a Gemma 4 checkpoint", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What it says, in words.
        found: String,
    },
    /// A special token is named that the vocabulary does not have.
    #[error("{}: `{field}` is {token:?}, which tokenizer.json does not have; the files belong to different models", path.display())]
    UnknownToken {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// The token.
        token: String,
    },
    /// A text cannot be encoded.
    #[error("the text cannot be encoded")]
    Encode(#[source] Box<dyn Error + Send + Sync>),
    /// Ids cannot be decoded.
    #[error("the tokens cannot be decoded")]
    Decode(#[source] Box<dyn Error + Send + Sync>),
}

impl Tokenizer {
    /// Opens `tokenizer.json` and, where there is one, `tokenizer_config.json` of a checkpoint.
    ///
    /// # Errors
    /// [`TokenizerError`], always with the file.
    pub fn open(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let config_path = folder.join(config::FILE);
        let mut tokenizer = tokenizers::Tokenizer::from_file(&path)
            .map_err(|source| TokenizerError::Open { path: path.clone(), source })?;
        // Left over from training; neither may change a prompt.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|source| TokenizerError::Open { path: path.clone(), source })?;
        let decoder = Decoder::new(tokenizer.get_decoder()).map_err(|found| TokenizerError::Unsupported {
            path,
            field: "decoder",
            found,
        })?;
        let config = TokenizerConfig::open(folder)?;
        if config.clean_up_tokenization_spaces == Some(true) {
            let (field, found) = ("clean_up_tokenization_spaces", "true".to_owned());
            return Err(TokenizerError::Unsupported { path: config_path, field, found });
        }
        let bos = config.token("bos_token").map(|token| {
            let unknown =
                || TokenizerError::UnknownToken { path: config_path, field: "bos_token", token: token.to_owned() };
            tokenizer.token_to_id(token).ok_or_else(unknown)
        });
        let bos = bos.transpose()?;
        let puts_bos =
            tokenizer.encode_fast("", true).map_err(TokenizerError::Encode)?.get_ids().first().copied() == bos;
        let prepends_bos = config.add_bos_token == Some(true) && !puts_bos;
        Ok(Self { inner: Arc::new(Inner { tokenizer, decoder, bos, prepends_bos }) })
    }

    /// The ids of a text. Texts of control tokens become those tokens.
    ///
    /// `add_special_tokens` adds what the checkpoint puts around a bare text, such as a first token. A text from a chat
    /// template has these already.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.tokenizer.encode_fast(text, add_special_tokens).map_err(TokenizerError::Encode)?;
        let first = self.inner.bos.filter(|_| add_special_tokens && self.inner.prepends_bos);
        Ok(first.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// The text of ids. Ids that the vocabulary does not have add nothing.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        self.inner.tokenizer.decode(ids, skip_special_tokens).map_err(TokenizerError::Decode)
    }

    /// A decoder for ids that come one at a time.
    #[must_use]
    pub fn stream(&self, skip_special_tokens: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), skip_special_tokens)
    }

    /// The text of one token alone; a replacement character for a byte that is no character. `None` for an id that the
    /// vocabulary does not have.
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<String> {
        Some(match self.piece(id)? {
            Piece::Text(text) => text,
            Piece::Byte(byte) => String::from_utf8_lossy(&[byte]).into_owned(),
        })
    }

    /// The bytes that one token adds to a text.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        Some(match self.piece(id)? {
            Piece::Text(text) => text.into_bytes(),
            Piece::Byte(byte) => vec![byte],
        })
    }

    /// Whether a token controls the model and is no text that a user should see.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| self.inner.tokenizer.get_added_vocabulary().is_special_token(&token))
    }

    /// The control token that is written so.
    #[must_use]
    pub fn control_token(&self, text: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(text).filter(|id| self.is_special(*id))
    }

    /// How many tokens the vocabulary has, control tokens included. A model may have more rows than that.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.tokenizer.get_vocab_size(true)
    }

    /// The token that a prompt begins with, if the checkpoint names one.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    fn piece(&self, id: u32) -> Option<Piece> {
        self.token(id).map(|token| self.inner.decoder.piece(token))
    }

    /// The token as the vocabulary writes it, found as the library does when it decodes.
    fn token(&self, id: u32) -> Option<String> {
        let tokenizer = &self.inner.tokenizer;
        tokenizer.get_added_vocabulary().simple_id_to_token(id).or_else(|| tokenizer.get_model().id_to_token(id))
    }
}
