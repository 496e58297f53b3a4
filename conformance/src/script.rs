//! Scripts: scenes that are played over every transport and over mixes of them.
//!
//! One step a line:
//!
//! | step | means |
//! | --- | --- |
//! | `alice, bob in lobby` | they enter in this order, and each takes every join that it is due |
//! | `alice > join lobby` | a command, and its ordinary answer |
//! | `alice > join Lobby -> error room_invalid lower` | the same with another answer: code, words of the message |
//! | `alice > {"type":"ping"} -> {"type":"pong"}` | both sides as JSON; the answer may have more fields |
//! | `alice > raw nonsense -> error bad_json` | a frame as it stands |
//! | `bob < message lobby alice hi` | the very next event of bob |
//! | `bob < {"type":"join","seq":3}` | the same as JSON |
//! | `bob < bye replaced` | the end of the session, with the close that belongs to it |
//!
//! Whoever first appears logs in under that name, unless the first step is `connect` or `login`. Events are taken
//! strictly one after another, so an event too many fails the next expectation. In JSON, `"*"` is anything that is
//! there, `"-"` is nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Client, PATIENCE, Server};

/// Plays `script` once. The users come over the transports with these names: the first, the second, … and round again.
pub(crate) async fn play(server: &Server, mix: &[String], script: &str) {
    let mut stage = Stage {
        server,
        mix,
        cast: BTreeMap::new(),
    };
    let steps = script.lines().map(str::trim);
    for step in steps.filter(|step| !step.is_empty()) {
        eprintln!("{}: {step}", mix.join(", "));
        stage.step(step).await;
    }
}

struct Stage<'a> {
    server: &'a Server,
    mix: &'a [String],
    cast: BTreeMap<String, Client>,
}

impl Stage<'_> {
    async fn step(&mut self, step: &str) {
        if let Some((who, room)) = step
            .split_once(" in ")
            .filter(|(who, _)| !who.contains(['>', '<']))
        {
            return self.enter(who, room).await;
        }
        if let Some((who, event)) = step.split_once(" < ") {
            return self.hear(who.trim(), event).await;
        }
        let (who, line) = step
            .split_once(" > ")
            .unwrap_or_else(|| panic!("no such step: {step}"));
        let (line, answer) = match line.split_once(" -> ") {
            Some((line, answer)) => (line.trim(), Some(answer.trim())),
            None => (line.trim(), None),
        };
        self.command(who.trim(), line, answer).await;
    }

    async fn actor(&mut self, who: &str, log_in: bool) -> &mut Client {
        if !self.cast.contains_key(who) {
            let over = &self.mix[self.cast.len() % self.mix.len()];
            let mut client = self.server.connect(over, who).await;
            if log_in {
                client.log_in(json!({"type": "login", "user": who})).await;
            }
            self.cast.insert(who.to_owned(), client);
        }
        self.cast.get_mut(who).expect("it was put there above")
    }

    async fn enter(&mut self, who: &str, room: &str) {
        let names: Vec<&str> = who.split(',').map(str::trim).collect();
        for name in &names {
            self.actor(name, true).await.enter(room).await;
        }
        for (n, name) in names.iter().enumerate() {
            for other in &names[n + 1..] {
                let other = self.cast[*other].name.clone();
                self.hear(name, &format!("join {room} {other}")).await;
            }
        }
    }

    async fn hear(&mut self, who: &str, expected: &str) {
        let client = self
            .cast
            .get_mut(who)
            .unwrap_or_else(|| panic!("{who} is not there"));
        let words: Vec<&str> = expected.split_whitespace().collect();
        let expected = match words[..] {
            ["bye", code] => {
                client.expect_bye(code).await;
                return;
            }
            ["join", room, user] => json!({"type": "join", "room": room, "user": user}),
            ["leave", room, user, reason] => {
                json!({"type": "leave", "room": room, "user": user, "reason": reason})
            }
            ["message", room, user, ..] => {
                json!({"type": "message", "room": room, "user": user, "text": words[3..].join(" ")})
            }
            _ => {
                serde_json::from_str(expected).unwrap_or_else(|error| panic!("{error}: {expected}"))
            }
        };
        let event = client.event_within(&expected.to_string(), PATIENCE).await;
        assert!(
            includes(&event, &expected),
            "{who} expected {expected}, got {event}"
        );
    }

    async fn command(&mut self, who: &str, line: &str, answer: Option<&str>) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let explicit =
            matches!(words[0], "connect" | "login") || line.starts_with("{\"type\":\"login\"");
        let client = self.actor(who, !explicit).await;
        let (command, usual) = match words[..] {
            ["connect"] => return,
            ["join", room] => (json!({"type": "join", "room": room}), "init"),
            ["leave", room] => (json!({"type": "leave", "room": room}), "left"),
            ["users", room] => (json!({"type": "users", "room": room}), "users"),
            ["say", room, ..] => (
                json!({"type": "send", "room": room, "text": words[2..].join(" ")}),
                "sent",
            ),
            ["ping"] => (json!({"type": "ping"}), "pong"),
            ["logout"] => (json!({"type": "logout"}), "bye"),
            ["login"] => (json!({"type": "login", "user": who}), "session"),
            ["login", user] => (json!({"type": "login", "user": user}), "session"),
            ["login", user, password] => (
                json!({"type": "login", "user": user, "password": password}),
                "session",
            ),
            ["raw", ..] => {
                let object = client
                    .raw(line.strip_prefix("raw ").unwrap_or_default())
                    .await;
                return meets(who, &object, answer.expect("a raw frame has an answer"));
            }
            _ => {
                let command: Value =
                    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                (command, "*")
            }
        };
        let logs_in = command["type"] == "login";
        let object = if logs_in {
            client.try_log_in(command).await
        } else {
            client.command(command).await
        };
        match answer {
            Some(answer) => meets(who, &object, answer),
            None if usual == "*" => panic!("{line} needs an answer"),
            None => assert_eq!(object["type"], usual, "{who} got {object}"),
        }
        if object["type"] == "bye" {
            client
                .expect_closed(object["code"].as_str().expect("a bye has a code"))
                .await;
        }
    }
}

