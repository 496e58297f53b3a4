//! The client before servers that do what no real one would: play dead, talk too much, talk nonsense.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use chinwag_client::{
    Client, ConnectError, End, EndCode, Error, Event, Fields, Login, Loss, Options,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A line-based server that plays `script` to its one client.
async fn server<F>(script: impl FnOnce(Peer) -> F + Send + 'static) -> (String, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        script(Peer(BufReader::new(stream))).await;
    });
    (url, tasks)
}

struct Peer(BufReader<TcpStream>);

impl Peer {
    /// The next line, and the `id` in it.
    async fn hear(&mut self) -> (String, String) {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        let id = Fields::parse(&line)
            .unwrap()
            .field("id")
            .unwrap()
            .get()
            .to_owned();
        (line, id)
    }

    async fn say(&mut self, line: &str) {
        let line = format!("{line}\n");
        self.0.get_mut().write_all(line.as_bytes()).await.unwrap();
    }

    /// Lets somebody in.
    async fn welcome(&mut self, more: &str) {
        let (_, id) = self.hear().await;
        self.say(&format!(
            "{{\"type\":\"session\",\"id\":{id},\"session\":\"K\",\"user\":\"ada\"{more}}}"
        ))
        .await;
    }

    /// Says nothing more, until the other end has had enough.
    async fn play_dead(&mut self) {
        let mut line = String::new();
        while self.0.read_line(&mut line).await.is_ok_and(|read| read > 0) {
            line.clear();
        }
    }
}

fn hasty() -> Options {
    Options {
        answer_timeout: Duration::from_millis(300),
        ..Options::default()
    }
}

async fn end(client: &mut Client) -> End {
    let end = async {
        loop {
            if let Err(end) = client.next().await {
                return end;
            }
        }
    };
    timeout(PATIENCE, end).await.expect("an end")
}

