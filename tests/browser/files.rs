//! The files of the page: how many bytes, with which headers; their types; and the client in them without the page.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{process::Command, time::timeout};

use super::{Chat, site};
use crate::harness::{Browser, Client, Http, Over, PATIENCE, Request};

fn web() -> PathBuf {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../web");
    web.canonicalize().expect("the page is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_with_all_its_files_is_under_sixty_kilobytes() {
    let server = site().start().await;
    let web = server.addr(Over::WebSocket);
    let browser = Browser::start().await;
    let chat = Chat::enter(&browser, web, "ann", "tea").await;
    let mut paths = chat
        .texts(
            "[location.pathname, ...performance.getEntriesByType('resource').map((entry) => new URL(entry.name).pathname), \
            ...[...document.querySelectorAll('link[href]')].map((link) => new URL(link.href).pathname)]",
        )
        .await;
    browser.close().await;
    paths.retain(|path| !path.starts_with("/v1/"));
    paths.sort_unstable();
    paths.dedup();
    let mut http = Http::new(web);
    let mut sizes = Vec::new();
    for path in &paths {
        let answer = http.ask(&Request::new("GET", path)).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-encoding"), None, "{path}");
        assert_eq!(
            answer.header("x-content-type-options"),
            Some("nosniff"),
            "{path}"
        );
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(
            policy.contains("default-src 'none'") && !policy.contains("unsafe"),
            "{path}: {policy}"
        );
        sizes.push((answer.body.len(), path.clone()));
    }
    let has = |end: &str| paths.iter().any(|path| path.ends_with(end));
    assert!(has("/") && has("client.js") && has(".css"), "{paths:?}");
    let sum: usize = sizes.iter().map(|(size, _)| size).sum();
    assert!(sum < 60_000, "{sum} bytes: {sizes:?}");
}

#[tokio::test]
async fn the_types_of_the_page_are_right() {
    let config = ["tsconfig.json", "jsconfig.json"]
        .map(|name| web().join(name))
        .into_iter()
        .find(|file| file.exists())
        .expect("a configuration of tsc");
    let mut tsc = Command::new("tsc");
    tsc.args(["--noEmit", "--pretty", "false", "--project"])
        .arg(&config)
        .kill_on_drop(true);
    let output = tsc.output().await.expect("tsc is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let mut list = Command::new("tsc");
    list.args(["--listFilesOnly", "--project"]).arg(&config);
    let listed = list.output().await.expect("tsc is installed");
    let listed = String::from_utf8_lossy(&listed.stdout);
    for file in std::fs::read_dir(web()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let script = Path::new(&name)
            .extension()
            .is_some_and(|extension| extension == "js");
        assert!(
            !script || listed.contains(&format!("/{name}")),
            "{name} is not checked"
        );
    }
    let settings = std::fs::read_to_string(&config).unwrap();
    for setting in ["checkJs", "strict"] {
        assert!(
            settings.contains(&format!("\"{setting}\": true")),
            "{settings}"
        );
    }
}

/// Logs in, enters the room that others are in, tells what it hears until somebody says `bye`, and answers once.
const NODE: &str = r"
    import { Client } from 'CLIENT';
    const heard = [];
    const client = new Client({ url: 'URL', websocket: globalThis.WebSocket ? '/v1/ws' : null, polling: true }, async (event) => {
        if (event.type !== 'message') return;
        heard.push(`${event.user}: ${event.text}`);
        if (event.text === 'hello node') await client.send('tea', `hello ${event.user}`);
        if (event.text === 'bye') {
            await client.logout();
            console.log(JSON.stringify(heard));
        }
    });
    await client.login({ user: 'node' });
    const room = await client.join('tea');
    await client.send('tea', `here with ${[...room.members].filter((name) => name !== 'node')}`);
";

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_the_page_works_in_node() {
    let server = site().start().await;
    let mut ben = Client::login(server.addr(Over::Tcp), Over::Tcp, "ben").await;
    ben.enter("tea").await;
    let script = NODE
        .replace("CLIENT", web().join("client.js").to_str().unwrap())
        .replace("URL", &format!("http://{}", server.addr(Over::Polling)));
    let mut node = Command::new("node");
    node.args(["--input-type=module", "--eval", &script])
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let node = node.spawn().expect("node is installed");
    let says = |text: &'static str| {
        move |event: &serde_json::Value| event["user"] == "node" && event["text"] == text
    };
    ben.events_until("node to come", says("here with ben"))
        .await;
    ben.say("tea", "hello node").await;
    ben.events_until("node's answer", says("hello ben")).await;
    ben.say("tea", "bye").await;
    let left = ben.events_until("node's leave", |event| event["type"] == "leave");
    assert_eq!(left.await.last().unwrap()["reason"], "logout");
    // Nothing is left that would keep a program running.
    let output = timeout(PATIENCE, node.wait_with_output()).await;
    let output = output.expect("node ends by itself").unwrap();
    let heard: Vec<String> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        heard,
        [
            "node: here with ben",
            "ben: hello node",
            "node: hello ben",
            "ben: bye"
        ]
    );
}
