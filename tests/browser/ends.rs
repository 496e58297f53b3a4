//! What the page says when it is refused, and when its session is ended.

use serde_json::json;

use super::{Chat, in_words, members_site, site};
use crate::harness::{Browser, Client, Over, STAFF};

/// How many broken rules a session may have in the test about that.
const VIOLATIONS: u32 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn refused_log_ins_are_told_in_words_and_can_be_mended() {
    let server = site().start().await;
    let web = server.addr(Over::WebSocket);
    let mut ben = Client::login(server.addr(Over::Tcp), Over::Tcp, "ben").await;
    ben.enter("tea").await;
    let browser = Browser::start().await;
    let chat = Chat::open(&browser, web).await;
    let password =
        "return document.querySelector('#login input[name=password]').checkVisibility();";
    assert_eq!(
        chat.page.run(password, ()).await,
        false,
        "guests have no password"
    );

    chat.log_in("Ben", "", "tea").await;
    let taken = chat.complains().await;
    assert!(taken.contains("name") || taken.contains("Ben"), "{taken}");
    chat.log_in("not a name", "", "tea").await;
    let again = "document.querySelector('#problem').innerText.trim() !== arguments[0]";
    chat.page
        .until("another complaint", again, taken.as_str())
        .await;
    let invalid = chat.complains().await;
    assert_ne!(invalid, taken);
    chat.log_in("ann", "", "no such room!").await;
    chat.page
        .until("another complaint", again, invalid.as_str())
        .await;
    chat.complains().await;
    // The log-in itself was right: the page is in, and in no room yet.
    chat.join("tea").await;
    let problem = "return document.querySelector('#problem').checkVisibility() \
        && document.querySelector('#problem').innerText;";
    let left = chat.page.run(problem, ()).await;
    assert!(left == false || left == "", "an old problem stays: {left}");

    // What a room does not take is told as well, and is not lost.
    chat.paste(&"long ".repeat(1000)).await;
    chat.page.click("#composer button").await;
    let too_long = chat.complains().await;
    assert!(too_long.contains("long"), "{too_long}");
    let kept = "return document.querySelector('#composer textarea').value.length;";
    assert!(chat.page.run(kept, ()).await.as_u64() >= Some(4999));
    let twice = "const box = document.querySelector('#composer textarea'); for (const text of ['\u{1}one', '\u{1}two', 'more']) { \
        box.value = text; if (text !== 'more') box.form.requestSubmit(); }";
    chat.page.run(twice, ()).await;
    let in_order = "document.querySelector('#composer textarea').value === arguments[0]";
    chat.page
        .until(
            "what was refused, in order",
            in_order,
            "\u{1}one\n\u{1}two\nmore",
        )
        .await;
    chat.is_unharmed().await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_and_a_replaced_session_stays_away() {
    let limits =
        format!("[limits]\nviolations = {{ rate = 1, per = \"1h\", burst = {VIOLATIONS} }}");
    let server = members_site().and(&limits).start().await;
    let web = server.addr(Over::WebSocket);
    let (user, password, _) = STAFF[0];
    let browser = Browser::start().await;
    let chat = Chat::open(&browser, web).await;
    chat.log_in(user, "looking-glass", "tea").await;
    let wrong = chat.complains().await;
    assert!(wrong.contains("password"), "{wrong}");
    chat.log_in(user, password, "tea").await;
    chat.is_in("tea").await;

    let mut elsewhere = Client::connect(server.addr(Over::Tcp), Over::Tcp, user).await;
    elsewhere
        .log_in(json!({"type": "login", "user": user, "password": password}))
        .await;
    elsewhere.enter("tea").await;
    chat.becomes("ended").await;
    in_words(&chat.words().await);
    // Coming back would replace the other one.
    let event = elsewhere.try_event(std::time::Duration::from_secs(5)).await;
    assert!(event.is_none(), "the page came back by itself: {event:?}");
    chat.becomes("ended").await;

    // Whoever breaks the rules too often is told so, after he was told each time.
    let page = Chat::open(&browser, web).await;
    let (user, password, _) = STAFF[1];
    page.log_in(user, password, "tea").await;
    page.is_in("tea").await;
    for _ in 0..=VIOLATIONS {
        page.paste("a \u{1}control character").await;
        page.page.click("#composer button").await;
        page.complains().await;
        let problem = "document.querySelector('#dismiss')?.checkVisibility() && document.querySelector('#dismiss')";
        page.page
            .until("a way to put the words away", problem, ())
            .await;
    }
    page.becomes("ended").await;
    let words = page.complains().await;
    assert!(words.contains("too often"), "{words}");
    page.is_unharmed().await;
    browser.close().await;
}
