//! The endpoint under load: how it is reached, and what it says of itself.
//!
//! What has to be known beforehand is asked with the endpoint's own words: its model and longest sequence from
//! `/v1/models`, tokens of its vocabulary from `/tokenize`, the KV pool from `/server_info` (the bundled engine) or from
//! `vllm:cache_config_info` in `/metrics` (vLLM).

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use super::request::{Target, cause};

/// How long an answer to a question about the endpoint may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an idle connection is kept. Shorter than servers keep theirs (uvicorn: 5 s): a request on a connection that the
/// server is just closing would fail for no fault of its own.
const IDLE: Duration = Duration::from_secs(2);

/// Text whose tokens prompts are made of. Any will do that gives some dozens of them.
const TEXT: &str = "The quick brown fox jumps over the lazy dog while seven wizards calmly mix bright vials of jade, amber \
and onyx; Pack my box with five dozen liquor jugs. How vexingly quick daft zebras jump! 0 1 2 3 4 5 6 7 8 9 A B C D E F G \
H I J K L M N O P Q R S T U V W X Y Z a b c d e f g h i j k l m n o p q r s t u v w x y z water stone river cloud mountain \
paper music window garden silver engine number letter market winter summer yellow purple orange doctor teacher village";

/// Fewer different tokens make no prompts.
const FEWEST_TOKENS: usize = 8;

/// An endpoint that cannot be measured.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The address makes no sense.
    #[error(
        "`{0}` is not the address of an endpoint: it begins with `http://` or `https://`, as in http://127.0.0.1:8000"
    )]
    Address(String),
    /// The key cannot be sent.
    #[error("the API key has characters that no HTTP header takes")]
    Key,
    /// The client cannot be made.
    #[error("cannot make an HTTP client: {0}")]
    Client(String),
    /// Nobody answers.
    #[error("{url} does not answer: {message}; is the service running, and is this its address?")]
    Silent {
        /// What was asked.
        url: String,
        /// What happened.
        message: String,
    },
    /// It answers otherwise.
    #[error("{url} answers with status {status}: {message}{}", help(*status))]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// The beginning of the answer.
        message: String,
    },
    /// The answer is something else than expected.
    #[error("{url} does not answer as OpenAI's API does: {message}")]
    Foreign {
        /// What was asked.
        url: String,
        /// What is wrong.
        message: String,
    },
    /// It does not serve the model.
    #[error("{url} does not serve `{wanted}`; it serves {found}")]
    NoModel {
        /// What was asked.
        url: String,
        /// The model that was named.
        wanted: String,
        /// Those that are there.
        found: String,
    },
    /// Prompts cannot be made.
    #[error(
        "{url} gives no token ids to make prompts of ({message}); `--token-ids 1000-9999` says which ids its vocabulary has"
    )]
    NoTokens {
        /// What was asked.
        url: String,
        /// What is wrong.
        message: String,
    },
}

fn help(status: u16) -> &'static str {
    match status {
        401 | 403 => "; `--api-key-env VARIABLE` names the variable with the key",
        _ => "",
    }
}

/// Tokens that the KV pool holds, and who says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Tokens.
    pub tokens: u64,
    /// Where the number is from.
    pub from: String,
}

/// What an endpoint says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its address.
    pub url: String,
    /// The model that is asked for.
    pub model: String,
    /// The longest sequence in tokens.
    pub max_model_len: Option<u64>,
    /// The KV pool.
    pub kv_pool: Option<Pool>,
    /// The profile and plan that it runs.
    pub plan: Option<PlanName>,
}

/// Names a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanName {
    /// Its profile.
    pub profile: String,
    /// Its digest.
    pub digest: String,
}

/// An endpoint.
#[derive(Debug, Clone)]
pub struct Endpoint {
    base: String,
    client: Client,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    max_model_len: Option<u64>,
}

