//! Metrics, under the names, types, labels and buckets of vLLM's V1 engine, so that its dashboards and alerts work here.
//!
//! What requests tell is observed as they go; what the engine counts is copied when somebody asks.

mod choice;
mod engine;
mod families;

use std::sync::Mutex;
use std::time::Duration;

use gemma4_engine::engine::Statistics;
use prometheus::{Encoder as _, TextEncoder};

pub(crate) use choice::{ChoiceStats, Group};
use engine::EngineMetrics;
use families::{Families, RequestMetrics};

use crate::options::ServeOptions;

/// All series.
pub(crate) struct Metrics {
    families: Families,
    requests: RequestMetrics,
    /// Locked so that two scrapes at once do not count a difference twice.
    engine: Mutex<EngineMetrics>,
}

impl Metrics {
    pub(crate) fn new(options: &ServeOptions) -> Result<Self, prometheus::Error> {
        let model = options.model_names.first().cloned().unwrap_or_default();
        let families = Families::new(&model);
        let requests = RequestMetrics::new(&families, options.max_model_len)?;
        let engine = Mutex::new(EngineMetrics::new(&families, &options.cache_config)?);
        Ok(Self { families, requests, engine })
    }

    /// A request was answered.
    pub(crate) fn http(&self, handler: &str, method: &str, status: u16, took: Duration) {
        let class = format!("{}xx", status / 100);
        self.requests.http_requests.with_label_values(&[handler, method, &class]).inc();
        self.requests.http_seconds.with_label_values(&[handler, method]).observe(took.as_secs_f64());
    }

    /// The text of a scrape.
    pub(crate) fn text(&self, statistics: &Statistics) -> Result<Vec<u8>, prometheus::Error> {
        let engine = self.engine.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        engine.copy(statistics);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.families.registry.gather(), &mut text)?;
        Ok(text)
    }
}
