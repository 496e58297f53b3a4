//! The client of the page without the page, in Node: with a real server, and with one that answers as a test says.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

use super::{files::web, site};
use crate::harness::{Client, Over, PATIENCE};

/// Runs a module that knows the scripts of the page by name, until nothing is left that would keep a program running.
/// Gives what it writes.
async fn run(script: &str) -> String {
    let script = ["client", "words"]
        .iter()
        .fold(script.to_owned(), |script, name| {
            let file = web().join(format!("{name}.js"));
            script.replace(&format!("'{name}'"), &format!("'{}'", file.display()))
        });
    let mut node = Command::new("node");
    node.args(["--input-type=module", "--eval", &script])
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let node = node.spawn().expect("node is installed");
    let output = timeout(PATIENCE, node.wait_with_output()).await;
    let output = output.expect("node ends by itself").unwrap();
    assert!(output.status.success(), "node fails");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a module with a client that polls a server made of `answers`, by what is asked for; gives what it writes as JSON.
async fn polls(answers: &str, script: &str) -> Value {
    let begin = r"
        import { Client } from 'client';
        const login = { type: 'session', session: 's', user: 'ann', timeout_ms: 30000, ping_every_ms: 15000, limits: {} };
        const init = { type: 'init', room: 'tea', users: [], count: 0, presence: 'each', epoch: 'e', seq: 0, recovered: false };
        const error = (code, more) => ({ status: 503, type: 'error', code, message: '', ...more });
        const asked = { session: 0, events: 0, commands: 0 };
        const fetch = (url, { method, signal }) => new Promise((resolve, reject) => {
            const what = method === 'DELETE' ? '' : url.pathname.slice('/v1/'.length);
            const object = answers[what]?.(asked[what]++);
            if (object) resolve(new Response(JSON.stringify(object), { status: object.status ?? 200 }));
            else signal?.addEventListener('abort', () => reject(signal.reason));
        });
        const until = async (state) => { while (client.state !== state) await pause(5); };
        const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
        const code = (refusal) => refusal.code;
        const times = { answer: 200, backoff: 1, ghost: 60000 };
        const client = new Client({ url: 'http://127.0.0.1', polling: true, fetch, times }, () => {});
        await client.login({ user: 'ann' });
    ";
    let said = run(&format!(
        "const answers = {{ session: () => login, {answers} }};{begin}{script}"
    ))
    .await;
    serde_json::from_str(&said).unwrap_or_else(|_| panic!("no JSON: {said}"))
}

/// Logs in, enters the room that others are in, tells what it hears until somebody says `bye`, and answers once.
const TALK: &str = r"
    import { Client } from 'client';
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
    let script = TALK.replace("URL", &format!("http://{}", server.addr(Over::Polling)));
    let talk = async {
        let says = |text: &'static str| {
            move |event: &Value| event["user"] == "node" && event["text"] == text
        };
        ben.events_until("node to come", says("here with ben"))
            .await;
        ben.say("tea", "hello node").await;
        ben.events_until("node's answer", says("hello ben")).await;
        ben.say("tea", "bye").await;
        let left = ben.events_until("node's leave", |event| event["type"] == "leave");
        assert_eq!(left.await.last().unwrap()["reason"], "logout");
    };
    let (said, ()) = tokio::join!(run(&script), talk);
    let heard: Vec<String> = serde_json::from_str(&said).unwrap();
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

#[tokio::test]
async fn a_room_that_gave_no_answer_can_be_entered_after_all() {
    let answers = "commands: (times) => times && init";
    let script = r"
        const first = await client.join('tea').catch(code);
        const { name } = await client.join('tea').catch(code);
        client.logout();
        console.log(JSON.stringify([first, name]));
    ";
    assert_eq!(polls(answers, script).await, json!(["lost", "tea"]));
}

#[tokio::test]
async fn nobody_makes_the_client_ask_before_the_server_allows() {
    let answers = "events: (times) => error('unavailable', times && { retry_ms: 60000 })";
    let script = r"
        await until('waiting');
        await pause(20);
        client.nudge();
        await pause(20);
        client.logout();
        console.log(asked.events);
    ";
    assert_eq!(polls(answers, script).await, 2);
}

#[tokio::test]
async fn a_pause_of_a_session_that_is_over_leaves_no_trace() {
    let answers = "session: (times) => times === 1 ? error('name_in_use') : login, \
        events: (times) => times ? null : error('unavailable', { retry_ms: 150 }), \
        commands: () => error('session_expired', { end: 'session_expired', retry_ms: 0 })";
    let script = r"
        await pause(20);
        await client.request({ type: 'ping' }).catch(code);
        while (asked.session < 2) await pause(5);
        await until('waiting');
        const send = await client.send('tea', 'Hello?').catch(code);
        await pause(300);
        client.nudge();
        await until('online');
        client.logout();
        console.log(JSON.stringify([send, asked.session]));
    ";
    assert_eq!(polls(answers, script).await, json!(["unreachable", 3]));
}

#[tokio::test]
async fn a_client_that_is_put_away_begins_no_session() {
    let said = run(r"
        import { Client } from 'client';
        class Slow {
            send() { throw new Error('not open'); }
            close() {}
        }
        let asked = 0;
        const fetch = () => { asked++; return new Promise(() => {}); };
        const settings = { url: 'http://127.0.0.1', websocket: '/', polling: true, WebSocket: Slow, fetch };
        const client = new Client(settings, () => {});
        const login = client.login({ user: 'ann' }).catch((refusal) => refusal.code);
        client.suspend();
        console.log(JSON.stringify([await login, asked]));
    ")
    .await;
    assert_eq!(said.trim(), r#"["lost",0]"#);
}

#[tokio::test]
async fn what_an_authenticator_says_in_public_is_told() {
    let said = run(r"
        import { refused } from 'words';
        console.log(refused({ code: 'auth_failed', message: 'This account is suspended.', retryMs: null }));
    ")
    .await;
    assert!(
        said.contains("This account is suspended.") && said.contains("password"),
        "{said}"
    );
}