#[tokio::test]
async fn a_server_that_falls_silent_is_lost() {
    let (url, _server) = server(|mut peer| async move {
        peer.welcome(",\"ping_every_ms\":50").await;
        let (ping, id) = peer.hear().await;
        assert!(ping.contains("\"ping\""), "{ping}");
        peer.say(&format!("{{\"type\":\"pong\",\"id\":{id}}}"))
            .await;
        peer.play_dead().await;
    })
    .await;
    let mut client = Client::connect(&url, hasty()).await.unwrap();
    client.login(Login::name("ada")).await.unwrap();
    let end = end(&mut client).await;
    assert!(matches!(end, End::Lost(Loss::Silent(_))), "{end:?}");
    let again = client.next().await.unwrap_err();
    assert!(
        matches!(again, End::Lost(Loss::Silent(_))),
        "it stays so: {again:?}"
    );
    let late = client.send("lobby", "hello").await.unwrap_err();
    assert!(matches!(late, Error::Ended(_)), "{late:?}");
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_told_and_the_next_one_still_fits() {
    let (url, _server) = server(|mut peer| async move {
        peer.welcome("").await;
        let (_, first) = peer.hear().await;
        let (_, second) = peer.hear().await;
        for (id, seq) in [(first, 1), (second, 2)] {
            peer.say(&format!(
                "{{\"type\":\"sent\",\"id\":{id},\"room\":\"r\",\"seq\":{seq},\"at\":0}}"
            ))
            .await;
        }
        peer.play_dead().await;
    })
    .await;
    let client = Client::connect(&url, hasty()).await.unwrap();
    client.login(Login::name("ada")).await.unwrap();
    let late = client.send("r", "one").await.unwrap_err();
    assert!(matches!(late, Error::NoAnswer(_)), "{late:?}");
    assert_eq!(client.send("r", "two").await.unwrap().seq, 2);
}

#[tokio::test]
async fn what_a_later_server_says_is_passed_over() {
    let (url, _server) = server(|mut peer| async move {
        peer.welcome(",\"mood\":\"fine\"").await;
        peer.say("{\"type\":\"weather\",\"sun\":true}").await;
        peer.say("{\"type\":\"leave\",\"room\":\"r\",\"seq\":1,\"at\":0,\"user\":\"bob\",\"reason\":\"bored\"}")
            .await;
        peer.say("{\"type\":\"bye\",\"code\":\"elsewhere\",\"message\":\"gone fishing\",\"retry_ms\":7}")
            .await;
    })
    .await;
    let mut client = Client::connect(&url, hasty()).await.unwrap();
    client.login(Login::name("ada")).await.unwrap();
    assert!(
        matches!(client.next().await.unwrap(), Event::Other(object) if object.kind() == "weather")
    );
    let Event::Leave(leave) = client.next().await.unwrap() else {
        panic!("no leave");
    };
    assert_eq!(leave.reason.as_str(), "bored");
    let End::Bye(bye) = client.next().await.unwrap_err() else {
        panic!("no bye");
    };
    assert_eq!(
        (bye.code, bye.retry_ms),
        (EndCode::Other("elsewhere".into()), Some(7))
    );
}

#[tokio::test]
async fn more_than_the_server_said_it_would_send_is_not_taken() {
    let (url, _server) = server(|mut peer| async move {
        peer.welcome(",\"limits\":{\"server_frame_bytes\":1000}")
            .await;
        let filler = "x".repeat(2000);
        peer.say(&format!("{{\"type\":\"message\",\"text\":\"{filler}\"}}"))
            .await;
        peer.play_dead().await;
    })
    .await;
    let mut client = Client::connect(&url, hasty()).await.unwrap();
    client.login(Login::name("ada")).await.unwrap();
    let end = end(&mut client).await;
    assert!(matches!(end, End::Lost(Loss::TooLarge(1000))), "{end:?}");
}

#[tokio::test]
async fn a_line_without_an_end_is_not_read_for_ever() {
    let (url, _server) = server(|mut peer| async move {
        let stream = peer.0.get_mut();
        let piece = [b'x'; 8192];
        while stream.write_all(&piece).await.is_ok() {}
    })
    .await;
    let mut client = Client::connect(&url, hasty()).await.unwrap();
    let end = end(&mut client).await;
    assert!(matches!(end, End::Lost(Loss::TooLarge(_))), "{end:?}");
}

#[tokio::test]
async fn another_protocol_is_told_from_this_one() {
    let (url, _server) = server(|mut peer| async move {
        peer.say("SSH-2.0-OpenSSH_9.2").await;
        peer.play_dead().await;
    })
    .await;
    let mut client = Client::connect(&url, hasty()).await.unwrap();
    let over_lines = end(&mut client).await;
    assert!(
        matches!(&over_lines, End::Lost(Loss::Garbled(what)) if what.contains("SSH")),
        "{over_lines:?}"
    );
    let (url, _server) = server(|mut peer| async move {
        peer.say("SSH-2.0-OpenSSH_9.2").await;
        peer.play_dead().await;
    })
    .await;
    let url = url.replace("tcp:", "ws:");
    let error = Client::connect(&url, hasty()).await.unwrap_err();
    assert!(
        matches!(error, ConnectError::NotChinwag { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_given_up() {
    let (url, _server) = server(|mut peer| async move { peer.play_dead().await }).await;
    let options = Options {
        connect_timeout: Duration::from_millis(200),
        ..hasty()
    };
    let url = url.replace("tcp:", "ws:");
    let error = Client::connect(&url, options).await.unwrap_err();
    assert!(matches!(error, ConnectError::Late { .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap();
    drop(taken);
    for scheme in ["tcp", "ws", "http"] {
        let error = Client::connect(&format!("{scheme}://{addr}"), hasty())
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::Unreachable { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
}

#[tokio::test]
async fn the_end_is_told_after_all_events_however_few_fit_the_queue() {
    let (url, _server) = server(|mut peer| async move {
        peer.welcome("").await;
        for seq in 1..=50 {
            peer.say(&format!(
                "{{\"type\":\"message\",\"room\":\"r\",\"seq\":{seq},\"at\":0,\"user\":\"bob\"}}"
            ))
            .await;
        }
    })
    .await;
    let options = Options {
        event_queue: 1,
        ..hasty()
    };
    let mut client = Client::connect(&url, options).await.unwrap();
    client.login(Login::name("ada")).await.unwrap();
    for seq in 1..=50 {
        let event = timeout(PATIENCE, client.next()).await.unwrap().unwrap();
        assert!(
            matches!(&event, Event::Message(message) if message.seq == seq),
            "{event:?}"
        );
    }
    let end = client.next().await.unwrap_err();
    assert!(matches!(end, End::Lost(Loss::Closed)), "{end:?}");
}

#[tokio::test]
async fn a_goodbye_is_heard_although_nothing_can_be_written_any_more() {
    let (url, mut server) = server(|mut peer| async move {
        peer.welcome("").await;
        for seq in 1..=5 {
            peer.say(&format!(
                "{{\"type\":\"message\",\"room\":\"r\",\"seq\":{seq},\"at\":0,\"user\":\"bob\"}}"
            ))
            .await;
        }
        peer.say("{\"type\":\"bye\",\"code\":\"replaced\",\"message\":\"elsewhere\"}")
            .await;
    })
    .await;
    let options = Options {
        event_queue: 1,
        ..hasty()
    };
    let mut client = Client::connect(&url, options).await.unwrap();
    client.login(Login::name("ada")).await.unwrap();
    server.join_next().await.unwrap().unwrap();
    // The first is answered by a reset, and the second finds the connection broken.
    for _ in 0..2 {
        client.send("r", "hello").await.unwrap_err();
    }
    for seq in 1..=5 {
        let event = timeout(PATIENCE, client.next()).await.unwrap().unwrap();
        assert!(
            matches!(&event, Event::Message(message) if message.seq == seq),
            "{event:?}"
        );
    }
    let end = end(&mut client).await;
    assert!(
        matches!(&end, End::Bye(bye) if bye.code == EndCode::Replaced),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_refusal_that_names_no_command_is_that_of_the_first_one() {
    let (url, _server) = server(|mut peer| async move {
        peer.welcome("").await;
        loop {
            let (command, id) = peer.hear().await;
            let answer = if command.contains("twice") {
                "{\"type\":\"error\",\"code\":\"bad_request\",\"message\":\"twice\"}".into()
            } else {
                format!("{{\"type\":\"pong\",\"id\":{id}}}")
            };
            peer.say(&answer).await;
        }
    })
    .await;
    let client = Client::connect(&url, hasty()).await.unwrap();
    client.login(Login::name("ada")).await.unwrap();
    let wrong = || Fields::parse(r#"{"type":"x","twice":1,"twice":2}"#).unwrap();
    // More of them than commands may be under way.
    for _ in 0..100 {
        let answer = client.handle().ask(wrong()).await.unwrap();
        assert_eq!(answer.kind(), "error");
    }
    client.handle().ping().await.unwrap();
}

#[tokio::test]
async fn a_server_that_answers_no_ping_gets_no_second_one() {
    let (told, mut heard) = tokio::sync::oneshot::channel();
    let (url, _server) = server(|mut peer| async move {
        peer.welcome(",\"ping_every_ms\":1").await;
        let (ping, _) = peer.hear().await;
        assert!(ping.contains("\"ping\""), "{ping}");
        // Signs of life for as long as it takes to want many more pings.
        for _ in 0..50 {
            peer.say("{\"type\":\"weather\"}").await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        peer.say("{\"type\":\"over\"}").await;
        let (next, _) = peer.hear().await;
        told.send(next).unwrap();
        peer.play_dead().await;
    })
    .await;
    let mut client = Client::connect(&url, hasty()).await.unwrap();
    client.login(Login::name("ada")).await.unwrap();
    loop {
        let event = timeout(PATIENCE, client.next()).await.unwrap().unwrap();
        if matches!(event, Event::Other(object) if object.kind() == "over") {
            break;
        }
    }
    assert!(heard.try_recv().is_err(), "no second ping");
    let (sent, next) = tokio::join!(client.send("r", "hello"), heard);
    assert!(sent.is_err());
    assert!(next.unwrap().contains("hello"));
}

#[tokio::test]
async fn an_id_of_ones_own_is_kept_and_must_be_one() {
    let (url, _server) = server(|mut peer| async move {
        peer.welcome("").await;
        let (_, id) = peer.hear().await;
        peer.say(&format!("{{\"type\":\"pong\",\"id\":{id}}}"))
            .await;
        peer.play_dead().await;
    })
    .await;
    let client = Client::connect(&url, hasty()).await.unwrap();
    client.login(Login::name("ada")).await.unwrap();
    let command = |id: &str| Fields::parse(&format!("{{\"type\":\"ping\",\"id\":{id}}}")).unwrap();
    let answer = client.handle().ask(command("7")).await.unwrap();
    assert_eq!(answer.json(), "{\"type\":\"pong\",\"id\":7}");
    for wrong in ["\"x\"", "-1", "1.5", "4503599627370496"] {
        let error = client.handle().ask(command(wrong)).await.unwrap_err();
        assert!(matches!(error, Error::Id(_)), "{wrong}: {error:?}");
    }
}

#[tokio::test]
async fn a_client_that_is_dropped_closes_its_connection() {
    let (url, mut server) = server(|mut peer| async move {
        peer.welcome("").await;
        peer.play_dead().await;
    })
    .await;
    let client = Client::connect(&url, hasty()).await.unwrap();
    client.login(Login::name("ada")).await.unwrap();
    let (handle, events) = client.split();
    drop(events);
    assert!(
        timeout(Duration::from_millis(50), server.join_next())
            .await
            .is_err(),
        "a half still holds it"
    );
    drop(handle);
    timeout(PATIENCE, server.join_next())
        .await
        .expect("closed")
        .unwrap()
        .unwrap();
}
