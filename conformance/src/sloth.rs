//! A member that does not read: what it is sent stays in the server's hands.

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{Hear, Heard, Http, Link, PATIENCE, Request, code, link::Wire};

/// A member that stopped reading when it had joined.
pub struct Sloth(Inner);

enum Inner {
    /// The writer is kept for the connection's sake.
    Push(Wire, Box<dyn Hear>),
    Poll {
        http: Http,
        id: String,
    },
}

impl std::fmt::Debug for Sloth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sloth").finish_non_exhaustive()
    }
}

impl Sloth {
    /// Logs in, joins `room`, reads the `init` and nothing after it.
    ///
    /// # Panics
    /// If it can't, as everything here does that the server should not have done.
    pub async fn join(link: Link, name: &str, room: &str) -> Self {
        let login = json!({"type": "login", "user": name}).to_string();
        let join = json!({"type": "join", "room": room}).to_string();
        let (mut wire, hear) = match (link.wire, link.hear) {
            (Wire::Poll { mut http, .. }, _) => {
                let request = Request::new("POST", "/v1/session").json(&login);
                let session = http.ask(&request).await.json();
                let id = session["session"].as_str().expect("a session").to_owned();
                let command = Request::new("POST", "/v1/commands").bearer(&id).json(join);
                assert_eq!(http.ask(&command).await.status, 200);
                return Self(Inner::Poll { http, id });
            }
            (wire, hear) => (wire, hear),
        };
        let mut hear = hear.expect("a connection has two directions");
        for command in [login, join] {
            wire.speak(&command).await.expect("the server reads");
            let answer = timeout(PATIENCE, hear.hear()).await.expect("an answer");
            let Heard::Object(answer) = answer else {
                panic!("{answer:?} in answer to {command}")
            };
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(!answer.contains("\"error\""), "{answer}");
        }
        Self(Inner::Push(wire, hear))
    }

    /// Reads again, to the end: how many objects there were, and the last one's `code` if it is a `bye`.
    ///
    /// # Panics
    /// If there is no end within [`PATIENCE`].
    pub async fn wake(self) -> (usize, Option<String>) {
        let read = async {
            match self.0 {
                Inner::Push(_wire, mut hear) => {
                    let (mut many, mut last) = (0, Value::Null);
                    while let Heard::Object(object) = hear.hear().await {
                        many += 1;
                        last = serde_json::from_slice(&object).expect("objects are JSON");
                    }
                    (many, last)
                }
                Inner::Poll { mut http, id } => {
                    let poll = Request::new("GET", "/v1/events").bearer(&id);
                    let answer = http.ask(&poll).await.json();
                    let events = answer["events"].as_array();
                    let events = events.cloned().unwrap_or_else(|| vec![answer.clone()]);
                    let last = events.last().cloned().unwrap_or_default();
                    (events.len(), last)
                }
            }
        };
        let (many, last) = timeout(PATIENCE, read)
            .await
            .expect("the connection of a slow reader is closed");
        (many, (last["type"] == "bye").then(|| code(&last)))
    }
}
