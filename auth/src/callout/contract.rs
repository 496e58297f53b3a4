//! The JSON in which others are asked who somebody is, and in which they answer: version 1.
//!
//! `docs/callouts.md` describes it for those who answer and `docs/schemas` has it as JSON Schema.
//! An answer is taken whole or not at all: what is misspelt or out of place makes it no answer,
//! since the other reading (to let somebody in without the limit that was meant) is worse.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use chinwag_core::{
    RoomPattern,
    plugin::{AuthRequest, Certificate, Denial, Principal, PrincipalLimits, TlsFacts, Verdict},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{RETRY, Secrets, are_roles, is_name, spread};

/// The most headers that are passed on.
const HEADERS: usize = 32;
/// Headers that are never passed on: they carry what logs in elsewhere.
const CREDENTIAL_HEADERS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];
/// The version of the contract that is spoken here.
pub(crate) const VERSION: u32 = 1;
/// The most room patterns a principal may have.
const ROOMS: usize = 256;
/// The most characters of what a client is told in place of the one text for failed log-ins.
pub(crate) const PUBLIC_CHARS: usize = 200;
/// The shortest and the longest that a client is told to wait.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// Names of the client's headers that are passed on: at most 32, none of those that carry
/// credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Headers(Vec<String>);

impl Headers {
    /// Their names.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }
}

impl TryFrom<Vec<String>> for Headers {
    type Error = String;

    /// # Errors
    /// Too many, what is no name of a header, and what carries credentials.
    fn try_from(names: Vec<String>) -> Result<Self, String> {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if names.len() > HEADERS {
            return Err(format!("there are over {HEADERS} headers"));
        }
        for name in &names {
            if name.is_empty() || !name.chars().all(is_token) {
                return Err(format!("{name:?} is no name of a header"));
            }
            if CREDENTIAL_HEADERS
                .iter()
                .any(|it| it.eq_ignore_ascii_case(name))
            {
                return Err(format!("{name:?} carries credentials and is not passed on"));
            }
        }
        Ok(Self(names))
    }
}

#[derive(Serialize)]
struct Request<'a> {
    v: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(rename = "type")]
    kind: &'static str,
    transport: &'a str,
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<Tls<'a>>,
}

/// How a connection is encrypted.
#[derive(Serialize)]
pub(crate) struct Tls<'a> {
    version: &'a str,
    cipher: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<&'a str>,
    local: SocketAddr,
    remote: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Certified<'a>>,
}

#[derive(Serialize)]
struct Certified<'a> {
    fingerprint: &'a str,
    serial: &'a str,
    subject: &'a str,
    common_names: &'a [String],
    emails: &'a [String],
    dns_names: &'a [String],
    uris: &'a [String],
    expires_at: u64,
}

impl<'a> From<&'a TlsFacts> for Tls<'a> {
    fn from(facts: &'a TlsFacts) -> Self {
        Self {
            version: facts.version,
            cipher: &facts.cipher,
            server_name: facts.server_name.as_deref(),
            local: facts.local,
            remote: facts.remote,
            certificate: facts.certificate.as_deref().map(|it| Certified {
                fingerprint: &it.fingerprint,
                serial: &it.serial,
                subject: &it.subject,
                common_names: &it.common_names,
                emails: &it.emails,
                dns_names: &it.dns_names,
                uris: &it.uris,
                expires_at: it.expires_at,
            }),
        }
    }
}

/// The certificate that the peer proved to hold.
fn certificate(request: &AuthRequest) -> Option<&Certificate> {
    request.tls.as_ref()?.certificate.as_deref()
}

/// Asks who the peer of `request` is, with those of its headers that are in `headers`; `id` numbers
/// the question where answers may come in another order. `None` where the peer presents nothing
/// that could be judged.
pub(crate) fn ask(request: &AuthRequest, headers: &Headers, id: Option<u64>) -> Option<Vec<u8>> {
    let credentials = &request.credentials;
    if !has_secret(request) && certificate(request).is_none() {
        return None;
    }
    let passed_on = request.headers.iter().filter(|(name, _)| {
        headers
            .0
            .iter()
            .any(|header| header.eq_ignore_ascii_case(name))
    });
    let question = Request {
        v: VERSION,
        id,
        kind: "authenticate",
        transport: &request.transport,
        address: request.address,
        user: credentials.user.as_deref(),
        password: expose(&credentials.password),
        token: expose(&credentials.token),
        headers: passed_on
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect(),
        tls: request.tls.as_deref().map(Tls::from),
    };
    Some(serde_json::to_vec(&question).expect("strings and numbers can be written as JSON"))
}

