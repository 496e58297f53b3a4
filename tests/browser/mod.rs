//! The chat page in a real browser.
//!
//! The tests know the page as its users do, by what it shows and by labels, and by the few ids, classes and attributes
//! that are listed here: `html[data-ready]`, `#login`, `#problem`, `#dismiss`, `#status[data-state][data-transport]`,
//! `#rooms button[data-room]`, `#join`, `#leave`, `#logout`, `#log article.message[data-seq]` (`.own`, `.sender`, `time`,
//! `.text`) and `.notice` (`.quiet`, `.gap`), `#members li[data-user]`, `#count`, `#composer`; and by the names of fields.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::{Browser, Over, Page, Screen, Setup};

mod access;
mod client;
mod crowd;
mod ends;
mod files;
mod harmless;
mod outages;
mod pictures;
mod secure;
mod talk;
mod tool;

/// A server with the page, its two transports on the address of the page, and lines beside it; for guests.
fn site() -> Setup {
    with_page(Setup::default(), "guests", "127.0.0.2:0", "")
}

/// The same for the members of the password file.
fn members_site() -> Setup {
    with_page(Setup::passwords(), "staff", "127.0.0.2:0", "")
}

/// Adds the page at an address, with log-ins by the authenticator of that name and more keys of its listener.
fn with_page(setup: Setup, auth: &str, bind: &str, more: &str) -> Setup {
    let shared = format!("bind = \"{bind}\"\nauth = [\"{auth}\"]\n{more}");
    let tables = format!(
        r#"
        [server]
        default_room = "lobby"
        [transports.web]
        kind = "websocket"
        {shared}
        [transports.poll]
        kind = "http-polling"
        {shared}
        poll_pace = "10ms"
        [web]
        bind = "{bind}"
        "#
    );
    setup
        .only(&[Over::Tcp])
        .on(Over::Tcp, "timeout = \"0s\"")
        .and(&tables)
}

/// The page, used by somebody.
struct Chat<'b> {
    page: Page<'b>,
}

impl<'b> Chat<'b> {
    /// Opens the page and waits until it can be used.
    async fn open(browser: &'b Browser, addr: SocketAddr) -> Self {
        Self::open_in(browser.window().await, addr).await
    }

    /// The same in a window that is there already.
    async fn open_in(page: Page<'b>, addr: SocketAddr) -> Self {
        Self::open_at(page, &format!("http://{addr}/")).await
    }

    /// The same at an address that may be one of TLS.
    async fn open_at(page: Page<'b>, url: &str) -> Self {
        page.go(url).await;
        let chat = Self { page };
        chat.is_ready().await;
        chat
    }

    /// Waits until the scripts of the page run.
    async fn is_ready(&self) {
        let ready = "document.documentElement.dataset.ready === 'true'";
        self.page.until("the page to be ready", ready, ()).await;
    }

    /// Opens the page, logs in as a guest and enters a room.
    async fn enter(browser: &'b Browser, addr: SocketAddr, user: &str, room: &str) -> Self {
        let chat = Self::open(browser, addr).await;
        chat.log_in(user, "", room).await;
        chat.is_in(room).await;
        chat.shows_member(user).await;
        chat
    }

    /// Fills the form and sends it, with a password where there is one.
    async fn log_in(&self, user: &str, password: &str, room: &str) {
        self.page.fill("#login input[name=user]", user).await;
        if !password.is_empty() {
            self.page
                .fill("#login input[name=password]", password)
                .await;
        }
        self.page.fill("#login input[name=room]", room).await;
        self.page
            .click("#login :is(button:not([type]), [type=submit])")
            .await;
    }

    /// Enters one more room.
    async fn join(&self, room: &str) {
        self.page.fill("#join input[name=room]", room).await;
        self.page.click("#join button").await;
        self.is_in(room).await;
    }

    /// Shows a room that it is in.
    async fn turn_to(&self, room: &str) {
        self.page
            .click(&format!("#rooms button[data-room='{room}']"))
            .await;
        self.is_in(room).await;
    }

    /// Waits until this room is shown and its members are known.
    async fn is_in(&self, room: &str) {
        let shown = "document.querySelector('#status').dataset.state === 'online' \
            && [...document.querySelectorAll('#rooms button[aria-current]')].some((button) => \
                button.dataset.room === arguments[0] && button.ariaCurrent !== 'false') \
            && document.querySelector('#members li')";
        self.page
            .until(&format!("room {room} to be shown"), shown, room)
            .await;
    }

    /// Types a message and sends it with the button.
    async fn say(&self, text: &str) {
        self.page.fill("#composer textarea", text).await;
        self.page.click("#composer button").await;
    }

    /// Puts a text into the message box without typing it.
    async fn paste(&self, text: &str) {
        let paste = "const box = document.querySelector('#composer textarea'); box.focus(); \
            box.value = arguments[0]; box.dispatchEvent(new Event('input', { bubbles: true }));";
        self.page.run(paste, text).await;
    }

    /// Waits until the shown room has this message once, of this sender.
    async fn sees(&self, sender: &str, text: &str) {
        let count = "[...document.querySelectorAll('#log article.message')].filter((article) => \
            article.querySelector('.sender').textContent === arguments[0] \
            && article.querySelector('.text').textContent === arguments[1]).length";
        let args = json!([sender, text]);
        let what = format!("{sender}'s message {text:?}");
        let times = self.page.until(&what, count, args).await;
        assert_eq!(times, 1, "{what} stands there more than once");
    }

