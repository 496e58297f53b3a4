//! What the protocol promises of a room whatever happens around it: one order for everybody, and a roster that is
//! exact.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, tcp::OwnedWriteHalf},
    task::JoinSet,
    time::Instant,
};

use crate::harness::{Client, Over, Seeded, Server, Setup, allow_descriptors};

/// Members of the large room whose roster is built from outside.
const MEMBERS: usize = 5_000;
/// Senders on each transport.
const SENDERS: usize = 8;
/// Messages of each sender.
const MESSAGES: usize = 25;
/// Those on each transport that come and go all the while.
const RESTLESS: usize = 2;

/// Everything that would slow a crowd down, or end those of it who are silent, is out of the way.
fn generous() -> Setup {
    Setup::tables(
        r#"[sessions]
        timeout = "0s"
        [limits]
        sends = "unlimited"
        commands = "unlimited"
        room_creations = "unlimited"
        member_queue = "16MiB"
        poll_queue = { events = 100000, bytes = "64MiB" }
        page_names = 100
        "#,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_see_one_order_without_gap_or_repeat() {
    let server = generous()
        .and("[room]\npresence_auto_batch = 0")
        .start()
        .await;
    let mut steady = Vec::new();
    for n in 0..SENDERS {
        for over in Over::ALL {
            let name = format!("{}{n}", over.table());
            let mut client = Client::connect(server.addr(over), over, &name)
                .await
                .drop_answers(n as u64);
            client.log_in(json!({"type": "login", "user": name})).await;
            client.join("lobby").await;
            steady.push(client);
        }
    }
    // All are in: from here on they are due the same events.
    let from = steady[0]
        .command(json!({"type": "users", "room": "lobby"}))
        .await;
    let from = from["seq"].as_u64().expect("a page has a seq");
    let mut restless = JoinSet::new();
    for over in Over::ALL {
        for n in 0..RESTLESS {
            restless.spawn(come_and_go(
                server.addr(over),
                over,
                format!("{}-restless{n}", over.table()),
            ));
        }
    }
    let mut speaking = JoinSet::new();
    for mut client in steady {
        speaking.spawn(async move {
            let mut said = Vec::new();
            for n in 0..MESSAGES {
                let text = format!("{} {n}", client.name);
                let sent = client.say("lobby", &text).await;
                said.push((sent["seq"].as_u64().expect("sent has a seq"), text));
            }
            (client, said)
        });
    }
    let mut said = BTreeMap::new();
    let mut clients = Vec::new();
    for (client, seqs) in speaking.join_all().await {
        assert!(seqs.is_sorted(), "{} spoke in order", client.name);
        said.extend(seqs);
        clients.push(client);
    }
    restless.join_all().await;
    let last = clients[0].say("lobby", "that is all").await["seq"].clone();
    said.insert(last.as_u64().expect("a seq"), "that is all".into());
    assert_eq!(
        said.len(),
        3 * SENDERS * MESSAGES + 1,
        "every message has a number of its own"
    );

    let mut expected: Option<Vec<Value>> = None;
    for mut client in clients {
        // Gaps, repeats and events of other rooms fail in the client itself.
        let mut events = client
            .events_until("the last message", |event| event["seq"] == last)
            .await;
        events.retain(|event| event["seq"].as_u64().is_some_and(|seq| seq > from));
        let heard = events.iter().filter(|event| event["type"] == "message");
        let heard: BTreeMap<u64, String> = heard
            .map(|event| {
                let text = event["text"].as_str().expect("a text");
                (event["seq"].as_u64().expect("a seq"), text.to_owned())
            })
            .collect();
        assert_eq!(
            heard, said,
            "{} ({:?}) heard what was said",
            client.name, client.over
        );
        match &expected {
            None => expected = Some(events),
            Some(expected) => assert_eq!(&events, expected, "{} ({:?})", client.name, client.over),
        }
    }
}

/// Joins, listens to a few events, leaves, and again; sometimes it is lost and comes back as somebody else.
async fn come_and_go(addr: SocketAddr, over: Over, name: String) {
    let mut dice = Seeded(name.bytes().map(u64::from).sum());
    let mut client = Client::connect(addr, over, &name)
        .await
        .drop_answers(dice.next());
    client.log_in(json!({"type": "login", "user": name})).await;
    for n in 0..12 {
        let init = client.join("lobby").await;
        let first = client.next_event().await;
        let own = (&first["type"], &first["user"], first["seq"].as_u64());
        let seq = init["seq"].as_u64().map(|seq| seq + 1);
        let user = client.name.as_str().into();
        assert_eq!(
            own,
            (&"join".into(), &user, seq),
            "{over:?}: it follows {init}"
        );
        for _ in 0..dice.next() % 4 {
            client.try_event(Duration::from_millis(50)).await;
        }
        if dice.percent(20) {
            client.vanish();
            let name = format!("{name}-{n}");
            client = Client::login(addr, over, &name).await;
        } else {
            let left = client
                .command(json!({"type": "leave", "room": "lobby"}))
                .await;
            assert_eq!(left["type"], "left");
            // What came between the last look and the answer; nothing comes after it.
            while client.try_event(Duration::ZERO).await.is_some() {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roster_of_a_large_room_is_exact_by_events() {
    let room = "[room]\npresence = \"each\"\npresence_auto_batch = 0\nusers_in_init = 100";
    exact_roster(&generous().and(room), "each").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roster_of_a_large_room_is_exact_by_batches() {
    let room = "[room]\npresence = \"batched\"\npresence_interval = \"100ms\"\nusers_in_init = 100";
    exact_roster(&generous().and(room), "batched").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roster_of_a_large_room_is_exact_when_it_changes_its_form() {
    let room =
        "[room]\npresence_auto_batch = 100\npresence_interval = \"100ms\"\nusers_in_init = 100";
    exact_roster(&generous().and(room), "batched").await;
}

/// One observer on each transport comes into a room that fills and empties, and knows in the end who is there.
async fn exact_roster(setup: &Setup, presence: &str) {
    allow_descriptors(2 * MEMBERS + 1000).await;
    let server = setup.start().await;
    let mut dice = Seeded(7);
    let mut crowd = Vec::new();
    for n in 0..MEMBERS / 10 {
        crowd.push(Extra::join(&server, n).await);
    }
    let mut observers = Vec::new();
    for over in Over::ALL {
        let name = format!("observer-{}", over.table());
        observers.push(Client::login(server.addr(over), over, &name).await);
    }
    let churn = async {
        for n in MEMBERS / 10..MEMBERS {
            crowd.push(Extra::join(&server, n).await);
            // For some who come, another one goes, comes back, or does both.
            let at = (dice.next() % crowd.len() as u64) as usize;
            for _ in 0..dice.next() % 3 {
                crowd[at].turn().await;
            }
        }
        crowd
    };
    let observe = async {
        for observer in &mut observers {
            observer.join("lobby").await;
            observer.fetch_roster("lobby").await;
        }
    };
    let (crowd, ()) = tokio::join!(churn, observe);
    let inside = crowd.iter().filter(|extra| extra.is_in);
    let mut expected: Vec<String> = inside.map(|extra| extra.name.clone()).collect();
    expected.extend(observers.iter().map(|observer| observer.name.clone()));
    expected.sort();
    for observer in &mut observers {
        settle(observer, &expected).await;
    }
    // What a newcomer is told by pages alone is the same, and so is what the observers hear of that newcomer.
    for over in Over::ALL {
        let mut late =
            Client::login(server.addr(over), over, &format!("late-{}", over.table())).await;
        let init = late.join("lobby").await;
        assert_eq!(
            (&init["count"], &init["presence"]),
            (&expected.len().into(), &presence.into())
        );
        assert!(
            init["users"]
                .as_array()
                .is_some_and(|users| users.len() == 100),
            "the first page"
        );
        expected.push(late.name.clone());
        expected.sort();
        late.fetch_roster("lobby").await;
        observers.push(late);
        for observer in &mut observers {
            settle(observer, &expected).await;
        }
    }
}

/// Takes events until the roster is the expected one.
async fn settle(client: &mut Client, expected: &[String]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let roster = client.roster("lobby");
        if roster == expected {
            return;
        }
        if Instant::now() > deadline {
            let surplus = roster
                .iter()
                .filter(|name| !expected.contains(name))
                .count();
            let missing: Vec<_> = expected
                .iter()
                .filter(|name| !roster.contains(name))
                .collect();
            let who = (&client.name, &client.over);
            panic!("{who:?}: {surplus} too many, and missing: {missing:?}");
        }
        client.try_event(Duration::from_millis(500)).await;
        while client.try_event(Duration::ZERO).await.is_some() {}
    }
}

/// One of a crowd: it comes, it goes, and nobody looks at what it hears.
struct Extra {
    name: String,
    is_in: bool,
    write: OwnedWriteHalf,
    _discard: JoinSet<()>,
}

impl Extra {
    async fn join(server: &Server, n: usize) -> Self {
        let stream = TcpStream::connect(server.addr(Over::Tcp))
            .await
            .expect("the server listens");
        stream.set_nodelay(true).expect("a socket option");
        let (mut read, write) = stream.into_split();
        let mut discard = JoinSet::new();
        discard.spawn(async move {
            tokio::io::copy(&mut read, &mut tokio::io::sink())
                .await
                .ok();
        });
        let name = format!("extra{n:05}");
        let mut extra = Self {
            name,
            is_in: false,
            write,
            _discard: discard,
        };
        extra
            .say(json!({"type": "login", "user": extra.name}))
            .await;
        extra.turn().await;
        extra
    }

    /// Joins if it is out, leaves if it is in.
    async fn turn(&mut self) {
        let command = if self.is_in { "leave" } else { "join" };
        self.is_in = !self.is_in;
        self.say(json!({"type": command, "room": "lobby"})).await;
    }

    async fn say(&mut self, command: Value) {
        self.write
            .write_all(format!("{command}\n").as_bytes())
            .await
            .expect("the server reads");
    }
}
