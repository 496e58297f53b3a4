//! The page through TLS, in a browser that trusts the server's CA and judges its certificate by itself.

use serde_json::json;

use super::{Chat, with_page};
use crate::harness::{Browser, COSTLY, Over, Pki, STAFF, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn a_page_over_https_talks_over_wss_and_polls_where_there_is_no_websocket() {
    let pki = Pki::new();
    let members = Setup::passwords().and(&pki.table(""));
    let site = with_page(members, "staff", "127.0.0.2:0", "tls = \"door\"");
    let server = site.start().await;
    let url = format!("https://{}/", server.addr(Over::WebSocket));
    let browser = Browser::start_trusting(&pki.servers.pem()).await;
    let [alice, bob] = STAFF;
    let mut pages = Vec::new();
    for ((user, password, _), transport) in [
        (alice, "websocket"),
        (bob, "websocket"),
        (COSTLY, "polling"),
    ] {
        let page = browser.window().await;
        if transport == "polling" {
            // A browser that has never heard of it.
            let old = json!({"source": "delete window.WebSocket;"});
            page.cdp("Page.addScriptToEvaluateOnNewDocument", old).await;
        }
        let chat = Chat::open_at(page, &url).await;
        chat.log_in(user, password, "tea").await;
        chat.is_in("tea").await;
        assert_eq!(chat.transport().await, transport, "{user}");
        pages.push((user, chat));
    }
    for (user, chat) in &pages {
        chat.say(&format!("{user} is here")).await;
        for (_, other) in &pages {
            other.sees(user, &format!("{user} is here")).await;
        }
    }
    let users: Vec<&str> = pages.iter().map(|(user, _)| *user).collect();
    for (_, chat) in &pages {
        chat.shows_members(&users).await;
        // Nothing but the page's own origin was asked, and a browser takes that for safe.
        let asked = "performance.getEntriesByType('resource').map((entry) => entry.name)";
        let asked = chat.texts(asked).await;
        assert!(!asked.is_empty(), "the page has files");
        assert!(asked.iter().all(|it| it.starts_with(&url)), "{asked:?}");
        let is_safe = chat.page.run("return isSecureContext;", ()).await;
        assert_eq!(is_safe, true);
        chat.is_unharmed().await;
    }
    browser.close().await;
}
