//! The JSON in which session managers elsewhere are asked and told: version 1.
//!
//! `docs/callouts.md` describes it for those who answer and `docs/schemas` has it as JSON Schema. As
//! for authenticators, an answer is taken whole or not at all.

use std::{net::IpAddr, time::Duration};

use chinwag_core::plugin::{AuthFacts, EndCause, Order, SessionData};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::callout::{
    RETRY, Secrets,
    contract::{LONGEST_RETRY, PUBLIC_CHARS, SHORTEST_RETRY, VERSION},
    spread,
};

/// The largest context, as compact JSON; of a stay, with what its session has.
const CONTEXT_BYTES: usize = 16 << 10;

/// What a manager is asked or told.
pub(super) enum Message<'a> {
    /// Are you there?
    Hello,
    /// May the session begin?
    Create {
        facts: &'a AuthFacts,
        control: Option<(&'a str, &'a SecretString)>,
    },
    /// May it enter the room?
    Joined {
        facts: &'a AuthFacts,
        stay: u64,
        room: &'a str,
        data: Option<&'a SessionData>,
    },
    /// It has left the room.
    Left {
        facts: &'a AuthFacts,
        stay: u64,
        room: &'a str,
        data: Option<&'a SessionData>,
        cause: EndCause,
    },
    /// It is over.
    Ended {
        facts: &'a AuthFacts,
        data: Option<&'a SessionData>,
        cause: EndCause,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
struct Wire<'a> {
    v: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    r#type: &'static str,
    #[serde(flatten)]
    session: Option<Session<'a>>,
    #[serde(flatten)]
    facts: Option<Facts<'a>>,
    #[serde(flatten)]
    stay: Option<Stay<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<Control<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a Map<String, Value>>,
}

#[derive(Serialize)]
struct Session<'a> {
    session: &'a str,
    user: &'a str,
}

#[derive(Serialize)]
struct Facts<'a> {
    roles: &'a [String],
    authenticator: &'a str,
    transport: &'a str,
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    existing: Option<&'a str>,
}

#[derive(Serialize)]
struct Stay<'a> {
    stay: u64,
    room: &'a str,
}

#[derive(Serialize)]
struct Control<'a> {
    url: &'a str,
    token: &'a str,
}

impl Message<'_> {
    /// As JSON on one line; `id` numbers it where answers may come in another order.
    pub(super) fn encode(&self, id: Option<u64>) -> Vec<u8> {
        let mut wire = Wire {
            v: VERSION,
            id,
            r#type: "hello",
            session: None,
            facts: None,
            stay: None,
            control: None,
            cause: None,
            context: None,
        };
        let facts = match self {
            Self::Hello => None,
            Self::Create { facts, control } => {
                wire.r#type = "create";
                wire.facts = Some(Facts {
                    roles: &facts.roles,
                    authenticator: &facts.authenticator,
                    transport: &facts.transport,
                    address: facts.address,
                    existing: facts.existing.as_deref(),
                });
                wire.control = control.map(|(url, token)| Control {
                    url,
                    token: token.expose_secret(),
                });
                Some(facts)
            }
            Self::Joined {
                facts,
                stay,
                room,
                data,
            } => {
                wire.r#type = "joined";
                wire.stay = Some(Stay { stay: *stay, room });
                wire.context = data.map(|data| &data.0);
                Some(facts)
            }
            Self::Left {
                facts,
                stay,
                room,
                data,
                cause,
            } => {
                wire.r#type = "left";
                wire.stay = Some(Stay { stay: *stay, room });
                wire.context = data.map(|data| &data.0);
                wire.cause = Some(cause.code());
                Some(facts)
            }
            Self::Ended { facts, data, cause } => {
                wire.r#type = "ended";
                wire.context = data.map(|data| &data.0);
                wire.cause = Some(cause.code());
                Some(facts)
            }
        };
        wire.session = facts.map(|facts| Session {
            session: &facts.key,
            user: &facts.user,
        });
        serde_json::to_vec(&wire).expect("strings and numbers can be written as JSON")
    }
}

/// What a manager says to [`Message::Create`] and [`Message::Joined`].
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Allow(Allowed),
    Refuse(String),
    Unavailable(Duration),
}

/// What goes with being allowed.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowed {
    pub(super) context: Option<Map<String, Value>>,
    /// For the session, before it begins.
    pub(super) orders: Vec<Order>,
}

