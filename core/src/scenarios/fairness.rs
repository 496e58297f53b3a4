//! Rooms that share a lane: whom a huge one holds up, and when a lane lets others go first.

use std::{pin::pin, sync::atomic::AtomicBool, task::Wake};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    clock::SystemWallClock,
    config::RoomConfig,
    lane::{self, LaneCommand, LaneContext, LaneInbox},
    message::{Frame, Say},
    room::{Behind, RoomContext, RoomOptions},
};

/// Members of the huge room.
const HUGE: usize = 4000;
/// Writes before a lane looks for news: a turn, and the quanta of the rooms that come before.
const A_TURN_AND_SOME_QUANTA: usize = 256 + 4 * 32;

/// A pipe that notes which of all writes of its stage was its latest.
struct Tape {
    pipe: Arc<Pipe>,
    all: Arc<AtomicUsize>,
    latest: AtomicUsize,
}

impl Tape {
    fn note(&self, written: io::Result<usize>) -> io::Result<usize> {
        if written.is_ok() {
            let number = self.all.fetch_add(1, Ordering::Relaxed) + 1;
            self.latest.store(number, Ordering::Relaxed);
        }
        written
    }
}

impl TryWrite for Tape {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.note(self.pipe.try_write(bytes))
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.note(self.pipe.try_write_vectored(slices))
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.poll_write_ready(cx)
    }
}

/// A member of `room` whose writes are numbered among `all`.
async fn taped(
    stage: &Stage,
    user: &str,
    room: &str,
    all: &Arc<AtomicUsize>,
) -> (Client, Arc<Tape>) {
    let pipe = Arc::new(Pipe::default());
    let tape = Arc::new(Tape {
        pipe: Arc::clone(&pipe),
        all: Arc::clone(all),
        latest: AtomicUsize::new(0),
    });
    let mut client = stage.connect_to(pipe, Arc::clone(&tape), Framing::Lines);
    let session = client.ask(json!({"type": "login", "user": user})).await;
    assert_eq!(session["type"], "session", "{session}");
    let init = client.ask(json!({"type": "join", "room": room})).await;
    assert_eq!(init["type"], "init", "{init}");
    (client, tape)
}

#[tokio::test(start_paused = true)]
async fn a_message_in_a_small_room_waits_for_a_few_members_of_a_huge_one_and_not_for_all() {
    let stage = Stage::new(|config| {
        // One lane for all rooms.
        config.server.workers = 1;
        config.limits.sends = Rate::Unlimited;
        config.room.presence = Presence::Off;
    });
    let all = Arc::new(AtomicUsize::new(0));
    let mut huge = Vec::new();
    for n in 0..HUGE {
        huge.push(taped(&stage, &format!("m{n}"), "huge", &all).await);
    }
    let (publisher, _) = taped(&stage, "publisher", "small", &all).await;
    let (mut reader, tape) = taped(&stage, "reader", "small", &all).await;
    settle().await;
    reader.heard();
    for round in 0..3 {
        let before = all.load(Ordering::Relaxed);
        huge[0]
            .0
            .say(&json!({"type": "send", "room": "huge", "text": "to all"}));
        while all.load(Ordering::Relaxed) < before + 2 + round * 300 {
            tokio::task::yield_now().await;
        }
        let said = all.load(Ordering::Relaxed);
        assert!(said - before < HUGE / 2, "the walk is under way");
        let text = json!({"type": "send", "room": "small", "text": round.to_string()});
        publisher.say(&text);
        settle().await;
        assert_eq!(texts(&reader.heard()), [round.to_string()]);
        let waited = tape.latest.load(Ordering::Relaxed) - said;
        assert!(
            waited <= A_TURN_AND_SOME_QUANTA,
            "{waited} writes before it in round {round}"
        );
        let written = all.load(Ordering::Relaxed) - before;
        assert!(
            written >= HUGE + 2,
            "the huge room was told, too: {written}"
        );
    }
}

