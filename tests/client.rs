//! The Rust client before the real server, over every transport.

use std::{sync::Arc, time::Duration};

use chinwag::core::{CloseReason, ErrorCode as CoreError, LeaveReason as CoreLeave};
use chinwag_client::{
    Client, ConnectError, End, EndCode, Error, ErrorCode, Event, Identity, LeaveReason, Login,
    Loss, Options, TlsFault, TlsFiles,
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::timeout};

use crate::harness::{
    Addresses, Client as Plain, Identity as Shown, Over, PATIENCE, Pki, Program, Server, Setup,
};

/// The URL of a server's front end.
pub(crate) fn url(server: &impl Addresses, over: Over) -> String {
    let scheme = match over {
        Over::Tcp => "tcp",
        Over::WebSocket => "ws",
        Over::Polling => "http",
    };
    format!("{scheme}://{}", server.of(over))
}

/// The same over TLS.
pub(crate) fn tls_url(server: &impl Addresses, over: Over) -> String {
    let scheme = match over {
        Over::Tcp => "tls",
        Over::WebSocket => "wss",
        Over::Polling => "https",
    };
    format!("{scheme}://{}", server.of(over))
}

/// Those who trust the server of `pki`, and show something or nothing.
fn trusting(pki: &Pki, shown: Option<&Shown>) -> Options {
    pki.put("servers.pem", &pki.servers.pem());
    let identity = shown.map(|shown| {
        pki.put("shown.pem", &shown.pem());
        pki.put("shown.key", &shown.key_pem());
        Identity {
            cert: pki.at("shown.pem"),
            key: pki.at("shown.key"),
        }
    });
    Options {
        tls: TlsFiles {
            ca: vec![pki.at("servers.pem")],
            identity,
        },
        ..Options::default()
    }
}

/// What is wrong with TLS, found out at once or by logging in.
async fn fault(url: &str, options: Options) -> TlsFault {
    match Client::connect(url, options).await {
        Err(ConnectError::Tls { fault, .. }) => fault,
        Err(other) => panic!("{url}: {other:?}"),
        Ok(client) => match client.login(Login::certificate()).await {
            Err(Error::Ended(End::Lost(Loss::Tls(fault))) | Error::Lost(Loss::Tls(fault))) => fault,
            other => panic!("{url}: {other:?}"),
        },
    }
}

async fn connect(server: &impl Addresses, over: Over, name: &str, options: Options) -> Client {
    let client = Client::connect(&url(server, over), options).await.unwrap();
    let session = client.login(Login::name(name)).await.unwrap();
    assert_eq!(&*session.user, name);
    client
}

async fn login(server: &impl Addresses, over: Over, name: &str) -> Client {
    connect(server, over, name, Options::default()).await
}

async fn next(client: &mut Client) -> Result<Event, End> {
    timeout(PATIENCE, client.next()).await.expect("an event")
}

/// The end, past whatever comes before.
async fn end(client: &mut Client) -> End {
    loop {
        if let Err(end) = next(client).await {
            return end;
        }
    }
}

async fn lobby() -> Server {
    Setup::tables("[server]\ndefault_room = \"lobby\"\n[limits]\nsends = \"unlimited\"\ncommands = \"unlimited\"")
        .start()
        .await
}