    /// The messages of the shown room, each as `sender: text`.
    async fn messages(&self) -> Vec<String> {
        self.texts(
            "[...document.querySelectorAll('#log article.message')].map((article) => \
            `${article.querySelector('.sender').textContent}: ${article.querySelector('.text').textContent}`)",
        )
        .await
    }

    /// Waits until somebody is among the members.
    async fn shows_member(&self, user: &str) {
        let there = "[...document.querySelectorAll('#members li')]\
            .some((member) => member.dataset.user === arguments[0])";
        self.page
            .until(&format!("{user} to be a member"), there, user)
            .await;
    }

    /// Waits until the members are exactly these, and as many as the page says.
    async fn shows_members(&self, users: &[&str]) {
        let mut sorted = users.to_vec();
        sorted.sort_unstable();
        let exact = "JSON.stringify([...document.querySelectorAll('#members li')]\
            .map((member) => member.dataset.user).sort()) === JSON.stringify(arguments[0]) \
            && document.querySelector('#count').textContent.trim() === String(arguments[0].length)";
        self.page
            .until(&format!("the members {sorted:?}"), exact, json!([sorted]))
            .await;
    }

    /// Waits until the connection is in this state.
    async fn becomes(&self, state: &str) {
        let is = "document.querySelector('#status').dataset.state === arguments[0]";
        self.page.until(&format!("state {state}"), is, state).await;
    }

    /// What carries the session: `websocket`, `polling` or nothing.
    async fn transport(&self) -> String {
        let transport = "return document.querySelector('#status').dataset.transport;";
        text(&self.page.run(transport, ()).await)
    }

    /// Waits until the page complains, and gives its words.
    async fn complains(&self) -> String {
        let words = "(document.querySelector('#problem').checkVisibility() \
            && document.querySelector('#problem').innerText.trim())";
        let words = text(&self.page.until("words about a problem", words, ()).await);
        in_words(&words);
        words
    }

    /// All words that the page shows.
    async fn words(&self) -> String {
        text(&self.page.run("return document.body.innerText;", ()).await)
    }

    /// Waits until the log of the shown room says that messages may be missing.
    async fn admits_a_gap(&self) {
        let gap = "[...document.querySelectorAll('#log .notice.gap')].map((gap) => gap.innerText).join(' ')";
        let words = text(&self.page.until("a notice of a gap", gap, ()).await);
        assert!(
            words.contains("missing") || words.contains("missed"),
            "that messages may be missing is not said plainly: {words}"
        );
    }

    /// Waits until the shown room tells quietly of somebody, in these words.
    async fn notices(&self, words: &str) {
        let told = "[...document.querySelectorAll('#log .notice.quiet')].some((notice) => \
            notice.checkVisibility() && notice.innerText.includes(arguments[0]))";
        self.page
            .until(&format!("the notice {words:?}"), told, words)
            .await;
    }

    /// The list of texts that an expression gives.
    async fn texts(&self, expression: &str) -> Vec<String> {
        let list = self.page.run(&format!("return {expression};"), ()).await;
        serde_json::from_value(list).expect("a list of texts")
    }

    /// Nothing is wider than the window, so that nobody has to scroll sideways, and nothing is out of reach.
    async fn fits(&self, screen: Screen) {
        self.page.look(screen).await;
        let wide = self
            .texts(
                "[document.documentElement, document.body, ...document.querySelectorAll('#log, #rooms, #members')] \
                .filter((element) => element.scrollWidth > element.clientWidth) \
                .map((element) => `${element.localName} ${element.scrollWidth} > ${element.clientWidth}`)",
            )
            .await;
        assert!(wide.is_empty(), "{screen:?}: {wide:?}");
        let away = self
            .texts(
                "[...document.querySelectorAll('button, input, textarea')] \
                .filter((element) => element.checkVisibility({ visibilityProperty: true })) \
                .map((element) => [element, element.getBoundingClientRect()]) \
                .filter(([, box]) => box.left < 0 || box.right > innerWidth || box.top < 0 || box.bottom > innerHeight) \
                .map(([element, box]) => `${element.outerHTML.slice(0, 80)} ${JSON.stringify(box)}`)",
            )
            .await;
        assert!(away.is_empty(), "{screen:?}: {away:?}");
        let inner = self.page.run("return innerWidth;", ()).await;
        assert_eq!(inner, screen.width, "the window itself grew");
    }

    /// Nothing went wrong in the page that its user or its developer would complain of.
    async fn is_unharmed(&self) {
        let suffered = self.page.suffered().await;
        assert!(suffered.is_empty(), "{suffered:#?}");
        let empty = "[...document.querySelectorAll('#log > *')].filter((entry) => entry.checkVisibility() && !entry.innerText.trim())\
            .map((entry) => entry.outerHTML)";
        let empty = self.texts(empty).await;
        assert!(empty.is_empty(), "nothing is said in {empty:#?}");
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value}"))
        .to_owned()
}

/// A sentence for people, not a code of the protocol.
fn in_words(words: &str) {
    assert!(
        words.split_whitespace().count() >= 3
            && !words.contains('_')
            && !words.contains("undefined"),
        "not told in words: {words:?}"
    );
}
