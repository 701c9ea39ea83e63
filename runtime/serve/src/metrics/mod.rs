//! Metrics, under the names, types, labels and buckets of vLLM's V1 engine, so that its dashboards and alerts work here.
//!
//! What requests tell is observed as they go; what the engine counts is copied when somebody asks.

mod choice;
mod engine;
mod families;
mod speculation;

use std::sync::Mutex;
use std::time::Duration;

use gemma4_engine::engine::Statistics;
use prometheus::{Encoder as _, TextEncoder};

pub(crate) use choice::{ChoiceStats, Group};
use engine::EngineMetrics;
use families::{Families, RequestMetrics};
use speculation::SpeculationMetrics;

use crate::options::ServeOptions;

/// All series.
pub(crate) struct Metrics {
    families: Families,
    requests: RequestMetrics,
    /// Locked so that two scrapes at once do not count a difference twice.
    engine: Mutex<EngineMetrics>,
    /// As in vLLM, there only if the engine speculates.
    speculation: Option<SpeculationMetrics>,
}

impl Metrics {
    /// The series of a service; `statistics` are those of its engine at the start.
    pub(crate) fn new(options: &ServeOptions, statistics: &Statistics) -> Result<Self, prometheus::Error> {
        let model = options.model_names.first().cloned().unwrap_or_default();
        let families = Families::new(&model);
        let requests = RequestMetrics::new(&families, options.max_model_len)?;
        let engine = Mutex::new(EngineMetrics::new(&families, &options.cache_config)?);
        let speculation = statistics.speculation.as_ref();
        let speculation = speculation.map(|totals| SpeculationMetrics::new(&families, totals)).transpose()?;
        Ok(Self { families, requests, engine, speculation })
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
        if let (Some(metrics), Some(totals)) = (&self.speculation, &statistics.speculation) {
            metrics.copy(totals);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.families.registry.gather(), &mut text)?;
        Ok(text)
    }
}