fn has_secret(request: &AuthRequest) -> bool {
    request.credentials.password.is_some() || request.credentials.token.is_some()
}

fn expose(secret: &Option<SecretString>) -> Option<&str> {
    secret.as_ref().map(ExposeSecret::expose_secret)
}

/// What somebody answers. Fields that do not go with the verdict are mistakes as well.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    verdict: Word,
    v: Option<u32>,
    #[serde(rename = "id")]
    _id: Option<u64>,
    user: Option<String>,
    roles: Option<Vec<String>>,
    rooms: Option<Vec<String>>,
    expires_at: Option<u64>,
    limits: Option<PrincipalLimits>,
    reason: Option<String>,
    public: Option<String>,
    retry_ms: Option<u64>,
}

#[derive(PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Allow,
    Deny,
    Abstain,
    Unavailable,
}

/// What is to be known of whoever asks to be let in when the answer comes.
pub(crate) struct Applicant {
    user: Option<String>,
    secrets: Secrets,
    /// When the certificate ends, where it came with nothing else.
    expires_at: Option<u64>,
}

impl Applicant {
    pub(crate) fn of(request: &AuthRequest) -> Self {
        let presented = certificate(request).filter(|_| !has_secret(request));
        Self {
            user: request.credentials.user.clone(),
            secrets: Secrets::of(&request.credentials),
            expires_at: presented.map(|it| it.expires_at),
        }
    }
}

/// The verdict in `answer` about `applicant`.
///
/// # Errors
/// What is wrong with it, for the log: nothing that the peer presents is in there.
pub(crate) fn read(answer: &[u8], applicant: &Applicant) -> Result<Verdict, String> {
    let secrets = &applicant.secrets;
    let answer: Answer = serde_json::from_slice(answer).map_err(|error| {
        format!(
            "it is none of the contract: {}",
            secrets.scrub(&error.to_string())
        )
    })?;
    answer.check()?;
    Ok(match answer.verdict {
        Word::Allow => Verdict::Allow(answer.principal(applicant)?),
        Word::Deny => {
            let reason = match &answer.reason {
                None => "whoever was asked says no".into(),
                Some(reason) => secrets.scrub(reason).into(),
            };
            let public = answer.public.filter(|text| !secrets.are_in(text));
            Verdict::Deny {
                denial: Denial::BackEnd,
                reason,
                public,
            }
        }
        Word::Abstain => Verdict::Abstain,
        Word::Unavailable => Verdict::Unavailable {
            retry: retry(answer.retry_ms),
        },
    })
}

/// When to ask again, where it was answered that it is after so many milliseconds.
pub(crate) fn retry(millis: Option<u64>) -> Duration {
    millis
        .map_or_else(|| spread(RETRY), Duration::from_millis)
        .clamp(SHORTEST_RETRY, LONGEST_RETRY)
}

/// Whether an answer is of version `v` and has no field that does not go with its `verdict`; of each
/// field its name, whether it is there, and with what it goes.
pub(crate) fn check_fields<V: PartialEq>(
    v: Option<u32>,
    verdict: &V,
    fields: &[(&str, bool, V)],
) -> Result<(), String> {
    if let Some(v) = v.filter(|v| *v != VERSION) {
        return Err(format!("it is of version {v}, not {VERSION}"));
    }
    for (field, is_there, goes_with) in fields {
        if *is_there && goes_with != verdict {
            return Err(format!("`{field}` does not go with its verdict"));
        }
    }
    Ok(())
}

impl Answer {
    fn check(&self) -> Result<(), String> {
        let fields = [
            ("user", self.user.is_some(), Word::Allow),
            ("roles", self.roles.is_some(), Word::Allow),
            ("rooms", self.rooms.is_some(), Word::Allow),
            ("expires_at", self.expires_at.is_some(), Word::Allow),
            ("limits", self.limits.is_some(), Word::Allow),
            ("reason", self.reason.is_some(), Word::Deny),
            ("public", self.public.is_some(), Word::Deny),
            ("retry_ms", self.retry_ms.is_some(), Word::Unavailable),
        ];
        check_fields(self.v, &self.verdict, &fields)?;
        let long = |text: &String| {
            text.is_empty()
                || text.chars().count() > PUBLIC_CHARS
                || text.contains(char::is_control)
        };
        if self.public.as_ref().is_some_and(long) {
            return Err(format!(
                "`public` is not 1 to {PUBLIC_CHARS} characters on one line"
            ));
        }
        Ok(())
    }

