//! Everybody in one room: two pages, a terminal, and every tool that speaks the protocol.

use serde_json::{Value, json};
use tokio::process::Command;

use super::{
    Chat, site,
    tool::{Terminal, Tool},
};
use crate::harness::{Browser, Client, Key, Middlebox, Over, Upgrade};

/// `curl`, with a session that polls.
struct Curl {
    base: String,
    auth: String,
    ack: u64,
    heard: Vec<Value>,
}

impl Curl {
    async fn enter(base: &str, user: &str, room: &str) -> Self {
        let mut curl = Self {
            base: base.to_owned(),
            auth: "X-Nothing: yet".to_owned(),
            ack: 0,
            heard: Vec::new(),
        };
        let login = json!({"user": user}).to_string();
        let session = curl.run(&["--json", &login], "/v1/session").await;
        let id = session["session"].as_str().expect("a session");
        curl.auth = format!("Authorization: Bearer {id}");
        curl.command(json!({"type": "join", "room": room})).await;
        curl
    }

    async fn run(&self, args: &[&str], path: &str) -> Value {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail-with-body", "--max-time", "20"])
            .args(["-H", &self.auth])
            .args(args)
            .arg(format!("{}{path}", self.base))
            .kill_on_drop(true);
        let output = curl.output().await.expect("curl is installed");
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{path}: {said} {complaint}");
        serde_json::from_str(&said).expect("an answer is JSON")
    }

    async fn command(&self, command: Value) -> Value {
        self.run(&["--json", &command.to_string()], "/v1/commands")
            .await
    }