#[test]
fn its_words_are_those_of_the_server() {
    for code in CoreError::ALL {
        let known = ErrorCode::from(code.code());
        assert!(!matches!(known, ErrorCode::Other(_)), "{known}");
    }
    for reason in CloseReason::ALL {
        let known = EndCode::from(reason.code());
        assert!(!matches!(known, EndCode::Other(_)), "{known}");
        if let Some(leave) = reason.leave_reason() {
            let word = serde_json::to_value(leave).unwrap();
            let known = LeaveReason::from(word.as_str().unwrap());
            assert!(!matches!(known, LeaveReason::Other(_)), "{known}");
        }
    }
    let left = serde_json::to_value(CoreLeave::Left).unwrap();
    assert_eq!(LeaveReason::from(left.as_str().unwrap()), LeaveReason::Left);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_and_hears_over_every_transport() {
    let server = lobby().await;
    for over in Over::ALL {
        let mut ada = login(&server, over, "ada").await;
        let init = ada.join(None).await.unwrap();
        assert_eq!((&*init.room, init.count), ("lobby", 0), "{over:?}");
        let mut bob = Plain::login(server.addr(Over::Tcp), Over::Tcp, "bob").await;
        bob.join("lobby").await;
        let sent = ada.send("lobby", "hello").await.unwrap();
        bob.say("lobby", "hi yourself").await;
        let page = ada.users("lobby", None).await.unwrap();
        let names: Vec<&str> = page.users.iter().map(|name| &**name).collect();
        assert_eq!((names, page.count), (vec!["ada", "bob"], 2), "{over:?}");
        assert!(matches!(next(&mut ada).await.unwrap(), Event::Init(told) if told.seq == init.seq));
        assert!(matches!(next(&mut ada).await.unwrap(), Event::Join(join) if &*join.user == "ada"));
        assert!(matches!(next(&mut ada).await.unwrap(), Event::Join(join) if &*join.user == "bob"));
        let Event::Message(own) = next(&mut ada).await.unwrap() else {
            panic!("{over:?}: no message");
        };
        assert_eq!((own.seq, own.text.as_deref()), (sent.seq, Some("hello")));
        assert!(
            matches!(next(&mut ada).await.unwrap(), Event::Message(message) if &*message.user == "bob")
        );
        let data = serde_json::json!({"colour": "red"});
        ada.handle().send_data("lobby", None, &data).await.unwrap();
        let Event::Message(message) = next(&mut ada).await.unwrap() else {
            panic!("{over:?}: no message");
        };
        assert_eq!(message.data.unwrap().get(), "{\"colour\":\"red\"}");
        ada.leave("lobby").await.unwrap();
        assert!(
            matches!(next(&mut ada).await.unwrap(), Event::Left(left) if left.reason.is_none())
        );
        ada.handle().ping().await.unwrap();
        assert_eq!(ada.logout().await.unwrap().code, EndCode::Logout);
        assert!(
            matches!(end(&mut ada).await, End::Bye(bye) if bye.code == EndCode::Logout),
            "{over:?}"
        );
        let late = ada.send("lobby", "x").await.unwrap_err();
        assert!(
            matches!(late, Error::Ended(End::Bye(_))),
            "{over:?}: {late:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_leaves_all_else_as_it_was() {
    let server = lobby().await;
    for over in Over::ALL {
        let holder = login(&server, Over::Tcp, "bob").await;
        let client = Client::connect(&url(&server, over), Options::default())
            .await
            .unwrap();
        let refused = client.login(Login::name("bob")).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(refusal) if refusal.code == ErrorCode::NameInUse));
        client.login(Login::name("ada")).await.unwrap();
        let refused = client.send("lobby", "too early").await.unwrap_err();
        assert!(matches!(refused, Error::Refused(refusal) if refusal.code == ErrorCode::NotJoined));
        let large = "x".repeat(20_000);
        let refused = client.send("lobby", &large).await.unwrap_err();
        assert!(
            matches!(refused, Error::TooLarge { limit: 16_384, .. }),
            "{refused:?}"
        );
        client.join("lobby").await.unwrap();
        client.send("lobby", "in time").await.unwrap();
        client.logout().await.unwrap();
        holder.logout().await.unwrap();
    }
}

/// Has four send at once, hears it all, and logs out.
async fn much_at_once(client: Client) {
    const EACH: usize = 50;
    // 16 of at most 4 KiB that nobody has heard, and as many that are heard and not acknowledged, are half of what a
    // session's queue may hold: who sends faster than the machine lets it hear is not ended for it.
    const UNHEARD: usize = 16;
    client.join("lobby").await.unwrap();
    let (handle, mut events) = client.split();
    let unheard = Arc::new(Semaphore::new(UNHEARD));
    let mut senders = JoinSet::new();
    for sender in 0..4 {
        let (handle, unheard) = (handle.clone(), unheard.clone());
        senders.spawn(async move {
            let mut sent = Vec::new();
            for n in 0..EACH {
                unheard.acquire().await.unwrap().forget();
                // From nothing to more than a record of TLS may hold of several.
                let text = format!("{sender}.{n} {}", "x".repeat(n * 80));
                sent.push((handle.send("lobby", &text).await.unwrap().seq, text));
            }
            sent
        });
    }
    let mut heard = Vec::new();
    while heard.len() < 4 * EACH {
        let event = timeout(PATIENCE, events.next())
            .await
            .expect("an event")
            .unwrap();
        if let Event::Message(message) = event {
            heard.push((message.seq, message.text.unwrap().into_string()));
            unheard.add_permits(1);
        }
    }
    let mut sent: Vec<_> = senders.join_all().await.into_iter().flatten().collect();
    sent.sort_unstable();
    assert!(sent == heard, "what was sent is not what was heard");
    handle.logout().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_beside_events_and_answers_find_their_way() {
    let server = lobby().await;
    for over in Over::ALL {
        much_at_once(login(&server, over, "ada").await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_all_is_the_same() {
    let pki = Pki::new();
    let server = Setup::tables("[limits]\nsends = \"unlimited\"\ncommands = \"unlimited\"")
        .and(&pki.table(""))
        .on_all("tls = \"door\"")
        .start()
        .await;
    let options = Options {
        event_queue: 1,
        ..trusting(&pki, None)
    };
    for over in Over::ALL {
        let client = Client::connect(&tls_url(&server, over), options.clone())
            .await
            .unwrap();
        client.login(Login::name("ada")).await.unwrap();
        much_at_once(client).await;
        // Who takes one for the other is told.
        let fault = fault(&url(&server, over), Options::default()).await;
        assert_eq!(fault, TlsFault::Expected, "{over:?}");
    }
    let plain = lobby().await;
    for over in Over::ALL {
        let fault = fault(&tls_url(&plain, over), options.clone()).await;
        assert_eq!(fault, TlsFault::PlainText, "{over:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_logs_in_for_as_long_as_it_is_not_revoked() {
    let pki = Pki::new();
    let server = Program::start(&pki.by_certificate()).await;
    let serial = |params: &mut rcgen::CertificateParams| params.serial_number = Some(7.into());
    let options = trusting(&pki, Some(&pki.clients.client("alice", serial)));
    let alice = async |over| {
        let url = tls_url(&server, over);
        let client = Client::connect(&url, options.clone()).await.unwrap();
        let session = client.login(Login::certificate()).await.unwrap();
        assert_eq!(&*session.user, "alice", "{url}");
        client.join("lobby").await.unwrap();
        client.send("lobby", "hello").await.unwrap();
        client
    };
    // A newer one replaces the one before.
    let mut clients = Vec::new();
    for over in Over::ALL {
        clients.push(alice(over).await);
    }
    pki.put("crl.pem", &pki.clients.crl(&[7]));
    for (mut client, code) in
        clients
            .into_iter()
            .zip([EndCode::Replaced, EndCode::Replaced, EndCode::AuthExpired])
    {
        let end = end(&mut client).await;
        assert!(matches!(&end, End::Bye(bye) if bye.code == code), "{end:?}");
    }
    for over in Over::ALL {
        let fault = fault(&tls_url(&server, over), options.clone()).await;
        assert!(matches!(fault, TlsFault::Refused(_)), "{over:?}: {fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_begins_with_its_init_whatever_overtakes_it() {
    let server = lobby().await;
    let mut talker = Plain::login(server.addr(Over::Tcp), Over::Tcp, "talker").await;
    talker.join("lobby").await;
    let talk = async {
        loop {
            talker.say("lobby", "blah").await;
        }
    };
    let visit = async {
        for over in Over::ALL {
            let mut client = login(&server, over, "ada").await;
            for _ in 0..20 {
                let init = client.join("lobby").await.unwrap();
                let told = next(&mut client).await.unwrap();
                assert!(
                    matches!(&told, Event::Init(told) if told.seq == init.seq),
                    "{over:?}: {told:?}"
                );
                for seq in init.seq + 1..init.seq + 6 {
                    let came = match next(&mut client).await.unwrap() {
                        Event::Join(join) => join.seq,
                        Event::Message(message) => message.seq,
                        other => panic!("{over:?}: {other:?}"),
                    };
                    assert_eq!(came, seq, "{over:?}");
                }
                client.leave("lobby").await.unwrap();
                while !matches!(next(&mut client).await.unwrap(), Event::Left(_)) {}
            }
            client.logout().await.unwrap();
        }
    };
    tokio::select! {
        () = talk => unreachable!("it talks for ever"),
        () = visit => (),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_not_read_wait_and_none_is_lost() {
    let server = lobby().await;
    for over in Over::ALL {
        let options = Options {
            event_queue: 1,
            ..Options::default()
        };
        let client = connect(&server, over, "ada", options).await;
        client.join("lobby").await.unwrap();
        let (handle, mut events) = client.split();
        let mut bob = Plain::login(server.addr(Over::Tcp), Over::Tcp, "bob").await;
        bob.join("lobby").await;
        for n in 0..300 {
            bob.say("lobby", &n.to_string()).await;
        }
        let mut expected = 0;
        while expected < 300 {
            let event = timeout(PATIENCE, events.next())
                .await
                .expect("an event")
                .unwrap();
            if let Event::Message(message) = event {
                assert_eq!(
                    message.text.as_deref(),
                    Some(&*expected.to_string()),
                    "{over:?}"
                );
                expected += 1;
            }
        }
        drop(events);
        handle
            .send("lobby", "nobody reads, and nobody waits")
            .await
            .unwrap();
        handle.logout().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_nothing_to_say_stays() {
    let server = Setup::tables("[sessions]\ntimeout = \"1s\"").start().await;
    let mut stays = JoinSet::new();
    for over in Over::ALL {
        let mut client = login(&server, over, over.table()).await;
        stays.spawn(async move {
            client.join("lobby").await.unwrap();
            // Three times as long as silence is allowed.
            let quiet = timeout(Duration::from_secs(3), end(&mut client)).await;
            assert!(quiet.is_err(), "{over:?}: {quiet:?}");
            client.send("lobby", "still here").await.unwrap();
        });
    }
    while let Some(stayed) = stays.join_next().await {
        stayed.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_has_a_code_and_a_time_and_a_loss_has_none() {
    for over in Over::ALL {
        let mut server = Program::start(&Setup::default()).await;
        let mut client = login(&server, over, "ada").await;
        client.join("lobby").await.unwrap();
        server.signal("TERM").await;
        let End::Bye(bye) = end(&mut client).await else {
            panic!("{over:?}: no goodbye");
        };
        assert_eq!(bye.code, EndCode::ShuttingDown, "{over:?}");
        assert!(bye.retry_ms.is_some(), "{over:?}: {bye:?}");
        server.exit().await;

        let server = Program::start(&Setup::default()).await;
        let mut client = login(&server, over, "ada").await;
        client.join("lobby").await.unwrap();
        server.signal("KILL").await;
        let lost = end(&mut client).await;
        assert!(matches!(lost, End::Lost(_)), "{over:?}: {lost:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_session_hears_why() {
    let server = Setup::passwords().start().await;
    for over in Over::ALL {
        let url = url(&server, over);
        let mut first = Client::connect(&url, Options::default()).await.unwrap();
        first
            .login(Login::password("alice", "wonderland"))
            .await
            .unwrap();
        let second = Client::connect(&url, Options::default()).await.unwrap();
        second
            .login(Login::password("alice", "wonderland"))
            .await
            .unwrap();
        let End::Bye(bye) = end(&mut first).await else {
            panic!("{over:?}: no goodbye");
        };
        assert_eq!(
            (bye.code, bye.retry_ms),
            (EndCode::Replaced, None),
            "{over:?}"
        );
        second.logout().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_dropped_leaves_at_once() {
    let server = lobby().await;
    for over in Over::ALL {
        let mut bob = Plain::login(server.addr(Over::Tcp), Over::Tcp, "bob").await;
        bob.join("lobby").await;
        let ada = login(&server, over, "ada").await;
        ada.join("lobby").await.unwrap();
        drop(ada);
        bob.events_until("ada's leave", |event| {
            event["type"] == "leave" && event["user"] == "ada"
        })
        .await;
        bob.command(serde_json::json!({"type": "logout"})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_server_of_this_kind_is_told_apart() {
    let server = lobby().await;
    let web = server.addr(Over::WebSocket);
    let error = Client::connect(&format!("ws://{web}/nowhere"), Options::default())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ConnectError::NotChinwag { why, .. } if why.contains("/nowhere")),
        "{error:?}"
    );
    let client = Client::connect(&format!("http://{web}/nowhere"), Options::default())
        .await
        .unwrap();
    let error = client.login(Login::name("ada")).await.unwrap_err();
    assert!(
        matches!(error, Error::Refused(_) | Error::Senseless(_)),
        "{error:?}"
    );
    let mut client = Client::connect(&format!("tcp://{web}"), Options::default())
        .await
        .unwrap();
    let error = client.login(Login::name("ada")).await.unwrap_err();
    assert!(
        matches!(error, Error::Ended(End::Lost(Loss::Garbled(_)))),
        "{error:?}"
    );
    assert!(matches!(
        end(&mut client).await,
        End::Lost(Loss::Garbled(_))
    ));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = nobody.local_addr().unwrap();
    drop(nobody);
    let error = Client::connect(&format!("tcp://{addr}"), Options::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::Unreachable { .. }),
        "{error:?}"
    );
}
