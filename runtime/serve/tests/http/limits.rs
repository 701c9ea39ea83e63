//! Clients that send too much, too slowly, or never read.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use crate::client::{call, get, post};
use crate::setup::{Server, Setup, run, wait_for};

/// Sends bytes as they are, and reads until the service closes the connection.
fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    // The service may close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn short() -> Setup {
    let mut setup = Setup::default();
    setup.options.header_timeout = Duration::from_millis(300);
    setup.options.body_timeout = Duration::from_millis(300);
    setup.options.write_timeout = Duration::from_millis(300);
    setup.options.max_body_bytes = 4096;
    setup.options.max_headers = 20;
    setup.options.max_header_bytes = 8192;
    setup
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let server = short().start();
    run(async {
        for bytes in [5000, 16_000] {
            let large = json!({"prompt": "a".repeat(bytes)});
            let answer = post(server.address, "/v1/completions", &large).await;
            assert_eq!((answer.status, &answer.error()["code"]), (413, &json!("body_too_large")));
        }
    });
    // Without a length that says so.
    let mut request =
        b"POST /tokenize HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..10 {
        request.extend(format!("400\r\n{}\r\n", " ".repeat(0x400)).into_bytes());
    }
    assert!(raw(&server, &request).starts_with("HTTP/1.1 413 "));
}

#[test]
fn too_many_or_too_long_headers_are_refused() {
    let server = short().start();
    let many = (0..30).map(|index| format!("x-{index}: a\r\n")).collect::<String>();
    let answer = raw(&server, format!("GET /health HTTP/1.1\r\nhost: a\r\n{many}\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let long = "a".repeat(20_000);
    let answer = raw(&server, format!("GET /health HTTP/1.1\r\nhost: a\r\nx-long: {long}\r\n\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    run(async { assert_eq!(get(server.address, "/health").await.status, 200) });
}

#[test]
fn headers_and_bodies_have_to_arrive_in_time() {
    let server = short().start();
    // Nothing at all, half of a header, and an idle connection after an answer: all are closed.
    assert_eq!(raw(&server, b""), "");
    let answer = raw(&server, b"GET /health HTTP/1.1\r\nhost: a\r\nx-slow: ");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(raw(&server, b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").starts_with("HTTP/1.1 200 "));
    let half =
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    let answer = raw(&server, half);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("body_timeout"), "{answer}");
}

#[test]
fn a_loris_does_not_hold_up_others() {
    let server = Server::new();
    let held: Vec<TcpStream> = (0..200)
        .map(|index| {
            let mut stream = TcpStream::connect(server.address).expect("a connection");
            let part = ["", "POST /v1/completions HTTP/1.1\r\nhost: a", "GET /"][index % 3];
            stream.write_all(part.as_bytes()).expect("written");
            stream
        })
        .collect();
    run(async {
        let answer = post(server.address, "/v1/completions", &json!({"prompt": "a", "max_tokens": 4})).await;
        assert_eq!(answer.status, 200);
    });
    drop(held);
}

#[test]
fn a_client_that_does_not_read_holds_no_pages_and_is_ended() {
    let mut setup = short();
    setup.options.max_body_bytes = 1 << 20;
    let server = setup.start();
    // More than the sockets' buffers hold: every chunk has the logprobs of 20 tokens.
    let body = json!({"prompt": [600], "n": 64, "max_tokens": 250, "logprobs": 20, "stream": true}).to_string();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(server.address).expect("a connection");
    stream.write_all(request.as_bytes()).expect("written");
    run(async {
        wait_for("the first step", || server.door.steps() > 0).await;
        // Its work is done although nobody reads it, and others are served meanwhile.
        let answer = post(server.address, "/v1/completions", &json!({"prompt": "a", "max_tokens": 4})).await;
        assert_eq!(answer.status, 200);
        wait_for("free pages", || server.used_pages() == 0).await;
    });
    // The connection is ended: what was sent is not the whole answer.
    run(async {
        let ended = "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"} 2";
        while !get(server.address, "/metrics").await.text().contains(ended) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("[DONE]"));
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let server = Setup { max_queue: 2, pages: 70, ..Setup::default() }.start();
    server.door.set(false);
    run(async {
        let body = json!({"prompt": vec![600; 200], "max_tokens": 50});
        let first = tokio::spawn({
            let (address, body) = (server.address, body.clone());
            async move { post(address, "/v1/completions", &body).await }
        });
        wait_for("the first one", || server.engine.statistics().load.running == 1).await;
        let others: Vec<_> = (0..2)
            .map(|_| {
                let (address, body) = (server.address, body.clone());
                tokio::spawn(async move { post(address, "/v1/completions", &body).await })
            })
            .collect();
        wait_for("a full queue", || server.engine.statistics().load.waiting == 2).await;
        let answer = post(server.address, "/v1/completions", &body).await;
        assert_eq!((answer.status, &answer.error()["code"]), (429, &json!("queue_full")));
        assert!(answer.header("retry-after").is_some_and(|after| after.parse::<u64>().is_ok()));
        // A request of which only a part fits leaves nothing behind.
        let many = post(server.address, "/v1/completions", &json!({"prompt": ["a", "b"], "n": 2})).await;
        assert_eq!(many.status, 429);
        assert_eq!(server.engine.statistics().load.waiting, 2);
        server.door.set(true);
        assert_eq!(first.await.expect("an answer").status, 200);
        for other in others {
            assert_eq!(other.await.expect("an answer").status, 200);
        }
    });
}

#[test]
fn request_ids_go_in_and_out() {
    let server = Server::new();
    run(async {
        let ask = async |id: &str| {
            let headers = [("content-type", "application/json"), ("x-request-id", id)];
            let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
            call(server.address, "POST", "/v1/completions", &headers, body).await
        };
        let answer = ask("trace-1.a:B_2").await;
        assert_eq!(answer.header("x-request-id"), Some("trace-1.a:B_2"));
        assert_eq!(answer.json()["id"], "cmpl-trace-1.a:B_2");
        for id in ["", "a b", "a\"b", &"x".repeat(129)] {
            let answer = ask(id).await;
            let own = answer.header("x-request-id").expect("an id").to_owned();
            assert!(own.len() == 32 && own != id, "{own}");
        }
        assert!(get(server.address, "/nowhere").await.header("x-request-id").is_some());
    });
}
