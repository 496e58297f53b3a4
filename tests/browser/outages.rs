//! Networks that break WebSocket, and servers that go away.

use serde_json::json;

use super::{Chat, in_words, site, with_page};
use crate::harness::{
    Browser, Client, Middlebox, Over, Program, Server, Setup, Upgrade, eventually,
};

/// The page and somebody else in room `tea` hear each other.
async fn talks_with(chat: &Chat<'_>, user: &str, other: &mut Client, round: &str) {
    let (question, answer) = (format!("{round}: hello?"), format!("{round}: hello!"));
    chat.say(&question).await;
    let heard = other.events_until("the page's message", |event| event["text"] == question);
    let heard = heard.await;
    assert_eq!(heard.last().unwrap()["user"], user);
    chat.sees(user, &question).await;
    other.say("tea", &answer).await;
    chat.sees(&other.name, &answer).await;
    other
        .events_until("its own message", |event| event["text"] == answer)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_websocket_the_page_polls() {
    let server = site().start().await;
    let web = server.addr(Over::WebSocket);
    let mut tess = Client::login(server.addr(Over::Tcp), Over::Tcp, "tess").await;
    tess.enter("tea").await;
    let browser = Browser::start().await;
    for (user, refusal) in [
        ("fay", Some(Upgrade::Forbid)),
        ("cleo", Some(Upgrade::Close)),
        ("olive", None),
    ] {
        let office = Middlebox::before(web, refusal).await;
        let page = browser.window().await;
        if refusal.is_none() {
            // A browser that has never heard of it.
            let old = json!({"source": "delete window.WebSocket;"});
            page.cdp("Page.addScriptToEvaluateOnNewDocument", old).await;
        }
        let chat = Chat::open_in(page, office.addr()).await;
        chat.log_in(user, "", "tea").await;
        chat.is_in("tea").await;
        assert_eq!(chat.transport().await, "polling", "{refusal:?}");
        assert_eq!(office.upgrades(), usize::from(refusal.is_some()));
        chat.shows_members(&["tess", user]).await;
        talks_with(&chat, user, &mut tess, "refused").await;
        chat.page.click("#logout").await;
        tess.events_until("the page's leave", |event| {
            event["type"] == "leave" && event["user"] == user && event["reason"] == "logout"
        })
        .await;
        chat.is_unharmed().await;
    }
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_new_websocket_delivers_nothing_the_page_polls_and_gets_its_name_back() {
    let server = site().start().await;
    let mut tess = Client::login(server.addr(Over::Tcp), Over::Tcp, "tess").await;
    tess.enter("tea").await;
    let office = Middlebox::before(server.addr(Over::WebSocket), [Upgrade::Swallow]).await;
    let browser = Browser::start().await;
    let chat = Chat::open(&browser, office.addr()).await;
    chat.log_in("sue", "", "tea").await;
    // The log-in reached the server and its answer did not: the name is taken, by the page's own session.
    chat.becomes("waiting").await;
    is_taken(&server, "sue").await;
    in_words(&chat.words().await);
    office.release();
    chat.is_in("tea").await;
    assert_eq!(chat.transport().await, "polling");
    chat.shows_members(&["sue", "tess"]).await;
    talks_with(&chat, "sue", &mut tess, "swallowed").await;
    chat.is_unharmed().await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_websocket_stops_delivering_the_page_polls_and_says_that_messages_may_be_missing() {
    // Silence is noticed at the second ping: soon, so that the test need not wait long.
    let server = site().and("[sessions]\ntimeout = \"10s\"").start().await;
    let mut tess = Client::login(server.addr(Over::Tcp), Over::Tcp, "tess").await;
    tess.enter("tea").await;
    let web = server.addr(Over::WebSocket);
    let office = Middlebox::before(web, [Upgrade::Pass, Upgrade::Swallow]).await;
    let browser = Browser::start().await;
    let chat = Chat::enter(&browser, office.addr(), "sue", "tea").await;
    assert_eq!(chat.transport().await, "websocket");
    talks_with(&chat, "sue", &mut tess, "before").await;
    office.swallow();
    tess.say("tea", "nobody hears this on the page").await;
    let off = "document.querySelector('#status').dataset.state !== 'online'";
    chat.page.until("the page to notice", off, ()).await;
    in_words(&chat.words().await);
    chat.is_in("tea").await;
    assert_eq!(chat.transport().await, "polling");
    assert_eq!(office.upgrades(), 2);
    chat.admits_a_gap().await;
    chat.sees("tess", "before: hello!").await;
    chat.shows_members(&["sue", "tess"]).await;
    talks_with(&chat, "sue", &mut tess, "after").await;
    chat.is_unharmed().await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_logs_out_while_the_page_is_coming_back_is_out() {
    let server = site().start().await;
    let web = server.addr(Over::WebSocket);
    let office = Middlebox::before(web, [Upgrade::Pass, Upgrade::Ignore]).await;
    let browser = Browser::start().await;
    let chat = Chat::enter(&browser, office.addr(), "sue", "tea").await;
    office.cut();
    eventually("the page to try again", async || {
        (office.upgrades() == 2).then_some(())
    })
    .await;
    chat.becomes("connecting").await;
    chat.page.click("#logout").await;
    let out = "document.querySelector('#login').checkVisibility()";
    chat.page.until("the form to log in", out, ()).await;
    chat.log_in("sue", "", "tea").await;
    chat.is_in("tea").await;
    chat.is_unharmed().await;
    browser.close().await;
}

/// Nobody else can have this name.
async fn is_taken(server: &Server, name: &str) {
    let mut other = Client::connect(server.addr(Over::Tcp), Over::Tcp, name).await;
    let answer = other
        .try_log_in(json!({"type": "login", "user": name}))
        .await;
    assert_eq!(answer["code"], "name_in_use", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_server_the_page_comes_back_by_itself() {
    // An address that no other test binds, so that nobody takes the port between two servers.
    let site = |port: u16| with_page(Setup::default(), "guests", &format!("127.0.0.4:{port}"), "");
    let mut server = Program::start(&site(0)).await;
    let web = server.table("web");
    let site = site(web.port());
    let browser = Browser::start().await;
    let chat = Chat::enter(&browser, web, "ann", "garden").await;
    chat.join("tea").await;
    for signal in ["TERM", "KILL"] {
        let mut ben = Client::login(server.table("line"), Over::Tcp, "ben").await;
        ben.enter("tea").await;
        talks_with(&chat, "ann", &mut ben, &format!("before {signal}")).await;
        drop(ben);
        server.signal(signal).await;
        server.exit().await;
        chat.becomes("waiting").await;
        in_words(&chat.words().await);
        server = Program::start(&site).await;
        chat.is_in("tea").await;
        chat.admits_a_gap().await;
        // What was there before stays readable.
        chat.sees("ben", &format!("before {signal}: hello!")).await;
        chat.shows_members(&["ann"]).await;
        let mut cat = Client::login(server.table("line"), Over::Tcp, "cat").await;
        cat.enter("tea").await;
        talks_with(&chat, "ann", &mut cat, &format!("after {signal}")).await;
        chat.turn_to("garden").await;
        cat.enter("garden").await;
        chat.shows_members(&["ann", "cat"]).await;
        chat.turn_to("tea").await;
    }
    chat.is_unharmed().await;
    browser.close().await;
    server.stop().await;
}
