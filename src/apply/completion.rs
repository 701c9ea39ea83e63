//! One real completion, asked for where the service runs: by a few lines of Python in the engine's own container, which
//! has Python and the key that requests have to show. Neither the key nor an open port is needed outside.

use crate::emit::Service;

/// What the program prints when the completion came.
const DONE: &str = "gemma4ctl-completed";

/// What it prints before the status of a refusal.
const REFUSED: &str = "gemma4ctl-refused";

/// What a completion ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Completion {
    /// There is one.
    Done,
    /// The server refuses, and would again.
    Refused(u16, String),
    /// It may come later.
    NotYet(String),
}

/// The program, for `python3 -c`.
pub(super) fn program(service: &Service) -> String {
    let body = serde_json::json!({ "model": service.model, "prompt": "Hello", "max_tokens": 1 });
    // JSON strings are Python strings too.
    let body = serde_json::Value::String(body.to_string()).to_string();
    let url = serde_json::Value::String(format!("{}/v1/completions", service.base_url)).to_string();
    format!(
        r#"import os, urllib.error, urllib.request as r
q = r.Request({url}, {body}.encode(), {{"Content-Type": "application/json"}})
k = os.environ.get("VLLM_API_KEY")
if k: q.add_header("Authorization", "Bearer " + k)
try:
    r.build_opener(r.ProxyHandler({{}})).open(q, timeout=300).read()
    print("{DONE}")
except urllib.error.HTTPError as e:
    print("{REFUSED}", e.code, e.read(300).decode(errors="replace").replace(k or "\0", "<removed>"))
"#
    )
}

/// What the program said.
pub(super) fn read(stdout: &str, stderr: &str) -> Completion {
    for line in stdout.lines() {
        if line.trim() == DONE {
            return Completion::Done;
        }
        if let Some((status, message)) = line.strip_prefix(REFUSED).and_then(|rest| rest.trim().split_once(' '))
            && let Ok(status) = status.parse::<u16>()
        {
            return if final_status(status) {
                Completion::Refused(status, message.to_owned())
            } else {
                Completion::NotYet(format!("/v1/completions answers with status {status}"))
            };
        }
    }
    let last = stderr.lines().last().unwrap_or("no answer").trim();
    Completion::NotYet(format!("/v1/completions: {last}"))
}

/// Whether a status will not change by waiting: too slow and too many are the client's statuses that do.
pub(super) fn final_status(status: u16) -> bool {
    (400..500).contains(&status) && status != 408 && status != 429
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(read("noise\ngemma4ctl-completed\n", ""), Completion::Done);
        assert_eq!(read("gemma4ctl-refused 401 no key\n", ""), Completion::Refused(401, "no key".to_owned()));
        assert!(matches!(read("gemma4ctl-refused 503 later", ""), Completion::NotYet(_)));
        assert!(
            matches!(read("", "Traceback\nConnectionRefusedError\n"), Completion::NotYet(text) if text.ends_with("ConnectionRefusedError"))
        );
    }
}