    async fn receives(&mut self, sender: &str, text: &str) {
        let fits = |event: &Value| {
            event["type"] == "message" && event["user"] == sender && event["text"] == text
        };
        while !self.heard.iter().any(fits) {
            let path = format!("/v1/events?wait=10&ack={}", self.ack);
            let answer = self.run(&[], &path).await;
            let events = answer["events"].as_array().expect("a list");
            assert!(
                !events.is_empty(),
                "curl waits in vain for {sender}: {text}; it has {:?}",
                self.heard
            );
            self.heard.extend(events.iter().cloned());
            self.ack = answer["next"].as_u64().expect("a number");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pages_a_terminal_and_every_tool_talk_in_one_room() {
    let server = site().start().await;
    let web = server.addr(Over::WebSocket);
    let line = server.addr(Over::Tcp);
    let port = line.port().to_string();
    let browser = Browser::start().await;

    let ann = Chat::enter(&browser, web, "ann", "tea").await;
    let ben = Chat::enter(&browser, web, "ben", "tea").await;
    let mut nc = Tool::start("nc", &["127.0.0.1", &port]);
    nc.enter("nina", "tea").await;
    let url = format!("ws://{web}/v1/ws");
    let mut websocat = Tool::start("websocat", &[&url]);
    websocat.enter("walt", "tea").await;
    let mut wscat = Tool::start("wscat", &["-c", &url]);
    wscat.wake(r#"{"type":"ping"}"#).await;
    wscat.enter("wanda", "tea").await;
    let mut curl = Curl::enter(&format!("http://{web}"), "carl", "tea").await;
    let terminal = Terminal::start(80, 30).await;
    let chat = format!("chinwag chat tcp://{line} --user theo --room tea");
    terminal.type_line(&chat).await;
    terminal.shows("tea as theo").await;

    let everybody = ["ann", "ben", "carl", "nina", "theo", "walt", "wanda"];
    for page in [&ann, &ben] {
        page.shows_members(&everybody).await;
        assert_eq!(page.transport().await, "websocket");
    }

    ann.say("Kettle is on").await;
    ben.say("Two sugars, please").await;
    nc.send("tea", "Lemon for me").await;
    websocat.send("tea", "Milk first, \"obviously\"").await;
    wscat.send("tea", "Café über alles ☕").await;
    let sent = curl
        .command(json!({"type": "send", "room": "tea", "text": "Is <b>this</b> & that?"}))
        .await;
    assert_eq!(sent["type"], "sent");
    terminal.type_line("Good evening from a terminal").await;

    let said = [
        ("ann", "Kettle is on"),
        ("ben", "Two sugars, please"),
        ("nina", "Lemon for me"),
        ("walt", "Milk first, \"obviously\""),
        ("wanda", "Café über alles ☕"),
        ("carl", "Is <b>this</b> & that?"),
        ("theo", "Good evening from a terminal"),
    ];
    for (sender, text) in said {
        for page in [&ann, &ben] {
            page.sees(sender, text).await;
        }
        for tool in [&mut nc, &mut websocat, &mut wscat] {
            tool.receives(sender, text).await;
        }
        curl.receives(sender, text).await;
        if sender != "theo" {
            terminal.shows(text).await;
        }
    }
    for (page, own) in [(&ann, "ann"), (&ben, "ben")] {
        assert_eq!(page.messages().await.len(), said.len());
        let marked = page
            .texts(
                "[...document.querySelectorAll('#log .own .sender')].map((own) => own.textContent)",
            )
            .await;
        assert_eq!(marked, [own], "whose messages are marked as one's own");
    }

    terminal.type_line("/users").await;
    terminal.shows("ann, ben").await;
    terminal.type_line("/quit").await;
    nc.type_line(r#"{"type":"leave","room":"tea"}"#).await;
    for page in [&ann, &ben] {
        page.shows_members(&["ann", "ben", "carl", "walt", "wanda"])
            .await;
        page.notices("nina").await;
        page.notices("theo").await;
        page.is_unharmed().await;
    }
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_in_several_rooms_and_shows_one() {
    let server = site().start().await;
    let browser = Browser::start().await;
    let ann = Chat::enter(&browser, server.addr(Over::WebSocket), "ann", "tea").await;
    ann.say("in tea").await;
    ann.sees("ann", "in tea").await;
    ann.join("garden").await;
    assert!(ann.messages().await.is_empty(), "another room's messages");
    let mut ben = Client::login(server.addr(Over::Tcp), Over::Tcp, "ben").await;
    ben.enter("tea").await;
    ben.say("tea", "are you there?").await;
    let unread = "document.querySelector('#rooms button[data-room=tea]').innerText.includes('1') \
        && document.title.includes('1')";
    ann.page.until("one unread message", unread, ()).await;
    ann.turn_to("tea").await;
    let read = "!document.querySelector('#rooms').innerText.includes('1') && !document.title.includes('1')";
    ann.page.until("no unread message", read, ()).await;
    ann.sees("ben", "are you there?").await;
    ann.sees("ann", "in tea").await;
    // What happened while another room was shown, and stands above a message by now.
    ann.notices("ben joined").await;
    ann.shows_members(&["ann", "ben"]).await;
    ann.turn_to("garden").await;
    ann.shows_members(&["ann"]).await;
    ann.page.click("#leave").await;
    ann.is_in("tea").await;
    let rooms = ann
        .texts("[...document.querySelectorAll('#rooms button[data-room]')].map((button) => button.dataset.room)")
        .await;
    assert_eq!(rooms, ["tea"]);
    // Enter sends, Shift and Enter begin a new line.
    ann.page.fill("#composer textarea", "two").await;
    ann.page.press(Key::ENTER, &[Key::SHIFT]).await;
    ann.page
        .run(
            "document.activeElement.setRangeText('lines', 4, 4, 'end');",
            (),
        )
        .await;
    ann.page.press(Key::ENTER, &[]).await;
    ann.sees("ann", "two\nlines").await;
    ann.page.click("#logout").await;
    let form = "document.querySelector('#login').checkVisibility()";
    ann.page.until("the form of the log-in", form, ()).await;
    ben.events_until("ann's leave", |event| {
        event["type"] == "leave" && event["user"] == "ann" && event["reason"] == "logout"
    })
    .await;
    ann.is_unharmed().await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reloads_the_page_or_closes_it_leaves_no_name_behind() {
    let server = site().start().await;
    let web = server.addr(Over::WebSocket);
    let mut ben = Client::login(server.addr(Over::Tcp), Over::Tcp, "ben").await;
    ben.enter("tea").await;
    let browser = Browser::start().await;
    let blocked = Middlebox::before(web, [Upgrade::Forbid, Upgrade::Forbid]).await;
    for (user, addr) in [("ann", web), ("pat", blocked.addr())] {
        let chat = Chat::enter(&browser, addr, user, "tea").await;
        let gone = |event: &Value| event["type"] == "leave" && event["user"] == user;
        chat.page.reload().await;
        ben.events_until("the leave of who reloads", gone).await;
        chat.is_ready().await;
        let remembered = "return [...document.querySelectorAll('#login input:not([type=password])')]\
            .map((input) => input.value);";
        let remembered = chat.page.run(remembered, ()).await;
        assert_eq!(remembered, json!([user, "tea"]));
        chat.log_in(user, "", "tea").await;
        chat.is_in("tea").await;
        chat.is_unharmed().await;
        chat.page.close().await;
        ben.events_until("the leave of who closes the page", gone)
            .await;
    }
    browser.close().await;
}
