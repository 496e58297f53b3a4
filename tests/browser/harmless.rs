//! What people write is shown as text, whatever they write; and the page runs nothing but its own.

use serde_json::json;

use super::{Chat, site};
use crate::harness::{Browser, Client, Over, Screen, Server};

/// What somebody may try. Without the check of the server's that refuses them, control characters come through, too.
fn hostile() -> Vec<String> {
    let mut texts = [
        "<script>alert('script')</script>",
        "<img src=x onerror=alert('image')>",
        "<svg onload=alert('svg')><a xlink:href='javascript:alert(1)'>x</a></svg>",
        "<iframe src='javascript:alert(1)'></iframe><style>*{display:none}</style>",
        "javascript:alert('link')",
        "JaVaScRiPt:alert(1) data:text/html,<script>alert(1)</script> vbscript:msgbox(1)",
        "https://example.org/\"onmouseover=\"alert(1)",
        "</title><title>owned</title><base href='https://example.org/'>",
        "&lt;b&gt; &amp;amp; &#60;script&#62;",
        "${alert(1)} {{constructor.constructor('alert(1)')()}} __proto__",
        "first line\nsecond line\n\n\ttabbed",
        "evil\u{202e}gnp.exe\u{202d}\u{2066}\u{2067}\u{2068}\u{2069}\u{202a}\u{202b}\u{202c} end",
        "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m red \u{0}\u{8}\u{7f}\rover",
        "السلام عليكم and שלום, mixed (in brackets) 123",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("w".repeat(4096));
    texts.push(format!("z{}", "\u{0336}\u{0361}\u{0489}".repeat(300)));
    texts
}

/// How the page shows a text: what would turn the direction of what follows, or drive a terminal, by its number.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => shown += &number(c),
            c if c.is_ascii_control() => shown += &number(c),
            c => shown.push(c),
        }
    }
    shown
}

fn number(c: char) -> String {
    format!("U+{:04X}", u32::from(c))
}

