//! A line a point, for spreadsheets and data frames. Times are in seconds; what is unknown is empty.

use super::super::account::{Distribution, Figures};
use super::super::point::Load;
use super::Report;

/// The runs as CSV (RFC 4180), with a header.
pub fn csv(report: &Report<'_>) -> String {
    let mut header: Vec<String> = ["run", "users", "requests_per_second_asked", "context", "prompt_tokens_each"]
        .into_iter()
        .chain(["output_tokens_each", "status", "reason", "spike", "requests", "succeeded", "failures", "seconds"])
        .chain(["prompt_tokens", "cached_prompt_tokens", "output_tokens", "chunks", "output_tokens_per_second"])
        .chain(["prompt_tokens_per_second", "requests_per_second", "latest_send"])
        .map(str::to_owned)
        .collect();
    for name in ["ttft", "inter_token", "chunk_gap", "end_to_end"] {
        header.extend(["mean", "p50", "p90", "p95", "p99", "max"].map(|value| format!("{name}_{value}")));
    }
    let width = header.len();
    let mut text = line(&header);
    for (run, spikes) in report.runs() {
        for measured in &run.points {
            let (users, rate) = match measured.point.load {
                Load::Users(users) => (users.to_string(), String::new()),
                Load::PerSecond(rate) => (String::new(), rate.to_string()),
            };
            let spike = spikes.iter().any(|spike| spike.point == measured.point);
            let mut fields = vec![
                run.name.clone(),
                users,
                rate,
                measured.point.context.to_string(),
                measured.prompt_tokens.to_string(),
                measured.output_tokens.to_string(),
                measured.status.word().to_owned(),
                measured.reason.clone().unwrap_or_default(),
                spike.to_string(),
            ];
            if let Some(figures) = &measured.figures {
                fields.extend(of(figures));
            }
            fields.resize(width, String::new());
            text.push_str(&line(&fields));
        }
    }
    text
}

fn of(figures: &Figures) -> Vec<String> {
    let failures = figures.failures.iter().map(|failures| format!("{} {}", failures.count, failures.reason));
    let mut fields = vec![
        figures.requests.to_string(),
        figures.succeeded.to_string(),
        failures.collect::<Vec<_>>().join("; "),
        figures.seconds.to_string(),
        figures.prompt_tokens.to_string(),
        figures.cached_prompt_tokens.map(|tokens| tokens.to_string()).unwrap_or_default(),
        figures.output_tokens.to_string(),
        figures.chunks.to_string(),
        figures.output_tokens_per_second.to_string(),
        figures.prompt_tokens_per_second.to_string(),
        figures.requests_per_second.to_string(),
        figures.latest_send.to_string(),
    ];
    for times in [figures.ttft, figures.inter_token, figures.chunk_gap, figures.end_to_end] {
        fields.extend(match times {
            Some(Distribution { mean, p50, p90, p95, p99, max, .. }) => {
                [mean, p50, p90, p95, p99, max].map(|value| value.to_string())
            }
            None => Default::default(),
        });
    }
    fields
}

/// Fields with what needs quotes in quotes.
fn line(fields: &[String]) -> String {
    let quoted = |field: &String| {
        if field.contains(['"', ',', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.clone()
        }
    };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",") + "\r\n"
}
