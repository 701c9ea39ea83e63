//! API keys.

use gemma4_serve::ApiKeys;
use serde_json::json;

use crate::client::{call, get};
use crate::setup::{Setup, run};

#[test]
fn keys_let_in_and_monitoring_needs_none() {
    let mut setup = Setup::default();
    setup.options.api_keys = ApiKeys::new(["first-secret", "", "second-secret"]);
    assert!(!format!("{:?}", setup.options).contains("secret"));
    let server = setup.start();
    run(async {
        let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
        let ask = async |key: Option<&str>| {
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(key.map(|key| ("authorization", key)));
            call(server.address, "POST", "/v1/completions", &headers, body.clone()).await
        };
        for key in ["Bearer first-secret", "bearer second-secret", "Bearer  first-secret"] {
            assert_eq!(ask(Some(key)).await.status, 200, "{key}");
        }
        let wrong = [
            None,
            Some("Bearer "),
            Some("Bearer"),
            Some("first-secret"),
            Some("Bearer first-secre"),
            Some("Basic first-secret"),
        ];
        for key in wrong {
            let answer = ask(key).await;
            assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{key:?}");
            assert_eq!(answer.error()["code"], "invalid_api_key");
        }
        for path in ["/health", "/ready", "/version", "/metrics", "/openapi.json"] {
            assert_eq!(get(server.address, path).await.status, 200, "{path}");
        }
        for path in ["/v1/models", "/server_info", "/nowhere"] {
            assert_eq!(get(server.address, path).await.status, 401, "{path}");
        }
    });
}
