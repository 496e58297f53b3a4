//! Serving the page: its files, their headers, and whose listener they are on. What it does is in `browser`.

use std::net::SocketAddr;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{Answer, Client, Http, Over, PATIENCE, Program, Request, Server, Setup};

const GUESTS: &str = "[authenticators.guests]\nkind = \"anonymous\"\n";

/// A server with the page, on one port with both HTTP kinds, whose listener has the keys `more`.
async fn site(more: &str) -> Server {
    let shared = format!("bind = \"127.0.0.1:0\"\nauth = [\"guests\"]\n{more}");
    let document = format!(
        "[server]\ndefault_room = \"lobby\"\n\
         [transports.web]\nkind = \"websocket\"\n{shared}\n\
         [transports.poll]\nkind = \"http-polling\"\n{shared}\n\
         [web]\nbind = \"127.0.0.1:0\"\n{GUESTS}"
    );
    start(&document).await
}

async fn start(document: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    Server::start(chinwag::Plugins::builtin(), document, folder).await
}

async fn ask(addr: SocketAddr, request: &Request) -> Answer {
    Http::new(addr).ask(request).await
}

async fn get(addr: SocketAddr, path: &str) -> Answer {
    ask(addr, &Request::new("GET", path)).await
}

/// The paths in `src`, `href` and `import` of a text.
fn named(text: &str) -> Vec<String> {
    text.split(['"', '\''])
        .filter(|word| word.starts_with('/') || word.starts_with("./"))
        .map(|word| word.trim_start_matches('.').to_owned())
        .filter(|path| path.contains('.') && !path.contains([' ', '$']))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_all_that_it_names_is_there_with_its_type() {
    let server = site("").await;
    let addr = server.table("web");
    let mut left = vec!["/".to_owned()];
    let mut seen = Vec::new();
    let mut bytes = 0;
    while let Some(path) = left.pop() {
        if seen.contains(&path) {
            continue;
        }
        let answer = get(addr, &path).await;
        assert_eq!(answer.status, 200, "{path}");
        let expected = match path.rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            "json" => "application/json",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(answer.header("content-type"), Some(expected), "{path}");
        bytes += answer.body.len();
        left.extend(named(&answer.text()));
        seen.push(path);
    }
    for path in [
        "/app.js",
        "/client.js",
        "/style.css",
        "/icon.svg",
        "/chinwag.json",
    ] {
        assert!(
            seen.iter().any(|it| it == path),
            "{path} is not among {seen:?}"
        );
    }
    assert!(bytes < 60_000, "{bytes} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_forbids_what_the_page_does_not_need() {
    let server = site("").await;
    for path in ["/", "/app.js", "/style.css", "/chinwag.json"] {
        let answer = get(server.table("poll"), path).await;
        let policy = answer.header("content-security-policy").unwrap();
        let rules: Vec<&str> = policy.split("; ").collect();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(rules.contains(&rule), "{rule} is missing in {policy}");
        }
        assert!(
            !policy.contains("unsafe") && !policy.contains('*'),
            "{policy}"
        );
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        assert!(answer.header("permissions-policy").is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_browser_has_already_is_not_sent_again() {
    let server = site("").await;
    let addr = server.table("web");
    let mut tags = Vec::new();
    for path in ["/", "/client.js", "/chinwag.json"] {
        let tag = get(addr, path).await.header("etag").unwrap().to_owned();
        assert!(
            tag.starts_with('"') && tag.ends_with('"'),
            "{tag} is strong"
        );
        let mut http = Http::new(addr);
        for known in [
            tag.clone(),
            format!("\"x\", {tag}"),
            format!("W/{tag}"),
            "*".into(),
        ] {
            let request = Request::new("GET", path).header("If-None-Match", &known);
            let answer = http.ask(&request).await;
            assert_eq!(answer.status, 304, "{path}: {known}");
            assert_eq!(answer.header("etag"), Some(&*tag));
            assert_eq!(answer.header("cache-control"), Some("no-cache"));
            assert!(answer.header("content-security-policy").is_some());
        }
        for other in ["\"x\"", "", "W/\"x\"", tag.trim_matches('"')] {
            let request = Request::new("GET", path).header("If-None-Match", other);
            assert_eq!(http.ask(&request).await.status, 200, "{path}: {other}");
        }
        assert!(!tags.contains(&tag), "each file has its own");
        tags.push(tag);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_get_without_a_body_and_nothing_else_is_allowed() {
    let server = site("").await;
    let addr = server.table("web");
    for path in ["/", "/app.js", "/chinwag.json"] {
        let whole = get(addr, path).await;
        let head = head_of(addr, path).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = format!("content-length: {}", whole.body.len());
        assert!(head.contains(&length), "{head} has not {length}");
        assert!(head.ends_with("\r\n\r\n"), "a body follows: {head}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
            let answer = ask(addr, &Request::new(method, path)).await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        }
    }
    for path in [
        "/index.html",
        "/APP.js",
        "/app.js/",
        "//",
        "/web/app.js",
        "/types.d.ts",
    ] {
        assert_eq!(get(addr, path).await.status, 404, "{path}");
    }
}

/// All that comes in answer to HEAD until the server closes. By hand, since such an answer has a length and no body.
async fn head_of(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = Request::new("HEAD", path).header("Connection", "close");
    stream.write_all(&request.bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    timeout(PATIENCE, read)
        .await
        .expect("the server closes")
        .unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_served_to_the_hosts_of_its_listener_alone() {
    let server = site("hosts = [\"chat.example.org\"]").await;
    let addr = server.table("web");
    for (host, status) in [
        ("chat.example.org", 200),
        ("localhost", 200),
        ("127.0.0.1:8080", 200),
        ("evil.example", 421),
        ("chat.example.org.evil.example", 421),
    ] {
        for path in ["/", "/chinwag.json"] {
            let request = Request::bare("GET", path).header("Host", host);
            assert_eq!(ask(addr, &request).await.status, status, "{host}{path}");
        }
    }
    assert_eq!(ask(addr, &Request::bare("GET", "/")).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_told_what_its_server_is_like() {
    let server = site("").await;
    let told = get(server.table("web"), "/chinwag.json").await.json();
    let names = "1 to 32 letters (a to z), digits, dots, dashes or underscores";
    assert_eq!(
        told,
        json!({"websocket": "/v1/ws", "polling": true, "room": "lobby", "password": "none", "names": names})
    );
    let document = format!(
        "[names]\nmin = 3\nmax = 9\ncharset = \"unicode\"\n\
         [transports.web]\nkind = \"websocket\"\npath = \"/chat\"\nbind = \"127.0.0.1:0\"\nauth = [\"guests\"]\n\
         [transports.poll]\nkind = \"http-polling\"\nbind = \"127.0.0.2:0\"\nauth = [\"guests\"]\n\
         [web]\nbind = \"127.0.0.1:0\"\n{GUESTS}"
    );
    let server = start(&document).await;
    let told = get(server.table("web"), "/chinwag.json").await.json();
    let names = "3 to 9 letters or digits of any script, without spaces";
    assert_eq!(
        told,
        json!({"websocket": "/chat", "polling": false, "room": null, "password": "none", "names": names})
    );
    assert_eq!(get(server.table("poll"), "/").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_table_there_is_no_page() {
    let server = Setup::default().start().await;
    for over in [Over::WebSocket, Over::Polling] {
        for path in ["/", "/app.js", "/chinwag.json"] {
            assert_eq!(get(server.addr(over), path).await.status, 404, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_does_not_get_in_the_way_of_its_transports() {
    let server = site("").await;
    let addr = server.table("web");
    assert_eq!(server.table("poll"), addr);
    let mut alice = Client::login(addr, Over::WebSocket, "alice").await;
    let mut bob = Client::login(addr, Over::Polling, "bob").await;
    alice.enter("lobby").await;
    bob.enter("lobby").await;
    assert_eq!(get(addr, "/").await.status, 200);
    alice.next_event().await;
    alice.say("lobby", "one port").await;
    assert_eq!(bob.next_event().await["text"], "one port");
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_the_program_serves_the_page_beside_its_transports() {
    let server = Program::start_alone().await;
    let page = get(server.table("web"), "/").await;
    assert_eq!(page.status, 200);
    assert!(page.text().starts_with("<!doctype html>"));
    let told = get(server.table("web"), "/chinwag.json").await.json();
    assert_eq!(told["room"], "lobby");
    let url = format!("http://{}/", server.table("web"));
    assert!(
        server.log().iter().any(|line| line.contains(&url)),
        "nobody is told where the page is: {:#?}",
        server.log()
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_could_reach_no_server_is_refused() {
    let transport =
        "[transports.line]\nkind = \"tcp\"\nbind = \"127.0.0.1:4999\"\nauth = [\"guests\"]\n";
    let document = format!("{transport}[web]\nbind = \"127.0.0.1:4999\"\n{GUESTS}");
    let folder = tempfile::tempdir().unwrap();
    let plugins = chinwag::Plugins::builtin();
    let started = chinwag::Server::start(plugins, &document, folder.path()).await;
    let error = started.expect_err("it is refused").to_string();
    assert!(
        error.contains("web.bind") && error.contains("websocket") && error.contains("http-polling"),
        "{error}"
    );
}