/// Checks an answer against `error CODE words…`, a bare type, or JSON.
fn meets(who: &str, object: &Value, expected: &str) {
    let words: Vec<&str> = expected.split_whitespace().collect();
    if expected.starts_with('{') {
        let expected =
            serde_json::from_str(expected).unwrap_or_else(|error| panic!("{error}: {expected}"));
        assert!(
            includes(object, &expected),
            "{who} expected {expected}, got {object}"
        );
    } else if let ["error", code, ..] = words[..] {
        assert_eq!(
            (&object["type"], &object["code"]),
            (&json!("error"), &json!(code)),
            "{who}: {object}"
        );
        let message = object["message"].as_str().expect("an error has a message");
        let (said, wanted) = (message.to_lowercase(), words[2..].join(" ").to_lowercase());
        assert!(
            said.contains(&wanted),
            "{who}: {message:?} does not say {wanted:?}"
        );
        assert!(!message.is_empty(), "{who}: {object}");
    } else {
        assert_eq!(object["type"], expected, "{who} got {object}");
    }
}

/// Whether `actual` has everything that `expected` names. In `expected`, `"*"` is anything that is there and `"-"` is
/// nothing.
#[must_use]
pub fn includes(actual: &Value, expected: &Value) -> bool {
    match (actual, expected) {
        (_, Value::String(any)) if any == "*" => !actual.is_null(),
        (Value::Object(actual), Value::Object(expected)) => expected.iter().all(|(key, value)| {
            if value == "-" {
                !actual.contains_key(key)
            } else {
                actual
                    .get(key)
                    .is_some_and(|actual| includes(actual, value))
            }
        }),
        (Value::Array(actual), Value::Array(expected)) => {
            actual.len() == expected.len()
                && actual
                    .iter()
                    .zip(expected)
                    .all(|(actual, expected)| includes(actual, expected))
        }
        _ => actual == expected,
    }
}