impl Endpoint {
    /// The endpoint at `address`, with or without `/v1` at its end.
    ///
    /// # Errors
    /// If the address or the key cannot be used.
    pub fn new(address: &str, key: Option<&str>) -> Result<Self, EndpointError> {
        let base = address.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).trim_end_matches('/').to_owned();
        let url = reqwest::Url::parse(&base).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        if url.and_then(|url| url.host_str().map(str::to_owned)).is_none() {
            return Err(EndpointError::Address(address.to_owned()));
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| EndpointError::Key)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // A proxy would be measured along, and few let thousands of streams through.
        let client = Client::builder().default_headers(headers).no_proxy().pool_idle_timeout(IDLE).tcp_nodelay(true);
        let client = client.build().map_err(|error| EndpointError::Client(cause(&error)))?;
        Ok(Self { base, client })
    }

    /// What it says of itself; `model` is the one to ask for, else its first.
    ///
    /// # Errors
    /// If it does not answer, or not as OpenAI's API does.
    pub async fn facts(&self, model: Option<&str>) -> Result<Facts, EndpointError> {
        let url = format!("{}/v1/models", self.base);
        let text = self.get(&url).await?;
        let foreign = |message: String| EndpointError::Foreign { url: url.clone(), message };
        let models: Models = serde_json::from_str(&text).map_err(|error| foreign(error.to_string()))?;
        let names: Vec<String> = models.data.iter().map(|model| format!("`{}`", model.id)).collect();
        let mut found = models.data.into_iter();
        let Model { id, max_model_len } = match model {
            None => found.next().ok_or_else(|| foreign("it serves no model".to_owned()))?,
            Some(wanted) => found.find(|found| found.id == wanted).ok_or_else(|| EndpointError::NoModel {
                url: url.clone(),
                wanted: wanted.to_owned(),
                found: names.join(", "),
            })?,
        };
        // Neither has to be there.
        let info = self.get(&format!("{}/server_info", self.base)).await.ok();
        let info: Value = info.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let plan = text(&info["profile"]).zip(text(&info["settings"]["digest"]));
        let kv_pool = match info["kv_tokens"].as_u64() {
            Some(tokens) => Some(Pool { tokens, from: "/server_info".to_owned() }),
            None => {
                let metrics = self.get(&format!("{}/metrics", self.base)).await.unwrap_or_default();
                cache_config(&metrics).map(|tokens| Pool { tokens, from: "/metrics".to_owned() })
            }
        };
        let plan = plan.map(|(profile, digest)| PlanName { profile, digest });
        Ok(Facts { url: self.base.clone(), model: id, max_model_len, kv_pool, plan })
    }

    /// Ids of some tokens that its vocabulary has.
    ///
    /// # Errors
    /// If it does not tell, or too few.
    pub async fn tokens(&self, model: &str) -> Result<Vec<u32>, EndpointError> {
        let url = format!("{}/tokenize", self.base);
        let none = |message: String| EndpointError::NoTokens { url: url.clone(), message };
        let body = json!({ "model": model, "prompt": TEXT, "add_special_tokens": false }).to_string();
        let request = self.client.post(&url).header("content-type", "application/json").body(body).timeout(PATIENCE);
        let response = request.send().await.map_err(|error| none(cause(&error)))?;
        if response.status() != StatusCode::OK {
            return Err(none(format!("status {}", response.status().as_u16())));
        }
        let text = response.text().await.map_err(|error| none(cause(&error)))?;
        #[derive(Deserialize)]
        struct Tokens {
            tokens: Vec<u32>,
        }
        let Tokens { mut tokens } = serde_json::from_str(&text).map_err(|error| none(error.to_string()))?;
        tokens.sort_unstable();
        tokens.dedup();
        if tokens.len() < FEWEST_TOKENS {
            return Err(none(format!("only {} different ones in a text of {} characters", tokens.len(), TEXT.len())));
        }
        Ok(tokens)
    }

    /// Whether it still answers.
    ///
    /// # Errors
    /// What happens instead.
    pub(crate) async fn is_there(&self) -> Result<(), EndpointError> {
        self.get(&format!("{}/v1/models", self.base)).await.map(|_| ())
    }

    /// Where requests for `model` go.
    pub(crate) fn target(&self, model: &str, limit: Duration) -> Target {
        let url = format!("{}/v1/completions", self.base);
        Target { client: self.client.clone(), url, model: model.to_owned(), limit }
    }

    async fn get(&self, url: &str) -> Result<String, EndpointError> {
        let silent = |error: reqwest::Error| EndpointError::Silent { url: url.to_owned(), message: cause(&error) };
        let response = self.client.get(url).timeout(PATIENCE).send().await.map_err(silent)?;
        let status = response.status();
        let text = response.text().await.map_err(silent)?;
        if status != StatusCode::OK {
            let message = text.trim().chars().take(200).collect();
            return Err(EndpointError::Status { url: url.to_owned(), status: status.as_u16(), message });
        }
        Ok(text)
    }
}

/// Tokens of the KV pools that vLLM's metrics tell of, one series an engine.
fn cache_config(metrics: &str) -> Option<u64> {
    let label = |line: &str, name: &str| -> Option<u64> {
        let rest = line.split_once(&format!("{name}=\""))?.1;
        rest.split_once('"')?.0.parse().ok()
    };
    let series = metrics.lines().filter(|line| line.starts_with("vllm:cache_config_info{"));
    let tokens = series.map(|line| label(line, "num_gpu_blocks")?.checked_mul(label(line, "block_size")?));
    tokens.sum::<Option<u64>>().filter(|tokens| *tokens > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_of_vllm_is_blocks_by_their_size() {
        let line =
            "vllm:cache_config_info{block_size=\"16\",cache_dtype=\"fp8\",engine=\"0\",num_gpu_blocks=\"18523\"} 1.0";
        assert_eq!(cache_config(&format!("# HELP x\n{line}\n")), Some(296_368));
        assert_eq!(cache_config(&format!("{line}\n{line}\n")), Some(592_736));
        assert_eq!(cache_config("vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1"), None);
        assert_eq!(cache_config(""), None);
    }

    #[test]
    fn addresses_are_taken_with_and_without_a_path() {
        for address in ["http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/"] {
            assert_eq!(Endpoint::new(address, None).expect("an endpoint").base, "http://host:8000");
        }
        for address in ["host:8000", "ftp://host", "http://", ""] {
            assert!(matches!(Endpoint::new(address, None), Err(EndpointError::Address(_))), "{address}");
        }
        assert!(matches!(Endpoint::new("http://host", Some("a\nb")), Err(EndpointError::Key)));
    }
}
