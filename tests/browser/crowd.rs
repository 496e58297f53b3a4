//! A crowded room: the page stays quick, counts right and stays small.

use std::time::Duration;

use serde_json::json;
use tokio::{task::JoinSet, time::interval};

use super::{Chat, site};
use crate::harness::{Browser, Client, Over, Program, Sloth, allow_descriptors};

/// Members beside the page and those who talk.
const CROWD: usize = 1000;
/// Those who talk, each ten times a second for ten seconds.
const SPEAKERS: usize = 5;
const ROUNDS: usize = 100;

/// Notes how long the page's thread could not be had: a timer of 20 ms that comes late by so many milliseconds.
const CLOCK: &str = "
    window.delays = [];
    let last = performance.now();
    setInterval(() => { const now = performance.now(); window.delays.push(Math.max(0, now - last - 20)); last = now; }, 20);
";

/// Sends a text, and gives the milliseconds until the page shows it.
const ECHO: &str = "
    const [log, box, send] = ['#log', '#composer textarea', '#composer button'].map((it) => document.querySelector(it));
    const begun = performance.now();
    return new Promise((done) => {
        const shown = () => [...log.querySelectorAll('.own .text')].some((text) => text.textContent === arguments[0]);
        new MutationObserver((_, observer) => {
            if (!shown()) return;
            observer.disconnect();
            done(performance.now() - begun);
        }).observe(log, { childList: true, subtree: true });
        box.value = arguments[0];
        box.dispatchEvent(new Event('input', { bubbles: true }));
        send.click();
    });
";

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_members_and_fifty_messages_a_second_leave_the_page_responsive() {
    allow_descriptors(8192).await;
    let limits = "[limits]\ncommands = \"unlimited\"\nmember_queue = \"4MiB\"\n";
    let server = Program::start(&site().and(limits)).await;
    let (line, web) = (server.table("line"), server.table("web"));
    let browser = Browser::start().await;
    let chat = Chat::enter(&browser, web, "ann", "square").await;

    // Members who never read cost this machine nothing: all they are sent fits into their sockets.
    let (mut arriving, mut crowd) = (JoinSet::new(), Vec::new());
    for n in 0..CROWD {
        if arriving.len() == 50 {
            crowd.push(arriving.join_next().await);
        }
        arriving.spawn(async move {
            let name = format!("member-{n:04}");
            Sloth::join_with(line, Over::Tcp, &name, "square", None).await
        });
    }
    while let Some(member) = arriving.join_next().await {
        crowd.push(Some(member));
    }
    assert!(crowd.iter().all(|member| matches!(member, Some(Ok(_)))));
    let mut speakers = Vec::new();
    for n in 0..SPEAKERS {
        let mut speaker = Client::login(line, Over::Tcp, &format!("speaker-{n}")).await;
        speaker.patient().join("square").await;
        speakers.push(speaker);
    }
    let count = (CROWD + SPEAKERS + 1).to_string();
    let counted = "document.querySelector('#count').textContent.trim() === arguments[0]";
    chat.page
        .until("all members to be counted", counted, count.as_str())
        .await;

    chat.page.run(CLOCK, ()).await;
    let mut talking = JoinSet::new();
    for (n, mut speaker) in speakers.into_iter().enumerate() {
        talking.spawn(async move {
            let mut tick = interval(Duration::from_millis(100));
            for round in 0..ROUNDS {
                tick.tick().await;
                let text = format!("round {round} of speaker {n}: the square is loud today");
                let command = json!({"type": "send", "room": "square", "text": text});
                speaker.send_command(command).await;
            }
            speaker
        });
    }
    // In the middle of it the user writes, and sees it there.
    let mut waits = Vec::new();
    for word in ["one", "two", "three"] {
        let wait = chat.page.run(ECHO, word).await;
        waits.push(wait.as_f64().expect("a number").round());
        chat.sees("ann", word).await;
    }
    let _speakers = talking.join_all().await;
    chat.sees(
        "speaker-0",
        &format!(
            "round {} of speaker 0: the square is loud today",
            ROUNDS - 1
        ),
    )
    .await;

    let delays = chat
        .page
        .run("return window.delays.sort((a, b) => a - b);", ())
        .await;
    let delays: Vec<f64> = serde_json::from_value(delays).unwrap();
    let at = |part: f64| delays[(delays.len() as f64 * part) as usize];
    let told = format!(
        "median {:.0} ms, 95 % {:.0} ms, longest {:.0} ms, own messages after {waits:?} ms",
        at(0.5),
        at(0.95),
        delays[delays.len() - 1]
    );
    eprintln!("{told}");
    assert!(at(0.5) < 100.0 && at(0.95) < 500.0, "{told}");
    assert!(delays[delays.len() - 1] < 3000.0, "{told}");
    assert!(waits.iter().all(|wait| *wait < 3000.0), "{told}");

    chat.page
        .until("all members to be counted", counted, count.as_str())
        .await;
    let size = chat
        .page
        .run(
            "return [document.querySelectorAll('*').length, performance.memory.usedJSHeapSize];",
            (),
        )
        .await;
    eprintln!("elements and bytes: {size}");
    assert!(size[0].as_u64() < Some(12_000), "elements: {size}");
    assert!(size[1].as_u64() < Some(50 << 20), "bytes: {size}");
    drop(crowd);
    let few = (SPEAKERS + 1).to_string();
    chat.page
        .until("the crowd to be gone", counted, few.as_str())
        .await;
    chat.is_unharmed().await;
    browser.close().await;
    server.stop().await;
}