impl Allowed {
    /// Makes the context of a stay, where it has one, what its session has with its own over it.
    ///
    /// # Errors
    /// They are too large together.
    pub(super) fn lay_over(&mut self, session: &Map<String, Value>) -> Result<(), String> {
        if let Some(own) = &mut self.context {
            let mut all = session.clone();
            all.append(own);
            check_size(&all)?;
            *own = all;
        }
        Ok(())
    }
}

fn check_size(context: &Map<String, Value>) -> Result<(), String> {
    let bytes = serde_json::to_vec(context).map_or(0, |text| text.len());
    if bytes > CONTEXT_BYTES {
        return Err(format!(
            "its `context` has {bytes} bytes, over {CONTEXT_BYTES}"
        ));
    }
    Ok(())
}

impl PartialEq for Allowed {
    fn eq(&self, other: &Self) -> bool {
        let names = |it: &Self| it.orders.iter().map(Order::name).collect::<Vec<_>>();
        self.context == other.context && names(self) == names(other)
    }
}

/// What is answered. Fields that do not go with the verdict are mistakes as well.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    verdict: Word,
    v: Option<u32>,
    #[serde(rename = "id")]
    _id: Option<u64>,
    context: Option<Map<String, Value>>,
    filter: Option<FilterFields>,
    timeout_ms: Option<u64>,
    reason: Option<String>,
    retry_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterFields {
    rooms: Option<Vec<String>>,
    commands: Option<Vec<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Allow,
    Refuse,
    Unavailable,
    Done,
}

/// What was asked, as far as it decides what can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Create,
    Joined,
    /// Anything that is but told.
    Notice,
}

/// Reads an answer to [`Message::Create`] or [`Message::Joined`].
///
/// # Errors
/// What is wrong with it, for the log: no secret is in there.
pub(super) fn read(answer: &[u8], asked: Asked, secrets: &Secrets) -> Result<Answer, String> {
    let said = parse(answer, asked, secrets)?;
    Ok(match said.verdict {
        Word::Allow => Answer::Allow(said.allowed()?),
        Word::Refuse => Answer::Refuse(said.reason(secrets)?),
        Word::Unavailable => Answer::Unavailable(said.retry()),
        Word::Done => return Err("`done` is no answer to a question".into()),
    })
}

/// Reads an answer to anything that is but told. `Some`: it is to be told again, not before so long.
///
/// # Errors
/// As for [`read`].
pub(super) fn read_noted(answer: &[u8]) -> Result<Option<Duration>, String> {
    let said = parse(answer, Asked::Notice, &Secrets::default())?;
    match said.verdict {
        Word::Done => Ok(None),
        Word::Unavailable => Ok(Some(said.retry())),
        Word::Allow | Word::Refuse => Err("a notice is answered with `done`".into()),
    }
}

fn parse(answer: &[u8], asked: Asked, secrets: &Secrets) -> Result<Said, String> {
    let said: Said = serde_json::from_slice(answer).map_err(|error| {
        format!(
            "it is none of the contract: {}",
            secrets.scrub(&error.to_string())
        )
    })?;
    if let Some(v) = said.v.filter(|v| *v != VERSION) {
        return Err(format!("it is of version {v}, not {VERSION}"));
    }
    let fields = [
        ("context", said.context.is_some(), Word::Allow),
        ("filter", said.filter.is_some(), Word::Allow),
        ("timeout_ms", said.timeout_ms.is_some(), Word::Allow),
        ("reason", said.reason.is_some(), Word::Refuse),
        ("retry_ms", said.retry_ms.is_some(), Word::Unavailable),
    ];
    for (field, is_there, goes_with) in fields {
        if is_there && goes_with != said.verdict {
            return Err(format!("`{field}` does not go with its verdict"));
        }
    }
    if asked != Asked::Create && (said.filter.is_some() || said.timeout_ms.is_some()) {
        return Err("`filter` and `timeout_ms` are for `create`".into());
    }
    Ok(said)
}

impl Said {
    fn allowed(self) -> Result<Allowed, String> {
        if let Some(context) = &self.context {
            check_size(context)?;
        }
        let filter = self.filter.map(|it| Order::filter(it.rooms, it.commands));
        let timeout = self.timeout_ms.map(Order::timeout);
        let orders = [filter, timeout].into_iter().flatten();
        Ok(Allowed {
            context: self.context,
            orders: orders
                .collect::<Result<_, _>>()
                .map_err(|refusal| refusal.message)?,
        })
    }

