//! A load generator for engines that speak OpenAI's API, and what is made of its figures.
//!
//! A [`Grid`](point::Grid) of points (users or arrivals, and a context) is run point by point ([`sweep`]) against an
//! [`Endpoint`](endpoint::Endpoint); every request ends as a sample or as a failure with a reason ([`request`]), and a
//! point's figures come from those alone ([`account`]). The run is one JSON file ([`record`]) that is whole at any moment.
//! [`spike`] finds points that are slow for their shape, [`report`] shows runs beside each other.
//!
//! Invariant: what was not measured is not counted. Output tokens, prompt tokens and cached prompt tokens stay apart, a
//! request that failed is in no percentile, and a point that was cut off has no figures.

pub mod account;
pub mod endpoint;
mod load;
pub mod point;
mod prompt;
pub mod record;
pub mod report;
pub mod request;
pub mod spike;
pub mod sweep;