/// A room without members, to see whether its lane has walked what it was given, and whose publishers wait while that
/// is over `inbox_bytes`.
fn room_of(inbox_bytes: usize, inbox: &Arc<LaneInbox>) -> Arc<Room> {
    let options = RoomOptions {
        config: RoomConfig::default(),
        validators: Vec::new(),
        escapes: false,
        configured: false,
    };
    let context = RoomContext {
        frame_bytes: 1 << 16,
        inbox_bytes,
        stopped: AtomicBool::new(false),
        members: metrics::Gauge::noop(),
    };
    Arc::new(Room::new(
        "lobby".into(),
        1,
        "e".into(),
        Arc::new(options),
        Arc::new(context),
        Arc::clone(inbox),
    ))
}

#[tokio::test(start_paused = true)]
async fn an_idle_lane_takes_what_comes_at_once_and_lets_readers_go_first_only_after_a_crowd() {
    let inbox = Arc::new(LaneInbox::default());
    let room = room_of(0, &inbox);
    let context = LaneContext {
        telemetry: Telemetry::new(&NoopRecorder, &[], &[], &[], &[]),
        wall: Arc::new(SystemWallClock),
        frame_bytes: 1 << 16,
    };
    let mut lane = pin!(lane::run(
        Arc::clone(&inbox),
        context,
        CancellationToken::new()
    ));
    let mut cx = Context::from_waker(Waker::noop());
    let mut poll = || assert!(lane.as_mut().poll(&mut cx).is_pending());
    let post = |events: usize| {
        for _ in 0..events {
            let pong = Frame::encode(&Say::Pong { id: None });
            room.owes(pong.len());
            inbox.post(Arc::clone(&room), LaneCommand::Publish(pong));
        }
    };
    poll();
    for _ in 0..3 {
        post(1);
        assert!(room.is_backlogged());
        poll();
        assert!(!room.is_backlogged(), "walked without a detour");
    }
    post(2);
    poll();
    assert!(!room.is_backlogged(), "it could not know of the crowd");
    post(1);
    poll();
    assert!(room.is_backlogged(), "others that read have their turn");
    poll();
    assert!(!room.is_backlogged(), "and then it is walked");
    post(1);
    poll();
    assert!(!room.is_backlogged(), "one at a time again");
}

/// A publisher that notes when it is woken.
struct Publisher {
    number: usize,
    woken: Arc<Mutex<Vec<usize>>>,
}

impl Wake for Publisher {
    fn wake(self: Arc<Self>) {
        self.woken.lock().push(self.number);
    }
}

#[test]
fn publishers_of_a_room_that_is_behind_go_on_one_by_one_as_they_came_while_there_is_room() {
    const BOUND: usize = 100;
    let room = room_of(BOUND, &Arc::default());
    let woken = Arc::new(Mutex::new(Vec::new()));
    let woken_since = || std::mem::take(&mut *woken.lock());
    room.owes(BOUND + 1);
    let mut waiting: VecDeque<_> = (0..5000)
        .map(|number| {
            let woken = Arc::clone(&woken);
            let waker = Waker::from(Arc::new(Publisher { number, woken }));
            let behind = Behind::of(Arc::clone(&room)).expect("the room is behind");
            (behind, waker)
        })
        .collect();
    let look = |(behind, waker): &(Behind, Waker)| behind.poll(&mut Context::from_waker(waker));
    for _ in 0..3 {
        for publisher in &waiting {
            assert!(look(publisher).is_pending());
        }
    }
    room.owes(BOUND);
    room.walked(BOUND);
    assert!(woken_since().is_empty(), "it is behind still");
    room.walked(1);
    assert_eq!(woken_since(), [0], "the others look when it has gone on");
    assert!(look(&waiting[0]).is_ready());
    waiting.pop_front();
    assert_eq!(woken_since(), [1], "it has sent nothing yet");

    // What the first sends takes all the room that there is.
    room.owes(1);
    assert!(look(&waiting[0]).is_pending());
    waiting.remove(7);
    assert!(woken_since().is_empty(), "who gives up makes no room");
    room.walked(1);
    assert_eq!(woken_since(), [1], "it has kept its place");
    // It is gone without having looked.
    waiting.pop_front();
    assert_eq!(woken_since(), [2]);

    for next in (3..5000).filter(|&number| number != 8) {
        assert!(look(&waiting[0]).is_ready());
        waiting.pop_front();
        assert_eq!(woken_since(), [next]);
    }
    waiting.clear();
    assert!(woken_since().is_empty());
    assert!(Behind::of(room).is_none(), "it keeps up again");
}