    fn reason(self, secrets: &Secrets) -> Result<String, String> {
        let reason = self.reason.ok_or("it refuses without a `reason`")?;
        let length = reason.chars().count();
        if !(1..=PUBLIC_CHARS).contains(&length) || reason.contains(char::is_control) {
            return Err(format!(
                "its `reason` is not 1 to {PUBLIC_CHARS} characters on one line"
            ));
        }
        if secrets.are_in(&reason) {
            return Err("its `reason` repeats the token".into());
        }
        Ok(reason)
    }

    fn retry(&self) -> Duration {
        self.retry_ms
            .map_or_else(|| spread(RETRY), Duration::from_millis)
            .clamp(SHORTEST_RETRY, LONGEST_RETRY)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use chinwag_core::{CloseReason, LeaveReason, plugin::AuthFacts};
    use serde_json::json;

    use super::*;
    use crate::callout::testing::{documentation, schema};

    fn facts() -> AuthFacts {
        let mut facts = AuthFacts::new("K3y", "Alice", IpAddr::from(Ipv4Addr::LOCALHOST));
        facts.roles = vec!["staff".into()];
        facts.existing = Some("0ld".into());
        facts
    }

    fn data() -> SessionData {
        SessionData(Map::from_iter([("team".to_owned(), json!("red"))]))
    }

    #[test]
    fn every_message_is_of_the_schema() {
        let schema = schema("session-question");
        let (facts, data) = (facts(), data());
        let token = SecretString::from("K3y.s3cret");
        let cause = EndCause::Session(CloseReason::Logout);
        let url = "http://127.0.0.1:9465/v1/control";
        let messages = [
            Message::Hello,
            Message::Create {
                facts: &facts,
                control: None,
            },
            Message::Create {
                facts: &facts,
                control: Some((url, &token)),
            },
            Message::Joined {
                facts: &facts,
                stay: 1,
                room: "lobby",
                data: Some(&data),
            },
            Message::Left {
                facts: &facts,
                stay: 1,
                room: "lobby",
                data: None,
                cause: EndCause::Refused,
            },
            Message::Ended {
                facts: &facts,
                data: Some(&data),
                cause,
            },
        ];
        for message in messages {
            for id in [None, Some(7)] {
                let text = message.encode(id);
                assert!(!text.contains(&b'\n'), "a message is one line");
                let value: Value = serde_json::from_slice(&text).unwrap();
                if let Err(error) = schema.validate(&value) {
                    panic!("{value}: {error}");
                }
            }
        }
    }

    #[test]
    fn every_cause_is_of_the_schema() {
        let schema = schema("session-question");
        let facts = facts();
        let causes = CloseReason::ALL.map(EndCause::Session);
        let alone = [LeaveReason::Left, LeaveReason::Evicted].map(EndCause::Stay);
        for cause in causes.into_iter().chain(alone).chain([EndCause::Refused]) {
            let message = Message::Ended {
                facts: &facts,
                data: None,
                cause,
            };
            let value: Value = serde_json::from_slice(&message.encode(None)).unwrap();
            assert!(schema.is_valid(&value), "{value}");
        }
    }

    #[test]
    fn reader_and_schema_take_the_same_answers() {
        let schema = schema("session-answer");
        let good = [
            json!({"verdict": "allow"}),
            json!({"verdict": "allow", "v": 1, "id": 3, "context": {}}),
            json!({"verdict": "allow", "context": {"team": "red", "seats": [1, null]}}),
            json!({"verdict": "allow", "filter": {}, "timeout_ms": 0}),
            json!({"verdict": "allow", "filter": {"rooms": ["a", "b:*"], "commands": ["send"]}}),
            json!({"verdict": "refuse", "reason": "Your plan has ended."}),
            json!({"verdict": "unavailable"}),
            json!({"verdict": "unavailable", "retry_ms": 5000}),
        ];
        let bad = [
            json!(null),
            json!({}),
            json!({"verdict": "maybe"}),
            json!({"verdict": "allow", "v": 2}),
            json!({"verdict": "allow", "context": "red"}),
            json!({"verdict": "allow", "contextt": {}}),
            json!({"verdict": "allow", "reason": "so"}),
            json!({"verdict": "allow", "filter": {"room": ["a"]}}),
            json!({"verdict": "allow", "filter": {"rooms": ["Lobby"]}}),
            json!({"verdict": "allow", "filter": {"commands": ["logout"]}}),
            json!({"verdict": "allow", "timeout_ms": -1}),
            json!({"verdict": "refuse"}),
            json!({"verdict": "refuse", "reason": ""}),
            json!({"verdict": "refuse", "reason": "a\nb"}),
            json!({"verdict": "unavailable", "reason": "so"}),
            json!({"verdict": "done", "context": {}}),
        ];
        let read = |value: &Value| {
            read(
                value.to_string().as_bytes(),
                Asked::Create,
                &Secrets::default(),
            )
        };
        for value in good {
            assert!(schema.is_valid(&value), "{value}");
            assert!(read(&value).is_ok(), "{value}: {:?}", read(&value));
        }
        for value in bad {
            assert!(!schema.is_valid(&value), "{value}");
            assert!(read(&value).is_err(), "{value}");
        }
        let done = json!({"verdict": "done"});
        assert!(schema.is_valid(&done));
        assert_eq!(read_noted(done.to_string().as_bytes()), Ok(None));
    }

    #[test]
    fn an_answer_fits_what_was_asked() {
        let secrets = Secrets::default();
        for answer in [
            json!({"verdict": "allow", "filter": {}}),
            json!({"verdict": "allow", "timeout_ms": 1}),
            json!({"verdict": "done"}),
        ] {
            let answer = answer.to_string();
            assert!(read(answer.as_bytes(), Asked::Joined, &secrets).is_err());
        }
        for answer in [
            json!({"verdict": "allow"}),
            json!({"verdict": "refuse", "reason": "x"}),
        ] {
            assert!(read_noted(answer.to_string().as_bytes()).is_err());
        }
        let later = json!({"verdict": "unavailable", "retry_ms": 700}).to_string();
        let later = read_noted(later.as_bytes());
        assert_eq!(later, Ok(Some(Duration::from_millis(700))));
    }

    #[test]
    fn a_context_has_a_bound() {
        let secrets = Secrets::default();
        let of = |length: usize| json!({"verdict": "allow", "context": {"a": "x".repeat(length)}});
        let read = |value: Value| read(value.to_string().as_bytes(), Asked::Joined, &secrets);
        assert!(read(of(CONTEXT_BYTES - 8)).is_ok());
        assert!(read(of(CONTEXT_BYTES)).is_err());

        let session = Map::from_iter([("b".to_owned(), json!("x".repeat(CONTEXT_BYTES / 2)))]);
        let lay_over = |own: Value| {
            let Ok(Answer::Allow(mut allowed)) = read(own) else {
                panic!("it is small enough by itself");
            };
            allowed.lay_over(&session).map(|()| allowed.context)
        };
        let all = lay_over(of(100)).unwrap().unwrap();
        assert_eq!((all.len(), &all["b"]), (2, &session["b"]));
        assert!(lay_over(of(CONTEXT_BYTES / 2)).is_err());
        assert_eq!(
            lay_over(json!({"verdict": "allow"})),
            Ok(None),
            "nothing is copied"
        );
    }

    #[test]
    fn a_token_is_never_passed_on() {
        let secrets = Secrets::of_token(&SecretString::from("K3y.s3cret"));
        for answer in [
            json!({"verdict": "refuse", "reason": "no K3y.s3cret"}),
            json!({"verdict": "K3y.s3cret"}),
            json!({"verdict": "allow", "K3y.s3cret": 1}),
        ] {
            let error = read(answer.to_string().as_bytes(), Asked::Create, &secrets).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn the_documentation_shows_what_is_said() {
        let page = documentation("callouts.md");
        let question = schema("session-question");
        let answer = schema("session-answer");
        let mut seen = [0; 2];
        let mut fence = "";
        for text in page.lines() {
            if let Some(info) = text.strip_prefix("```") {
                fence = info;
                continue;
            }
            let (schema, n) = match fence {
                "json session-question" => (&question, 0),
                "json session-answer" => (&answer, 1),
                _ => continue,
            };
            let value: Value = serde_json::from_str(text).unwrap();
            if let Err(error) = schema.validate(&value) {
                panic!("{text}: {error}");
            }
            seen[n] += 1;
        }
        assert!(seen.iter().all(|&seen| seen >= 3), "{seen:?}");
    }
}
