//! Text in and out of the model: tokenizers, chat templates and generation settings, against what transformers and Python
//! make of the same files.

mod chat;
mod data;
mod generation;
mod helpers;
mod hostile;
mod output;
mod tokenizer;