    fn principal(self, applicant: &Applicant) -> Result<Principal, String> {
        let user = self
            .user
            .or_else(|| applicant.user.clone())
            .ok_or("it has no `user`, and the client gave none")?;
        if !is_name(&user) {
            return Err("its `user` is not 1 to 128 characters without space or control".into());
        }
        let roles = self.roles.unwrap_or_default();
        if !are_roles(&roles) {
            return Err("its `roles` are not at most 64 words of at most 64 characters".into());
        }
        let mut principal = Principal::vouched(user).with_roles(roles);
        if let Some(rooms) = self.rooms {
            let patterns = rooms.iter().map(|room| room.parse::<RoomPattern>());
            let patterns: Result<Vec<_>, _> = patterns.take(ROOMS + 1).collect();
            principal.rooms = Some(
                patterns
                    .ok()
                    .filter(|patterns| patterns.len() <= ROOMS)
                    .ok_or("its `rooms` are not at most 256 names or patterns of rooms")?,
            );
        }
        // Who came in by a certificate alone has no more than that.
        let ends = [self.expires_at, applicant.expires_at];
        principal.expires_at = ends.into_iter().flatten().min();
        principal.limits = self.limits.unwrap_or_default();
        Ok(principal)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chinwag_core::plugin::Credentials;
    use serde_json::{Value, json};

    use super::*;
    use crate::callout::testing::{documentation, let_in, request, schema};

    fn alice() -> AuthRequest {
        request(Credentials::password("alice", "wonderland"))
    }

    /// A log-in over TLS with a certificate.
    fn certified(credentials: Credentials) -> AuthRequest {
        let mut certificate = Certificate::default();
        certificate.fingerprint = "ab".repeat(32);
        certificate.serial = "1f".into();
        certificate.subject = "CN=alice".into();
        certificate.common_names = vec!["alice".into()];
        certificate.emails = vec!["alice@example.org".into()];
        certificate.expires_at = 5000;
        let (local, remote) = ("192.0.2.1:443", "203.0.113.7:50412");
        let cipher = "TLS13_AES_256_GCM_SHA384";
        let mut facts = TlsFacts::new(
            "TLS1.3",
            cipher,
            local.parse().unwrap(),
            remote.parse().unwrap(),
        );
        facts.server_name = Some("chat.example.org".into());
        facts.certificate = Some(Arc::new(certificate));
        let mut request = request(credentials);
        request.tls = Some(Arc::new(facts));
        request
    }

    #[test]
    fn every_question_is_of_the_schema() {
        let schema = schema("authenticate-question");
        let headers = Headers::try_from(vec!["User-Agent".to_owned()]).unwrap();
        let mut with_headers = alice();
        with_headers.headers = vec![("user-agent".into(), "\"\u{1}".into())];
        for (request, id) in [
            (alice(), None),
            (with_headers, Some(u64::MAX >> 11)),
            (request(Credentials::token("t")), Some(1)),
            (certified(Credentials::default()), None),
            (
                certified(Credentials::password("alice", "wonderland")),
                Some(2),
            ),
        ] {
            let question = ask(&request, &headers, id).unwrap();
            assert!(!question.contains(&b'\n'), "a question is one line");
            let question: Value = serde_json::from_slice(&question).unwrap();
            if let Err(error) = schema.validate(&question) {
                panic!("{question}: {error}");
            }
        }
    }

    #[test]
    fn reader_and_schema_take_the_same_answers() {
        let schema = schema("authenticate-answer");
        let good = [
            json!({"verdict": "allow"}),
            json!({"verdict": "allow", "v": 1, "id": 7, "user": "Ærøskøbing"}),
            json!({"verdict": "allow", "roles": [], "rooms": [], "expires_at": 0, "limits": {}}),
            json!({"verdict": "allow", "rooms": ["lobby", "*", "team:*"], "limits": {
                "message_bytes": "8KiB", "sends": {"rate": 1, "per": "1m 30s", "burst": 2},
                "commands": "unlimited", "rooms_per_session": 3,
            }}),
            json!({"verdict": "allow", "limits": {"message_bytes": 100}}),
            json!({"verdict": "deny"}),
            json!({"verdict": "deny", "reason": "", "public": "Your account is suspended."}),
            json!({"verdict": "abstain", "v": 1}),
            json!({"verdict": "unavailable"}),
            json!({"verdict": "unavailable", "retry_ms": 0}),
        ];
        let bad = [
            json!(null),
            json!([]),
            json!({}),
            json!({"verdict": "Allow"}),
            json!({"verdict": "allow", "v": 2}),
            json!({"verdict": "allow", "id": "7"}),
            json!({"verdict": "allow", "role": ["a"]}),
            json!({"verdict": "allow", "user": ""}),
            json!({"verdict": "allow", "user": "a b"}),
            json!({"verdict": "allow", "user": "a\u{7f}"}),
            json!({"verdict": "allow", "user": "x".repeat(129)}),
            json!({"verdict": "allow", "roles": "a"}),
            json!({"verdict": "allow", "roles": ["a b"]}),
            json!({"verdict": "allow", "roles": ["x".repeat(65)]}),
            json!({"verdict": "allow", "roles": vec!["a"; 65]}),
            json!({"verdict": "allow", "rooms": ["Lobby"]}),
            json!({"verdict": "allow", "rooms": [""]}),
            json!({"verdict": "allow", "rooms": ["x".repeat(65)]}),
            json!({"verdict": "allow", "rooms": vec!["a"; 257]}),
            json!({"verdict": "allow", "expires_at": -1}),
            json!({"verdict": "allow", "expires_at": 1.5}),
            json!({"verdict": "allow", "limits": {"sands": "unlimited"}}),
            json!({"verdict": "allow", "limits": {"sends": "none"}}),
            json!({"verdict": "allow", "limits": {"sends": {"rate": 1, "per": "1s"}}}),
            json!({"verdict": "allow", "limits": {"sends": {"rate": 0, "per": "1s", "burst": 1}}}),
            json!({"verdict": "allow", "limits": {"sends": {"rate": 1, "per": "", "burst": 1}}}),
            json!({"verdict": "allow", "limits": {"message_bytes": "8 loaves"}}),
            json!({"verdict": "allow", "public": "a"}),
            json!({"verdict": "deny", "user": "alice"}),
            json!({"verdict": "deny", "public": ""}),
            json!({"verdict": "deny", "public": "a\nb"}),
            json!({"verdict": "deny", "public": "x".repeat(201)}),
            json!({"verdict": "abstain", "reason": "a"}),
            json!({"verdict": "unavailable", "retry_ms": -1}),
            json!({"verdict": "unavailable", "reason": "a"}),
        ];
        for (answers, is_good) in [(&good[..], true), (&bad[..], false)] {
            for answer in answers {
                let alice = Applicant::of(&alice());
                let read = read(answer.to_string().as_bytes(), &alice);
                assert_eq!(read.is_ok(), is_good, "{answer}: {read:?}");
                assert_eq!(schema.is_valid(answer), is_good, "{answer}");
            }
        }
    }

    #[test]
    fn the_documentation_shows_nothing_that_is_not_so() {
        let (questions, answers) = (
            schema("authenticate-question"),
            schema("authenticate-answer"),
        );
        let text = documentation("callouts.md");
        let mut blocks = text.split("```json ").skip(1);
        let mut seen = (0, 0);
        for block in &mut blocks {
            let (kind, rest) = block.split_once('\n').unwrap();
            for line in rest.split("```").next().unwrap().lines() {
                let json: Value = serde_json::from_str(line).unwrap();
                if kind == "question" {
                    seen.0 += 1;
                    assert!(questions.is_valid(&json), "{line}");
                } else if kind == "answer" {
                    seen.1 += 1;
                    assert!(answers.is_valid(&json), "{line}");
                    read(line.as_bytes(), &Applicant::of(&alice())).expect(line);
                }
            }
        }
        assert!(seen.0 >= 2 && seen.1 >= 4, "{seen:?}");
    }

    #[test]
    fn who_comes_in_by_a_certificate_alone_goes_with_it() {
        for (credentials, answer, ends) in [
            (Credentials::default(), json!({}), Some(5000)),
            (
                Credentials::default(),
                json!({"expires_at": 4000}),
                Some(4000),
            ),
            (
                Credentials::default(),
                json!({"expires_at": 6000}),
                Some(5000),
            ),
            (
                Credentials::token("t"),
                json!({"expires_at": 6000}),
                Some(6000),
            ),
            (Credentials::token("t"), json!({}), None),
        ] {
            let mut answer = answer;
            answer["verdict"] = json!("allow");
            answer["user"] = json!("alice");
            let request = certified(credentials);
            let applicant = Applicant::of(&request);
            let verdict = read(answer.to_string().as_bytes(), &applicant).unwrap();
            let Verdict::Allow(principal) = &verdict else {
                panic!("{verdict:?}")
            };
            assert_eq!(principal.expires_at, ends, "{answer}");
            assert_eq!(let_in(verdict), "alice");
        }
    }
}
