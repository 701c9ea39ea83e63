//! The service from outside: over sockets, with a model made of arithmetic.

mod client;
mod clients;
mod keys;
mod limits;
mod load;
mod model;
mod operations;
mod prompts;
mod refused;
mod setup;
mod shutdown;
mod structured;
mod text;
mod thinking;
mod tools;
