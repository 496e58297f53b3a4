//! The JSON in which session managers elsewhere are asked and told: version 1.
//!
//! `docs/callouts.md` describes it for those who answer and `docs/schemas` has it as JSON Schema. As
//! for authenticators, an answer is taken whole or not at all.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use chinwag_core::{
    RoomPattern,
    plugin::{AuthFacts, EndCause, Order, PrincipalLimits, SessionData, Stay},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    callout::{
        Secrets,
        contract::{PUBLIC_CHARS, Tls, VERSION, check_fields, retry},
    },
    fair::Party,
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
        stay: &'a Stay,
        data: Option<&'a SessionData>,
    },
    /// It has left the room.
    Left {
        session: Session<'a>,
        stay: Place<'a>,
        data: Option<&'a SessionData>,
        cause: EndCause,
    },
    /// It is over.
    Ended {
        session: Session<'a>,
        data: Option<&'a SessionData>,
        cause: EndCause,
    },
}

/// Which session a message is about.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Session<'a> {
    pub(super) session: &'a str,
    pub(super) user: &'a str,
}

impl<'a> From<&'a AuthFacts> for Session<'a> {
    fn from(facts: &'a AuthFacts) -> Self {
        Self {
            session: &facts.key,
            user: &facts.user,
        }
    }
}

/// Which of its stays, and where that is.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Place<'a> {
    pub(super) stay: u64,
    pub(super) room: &'a str,
}

impl<'a> From<&'a Stay> for Place<'a> {
    fn from(stay: &'a Stay) -> Self {
        Self {
            stay: stay.number,
            room: &stay.room,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
struct Wire<'a> {
    v: u32,
    r#type: &'static str,
    #[serde(flatten)]
    session: Option<Session<'a>>,
    #[serde(flatten)]
    facts: Option<Facts<'a>>,
    #[serde(flatten)]
    stay: Option<Place<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<Control<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    over: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a Map<String, Value>>,
}

#[derive(Serialize)]
struct Facts<'a> {
    roles: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    rooms: Option<Vec<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<&'a PrincipalLimits>,
    authenticator: &'a str,
    transport: &'a str,
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<Tls<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    existing: Option<&'a str>,
}

impl<'a> From<&'a AuthFacts> for Facts<'a> {
    fn from(facts: &'a AuthFacts) -> Self {
        let rooms = facts.rooms.as_ref();
        let has_limits = facts.limits != PrincipalLimits::default();
        Self {
            roles: &facts.roles,
            rooms: rooms.map(|rooms| rooms.iter().map(RoomPattern::as_str).collect()),
            expires_at: facts.expires_at,
            limits: has_limits.then_some(&facts.limits),
            authenticator: &facts.authenticator,
            transport: &facts.transport,
            address: facts.address,
            tls: facts.tls.as_deref().map(Tls::from),
            existing: facts.existing.as_deref(),
        }
    }
}

#[derive(Serialize)]
struct Control<'a> {
    url: &'a str,
    token: &'a str,
}

impl Message<'_> {
    /// Whose turn it takes: that of the client who waits for the answer, if one does.
    pub(super) fn party(&self) -> Party {
        match self {
            Self::Create { facts, .. } => facts.address.into(),
            Self::Joined { stay, .. } => stay.facts.address.into(),
            Self::Hello | Self::Left { .. } | Self::Ended { .. } => Party::SERVER,
        }
    }

    /// As JSON on one line.
    pub(super) fn encode(&self) -> Bytes {
        let mut wire = Wire {
            v: VERSION,
            r#type: "hello",
            session: None,
            facts: None,
            stay: None,
            control: None,
            over: None,
            cause: None,
            context: None,
        };
        match *self {
            Self::Hello => (),
            Self::Create { facts, control } => {
                wire.r#type = "create";
                wire.session = Some(facts.into());
                wire.facts = Some(facts.into());
                wire.control = control.map(|(url, token)| Control {
                    url,
                    token: token.expose_secret(),
                });
            }
            Self::Joined { stay, data } => {
                wire.r#type = "joined";
                wire.session = Some((&*stay.facts).into());
                wire.stay = Some(stay.into());
                wire.context = data.map(|data| &data.0);
            }
            Self::Left {
                session,
                stay,
                data,
                cause,
            } => {
                wire.r#type = "left";
                wire.session = Some(session);
                wire.stay = Some(stay);
                wire.context = data.map(|data| &data.0);
                wire.over = Some(if cause.is_of_session() {
                    "session"
                } else {
                    "stay"
                });
                wire.cause = Some(cause.code());
            }
            Self::Ended {
                session,
                data,
                cause,
            } => {
                wire.r#type = "ended";
                wire.session = Some(session);
                wire.context = data.map(|data| &data.0);
                wire.cause = Some(cause.code());
            }
        }
        let text = serde_json::to_vec(&wire).expect("strings and numbers can be written as JSON");
        // It may be kept for a while, and is counted by its length.
        text.into_boxed_slice().into()
    }
}