async fn writer(server: &Server, name: &str, room: &str) -> Client {
    let mut writer = Client::login(server.addr(Over::Tcp), Over::Tcp, name).await;
    writer.enter(room).await;
    writer
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_texts_are_shown_and_do_nothing() {
    let server = site()
        .and("[room]\nvalidators = [\"length\"]")
        .start()
        .await;
    let browser = Browser::start().await;
    // The longest names that there are, of the widest letters.
    let (name, room) = ("W".repeat(32), "w".repeat(64));
    let chat = Chat::enter(&browser, server.addr(Over::WebSocket), "ann", &room).await;
    chat.page.look(Screen::PHONE).await;
    let title = chat.page.run("return document.title;", ()).await;
    let mut mallory = writer(&server, &name, &room).await;
    let texts = hostile();
    for text in &texts {
        mallory.say(&room, text).await;
    }
    mallory.say(&room, "the end").await;
    chat.sees(&name, "the end").await;

    let found = chat
        .texts("[...document.querySelectorAll('#log .text')].map((text) => text.textContent)")
        .await;
    let expected: Vec<_> = texts.iter().map(|text| shown(text)).collect();
    assert_eq!(found[..expected.len()], expected);
    mallory
        .command(json!({"type": "send", "room": room, "text": "", "data": {"dice": 6}}))
        .await;
    chat.sees(&name, r#"{"dice":6}"#).await;
    let foreign = chat
        .texts(
            "[...document.querySelectorAll('#log .text *')] \
            .filter((element) => element.localName !== 'a' && element.className !== 'trick') \
            .map((element) => element.outerHTML)",
        )
        .await;
    assert!(foreign.is_empty(), "texts became elements: {foreign:#?}");
    let links = chat
        .texts("[...document.querySelectorAll('#log .text a')].map((link) => `${link.protocol} ${link.rel} ${link.getAttributeNames().sort()}`)")
        .await;
    for link in &links {
        assert!(
            link.starts_with("https:") && link.contains("noopener"),
            "{links:?}"
        );
        assert!(!link.contains("onmouseover"), "{links:?}");
    }
    assert_eq!(chat.page.run("return document.title;", ()).await, title);
    for screen in [Screen::PHONE, Screen::DESKTOP] {
        chat.fits(screen).await;
    }
    chat.is_unharmed().await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_the_web_become_links_and_nothing_else_does() {
    let server = site().start().await;
    let browser = Browser::start().await;
    let chat = Chat::enter(&browser, server.addr(Over::WebSocket), "ann", "tea").await;
    let mut mallory = writer(&server, "mallory", "tea").await;
    let texts = [
        (
            "see https://example.org/a?b=c&d=%20#e.",
            vec!["https://example.org/a?b=c&d=%20#e"],
        ),
        (
            "(http://example.org) and https://example.com/x_(y)",
            vec!["http://example.org/", "https://example.com/x_(y)"],
        ),
        (
            "ftp://example.org file:///etc/passwd mailto:a@example.org example.org",
            vec![],
        ),
        ("javascript://example.org/%0aalert(1)", vec![]),
        ("http:// https:/// http://[ http://%", vec![]),
    ];
    for (text, links) in &texts {
        mallory.say("tea", text).await;
        chat.sees("mallory", text).await;
        let found = chat
            .texts("[...[...document.querySelectorAll('#log .text')].at(-1).querySelectorAll('a')].map((link) => link.href)")
            .await;
        assert_eq!(&found, links, "in {text:?}");
    }
    // What stands first leads the eye: it is the host, whatever the direction of the text.
    mallory
        .say("tea", "\u{200f}https://evil.example/\u{200f}/good.example")
        .await;
    let order = "[...document.querySelectorAll('#log .text a')].filter((link) => link.href.includes('evil')).map((link) => { \
        const at = (word) => { \
            const range = new Range(); \
            const start = link.textContent.indexOf(word); \
            range.setStart(link.firstChild, start); \
            range.setEnd(link.firstChild, start + 4); \
            return range.getBoundingClientRect().left; \
        }; \
        return at('evil') < at('good') ? 'in order' : 'turned'; \
    })[0]";
    let order = chat.page.until("the link", order, ()).await;
    assert_eq!(order, "in order");
    let unsafe_links = chat
        .texts(
            "[...document.querySelectorAll('#log .text a')].filter((link) => \
            !link.relList.contains('noopener') || link.target !== '_blank').map((link) => link.outerHTML)",
        )
        .await;
    assert!(unsafe_links.is_empty(), "{unsafe_links:?}");
    chat.is_unharmed().await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_of_the_page_holds_and_the_page_keeps_to_it() {
    let server = site().start().await;
    let web = server.addr(Over::WebSocket);
    let browser = Browser::start().await;
    let chat = Chat::enter(&browser, web, "ann", "tea").await;
    let mut mallory = writer(&server, "mallory", "tea").await;
    mallory.say("tea", "hello").await;
    chat.sees("mallory", "hello").await;
    chat.say("hello yourself").await;
    chat.sees("ann", "hello yourself").await;
    chat.join("garden").await;
    chat.page.click("#leave").await;
    chat.is_in("tea").await;
    chat.page.click("#logout").await;
    chat.log_in("ann", "", "tea").await;
    chat.is_in("tea").await;
    chat.is_unharmed().await;
    let console = chat.page.console().await;
    assert!(console.is_empty(), "a whole session: {console:#?}");
    let origins = chat
        .texts(
            "[...new Set(performance.getEntriesByType('resource').map((entry) => new URL(entry.name).host))]",
        )
        .await;
    assert_eq!(origins, [web.to_string()], "requests left for other hosts");

    // Everything that a hole in the page could let in.
    chat.page
        .run(
            r#"
            window.broken = [];
            // A refusal may be an exception, too.
            const attempt = (breach) => { try { breach(); } catch {} };
            const add = (name, set) => attempt(() => {
                const element = document.createElement(name);
                attempt(() => set(element));
                document.body.append(element);
            });
            add('script', (script) => script.append('broken.push("inline script")'));
            add('script', (script) => { script.src = 'https://example.org/x.js'; });
            add('script', (script) => { script.src = 'data:text/javascript,broken.push("data script")'; });
            add('iframe', (frame) => { frame.srcdoc = '<script>parent.broken.push("frame")</script>'; });
            add('iframe', (frame) => { frame.src = 'https://example.org/'; });
            add('a', (link) => { link.href = 'javascript:broken.push("link")'; link.click(); });
            add('img', (image) => { image.setAttribute('onerror', 'broken.push("handler")'); image.src = '/none.png'; });
            add('img', (image) => { image.src = 'https://example.org/x.png'; image.onload = () => broken.push('image'); });
            add('p', (styled) => { styled.id = 'styled'; styled.setAttribute('style', 'position: fixed'); });
            add('form', (form) => { form.action = 'https://example.org/'; document.body.append(form); form.submit(); });
            attempt(() => { document.body.innerHTML += '<b id="parsed"></b>'; });
            attempt(() => new WebSocket('wss://example.org/'));
            fetch('https://example.org/').then(() => broken.push('fetch'), () => {});
            "#,
            (),
        )
        .await;
    // Each breach is reported, and so none was let through.
    for directive in [
        "script-src",
        "style-src",
        "img-src",
        "frame-src",
        "connect-src",
        "form-action",
    ] {
        let reported =
            "window.suffered.some((report) => report.startsWith('policy ' + arguments[0]))";
        let what = format!("a breach of {directive} to be refused");
        chat.page.until(&what, reported, directive).await;
    }
    let broken = chat.page.run("return window.broken;", ()).await;
    assert_eq!(broken, serde_json::json!([]), "the policy has a hole");
    let styled = "return getComputedStyle(document.querySelector('#styled')).position;";
    assert_eq!(
        chat.page.run(styled, ()).await,
        "static",
        "inline styles work"
    );
    browser.close().await;
}
