//! The files of the page: how many bytes, with which headers; and their types.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::{Chat, site};
use crate::harness::{Browser, Http, Over, Request};

pub(super) fn web() -> PathBuf {
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
