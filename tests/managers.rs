//! Session managers as an operator configures them: other servers and programs that let sessions begin, hear of their
//! ends, and steer them while they live.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chinwag::core::plugin::{
    AuthFacts, BuildError, Context, Draft, EndCause, Refused, Rejection, SessionControl,
    SessionData, SessionManager, SessionManagerConfig, SessionManagerContext, Validator,
    ValidatorConfig, ValidatorContext,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    harness::{
        Addresses, Answer, Backend, Client, Http, Over, PATIENCE, Pki, Program, Request, STAFF,
        Says, Secure, Setup, VERSIONS, brief, code, eventually, includes, manager_table, scrape,
        willing,
    },
    outage::obey_within,
};

const GUESTS: &str = "kind = \"anonymous\"\nsession_manager = \"backend\"";
const CONTROL: &str = "[control]\nbind = \"127.0.0.1:0\"";
const NOTICES: &str = "chinwag_session_manager_notices_total";

fn login(user: &str) -> Value {
    json!({"type": "login", "user": user})
}

/// Guests under the eyes of `backend`, on all three transports, with more lines in its table.
fn under(backend: &Backend, more: &str) -> Setup {
    Setup::authenticator(GUESTS)
        .and(&backend.table(more))
        .and(CONTROL)
}

/// The judge of most tests: a team for everybody, no place for some.
fn judge(message: &Value) -> Says {
    let user = message["user"].as_str().unwrap_or_default();
    match message["type"].as_str() {
        Some("create") if user == "mallory" => {
            Says::Json(json!({"verdict": "refuse", "reason": "Your account is suspended."}))
        }
        Some("create") => {
            Says::Json(json!({"verdict": "allow", "context": {"team": "red", "seat": 0}}))
        }
        Some("joined") if message["room"] == "full" => {
            Says::Json(json!({"verdict": "refuse", "reason": "That table is full."}))
        }
        Some("joined") => Says::Json(json!({"verdict": "allow", "context": {"seat": 7}})),
        _ => willing(message),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_hears_of_each_session_and_stay_once() {
    let backend = Backend::start(judge).await;
    let server = Program::start(&under(&backend, "stays = true")).await;
    eventually("the server to say hello", async || {
        (backend.told()[..] == [json!({"v": 1, "type": "hello"})]).then_some(())
    })
    .await;
    for over in Over::ALL {
        let user = format!("ann-{over:?}").to_lowercase();
        let mut ann = Client::connect(server.of(over), over, &user).await;
        if over != Over::Polling {
            let refused = ann.try_log_in(login("mallory")).await;
            assert_eq!(code(&refused), "session_refused");
            assert_eq!(refused["message"], "Your account is suspended.");
        }
        ann.log_in(login(&user)).await;
        ann.enter("a").await;
        ann.enter("b").await;
        let refused = ann.command(json!({"type": "join", "room": "full"})).await;
        assert_eq!(code(&refused), "session_refused");
        assert_eq!(refused["message"], "That table is full.");
        let left = ann.command(json!({"type": "leave", "room": "a"})).await;
        assert_eq!(left["type"], "left");
        ann.enter("a").await;
        ann.command(json!({"type": "logout"})).await;
        ann.expect_closed("logout").await;

        backend.hears(&format!("ended {user} logout"), 1).await;
        let of_ann: Vec<Value> = backend
            .told()
            .into_iter()
            .filter(|message| message["user"] == *user)
            .collect();
        let stay = |number: u64| {
            of_ann
                .iter()
                .filter(|message| message["stay"] == number)
                .map(brief)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            stay(1),
            [format!("joined {user} a"), format!("left {user} a left")]
        );
        assert_eq!(
            stay(2),
            [format!("joined {user} b"), format!("left {user} b logout")]
        );
        assert_eq!(stay(3), [format!("joined {user} full")], "it was refused");
        assert_eq!(
            stay(4),
            [format!("joined {user} a"), format!("left {user} a logout")]
        );
        let last: Vec<String> = of_ann.iter().rev().take(3).map(brief).collect();
        assert_eq!(
            last,
            [
                format!("ended {user} logout"),
                format!("left {user} b logout"),
                format!("left {user} a logout"),
            ],
            "the youngest stay first, then the session"
        );
        let key = &of_ann[0]["session"];
        assert!(of_ann.iter().all(|message| message["session"] == *key));
        let team = json!({"team": "red", "seat": 0});
        let seated = json!({"team": "red", "seat": 7});
        for message in &of_ann[1..] {
            let seat = if message["type"] == "left" {
                &seated
            } else {
                &team
            };
            assert_eq!(message["context"], *seat, "{message}");
        }
        assert_eq!(of_ann[0]["transport"], over.table());
        assert_eq!(of_ann[0]["authenticator"], "own");
    }
    let before = backend.told().len();
    server.stop().await;
    assert_eq!(
        backend.told().len(),
        before,
        "what was answered is told once"
    );
}

/// Signs messages with what the sender's manager attached.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {}

impl ValidatorConfig for Signed {
    const KIND: &'static str = "signed";
    fn build(self, _: ValidatorContext) -> Result<Arc<dyn Validator>, BuildError> {
        Ok(Arc::new(self))
    }
}

impl Validator for Signed {
    fn check(&self, draft: &mut Draft<'_>) -> Result<(), Rejection> {
        let data = draft
            .context
            .and_then(|context| context.value::<SessionData>());
        draft.text = data.map(|data| json!(data.0).to_string());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn validators_see_what_a_manager_attached() {
    let backend = Backend::start(judge).await;
    let tables = "[validators.sign]\nkind = \"signed\"\n[room]\nvalidators = [\"sign\"]";
    let setup = under(&backend, "stays = true")
        .and(tables)
        .plugins(|plugins| plugins.validator::<Signed>());
    let server = setup.start().await;
    let mut ann = Client::login(server.addr(Over::Tcp), Over::Tcp, "ann").await;
    ann.enter("a").await;
    ann.say("a", "hello").await;
    let message = ann.next_event().await;
    let text = message["text"].as_str().expect("the validator wrote some");
    let text: Value = serde_json::from_str(text).expect("it is JSON");
    assert_eq!(text, json!({"team": "red", "seat": 7}));
    assert_eq!(server.shut_down().await, 0);
}

/// A session manager of one's own: greets, and remembers what it was told.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Greeter {
    greeting: String,
}

static GREETED: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[async_trait::async_trait]
impl SessionManagerConfig for Greeter {
    const KIND: &'static str = "greeter";

    async fn build(self, cx: SessionManagerContext) -> Result<Arc<dyn SessionManager>, BuildError> {
        assert_eq!(
            (cx.name.as_str(), cx.timeout),
            ("own", Duration::from_secs(3))
        );
        Ok(Arc::new(self))
    }
}

#[async_trait::async_trait]
impl SessionManager for Greeter {
    async fn create(
        &self,
        facts: &AuthFacts,
        control: &SessionControl,
    ) -> Result<Context, Refused> {
        let said = serde_json::value::to_raw_value(&self.greeting).expect("text");
        control.send(&said).expect("the session is about to begin");
        Ok(Context::default().with(facts.user.to_string()))
    }

    fn ended(&self, _: &AuthFacts, context: &Context, cause: EndCause) {
        let user = context.value::<String>().expect("create put it there");
        let mut greeted = GREETED.lock().expect("nobody panics with it");
        greeted.push(format!("{user} {}", cause.code()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binary_may_bring_a_kind_of_its_own() {
    let own = "kind = \"anonymous\"\nsession_manager = \"own\"";
    // Nobody polls any more when it stops, so that all of the grace is waited for.
    let table = "[session_managers.own]\nkind = \"greeter\"\ngreeting = \"Hello!\"\ntimeout = \"3s\"\n\
                 on_unreachable = \"fail\"\n[server]\nshutdown_grace = \"3s\"";
    let setup = Setup::authenticator(own)
        .and(table)
        .plugins(|plugins| plugins.session_manager::<Greeter>());
    let server = setup.start().await;
    for over in Over::ALL {
        let user = over.table();
        let mut client = Client::login(server.addr(over), over, user).await;
        assert_eq!(client.next_event().await["data"], "Hello!");
    }
    assert_eq!(server.shut_down().await, 0);
    let mut greeted = GREETED.lock().unwrap().clone();
    greeted.sort();
    assert_eq!(greeted.len(), 3, "{greeted:?}");
    assert!(
        greeted.iter().any(|it| it == "poll shutting_down"),
        "{greeted:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn authenticators_may_share_a_manager_or_have_their_own() {
    let (staff, guests) = (Backend::start(willing).await, Backend::start(willing).await);
    let table = |name: &str, backend: &Backend| {
        backend.table("").replace(
            "session_managers.backend",
            &format!("session_managers.{name}"),
        )
    };
    let setup = Setup::passwords_and_guests()
        .and(&table("members", &staff))
        .and(&table("visitors", &guests));
    let document = setup
        .document()
        .replace(
            "kind = \"password\"",
            "kind = \"password\"\nsession_manager = \"members\"",
        )
        .replace(
            "kind = \"anonymous\"",
            "kind = \"anonymous\"\nsession_manager = \"visitors\"",
        );
    let folder = setup.folder();
    let file = folder.path().join("chinwag.toml");
    std::fs::write(&file, &document).unwrap();
    let server = Program::start_file(&file).await;
    let (user, password, _) = STAFF[0];
    for over in Over::ALL {
        let mut alice = Client::connect(server.of(over), over, user).await;
        let secret = json!({"type": "login", "user": user, "password": password});
        alice.log_in(secret).await;
        alice.command(json!({"type": "logout"})).await;
        let mut guest = Client::login(server.of(over), over, "eve").await;
        guest.command(json!({"type": "logout"})).await;
    }
    server.stop().await;
    for (backend, name) in [(&staff, user), (&guests, "~eve")] {
        let brief = backend.brief();
        assert_eq!(brief.len(), 6, "{brief:?}");
        assert!(
            brief.iter().all(|it| it.split(' ').nth(1) == Some(name)),
            "{brief:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_and_certificates_have_managers_of_their_own_who_learn_how_they_came() {
    let pki = Pki::new();
    let (members, holders) = (Backend::start(willing).await, Backend::start(willing).await);
    let table = |name: &str, backend: &Backend| {
        backend.table("").replace(
            "session_managers.backend",
            &format!("session_managers.{name}"),
        )
    };
    let trust = format!(
        "client_ca = {:?}\nclient_cert = \"optional\"",
        pki.at("clients.pem")
    );
    let certs = "[authenticators.certs]\nkind = \"certificate\"\nuser = \"subject-cn\"\n\
                 session_manager = \"holders\"";
    let setup = Setup::passwords()
        .on_all("tls = \"door\"")
        .and(&pki.table(&trust))
        .and(certs)
        .and(&table("members", &members))
        .and(&table("holders", &holders));
    let document = setup
        .document()
        .replace(
            "kind = \"password\"",
            "kind = \"password\"\nsession_manager = \"members\"",
        )
        .replace("auth = [\"staff\"]", "auth = [\"certs\", \"staff\"]");
    let folder = setup.folder();
    let file = folder.path().join("chinwag.toml");
    std::fs::write(&file, &document).unwrap();
    let server = Program::start_file(&file).await;
    let (user, password, _) = STAFF[0];
    let carol = pki.clients.client("carol", |_| ());
    let carol = Secure::showing(&pki.servers, VERSIONS[1], &carol);
    for over in Over::ALL {
        let mut member = pki.client().connect(&server, over, user).await;
        let secret = json!({"type": "login", "user": user, "password": password});
        member.log_in(secret).await;
        member.command(json!({"type": "logout"})).await;
        let mut holder = carol.connect(&server, over, "carol").await;
        holder.log_in(json!({"type": "login"})).await;
        holder.command(json!({"type": "logout"})).await;
    }
    server.stop().await;
    for (backend, name, authenticator) in [(&members, user, "staff"), (&holders, "carol", "certs")]
    {
        let (created, ended) = (format!("create {name}"), format!("ended {name} logout"));
        let brief = backend.brief();
        assert_eq!(brief.len(), 6, "{brief:?}");
        assert!(
            brief.iter().all(|it| *it == created || *it == ended),
            "only its own: {brief:?}"
        );
        let told = backend.told();
        for create in told.iter().filter(|it| it["type"] == "create") {
            assert_eq!(create["authenticator"], authenticator, "{create}");
            let tls = &create["tls"];
            assert!(tls["cipher"].is_string(), "{create}");
            let certificate = &tls["certificate"];
            if authenticator == "certs" {
                assert_eq!(tls["version"], "TLS1.3");
                assert_eq!(certificate["common_names"], json!(["carol"]));
                assert_eq!(
                    certificate["fingerprint"].as_str().map(str::len),
                    Some(64),
                    "{create}"
                );
                assert!(create["expires_at"].is_u64(), "{create}");
                assert_eq!(create["expires_at"], certificate["expires_at"]);
            } else {
                assert!(certificate.is_null() && create["expires_at"].is_null());
            }
        }
    }
}

/// An order over HTTP.
async fn order((url, token): &(String, String), name: &str, body: impl ToString) -> Answer {
    let (host, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let request = Request::new("POST", &format!("/{path}/{name}"));
    let mut http = Http::new(host.parse().unwrap());
    http.ask(&request.bearer(token).json(body.to_string()))
        .await
}

/// The code of a refusal, with its status.
fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, code(&answer.json()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_steers_sessions_in_their_midst_on_every_transport() {
    let backend = Backend::start(willing).await;
    let server = Program::start(&under(&backend, "stays = true")).await;
    for over in Over::ALL {
        let mut ann = Client::login(server.of(over), over, "ann").await;
        let mut bob = Client::login(server.of(over), over, "bob").await;
        for client in [&mut ann, &mut bob] {
            client.enter("red:1").await;
            client.enter("blue:1").await;
        }
        let control = backend.control("ann");
        let ok = async |name: &str, body: Value| {
            let answer = order(&control, name, &body).await;
            assert_eq!(
                (answer.status, answer.json()),
                (200, json!({"type": "ok"})),
                "{body}"
            );
        };

        ok(
            "filter",
            json!({"rooms": ["red:*"], "commands": ["send", "join"]}),
        )
        .await;
        let send = |room: &str| json!({"type": "send", "room": room, "text": "hi"});
        for (command, expected) in [
            (send("blue:1"), "forbidden"),
            (json!({"type": "users", "room": "red:1"}), "forbidden"),
            (json!({"type": "join", "room": "blue:2"}), "forbidden"),
            (send("red:1"), "sent"),
            (json!({"type": "ping"}), "pong"),
        ] {
            let answer = ann.command(command.clone()).await;
            let said = answer["code"].as_str().or_else(|| answer["type"].as_str());
            assert_eq!(said, Some(expected), "{command} on {over:?}");
        }
        ok("filter", json!({})).await;
        assert_eq!(ann.command(send("blue:1")).await["type"], "sent");

        let data = json!({"notice": "Lunch\nis ready.", "n": [1, null]});
        ok("send", json!({"data": data})).await;
        let event = ann
            .events_until("the word of its manager", |it| it["type"] == "system")
            .await;
        assert_eq!(event.last().unwrap()["data"], data);
        assert!(event.last().unwrap()["at"].is_u64());

        ok("kick", json!({"room": "red:1"})).await;
        let left = json!({"type": "left", "room": "red:1", "reason": "kicked"});
        ann.events_until("being put out", |it| includes(it, &left))
            .await;
        let leave = json!({"type": "leave", "room": "red:1", "user": "ann", "reason": "kicked"});
        bob.events_until("ann to be put out", |it| includes(it, &leave))
            .await;
        assert_eq!(
            refused(&order(&control, "kick", json!({"room": "red:1"})).await),
            (409, "not_joined".into())
        );

        ok("timeout", json!({"timeout_ms": 3_600_000})).await;
        ok("end", json!({})).await;
        ann.drain_to_bye("kicked").await;
        assert_eq!(
            refused(&order(&control, "end", "").await),
            (410, "session_expired".into())
        );
        backend.hears("ended ann kicked", 1).await;
        bob.ping().await;
        bob.command(json!({"type": "logout"})).await;
        bob.gone().await;
        backend.hears("ended bob logout", 1).await;
        let told = backend.brief();
        assert!(
            told.contains(&"left ann red:1 kicked".to_owned()),
            "{told:?}"
        );
        // The next transport's users have the same names.
        backend.forget();
    }
    let obeyed = "chinwag_session_manager_orders_total";
    let all = server.metric(obeyed, "outcome=\"ok\"").await;
    assert_eq!(all, 18.0, "six on each transport");
    let refused = server
        .metric(obeyed, "order=\"kick\",outcome=\"refused\"")
        .await;
    assert_eq!(refused, 3.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_timeout_ends_a_silent_session() {
    let backend = Backend::start(willing).await;
    let server = Program::start(&under(&backend, "")).await;
    let mut ann = Client::login(server.of(Over::Tcp), Over::Tcp, "ann").await;
    let answer = order(
        &backend.control("ann"),
        "timeout",
        json!({"timeout_ms": 300}),
    )
    .await;
    assert_eq!(answer.status, 200);
    ann.expect_bye("session_expired").await;
    backend.hears("ended ann session_expired", 1).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_are_wrong_are_told_so_and_nobody_gives_them_for_another() {
    let backend = Backend::start(willing).await;
    let server = Program::start(&under(&backend, "")).await;
    let mut ann = Client::login(server.of(Over::Tcp), Over::Tcp, "ann").await;
    let _bob = Client::login(server.of(Over::Tcp), Over::Tcp, "bob").await;
    let (ann_may, bob_may) = (backend.control("ann"), backend.control("bob"));
    let bob_key = bob_may.1.split('.').next().unwrap().to_owned();
    let ann_secret = ann_may.1.split('.').nth(1).unwrap();
    let url = ann_may.0.clone();
    for token in [
        "x",
        "a.b.c",
        &format!("{bob_key}.{ann_secret}"),
        &format!("{bob_key}."),
    ] {
        let wrong = (url.clone(), token.to_owned());
        let answer = refused(&order(&wrong, "end", "").await);
        let expected = if token == "a.b.c" {
            (410, "session_expired")
        } else {
            (401, "auth_failed")
        };
        assert_eq!(answer, (expected.0, expected.1.to_owned()), "{token}");
    }
    let huge = json!({"data": "x".repeat(300_000)}).to_string();
    let large = json!({"data": "x".repeat(262_100)}).to_string();
    for (name, body, expected) in [
        ("filter", "{", (400, "bad_json")),
        ("filter", "[]", (400, "bad_json")),
        ("filter", r#"{"room":["a"]}"#, (400, "bad_request")),
        ("filter", r#"{"commands":["logout"]}"#, (400, "bad_request")),
        ("filter", r#"{"rooms":["Lobby"]}"#, (400, "room_invalid")),
        ("timeout", "", (400, "bad_request")),
        ("timeout", r#"{"timeout_ms":"1s"}"#, (400, "bad_request")),
        ("send", "{}", (400, "bad_request")),
        ("send", huge.as_str(), (413, "too_large")),
        ("send", large.as_str(), (413, "too_large")),
        ("kick", r#"{"room":"nowhere"}"#, (409, "not_joined")),
        ("end", r#"{"why":"so"}"#, (400, "bad_request")),
        ("explode", "{}", (404, "bad_request")),
    ] {
        let answer = order(&ann_may, name, body).await;
        let expected = (expected.0, expected.1.to_owned());
        assert_eq!(refused(&answer), expected, "{name} {body:.60}");
        let message = answer.json()["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(
            message.len() > 10 && message.ends_with('.'),
            "{name}: {message}"
        );
    }
    let addr = server.table("control");
    let path = url.split_once("//").unwrap().1.split_once('/').unwrap().1;
    let answer = Http::new(addr)
        .ask(&Request::new("GET", &format!("/{path}/end")))
        .await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    let bare = Request::new("POST", &format!("/{path}/end")).json("{}");
    let answer = Http::new(addr).ask(&bare).await;
    assert_eq!(refused(&answer), (401, "auth_failed".into()));
    let elsewhere = Request::new("POST", "/v1/session").json(login("eve"));
    assert_eq!(
        Http::new(addr).ask(&elsewhere).await.status,
        404,
        "nobody logs in here"
    );
    ann.ping().await;
    let wrong = server
        .metric(
            "chinwag_refused_total",
            "transport=\"control\",reason=\"token\"",
        )
        .await;
    assert_eq!(wrong, 4.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_may_come_encrypted_and_managers_are_told_where_to() {
    let pki = Pki::new();
    let backend = Backend::start(willing).await;
    let setup = |url: &str| {
        let control = format!("[control]\nbind = \"127.0.0.1:0\"\ntls = \"door\"\n{url}");
        Setup::authenticator(GUESTS)
            .and(&backend.table(""))
            .and(&pki.table(""))
            .and(&control)
    };
    let server = Program::start(&setup("")).await;
    let mut ann = Client::login(server.of(Over::Tcp), Over::Tcp, "ann").await;
    let (url, token) = backend.control("ann");
    let addr = server.table("control");
    assert_eq!(url, format!("https://{addr}/v1/control"));
    let end = Request::new("POST", "/v1/control/end").bearer(&token);
    let end = end.json("{}");
    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain.write_all(&end.bytes()).await.unwrap();
    let mut heard = Vec::new();
    // The server may close while bytes of ours are unread.
    let read = timeout(PATIENCE, plain.read_to_end(&mut heard)).await;
    read.expect("it is closed").ok();
    let heard = String::from_utf8_lossy(&heard);
    assert!(!heard.contains("HTTP"), "{heard}");
    ann.ping().await;
    let answer = pki.client().http(addr).ask(&end).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"type": "ok"})));
    ann.expect_bye("kicked").await;
    server.stop().await;

    let server = Program::start(&setup("url = \"https://chat.internal/orders/\"")).await;
    let _bob = Client::login(server.of(Over::Tcp), Over::Tcp, "bob").await;
    assert_eq!(
        backend.control("bob").0,
        "https://chat.internal/orders/v1/control"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_may_steer_a_session_before_it_begins() {
    let backend = Backend::start(|message| match message["type"].as_str() {
        Some("create") => Says::Json(json!({
            "verdict": "allow", "filter": {"rooms": ["lobby"]}, "timeout_ms": 600_000,
        })),
        _ => willing(message),
    })
    .await;
    let server = Program::start(&under(&backend, "")).await;
    for over in Over::ALL {
        let mut ann = Client::connect(server.of(over), over, "ann").await;
        let session = ann.log_in(login("ann")).await;
        assert_eq!(session["timeout_ms"], 600_000, "{session}");
        ann.enter("lobby").await;
        let other = ann.command(json!({"type": "join", "room": "other"})).await;
        assert_eq!(code(&other), "forbidden");
        ann.command(json!({"type": "logout"})).await;
    }
    server.stop().await;
}

/// Asks `/readyz`.
async fn ready(server: &Program) -> (u16, Value) {
    let answer = Http::new(server.metrics())
        .ask(&Request::new("GET", "/readyz"))
        .await;
    (answer.status, answer.json())
}

fn warnings(server: &Program) -> Vec<String> {
    let log = server.log().into_iter();
    log.filter(|line| line.contains("WARN") && line.contains("backend"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_is_down_at_the_start_is_warned_of_and_found_by_a_later_log_in() {
    for (policy, is_told) in [("warn", true), ("silent", false)] {
        let mut backend = Backend::start(willing).await;
        let setup = under(&backend, &format!("on_unreachable = \"{policy}\""));
        backend.go_away().await;
        let server = Program::start(&setup).await;
        server
            .metric_becomes(
                "chinwag_callout_calls_total",
                "outcome=\"unreachable\"",
                1.0,
            )
            .await;
        let is_ready =
            json!({"ready": true, "warnings": ["session manager backend is out of reach"]});
        assert_eq!(ready(&server).await, (200, is_ready));
        assert_eq!(
            server.metric("chinwag_session_manager_ready", "").await,
            0.0
        );
        let mut ann = Client::connect(server.of(Over::Tcp), Over::Tcp, "ann").await;
        let down = ann.try_log_in(login("ann")).await;
        assert_eq!(code(&down), "unavailable");
        assert!(down["retry_ms"].as_u64().is_some_and(|ms| ms > 0), "{down}");
        if is_told {
            eventually("a warning", async || {
                let is_said = |line: &String| line.contains("out of reach");
                warnings(&server).iter().any(is_said).then_some(())
            })
            .await;
        } else {
            let said = warnings(&server);
            assert!(
                !said.iter().any(|line| line.contains("out of reach")),
                "{said:?}"
            );
        }

        backend.come_back().await;
        loop {
            let answer = ann.try_log_in(login("ann")).await;
            if code(&answer) != "unavailable" {
                assert_eq!(answer["type"], "session", "{answer}");
                break;
            }
            sleep(Duration::from_millis(answer["retry_ms"].as_u64().unwrap())).await;
            ann = Client::connect(server.of(Over::Tcp), Over::Tcp, "ann").await;
        }
        assert_eq!(ready(&server).await, (200, json!({"ready": true})));
        assert_eq!(
            server.metric("chinwag_session_manager_ready", "").await,
            1.0
        );
        server.stop().await;
        assert_eq!(backend.brief(), ["create ann", "ended ann shutting_down"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_has_to_be_there_stops_the_start() {
    let backend = Backend::start(|_| Says::Fails).await;
    let setup = under(&backend, "on_unreachable = \"fail\"").only(&[Over::Tcp]);
    let folder = setup.folder();
    let file = folder.path().join("chinwag.toml");
    std::fs::write(&file, setup.document()).unwrap();
    let args = ["serve", "--config", file.to_str().unwrap()];
    let (exit, _, errors) = Program::run(&args, "").await;
    assert_eq!(exit, Some(2), "{errors}");
    assert!(
        errors.contains("session_managers.backend: it does not answer"),
        "{errors}"
    );
    backend.set(willing);
    Program::start(&setup).await.stop().await;
}

/// Logs in, coming back when told to.
async fn obey(addr: SocketAddr, over: Over, user: &str) -> Client {
    let (client, answer) = obey_within(PATIENCE * 2, addr, over, &login(user)).await;
    assert_eq!(answer["type"], "session", "{answer}");
    client
}

/// The sessions that messages of this type were about.
fn sessions(told: &[Value], kind: &str) -> BTreeSet<String> {
    let of_kind = told.iter().filter(|message| message["type"] == kind);
    of_kind
        .map(|it| it["session"].as_str().expect("it has one").to_owned())
        .collect()
}

/// Many come and go while their manager restarts three times; `told` is what it has then been told.
async fn many_come_and_go_while_it_restarts(
    server: Program,
    mut restart: impl AsyncFnMut(),
    told: impl FnOnce() -> Vec<Value>,
) {
    let done = Arc::new(AtomicUsize::new(0));
    let mut coming = JoinSet::new();
    for n in 0..9 {
        let over = Over::ALL[n % 3];
        let (addr, done) = (server.of(over), done.clone());
        coming.spawn(async move {
            for round in 0..15 {
                let mut client = obey(addr, over, &format!("user{n}x{round}")).await;
                client.command(json!({"type": "logout"})).await;
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for round in 1..=3 {
        eventually("the load to come so far", async || {
            (done.load(Ordering::SeqCst) >= round * 30).then_some(())
        })
        .await;
        restart().await;
    }
    let all = timeout(PATIENCE * 6, coming.join_all());
    all.await.expect("all were in and are out again");
    server
        .metric_becomes("chinwag_session_manager_notices_waiting", "", 0.0)
        .await;
    assert_eq!(server.metric(NOTICES, "outcome=\"undelivered\"").await, 0.0);
    server.stop().await;
    let told = told();
    let (begun, ended) = (sessions(&told, "create"), sessions(&told, "ended"));
    assert!(begun.len() >= 9 * 15, "{}", begun.len());
    // What was asked of a manager that then went without an answer is told to end as well.
    let missing: Vec<_> = begun.difference(&ended).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_restarts_under_load_hears_of_every_end() {
    let backend = Backend::start(willing).await;
    let server = Program::start(&under(&backend, "")).await;
    let backend = tokio::sync::Mutex::new(backend);
    let restart = async || {
        let mut backend = backend.lock().await;
        backend.go_away().await;
        backend.come_back().await;
    };
    let told = || backend.try_lock().expect("it is over").told();
    many_come_and_go_while_it_restarts(server, restart, told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_killed_under_load_hears_of_every_end() {
    let script = Script::new("");
    let server = Program::start(&Setup::authenticator(GUESTS).and(&script.table(""))).await;
    let restart = async || script.kill().await;
    many_come_and_go_while_it_restarts(server, restart, || script.told()).await;
    assert!(script.pids().len() > 3, "it was started anew");
}

/// An address where nobody answers a connection, as of a machine that is switched off: its queue is full.
async fn dead() -> (SocketAddr, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(addr)).await {
        queued.push(stream.unwrap());
        assert!(queued.len() < 100, "the queue is short");
    }
    // Leaked, so that nobody accepts and nobody refuses until the test is over.
    std::mem::forget(listener);
    (addr, queued)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_of_three_costs_its_connect_limit_once() {
    let (nobody, _queued) = dead().await;
    let (one, two) = (Backend::start(willing).await, Backend::start(willing).await);
    let limit = Duration::from_secs(2);
    let table = manager_table(
        &[nobody, one.addr, two.addr],
        "connect_timeout = \"2s\"\ncall_timeout = \"4s\"\ntimeout = \"9s\"",
    );
    let server = Program::start(&Setup::authenticator(GUESTS).and(&table)).await;
    let mut slow = 0;
    // They stay, so that no end is told meanwhile, which takes a turn as well.
    let mut inside = Vec::new();
    for n in 0..9 {
        let begun = Instant::now();
        let mut client = Client::connect(server.of(Over::Tcp), Over::Tcp, "x").await;
        client.patient().log_in(login(&format!("user{n}"))).await;
        slow += usize::from(begun.elapsed() >= limit);
        inside.push(client);
    }
    assert!(slow <= 1, "{slow} log-ins waited for the dead one");
    let shown = format!("endpoint=\"http://{nobody}/\"");
    server
        .metric_becomes("chinwag_callout_endpoint_healthy", &shown, 0.0)
        .await;
    for backend in [&one, &two] {
        let asked = backend
            .brief()
            .iter()
            .filter(|it| it.starts_with("create"))
            .count();
        assert!(asked >= 4, "the healthy ones take turns: {asked}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_tells_every_end_within_the_grace() {
    let mut backend = Backend::start(willing).await;
    let server = Program::start(&under(&backend, "stays = true")).await;
    let mut clients = Vec::new();
    for n in 0..30 {
        let over = Over::ALL[n % 3];
        let mut client = Client::login(server.of(over), over, &format!("user{n}")).await;
        client.join("a").await;
        client.join("b").await;
        clients.push(client);
    }
    // It is away when the stop begins, and back soon.
    backend.go_away().await;
    server.signal("TERM").await;
    clients[0].drain_to_bye("shutting_down").await;
    backend.come_back().await;
    let mut server = server;
    assert_eq!(
        server.exit().await.code(),
        Some(0),
        "{}",
        server.log().join("\n")
    );
    let told = backend.told();
    for n in 0..30 {
        let user = format!("user{n}");
        let ends: Vec<String> = told
            .iter()
            .filter(|message| message["user"] == user && !message["cause"].is_null())
            .map(brief)
            .collect();
        let expected = ["left", "left", "ended"].map(|it| it.to_owned());
        let kinds: Vec<String> = ends
            .iter()
            .map(|it| it.split(' ').next().unwrap().to_owned())
            .collect();
        assert_eq!(kinds, expected, "{user}: {ends:?}");
        assert!(
            ends.iter().all(|it| it.ends_with("shutting_down")),
            "{ends:?}"
        );
    }
}

/// A stop with sessions on every transport, each in two rooms. `told` is what their manager has then been told.
async fn ends_are_told_once(table: &str, told: impl FnOnce() -> Vec<Value>) {
    let grace = Duration::from_secs(20);
    let setup = Setup::authenticator(GUESTS)
        .and(table)
        .and("[server]\nshutdown_grace = \"20s\"");
    let mut server = Program::start(&setup).await;
    let mut clients = Vec::new();
    for over in Over::ALL {
        let mut client = Client::login(server.of(over), over, over.table()).await;
        client.join("a").await;
        client.join("b").await;
        clients.push(client);
    }
    let begun = Instant::now();
    server.signal("TERM").await;
    for client in &mut clients {
        client.drain_to_bye("shutting_down").await;
    }
    let exit = server.exit().await;
    assert_eq!(exit.code(), Some(0), "{}", server.log().join("\n"));
    assert!(begun.elapsed() < grace, "{:?}", begun.elapsed());
    // Nobody tells anything any more.
    let told = told();
    for over in Over::ALL {
        let user = over.table();
        let of_user = told
            .iter()
            .filter(|message| message["user"] == user && !message["cause"].is_null());
        let ends: Vec<String> = of_user.map(brief).collect();
        let expected = [
            format!("left {user} b shutting_down"),
            format!("left {user} a shutting_down"),
            format!("ended {user} shutting_down"),
        ];
        assert_eq!(ends, expected, "{over:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sigterm_a_server_is_told_each_end_once_before_the_program_exits() {
    let backend = Backend::start(willing).await;
    ends_are_told_once(&backend.table("stays = true"), || backend.told()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sigterm_a_program_is_told_each_end_once_before_the_server_exits() {
    let script = Script::new("");
    ends_are_told_once(&script.table("stays = true"), || script.told()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_that_nobody_hears_are_counted() {
    let backend = Backend::start(willing).await;
    let setup = under(&backend, "notices = { tries = 3 }").and("[server]\nshutdown_grace = \"4s\"");
    let server = Program::start(&setup).await;
    for n in 0..4 {
        let mut client = Client::login(server.of(Over::Tcp), Over::Tcp, &format!("user{n}")).await;
        backend.set(|message| match message["type"].as_str() {
            Some("ended") => Says::Fails,
            _ => willing(message),
        });
        client.command(json!({"type": "logout"})).await;
    }
    server
        .metric_becomes(NOTICES, "outcome=\"undelivered\"", 4.0)
        .await;
    assert_eq!(server.metric(NOTICES, "outcome=\"retried\"").await, 8.0);
    assert_eq!(server.metric(NOTICES, "outcome=\"delivered\"").await, 0.0);
    assert_eq!(
        server
            .metric("chinwag_session_manager_notices_waiting", "")
            .await,
        0.0
    );
    let is_said = |log: Vec<String>, what: &str| log.iter().any(|line| line.contains(what));
    assert!(is_said(server.log(), "are given up"), "{:?}", server.log());

    let _last = Client::login(server.of(Over::Tcp), Over::Tcp, "last").await;
    drop(backend);
    server.signal("TERM").await;
    let mut server = server;
    let exit = server.exit().await;
    assert!(exit.code().is_some(), "{exit}");
    let log = server.log();
    let is_told = is_said(log.clone(), "undelivered=1") || is_said(log.clone(), "undelivered=2");
    assert!(is_told, "{}", log.join("\n"));
}

/// A folder with a session manager in Python that notes what it is told, and does what `react` says of each message
/// before it answers. There, `order(session, name, fields)` gives an order.
struct Script {
    folder: tempfile::TempDir,
}

impl Script {
    fn new(react: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let react: String = react.lines().map(|line| format!("    {line}\n")).collect();
        let text = format!(
            "import json, os, sys\n\
             os.chdir({folder:?})\n\
             open('pids', 'a').write(f'{{os.getpid()}}\\n')\n\
             def say(line):\n    print(json.dumps(line), flush=True)\n\
             def order(session, name, fields, **more):\n    say({{'session': session, 'order': name, 'with': fields, **more}})\n\
             for line in sys.stdin:\n    message = json.loads(line)\n    open('told', 'a').write(line)\n    \
             if message['type'] == 'outcome':\n        continue\n    \
             answer = {{'verdict': 'allow' if message['type'] in ('create', 'joined') else 'done'}}\n\
             {react}\n    say({{'id': message['id'], **answer}})\n",
            folder = folder.path()
        );
        std::fs::write(folder.path().join("manager.py"), text).expect("a writable folder");
        Self { folder }
    }

    fn table(&self, more: &str) -> String {
        let script = self.folder.path().join("manager.py");
        format!(
            "[session_managers.backend]\nkind = \"exec\"\ncommand = [\"python3\", {script:?}]\n\
             timeout = \"9s\"\ncall_timeout = \"8s\"\n{more}\n"
        )
    }

    fn told(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("told")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    fn brief(&self) -> Vec<String> {
        self.told()
            .iter()
            .map(brief)
            .filter(|it| it != "hello")
            .collect()
    }

    /// Kills the process that it has.
    async fn kill(&self) {
        let pids = self.pids();
        let mut kill = Command::new("kill");
        kill.args(["-9", pids.last().expect("it runs")]);
        assert!(kill.status().await.unwrap().success());
    }

    /// The processes that it has had.
    fn pids(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("pids")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_steers_sessions_by_lines_at_any_time() {
    let script = Script::new(
        "if message['type'] == 'create':\n    order(message['session'], 'send', {'data': {'hello': message['user']}})\n\
         if message['type'] == 'joined' and message['room'] == 'cut':\n    \
             order(message['session'], 'filter', {'rooms': ['cut']})\n\
         if message['type'] == 'joined' and message['room'] == 'out':\n    \
             order(message['session'], 'kick', {'room': 'lobby'}, ref=1)\n    \
             order(message['session'], 'kick', {'room': 'nowhere'}, ref=2)\n\
         if message['type'] == 'joined' and message['room'] == 'end':\n    order(message['session'], 'end', None)",
    );
    let setup = Setup::authenticator(GUESTS).and(&script.table("stays = true"));
    let server = Program::start(&setup).await;
    for over in Over::ALL {
        let mut ann = Client::login(server.of(over), over, "ann").await;
        let hello = ann.next_event().await;
        assert_eq!(
            (&hello["type"], &hello["data"]),
            (&json!("system"), &json!({"hello": "ann"}))
        );
        ann.enter("lobby").await;
        ann.join("out").await;
        let left = json!({"type": "left", "room": "lobby", "reason": "kicked"});
        ann.events_until("being put out", |event| includes(event, &left))
            .await;
        ann.ping().await;
        while ann.try_event(Duration::ZERO).await.is_some() {}
        ann.join("cut").await;
        let other = ann.command(json!({"type": "join", "room": "other"})).await;
        assert_eq!(code(&other), "forbidden", "{over:?}");
        let end = ann.command(json!({"type": "join", "room": "cut"})).await;
        assert_eq!(end["type"], "init");
        ann.command(json!({"type": "logout"})).await;
        let mut bob = Client::login(server.of(over), over, "bob").await;
        bob.send_command(json!({"type": "join", "room": "end"}))
            .await;
        bob.drain_to_bye("kicked").await;
    }
    server.stop().await;
    let told = script.told();
    let outcomes: Vec<_> = told.iter().filter(|it| it["type"] == "outcome").collect();
    assert_eq!(outcomes.len(), 6, "{outcomes:?}");
    for outcome in outcomes {
        let is_first = outcome["ref"] == 1;
        assert_eq!(outcome["ok"], is_first, "{outcome}");
        assert_eq!(outcome["code"].is_null(), is_first, "{outcome}");
    }
    let (begun, ended) = (sessions(&told, "create"), sessions(&told, "ended"));
    assert_eq!((begun.len(), &begun), (6, &ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_killed_is_started_anew_and_hears_of_every_end() {
    let script = Script::new("");
    let setup = Setup::authenticator(GUESTS).and(&script.table(""));
    let server = Program::start(&setup).await;
    let mut ann = Client::login(server.of(Over::Tcp), Over::Tcp, "ann").await;
    for round in 0..3 {
        let pids = script.pids();
        script.kill().await;
        let user = format!("user{round}");
        let mut client = obey(server.of(Over::WebSocket), Over::WebSocket, &user).await;
        client.command(json!({"type": "logout"})).await;
        assert!(script.pids().len() > pids.len(), "it was started anew");
    }
    ann.ping().await;
    server
        .metric_becomes("chinwag_callout_programs_failed_total", "", 3.0)
        .await;
    server.stop().await;
    let told = script.told();
    let (begun, ended) = (sessions(&told, "create"), sessions(&told, "ended"));
    let lost: Vec<_> = begun.difference(&ended).collect();
    assert!(lost.is_empty(), "{:?}", script.brief());
    assert!(ended.len() >= 4);
    for pid in script.pids() {
        assert!(
            !Path::new("/proc").join(&pid).join("cwd").exists(),
            "{pid} outlived the server"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_and_no_bearer_is_in_a_log_or_a_metric() {
    let backend = Backend::start(|message| {
        let token = message["control"]["token"].as_str().unwrap_or_default();
        match message["user"].as_str() {
            Some("echo") => Says::Json(json!({"verdict": token, "reason": token})),
            Some("reason") => {
                Says::Json(json!({"verdict": "refuse", "reason": format!("no {token}")}))
            }
            _ => willing(message),
        }
    })
    .await;
    const BEARER: &str = "planted-bearer-of-the-server";
    // A stop goes on telling those who answer nonsense for as long as it may.
    let setup = under(&backend, &format!("bearer = \"{BEARER}\""))
        .and("[server]\nshutdown_grace = \"2s\"")
        .log_level("trace");
    let server = Program::start(&setup).await;
    for over in Over::ALL {
        for user in ["echo", "reason"] {
            let mut client = Client::connect(server.of(over), over, user).await;
            assert_eq!(code(&client.try_log_in(login(user)).await), "unavailable");
        }
        let mut ann = Client::login(server.of(over), over, "ann").await;
        let control = backend.control("ann");
        assert_eq!(
            order(&control, "send", json!({"data": 1})).await.status,
            200
        );
        assert_eq!(
            order(&control, "kick", json!({"room": "a"})).await.status,
            409
        );
        ann.command(json!({"type": "logout"})).await;
    }
    let metrics = scrape(server.metrics()).await;
    let tokens: Vec<String> = backend
        .told()
        .iter()
        .filter_map(|message| {
            Some(
                message["control"]["token"]
                    .as_str()?
                    .split('.')
                    .nth(1)?
                    .to_owned(),
            )
        })
        .collect();
    assert!(tokens.len() >= 9, "{}", tokens.len());
    let log = server.log().join("\n");
    server.stop().await;
    assert!(
        log.contains("none of the contract"),
        "the log has what went wrong"
    );
    for secret in tokens.iter().map(String::as_str).chain([BEARER]) {
        assert!(!log.contains(secret), "{secret} is in the log");
        assert!(!metrics.contains(secret), "{secret} is in the metrics");
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
}

/// The example in Python, as its configuration says to start it.
async fn python_manager() -> (Child, String) {
    let mut command = Command::new("./manager.py");
    command.args(["--port", "0", "--bearer-file", "bearer.txt"]);
    command
        .current_dir(example("http-manager"))
        .kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("python3 is installed");
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let read = timeout(PATIENCE, output.read_line(&mut line)).await;
    read.expect("it starts").expect("it is piped");
    let addr = line
        .trim()
        .strip_prefix("listening on ")
        .expect("it says where");
    (child, addr.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_python_manages_sessions() {
    let (_running, addr) = python_manager().await;
    let folder = example("http-manager");
    let endpoints = (
        "CHINWAG_SESSION_MANAGERS__BACKEND__ENDPOINTS",
        format!("http://{addr}/"),
    );
    let server = Program::start_file_with(&folder.join("chinwag.toml"), &[endpoints]).await;
    let line = server.table("line");
    let mut closed = Client::connect(line, Over::Tcp, "banned-bob").await;
    assert_eq!(
        code(&closed.try_log_in(login("banned-bob")).await),
        "session_refused"
    );
    let mut ada = Client::login(line, Over::Tcp, "ada").await;
    ada.enter("lobby").await;
    ada.enter("team:red").await;
    let other = ada
        .command(json!({"type": "join", "room": "team:blue"}))
        .await;
    assert_eq!(code(&other), "forbidden");

    let bearer = std::fs::read_to_string(folder.join("bearer.txt")).unwrap();
    let mut http = Http::new(addr.parse().unwrap());
    let ask = Request::new("GET", "/sessions").bearer(bearer.trim());
    assert_eq!(
        http.ask(&ask).await.json(),
        json!({"ada": ["lobby", "team:red"]})
    );
    let tell = Request::new("POST", "/ada/send").bearer(bearer.trim());
    let answer = http.ask(&tell.json(json!({"data": "Hello, Ada."}))).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"type": "ok"})));
    assert_eq!(ada.next_event().await["data"], "Hello, Ada.");
    let end = Request::new("POST", "/ada/end").bearer(bearer.trim());
    assert_eq!(http.ask(&end.json("{}")).await.status, 200);
    ada.drain_to_bye("kicked").await;
    eventually("the session to be forgotten", async || {
        (http.ask(&ask).await.json() == json!({})).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_javascript_manages_sessions() {
    let folder = example("exec-manager");
    let server = Program::start_file(&folder.join("chinwag.toml")).await;
    let mut ada = Client::connect(server.table("line"), Over::Tcp, "ada").await;
    ada.patient().log_in(login("ada")).await;
    let hello = ada.next_event().await;
    assert_eq!(
        hello["data"]["notice"],
        "Welcome, ada. Please listen for a while."
    );
    ada.enter("lobby").await;
    let early = ada
        .command(json!({"type": "send", "room": "lobby", "text": "hi"}))
        .await;
    assert_eq!(code(&early), "forbidden");
    let notice = ada.event_within("leave to talk", PATIENCE).await;
    assert_eq!(notice["data"]["notice"], "You may talk now.");
    ada.say("lobby", "at last").await;
    server.stop().await;
}
