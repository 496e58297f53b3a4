//! What holds for the line transport alone: its framing, and strangers who speak something else.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{Client, Over, PATIENCE, Server, Setup, code};

const LOGIN: &[u8] = b"{\"type\":\"login\",\"user\":\"alice\"}\n";

/// A connection that writes any bytes.
struct Raw(BufReader<TcpStream>);

impl Raw {
    async fn connect(addr: SocketAddr) -> Self {
        Self(BufReader::new(
            TcpStream::connect(addr).await.expect("the server listens"),
        ))
    }

    async fn logged_in(server: &Server) -> Self {
        let mut raw = Self::connect(server.addr(Over::Tcp)).await;
        raw.write(LOGIN).await;
        assert_eq!(raw.object().await["type"], "session");
        raw
    }

    async fn write(&mut self, bytes: &[u8]) {
        // The server may have closed already; what it said is still there to be read.
        if self.0.write_all(bytes).await.is_err() {
            eprintln!("The server did not read everything.");
        }
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.0.read_line(&mut line))
            .await
            .expect("a line or an end");
        match read {
            Ok(0) | Err(_) => None,
            Ok(_) => {
                assert!(line.ends_with('\n') && !line.contains('\r'), "{line:?}");
                Some(line)
            }
        }
    }

    async fn object(&mut self) -> Value {
        let line = self.line().await.expect("an object before the end");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// What comes until the end.
    async fn rest(mut self) -> Vec<Value> {
        let mut objects = Vec::new();
        while let Some(line) = self.line().await {
            objects.push(
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")),
            );
        }
        objects
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_may_end_in_either_way_and_empty_ones_are_ignored() {
    let server = Setup::default().start().await;
    let mut raw = Raw::connect(server.addr(Over::Tcp)).await;
    raw.write(b"\r\n\n{\"type\":\"login\",\"user\":\"alice\"}\r\n")
        .await;
    assert_eq!(raw.object().await["type"], "session");
    raw.write(b"\n\r\n\n{\"type\":\"ping\",\"id\":1}\r\n{\"type\":\"ping\",\"id\":2}\n\n")
        .await;
    assert_eq!(raw.object().await, json!({"type": "pong", "id": 1}));
    assert_eq!(raw.object().await, json!({"type": "pong", "id": 2}));
    raw.write(b"  {\"type\" : \"ping\"}  \n").await;
    assert_eq!(raw.object().await, json!({"type": "pong"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_may_come_one_by_one() {
    let server = Setup::default().start().await;
    let mut raw = Raw::connect(server.addr(Over::Tcp)).await;
    raw.0.get_ref().set_nodelay(true).unwrap();
    for byte in LOGIN
        .iter()
        .chain("{\"type\":\"ping\",\"é\":\"ü\"}\n".as_bytes())
    {
        raw.write(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(raw.object().await["type"], "session");
    assert_eq!(raw.object().await["type"], "pong");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_line_is_heard_and_a_longer_one_ends_the_session() {
    let server = Setup::default().start().await;
    let mut bob = Client::login(server.addr(Over::WebSocket), Over::WebSocket, "bob").await;
    bob.enter("lobby").await;
    let mut alice = Client::login(server.addr(Over::Tcp), Over::Tcp, "alice").await;
    alice.enter("lobby").await;
    assert_eq!(bob.next_event().await["type"], "join");
    let line = |bytes: usize| {
        let frame = r#"{"type":"ping","x":""}"#;
        frame.replace(
            r#""x":""#,
            &format!(r#""x":"{}"#, "x".repeat(bytes - frame.len())),
        )
    };
    assert_eq!(alice.raw(&line(16384)).await["type"], "pong");
    assert_eq!(code(&alice.raw(&line(16385)).await), "too_large");
    alice.expect_bye("too_large").await;
    let leave = bob.next_event().await;
    assert_eq!(
        (&leave["type"], &leave["reason"]),
        (&"leave".into(), &"evicted".into()),
        "{leave}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_without_an_end_is_cut_at_the_limit() {
    let server = Setup::default().start().await;
    let mut raw = Raw::logged_in(&server).await;
    raw.write(&[b'x'; 16_500]).await;
    let said: Vec<String> = raw.rest().await.iter().map(code).collect();
    assert_eq!(said, ["too_large", "too_large"], "an error, then a bye");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_log_in_a_line_is_shorter() {
    let server = Setup::default().start().await;
    let padded = |bytes: usize| {
        let frame = r#"{"type":"login","user":"alice","x":""}"#;
        frame.replace(
            r#""x":""#,
            &format!(r#""x":"{}"#, "x".repeat(bytes - frame.len())),
        ) + "\n"
    };
    let mut raw = Raw::connect(server.addr(Over::Tcp)).await;
    raw.write(padded(8192).as_bytes()).await;
    assert_eq!(raw.object().await["type"], "session");
    let mut raw = Raw::connect(server.addr(Over::Tcp)).await;
    raw.write(padded(8193).as_bytes()).await;
    let said: Vec<String> = raw.rest().await.iter().map(code).collect();
    assert_eq!(
        said.last().map(String::as_str),
        Some("too_large"),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_speaks_something_else_is_sent_away() {
    let server = Setup::default().start().await;
    let hello = [
        b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03".as_slice(),
        &[0x5a; 240],
        b"\n",
    ]
    .concat();
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice(),
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"hello\n",
        b"[{\"type\":\"login\"}]\n",
        b"\"login\"\n",
        b"{\"type\":\"login\"\n",
        b"\xff\xfe\xfd\n",
        &hello,
    ] {
        let mut raw = Raw::connect(server.addr(Over::Tcp)).await;
        raw.write(bytes).await;
        let said = raw.rest().await;
        let bye = said
            .last()
            .unwrap_or_else(|| panic!("no bye after {bytes:?}"));
        assert_eq!(
            (&bye["type"], code(bye).as_str()),
            (&"bye".into(), "protocol_error"),
            "{said:?}"
        );
        assert!(
            said.iter().all(|object| object["type"] != "session"),
            "{said:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_log_in_bad_bytes_are_answered_and_the_session_goes_on() {
    let server = Setup::default().start().await;
    let mut raw = Raw::logged_in(&server).await;
    for bytes in [
        b"\xff\xfe\n".as_slice(),
        b"{\"type\":\"ping\",\"x\":\"\xc3\"}\n",
        b"{\"type\":\"ping\",\"x\":\"\xed\xa0\x80\"}\n",
        b"GET / HTTP/1.1\r\n",
        b"{\"type\":\"ping\",\"x\":\"\t\"}\n",
        b"\0\n",
    ] {
        raw.write(bytes).await;
        assert_eq!(code(&raw.object().await), "bad_json", "{bytes:?}");
    }
    raw.write(b"{\"type\":\"ping\"}\n").await;
    assert_eq!(raw.object().await["type"], "pong");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_has_so_long_to_log_in() {
    let server = Setup::default()
        .on(Over::Tcp, "login_timeout = \"300ms\"")
        .start()
        .await;
    for bytes in [b"".as_slice(), b"{\"type\":\"log", b"{\"type\":\"ping\"}\n"] {
        let mut raw = Raw::connect(server.addr(Over::Tcp)).await;
        raw.write(bytes).await;
        let said = raw.rest().await;
        let bye = said
            .last()
            .unwrap_or_else(|| panic!("no bye after {bytes:?}"));
        assert_eq!(
            (&bye["type"], code(bye).as_str()),
            (&"bye".into(), "login_timeout"),
            "{said:?}"
        );
        assert!(bye["retry_ms"].is_u64(), "{bye}");
    }
    // Who has logged in stays.
    let mut raw = Raw::logged_in(&server).await;
    assert!(
        timeout(Duration::from_millis(600), raw.line())
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_names_the_client_and_nobody_else_may() {
    const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 4020\r\n";
    let other = b"PROXY TCP4 192.0.2.8 192.0.2.1 5000 4020\r\n".as_slice();
    let keys = "client_address = \"proxy-protocol\"\nproxies = [\"127.0.0.0/8\"]";
    let limits = "[limits]\nconnects_per_ip = { rate = 1, per = \"1h\", burst = 1 }";
    let server = Setup::tables(limits).on(Over::Tcp, keys).start().await;
    // The second of one address is over its rate, and it is the named address that counts.
    for (header, is_let_in) in [
        (V1, true),
        (V1, false),
        (other, true),
        (b"".as_slice(), false),
    ] {
        let mut raw = Raw::connect(server.addr(Over::Tcp)).await;
        raw.write(
            &[
                header,
                &String::from_utf8_lossy(LOGIN)
                    .replace("alice", "a")
                    .into_bytes(),
            ]
            .concat(),
        )
        .await;
        let said = raw.line().await.unwrap_or_default();
        let session = said.contains("\"session\"") || said.contains("name_in_use");
        assert_eq!(
            session,
            is_let_in,
            "{:?}: {said}",
            String::from_utf8_lossy(header)
        );
    }
    // Version 2: signature, PROXY over TCP4, 12 bytes of addresses.
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x09\xc0\0\x02\x01\x13\x88\x0f\xb4";
    let mut raw = Raw::connect(server.addr(Over::Tcp)).await;
    raw.write(&[v2.as_slice(), b"{\"type\":\"login\",\"user\":\"zoe\"}\n"].concat())
        .await;
    assert_eq!(raw.object().await["user"], "zoe");

    let keys = "client_address = \"proxy-protocol\"\nproxies = [\"203.0.113.9\"]";
    let server = Setup::default().on(Over::Tcp, keys).start().await;
    let mut raw = Raw::connect(server.addr(Over::Tcp)).await;
    raw.write(&[V1, LOGIN].concat()).await;
    let said = raw.rest().await;
    assert!(
        said.iter().all(|object| object["type"] != "session"),
        "not a proxy of ours: {said:?}"
    );
    // A listener that expects no proxy takes such a line for what it is: no command.
    let server = Setup::default().start().await;
    let mut raw = Raw::connect(server.addr(Over::Tcp)).await;
    raw.write(&[V1, LOGIN].concat()).await;
    let said = raw.rest().await;
    assert_eq!(
        said.last().map(code).as_deref(),
        Some("protocol_error"),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_input_ends_the_session_whatever_was_begun() {
    let server = Setup::default().start().await;
    let mut bob = Client::login(server.addr(Over::WebSocket), Over::WebSocket, "bob").await;
    bob.enter("lobby").await;
    let mut alice = Client::login(server.addr(Over::Tcp), Over::Tcp, "alice").await;
    alice.enter("lobby").await;
    assert_eq!(bob.next_event().await["type"], "join");
    alice
        .write_bytes(br#"{"type":"send","room":"lobby","text":"half a li"#)
        .await;
    alice.close().await.unwrap();
    let leave = bob.next_event().await;
    assert_eq!(leave["type"], "leave", "{leave}");
    assert!(
        ["disconnected", "logout"]
            .map(Value::from)
            .contains(&leave["reason"]),
        "{leave}"
    );
    alice.gone().await;
}
