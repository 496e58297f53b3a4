//! Log-in by client certificate: which ones are good, whom they name, and what becomes of those that are revoked.

use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::harness::{
    Addresses, Authority, Client, Http, Identity, Over, PATIENCE, Pki, Program, Request, Secure,
    Setup, VERSIONS, code, day,
};

const FAILURES: &str = "chinwag_tls_failures_total";
const DENIALS: &str = "chinwag_auth_denials_total";

/// Whether nothing that the client says is answered, be it told why or not.
pub(crate) async fn is_refused(server: &Program, over: Over, client: &Secure) -> bool {
    let said = async {
        let mut stream = client.dial(server.of(over)).await?;
        let hello: &[u8] = match over {
            Over::Tcp => b"{\"type\":\"login\"}\n",
            Over::WebSocket => {
                b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            }
            Over::Polling => {
                b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
            }
        };
        stream.write_all(hello).await?;
        stream.read(&mut [0]).await
    };
    let said = timeout(PATIENCE, said).await.expect("an answer, or none");
    !matches!(said, Ok(1..))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_certificate_is_refused_and_counted_on_every_transport() {
    let pki = Pki::new();
    let ca = &pki.clients;
    let between = ca.under("between");
    pki.put("crl.pem", &(ca.crl(&[13]) + &between.crl(&[])));
    let server = Program::start(&pki.by_certificate()).await;
    let with = |edit: fn(&mut CertificateParams)| ca.client("alice", edit);
    let good = || with(|_| ());
    let elsewhere = Authority::root("elsewhere");
    let namesake = Authority::root("clients");
    let cases = [
        (
            "expired",
            with(|params| params.not_after = day(-1)),
            "expired",
        ),
        (
            "not yet valid",
            with(|params| params.not_before = day(1)),
            "not_yet_valid",
        ),
        (
            "of another CA",
            elsewhere.client("alice", |_| ()),
            "unknown_ca",
        ),
        (
            "of a CA of that name",
            namesake.client("alice", |_| ()),
            "bad_signature",
        ),
        (
            "for servers",
            with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "wrong_usage",
        ),
        (
            "revoked",
            with(|params| params.serial_number = Some(13.into())),
            "revoked",
        ),
        ("self-signed", Identity::self_signed("alice"), "unknown_ca"),
        ("signed by a leaf", ca.client_by_leaf("alice"), "unknown_ca"),
        (
            "without the one between",
            between.client("alice", |_| ()),
            "unknown_ca",
        ),
        (
            "with a weak key",
            ca.client_with_a_weak_key("alice"),
            "weak",
        ),
        (
            "altered",
            good().altered(|der| *der.last_mut().unwrap() ^= 1),
            "bad_signature",
        ),
        (
            "cut",
            good().altered(|der| der.truncate(der.len() / 2)),
            "bad_certificate",
        ),
        (
            "somebody else's",
            good().with_key_of(&Identity::self_signed("mallory")),
            "bad_signature",
        ),
    ];
    for (what, identity, reason) in &cases {
        let labels = format!("tls=\"door\",reason=\"{reason}\"");
        let before = server.metric(FAILURES, &labels).await;
        for version in VERSIONS {
            let client = Secure::showing(&pki.servers, version, identity);
            for over in Over::ALL {
                assert!(
                    is_refused(&server, over, &client).await,
                    "{what}, {version:?}, {over:?}"
                );
            }
        }
        eprintln!("{what}: {reason}");
        server.metric_becomes(FAILURES, &labels, before + 6.0).await;
    }
    for over in Over::ALL {
        assert!(is_refused(&server, over, &pki.client()).await, "{over:?}");
    }
    server
        .metric_becomes(FAILURES, "reason=\"no_certificate\"", 3.0)
        .await;

    // The same ways are open to those who are good.
    for version in VERSIONS {
        for (over, identity) in Over::ALL.into_iter().flat_map(|over| {
            let whole = between.client("alice", |_| ()).followed_by(&between);
            [(over, good()), (over, whole)]
        }) {
            let client = Secure::showing(&pki.servers, version, &identity);
            let mut alice = client.connect(&server, over, "alice").await;
            let session = alice.log_in(json!({"type": "login"})).await;
            assert_eq!(session["user"], "alice");
            // A name beside the certificate has to be that name.
            alice.command(json!({"type": "logout"})).await;
        }
    }
    assert_eq!(
        server.metric("chinwag_sessions_created_total", "").await,
        12.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_has_to_name_exactly_one_user_plainly() {
    let pki = Pki::new();
    let ca = &pki.clients;
    let server = Program::start(&pki.by_certificate().and(
        "[limits]\nlogin_failures_per_ip = \"unlimited\"\nlogin_failures_per_name = \"unlimited\"",
    ))
    .await;
    let cases: [(&str, &str, Identity); 8] = [
        (
            "two common names",
            "many_names",
            ca.client("alice", |params| {
                let again = DnType::CustomDnType(vec![2, 5, 4, 3]);
                params.distinguished_name.push(again, "mallory");
            }),
        ),
        (
            "none",
            "no_name",
            ca.client("alice", |params| {
                params.distinguished_name = DistinguishedName::new();
                params
                    .distinguished_name
                    .push(DnType::OrganizationName, "alice");
            }),
        ),
        ("a wildcard", "bad_name", ca.client("*", |_| ())),
        (
            "a line break",
            "bad_name",
            ca.client("alice\r\nbob", |_| ()),
        ),
        (
            "an end of text",
            "bad_name",
            ca.client("alice\0bob", |_| ()),
        ),
        (
            "a look-alike",
            "look_alike",
            ca.client("\u{430}lice", |_| ()),
        ),
        (
            "only look-alikes",
            "look_alike",
            ca.client("\u{430}\u{441}\u{435}", |_| ()),
        ),
        ("nothing", "no_name", ca.client("", |_| ())),
    ];
    for (what, reason, identity) in &cases {
        let labels = format!("authenticator=\"own\",reason=\"{reason}\"");
        let before = server.metric(DENIALS, &labels).await;
        for version in VERSIONS {
            let client = Secure::showing(&pki.servers, version, identity);
            for over in Over::ALL {
                let mut nobody = client.connect(&server, over, what).await;
                let refused = nobody.try_log_in(json!({"type": "login"})).await;
                assert_eq!(
                    code(&refused),
                    "auth_failed",
                    "{what}, {version:?}, {over:?}"
                );
                assert!(
                    !refused.to_string().contains("certificate"),
                    "one text, whatever was wrong: {refused}"
                );
            }
        }
        eprintln!("{what}: {reason}");
        server.metric_becomes(DENIALS, &labels, before + 6.0).await;
    }
    assert_eq!(
        server.metric("chinwag_sessions_created_total", "").await,
        0.0
    );
    // Who signed such names can find out, and no name gets into the log as it stands.
    let log = server.log().join("\n");
    for reason in [
        "more than one name",
        "no name of the configured kind",
        "wildcard",
        "a control character",
        "mistaken for another",
        "is empty",
    ] {
        assert!(log.contains(reason), "{reason}:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_beside_the_certificate_is_the_one_that_it_names() {
    let pki = Pki::new();
    let server = pki.by_certificate().start().await;
    let identity = pki.clients.client("alice", |_| ());
    for over in Over::ALL {
        let client = Secure::showing(&pki.servers, VERSIONS[1], &identity);
        for (login, expected) in [
            (json!({"type": "login", "user": "bob"}), "auth_failed"),
            (
                json!({"type": "login", "user": "alice", "password": "x"}),
                "auth_failed",
            ),
            (json!({"type": "login", "user": "alice"}), "session"),
        ] {
            let mut alice = client.connect(&server, over, "alice").await;
            let answer = alice.try_log_in(login.clone()).await;
            let found = answer["code"].as_str().or_else(|| answer["type"].as_str());
            assert_eq!(found, Some(expected), "{over:?}: {login}: {answer}");
        }
    }
}

/// Somebody on each transport, in the room `lobby`.
async fn inside(
    server: &Program,
    pki: &Pki,
    identity: impl Fn(Over) -> Identity,
) -> Vec<(Over, Client)> {
    let mut members = Vec::new();
    for over in Over::ALL {
        let client = Secure::showing(&pki.servers, VERSIONS[1], &identity(over));
        let mut member = client.connect(server, over, over.table()).await;
        member.log_in(json!({"type": "login"})).await;
        member.join("lobby").await;
        members.push((over, member));
    }
    members
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_revoked_ends_its_session_on_every_transport() {
    let pki = Pki::new();
    let ca = &pki.clients;
    let server = Program::start(&pki.by_certificate()).await;
    let mut revoked = inside(&server, &pki, |over| {
        ca.client(over.table(), |params| {
            params.serial_number = Some(13.into())
        })
    })
    .await;
    let mut others = inside(&server, &pki, |over| {
        ca.client(&format!("other-{}", over.table()), |params| {
            params.serial_number = Some(14.into());
        })
    })
    .await;
    pki.put("crl.pem", &ca.crl(&[13]));
    for (over, member) in &mut revoked {
        eprintln!("{over:?}");
        member.drain_to_bye("auth_expired").await;
    }
    for (over, other) in &mut others {
        let seen = other
            .events_until("the last leave", |event| {
                event["type"] == "leave" && event["user"] == Over::Polling.table()
            })
            .await;
        let leaves = seen.iter().filter(|event| event["type"] == "leave");
        for leave in leaves {
            assert_eq!(leave["reason"], "evicted", "{over:?}: {leave}");
        }
        other.ping().await;
    }
    let ended = "reason=\"auth_expired\"";
    server
        .metric_becomes("chinwag_sessions_ended_total", ended, 3.0)
        .await;
    // A ticket of the time before is no way around it.
    let again = ca.client("line", |params| params.serial_number = Some(13.into()));
    for over in Over::ALL {
        let client = Secure::showing(&pki.servers, VERSIONS[1], &again);
        assert!(is_refused(&server, over, &client).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_out_of_date_lets_nobody_new_in_and_throws_nobody_out() {
    let pki = Pki::new();
    let ca = &pki.clients;
    let server = Program::start(&pki.by_certificate()).await;
    let mut members = inside(&server, &pki, |over| ca.client(over.table(), |_| ())).await;
    pki.put("crl.pem", &ca.crl_from(-31, &[]));
    let reloads = "name=\"door\",outcome=\"ok\"";
    server
        .metric_becomes("chinwag_config_reloads_total", reloads, 1.0)
        .await;
    for over in Over::ALL {
        let client = Secure::showing(&pki.servers, VERSIONS[1], &ca.client("late", |_| ()));
        assert!(is_refused(&server, over, &client).await);
    }
    server
        .metric_becomes(FAILURES, "reason=\"stale_crl\"", 3.0)
        .await;
    for (_, member) in &mut members {
        member.ping().await;
    }
    pki.put("crl.pem", &ca.crl_from(0, &[]));
    server
        .metric_becomes("chinwag_config_reloads_total", reloads, 2.0)
        .await;
    for over in Over::ALL {
        let client = Secure::showing(&pki.servers, VERSIONS[1], &ca.client("new", |_| ()));
        let mut new = client.connect(&server, over, "new").await;
        new.log_in(json!({"type": "login"})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_may_have_two_keys_and_each_list_ends_sessions_of_its_own() {
    let pki = Pki::new();
    let (old, new) = (&pki.clients, Authority::root("clients"));
    let lists = |by_old: &[u64], by_new: &[u64]| old.crl(by_old) + &new.crl(by_new);
    pki.put("clients.pem", &(old.pem() + &new.pem()));
    pki.put("crl.pem", &lists(&[], &[]));
    let server = Program::start(&pki.by_certificate()).await;
    let numbered = |ca: &Authority, name: &str, over: Over| {
        ca.client(&format!("{name}-{}", over.table()), |params| {
            params.serial_number = Some(13.into());
        })
    };
    let mut of_old = inside(&server, &pki, |over| numbered(old, "old", over)).await;
    let mut of_new = inside(&server, &pki, |over| numbered(&new, "new", over)).await;
    pki.put("crl.pem", &lists(&[13], &[]));
    for (_, member) in &mut of_old {
        member.drain_to_bye("auth_expired").await;
    }
    for (_, member) in &mut of_new {
        member.ping().await;
    }
    let ended = "reason=\"auth_expired\"";
    server
        .metric_becomes("chinwag_sessions_ended_total", ended, 3.0)
        .await;
    pki.put("crl.pem", &lists(&[13], &[13]));
    for (_, member) in &mut of_new {
        member.drain_to_bye("auth_expired").await;
    }
}

/// How the id of a polling session travels.
#[derive(Debug, Clone, Copy)]
enum Carried {
    Header,
    Cookie,
}

impl Carried {
    /// Opens a session, and gives what makes a request one of it.
    async fn open(self, http: &mut Http) -> impl Fn(Request) -> Request + use<> {
        let login = Request::new("POST", "/v1/session").header("X-Chinwag", "1");
        let body = match self {
            Self::Header => "{}",
            Self::Cookie => "{\"cookie\":true}",
        };
        let answer = http.ask(&login.json(body)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        let id = answer.json()["session"].as_str().map(str::to_owned);
        let cookie = answer.header("set-cookie").map(str::to_owned);
        let cookie = cookie.and_then(|cookie| Some(cookie.split(';').next()?.to_owned()));
        move |request| match self {
            Self::Header => request.bearer(id.as_deref().expect("an id")),
            Self::Cookie => request
                .header("Cookie", cookie.as_deref().expect("a cookie"))
                .header("X-Chinwag", "1"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_polling_session_is_bound_to_the_certificate_that_opened_it() {
    let pki = Pki::new();
    let ca = &pki.clients;
    let setup = Setup::authenticator("kind = \"certificate\"\nuser = \"subject-cn\"")
        .only(&[Over::Polling])
        .and(&pki.strict().replace("required", "optional"))
        .on(
            Over::Polling,
            "tls = \"door\"\nsession_id = [\"header\", \"cookie\"]",
        );
    let server = setup.start().await;
    let addr = server.addr(Over::Polling);
    let of = |identity: &Identity| Secure::showing(&pki.servers, VERSIONS[1], identity).http(addr);
    let alice = ca.client("alice", |_| ());
    // Renewed: of the same user, and yet another certificate.
    let renewed = ca.client("alice", |_| ());
    let mallory = ca.client("mallory", |_| ());
    for carried in [Carried::Header, Carried::Cookie] {
        let within = carried.open(&mut of(&alice)).await;
        let requests = [
            Request::new("GET", "/v1/events"),
            Request::new("POST", "/v1/commands").json("{\"type\":\"ping\"}"),
            Request::new("DELETE", "/v1/session"),
        ]
        .map(within);
        for (who, mut http) in [
            ("another user", of(&mallory)),
            ("another certificate", of(&renewed)),
            ("no certificate", pki.client().http(addr)),
        ] {
            for request in &requests {
                let answer = http.ask(request).await;
                assert_eq!(answer.verdict(), "401 not_logged_in", "{who}, {carried:?}");
            }
        }
        for request in &requests {
            let answer = of(&alice).ask(request).await;
            assert_eq!(answer.status, 200, "{carried:?}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_certificate() {
    let pki = Pki::new();
    let server = Program::start(&pki.by_certificate()).await;
    // Time for three of them to come in on a machine with other work to do.
    let end = time::OffsetDateTime::now_utc() + time::Duration::seconds(8);
    let mut members = inside(&server, &pki, |over| {
        pki.clients
            .client(over.table(), |params| params.not_after = end)
    })
    .await;
    for (_, member) in &mut members {
        member.drain_to_bye("auth_expired").await;
    }
    assert!(time::OffsetDateTime::now_utc() >= end - Duration::from_secs(1));
}
