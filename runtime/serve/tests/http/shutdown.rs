//! Clients that go away, engines that fail, and the end.

use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::json;

use crate::client::{begin_post, get, post, read_stream};
use crate::setup::{Server, Setup, run, wait_for};

#[test]
fn a_client_that_goes_away_gives_its_pages_back() {
    let server = Server::new();
    run(async {
        for stream in [true, false] {
            server.door.set(false);
            let body = json!({"prompt": vec![600; 20], "max_tokens": 200, "n": 3, "stream": stream});
            let address = server.address;
            let client = tokio::spawn(async move {
                let response = begin_post(address, "/v1/completions", &body).await;
                response.into_body().collect().await.map(|_| ())
            });
            wait_for("its pages", || server.used_pages() > 0).await;
            client.abort();
            let _ = client.await;
            wait_for("its end", || {
                let load = server.engine.statistics().load;
                load.running == 0 && load.waiting == 0 && load.pages.used == 0
            })
            .await;
            let steps = server.door.steps();
            server.door.set(true);
            // The step that was on its way was the last.
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(server.door.steps() <= steps + 1);
        }
        let metrics = get(server.address, "/metrics").await;
        assert!(
            metrics.text().contains("finished_reason=\"abort\"")
                && !metrics.text().contains("finished_reason=\"abort\",model_name=\"google/gemma-test\"} 0")
        );
    });
}

#[test]
fn a_stop_string_ends_the_work_too() {
    let server = Server::new();
    // The answer does not wait for more steps than it needs, nor does it keep its pages.
    server.door.limit(Some(20));
    run(async {
        let body = json!({"prompt": [600], "max_tokens": 200, "stop": "é"});
        let answer = post(server.address, "/v1/completions", &body).await.json();
        assert!(answer["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens < 20), "{answer}");
        wait_for("free pages", || server.used_pages() == 0).await;
    });
}

#[test]
fn a_shutdown_lets_running_requests_finish_and_takes_no_new_ones() {
    let mut server = Server::new();
    server.door.set(false);
    run(async {
        let address = server.address;
        let ask = move |stream: bool| {
            tokio::spawn(async move {
                let body = json!({"prompt": [600], "max_tokens": 50, "stream": stream});
                post(address, "/v1/completions", &body).await
            })
        };
        let (streamed, whole) = (ask(true), ask(false));
        wait_for("both", || {
            let load = server.engine.statistics().load;
            load.running + load.waiting == 2
        })
        .await;
        assert_eq!(get(server.address, "/ready").await.status, 200);
        server.shut_down();
        while get(server.address, "/ready").await.status == 200 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let ready = get(server.address, "/ready").await;
        assert_eq!((ready.status, &ready.error()["code"]), (503, &json!("shutting_down")));
        assert_eq!(get(server.address, "/health").await.status, 200);
        assert_eq!(get(server.address, "/metrics").await.status, 200);
        let refused = post(server.address, "/v1/completions", &json!({"prompt": "a"})).await;
        assert_eq!((refused.status, refused.header("connection")), (503, Some("close")));
        assert!(refused.header("retry-after").is_some());
        server.door.set(true);
        let (streamed, whole) = (streamed.await.expect("an answer"), whole.await.expect("an answer"));
        assert_eq!((streamed.status, whole.status), (200, 200));
        assert_eq!(read_stream(streamed.text(), false, false).choices[0].text, whole.json()["choices"][0]["text"]);
    });
    assert!(server.end().is_clean());
}

#[test]
fn the_grace_has_an_end() {
    let mut setup = Setup::default();
    setup.options.grace = Duration::from_millis(200);
    let mut server = setup.start();
    server.door.set(false);
    let engine = server.engine.clone();
    let address = server.address;
    let client = std::thread::spawn(move || {
        run(async move {
            let body = json!({"prompt": [600], "max_tokens": 50, "stream": true});
            begin_post(address, "/v1/completions", &body).await.into_body().collect().await.is_err()
        })
    });
    run(wait_for("the request", || server.used_pages() > 0));
    server.shut_down();
    assert_eq!(server.end().cut_off, 1);
    assert!(client.join().expect("no panic"), "a stream that was cut off must not look whole");
    run(wait_for("free pages", || engine.statistics().load.pages.used == 0));
}

#[test]
fn a_failed_engine_is_not_hidden() {
    let server = Setup { fail_at: Some(5), ..Setup::default() }.start();
    run(async {
        let body = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 50, "stream": true});
        let answer = post(server.address, "/v1/chat/completions", &body).await;
        let events: Vec<&str> = answer.text().trim_end().split("\n\n").collect();
        let [.., error, done] = events.as_slice() else { panic!("{events:?}") };
        assert!(error.starts_with("data: {\"error\":{\"message\":") && !error.contains("secret"), "{error}");
        assert_eq!(*done, "data: [DONE]");
        for path in ["/health", "/ready"] {
            let answer = get(server.address, path).await;
            assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("engine_failed")));
        }
        let answer = post(server.address, "/v1/completions", &json!({"prompt": "a"})).await;
        assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("engine_failed")));
        let metrics = get(server.address, "/metrics").await;
        let error =
            "vllm:request_success_total{engine=\"0\",finished_reason=\"error\",model_name=\"google/gemma-test\"} 1";
        assert!(metrics.text().contains(error), "{}", metrics.text());
    });
    let server = Setup { fail_at: Some(0), ..Setup::default() }.start();
    run(async {
        let answer = post(server.address, "/v1/completions", &json!({"prompt": "a"})).await;
        assert_eq!((answer.status, &answer.error()["code"]), (500, &json!("internal_error")));
    });
}