/// An encoded message with the number that its answer is told by, where answers may come in another
/// order.
#[cfg(any(feature = "exec", test))]
pub(super) fn numbered(message: &[u8], id: u64) -> Vec<u8> {
    let fields = message.strip_prefix(b"{").expect("it is an object");
    let mut numbered = format!("{{\"id\":{id},").into_bytes();
    numbered.extend_from_slice(fields);
    numbered
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

/// Of a context, as compact JSON.
pub(super) fn size(context: &Map<String, Value>) -> usize {
    serde_json::to_vec(context).map_or(0, |text| text.len())
}

fn check_size(context: &Map<String, Value>) -> Result<(), String> {
    let bytes = size(context);
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

#[derive(PartialEq, Eq, Deserialize)]
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

/// Reads an answer to [`Message::Create`] or [`Message::Joined`]. A client is never told what is in
/// `secrets`.
///
/// # Errors
/// What is wrong with it; it may be quoted there.
pub(super) fn read(answer: &[u8], asked: Asked, secrets: &Secrets) -> Result<Answer, String> {
    let said = parse(answer, asked)?;
    Ok(match said.verdict {
        Word::Allow => Answer::Allow(said.allowed()?),
        Word::Refuse => Answer::Refuse(said.reason(secrets)?),
        Word::Unavailable => Answer::Unavailable(retry(said.retry_ms)),
        Word::Done => return Err("`done` is no answer to a question".into()),
    })
}

/// Reads an answer to anything that is but told. `Some`: it is to be told again, not before so long.
///
/// # Errors
/// As for [`read`].
pub(super) fn read_noted(answer: &[u8]) -> Result<Option<Duration>, String> {
    let said = parse(answer, Asked::Notice)?;
    match said.verdict {
        Word::Done => Ok(None),
        Word::Unavailable => Ok(Some(retry(said.retry_ms))),
        Word::Allow | Word::Refuse => Err("a notice is answered with `done`".into()),
    }
}

fn parse(answer: &[u8], asked: Asked) -> Result<Said, String> {
    let said: Said = serde_json::from_slice(answer)
        .map_err(|error| format!("it is none of the contract: {error}"))?;
    let fields = [
        ("context", said.context.is_some(), Word::Allow),
        ("filter", said.filter.is_some(), Word::Allow),
        ("timeout_ms", said.timeout_ms.is_some(), Word::Allow),
        ("reason", said.reason.is_some(), Word::Refuse),
        ("retry_ms", said.retry_ms.is_some(), Word::Unavailable),
    ];
    check_fields(said.v, &said.verdict, &fields)?;
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
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use chinwag_core::{
        CloseReason, LeaveReason,
        config::{Rate, Size},
        plugin::{AuthFacts, Certificate, TlsFacts},
    };
    use serde_json::json;

    use super::*;
    use crate::callout::testing::{documentation, schema};

    fn facts() -> AuthFacts {
        let mut facts = AuthFacts::new("K3y", "Alice", IpAddr::from(Ipv4Addr::LOCALHOST));
        facts.roles = vec!["staff".into()];
        facts.existing = Some("0ld".into());
        facts
    }

    /// The same with all that an authenticator may say and see.
    fn all_facts() -> AuthFacts {
        let mut facts = facts();
        facts.rooms = Some(vec!["lobby".parse().unwrap(), "team:*".parse().unwrap()]);
        facts.expires_at = Some(1_795_305_600_123);
        facts.limits.message_bytes = Some(Size(512));
        facts.limits.sends = Some(Rate::Unlimited);
        facts.limits.commands = Some(Rate::Limited {
            rate: 20,
            per: Duration::from_secs(90),
            burst: 60,
        });
        facts.limits.rooms_per_session = Some(3);
        let end = |host: u8| (IpAddr::from([192, 0, 2, host]), 4020).into();
        let mut tls = TlsFacts::new("TLS1.3", "TLS_AES_256_GCM_SHA384", end(1), end(7));
        let mut certificate = Certificate::default();
        certificate.fingerprint = "0f".repeat(32);
        certificate.serial = "1a".into();
        certificate.common_names = vec!["alice".into()];
        certificate.expires_at = 1_795_305_600_123;
        tls.certificate = Some(Arc::new(certificate));
        facts.tls = Some(Arc::new(tls));
        facts
    }

    fn session(facts: &AuthFacts) -> Session<'_> {
        facts.into()
    }

    fn data() -> SessionData {
        SessionData(Map::from_iter([("team".to_owned(), json!("red"))]))
    }

    #[test]
    fn every_message_is_of_the_schema() {
        let schema = schema("session-question");
        let (facts, all_facts, data) = (facts(), all_facts(), data());
        let stay = Stay::new(Arc::new(facts.clone()), 1, "lobby");
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
                facts: &all_facts,
                control: Some((url, &token)),
            },
            Message::Joined {
                stay: &stay,
                data: Some(&data),
            },
            Message::Left {
                session: session(&facts),
                stay: (&stay).into(),
                data: None,
                cause: EndCause::Refused,
            },
            Message::Left {
                session: session(&facts),
                stay: (&stay).into(),
                data: Some(&data),
                cause,
            },
            Message::Ended {
                session: session(&facts),
                data: Some(&data),
                cause,
            },
        ];
        for message in messages {
            let text = message.encode();
            for (text, id) in [(text.to_vec(), Value::Null), (numbered(&text, 7), 7.into())] {
                assert!(!text.contains(&b'\n'), "a message is one line");
                let value: Value = serde_json::from_slice(&text).unwrap();
                if let Err(error) = schema.validate(&value) {
                    panic!("{value}: {error}");
                }
                assert_eq!(value["id"], id);
            }
        }
    }

    #[test]
    fn a_session_s_facts_are_told_as_its_authenticator_said_and_saw_them() {
        let facts = all_facts();
        let message = Message::Create {
            facts: &facts,
            control: None,
        };
        let value: Value = serde_json::from_slice(&message.encode()).unwrap();
        assert_eq!(value["rooms"], json!(["lobby", "team:*"]));
        assert_eq!(value["expires_at"], 1_795_305_600_123_u64);
        assert_eq!(
            value["limits"],
            json!({
                "message_bytes": 512, "sends": "unlimited",
                "commands": {"rate": 20, "per": "1m 30s", "burst": 60}, "rooms_per_session": 3,
            })
        );
        assert_eq!(value["tls"]["remote"], "192.0.2.7:4020");
        assert_eq!(
            value["tls"]["certificate"]["common_names"],
            json!(["alice"])
        );
        // Written as for authenticators, so that what reads the one reads the other.
        let schema = |name: &str| {
            let text = documentation(&format!("schemas/{name}.json"));
            serde_json::from_str::<Value>(&text).unwrap()
        };
        let (asked, question) = (schema("authenticate-question"), schema("session-question"));
        assert_eq!(question["$defs"]["tls"], asked["properties"]["tls"]);
        assert_eq!(question["$defs"]["names"], asked["$defs"]["names"]);
        let answer = schema("authenticate-answer");
        let allow = &answer["oneOf"][0]["properties"];
        assert_eq!(question["$defs"]["limits"], allow["limits"]);
        assert_eq!(question["$defs"]["rate"], answer["$defs"]["rate"]);
    }

    #[test]
    fn what_is_over_is_told_where_the_cause_may_be_of_either() {
        let facts = facts();
        let stay = Stay::new(Arc::new(facts.clone()), 3, "lobby");
        let told = |cause: EndCause| {
            let message = Message::Left {
                session: session(&facts),
                stay: (&stay).into(),
                data: None,
                cause,
            };
            let value: Value = serde_json::from_slice(&message.encode()).unwrap();
            ["over", "cause"].map(|key| value[key].as_str().unwrap().to_owned())
        };
        assert_eq!(
            told(EndCause::Stay(LeaveReason::Kicked)),
            ["stay", "kicked"]
        );
        assert_eq!(
            told(EndCause::Session(CloseReason::Kicked)),
            ["session", "kicked"]
        );
        assert_eq!(told(EndCause::Refused), ["stay", "refused"]);
    }

    #[test]
    fn every_cause_is_of_the_schema() {
        let schema = schema("session-question");
        let facts = facts();
        let causes = CloseReason::ALL.map(EndCause::Session);
        let alone = [LeaveReason::Left, LeaveReason::Evicted].map(EndCause::Stay);
        for cause in causes.into_iter().chain(alone).chain([EndCause::Refused]) {
            let message = Message::Ended {
                session: session(&facts),
                data: None,
                cause,
            };
            let value: Value = serde_json::from_slice(&message.encode()).unwrap();
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
    fn a_client_is_never_told_a_token() {
        let secrets = Secrets::of_token(&SecretString::from("K3y.s3cret"));
        for answer in [
            json!({"verdict": "refuse", "reason": "no K3y.s3cret"}),
            json!({"verdict": "refuse", "reason": "no s3cret"}),
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
