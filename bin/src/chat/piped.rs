//! Line by line, for scripts: what is read is said, what is heard is written.

use std::{
    io::{self, BufRead, Read, Write},
    pin::pin,
    thread,
    time::Duration,
};

use chinwag_client::{
    End, Error, ErrorCode, Event, Events, FIRST_OWN_ID, Fields, Handle, Loss, Object, Refusal,
};
use serde_json::value::RawValue;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    Ending, Entered, farewell, harmless, say,
    show::{Show, Told},
};
use crate::cli::{FAILED, Signals};

/// Lines that wait to be sent, or to be written.
const WAITING: usize = 64;
/// The most bytes of a line that is read. Whatever is longer is refused anyway.
const LINE: usize = 1 << 20;
/// A wait that is longer is a punishment, and tells nothing of the server's rate.
const PUNISHMENT: Duration = Duration::from_secs(5);
/// How long the end of a session is waited for where logging out has failed.
const PARTING: Duration = Duration::from_secs(2);

/// Talks until the input or the session ends.
pub(super) async fn talk(
    entered: Entered,
    show: Show,
    json: bool,
    signals: &mut Signals,
) -> Result<(), Ending> {
    let Entered {
        client,
        session,
        init,
    } = entered;
    let (room, user) = (harmless::line(&init.room), harmless::line(&session.user));
    if !json {
        say(format_args!("You are in {room} as {user}."));
    }
    let (handle, mut events) = client.split();
    let mut lines = read_lines();
    let mut sender = Sender {
        handle: &handle,
        message_bytes: session.limits.message_bytes,
        room: init.room,
        json,
        number: 0,
        gap: Duration::ZERO,
        busy: false,
        failed: false,
    };
    let mut writer = Writer::new(show, json, session.user);
    let mut interrupted = false;
    let heard = 'heard: {
        let mut hear = pin!(writer.hear(&mut events));
        tokio::select! {
            heard = &mut hear => break 'heard heard,
            () = sender.send(&mut lines) => (),
            _ = signals.next() => interrupted = true,
        }
        let leave = async {
            let left = tokio::select! {
                heard = &mut hear => return heard,
                left = handle.logout() => left,
            };
            match left {
                // The stream of events says how it ended, after what is still to be heard.
                Ok(_) | Err(Error::Ended(_)) => hear.await,
                Err(error) => {
                    let heard = timeout(PARTING, hear).await;
                    heard.unwrap_or_else(|_| Heard::End(End::Lost(still_in(error))))
                }
            }
        };
        tokio::select! {
            heard = leave => heard,
            // Who insists waits neither for the server nor for whoever reads.
            () = signals.again() => return Ok(()),
        }
    };
    let end = match heard {
        Heard::End(end) => end,
        Heard::Enough => {
            drop(events);
            let _ = timeout(PARTING, handle.logout()).await;
            return writer.finish().await;
        }
    };
    // Whoever reads may take their time, unless somebody insists.
    let written = tokio::select! {
        written = writer.finish() => written,
        _ = signals.next() => Ok(()),
    };
    if let Some(words) = farewell(&end) {
        say(words);
    }
    match Ending::of(&end) {
        Some(ending) => Err(ending),
        None if written.is_err() => written,
        None if interrupted => Ok(()),
        None if sender.failed || sender.busy || !lines.is_empty() => {
            Err(Ending::new(FAILED, "not every line was sent"))
        }
        None => Ok(()),
    }
}

/// What became of a session that the server does not let go of.
fn still_in(error: Error) -> Loss {
    match error {
        Error::NoAnswer(after) => Loss::Silent(after),
        Error::Lost(loss) => loss,
        error => Loss::Garbled(format!("logging out: {error}")),
    }
}

/// A line of standard input, or what is wrong with it.
type Line = Result<String, Box<str>>;

/// Reads standard input in a thread of its own, no further ahead than [`WAITING`] lines.
fn read_lines() -> mpsc::Receiver<Line> {
    let (to, lines) = mpsc::channel(WAITING);
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let (line, last) = match read_line(&mut input) {
                Ok(Some(line)) => (line, false),
                Ok(None) => break,
                Err(error) => (Err(format!("can't be read: {error}").into()), true),
            };
            if to.blocking_send(line).is_err() || last {
                break;
            }
        }
    });
    lines
}

fn read_line(input: &mut impl BufRead) -> io::Result<Option<Line>> {
    let mut bytes = Vec::new();
    if input
        .by_ref()
        .take(LINE as u64)
        .read_until(b'\n', &mut bytes)?
        == 0
    {
        return Ok(None);
    }
    if bytes.len() == LINE && !bytes.ends_with(b"\n") {
        input.skip_until(b'\n')?;
        return Ok(Some(Err("over a mebibyte".into())));
    }
    let text = String::from_utf8(bytes).map_err(|_| "not UTF-8".into());
    Ok(Some(text.map(|text| {
        text.trim_end_matches(['\r', '\n']).to_owned()
    })))
}

/// Sends lines one after another, as fast as the server takes them.
struct Sender<'a> {
    handle: &'a Handle,
    message_bytes: usize,
    room: Box<str>,
    json: bool,
    /// Of the line at hand.
    number: u64,
    /// How long to wait between two lines, as learnt from refusals.
    gap: Duration,
    /// Whether a line is under way.
    busy: bool,
    /// Whether a line was not sent.
    failed: bool,
}

impl Sender<'_> {
    /// Done at the end of the input, or when the session has ended.
    async fn send(&mut self, lines: &mut mpsc::Receiver<Line>) {
        while let Some(line) = lines.recv().await {
            self.number += 1;
            self.busy = true;
            let done = match line {
                Ok(line) if line.trim().is_empty() => Ok(()),
                Ok(line) if self.json => self.command(&line).await,
                Ok(line) => self.say(&line).await,
                Err(fault) => Err(Fault::Line(fault.into())),
            };
            match done {
                Ok(()) => (),
                Err(Fault::Line(why)) => self.complain(&why),
                Err(Fault::Over) => return,
            }
            self.busy = false;
        }
    }

    fn complain(&mut self, why: &str) {
        self.failed = true;
        say(format_args!("line {}: not sent: {why}", self.number));
    }

    async fn say(&mut self, text: &str) -> Result<(), Fault> {
        if text.len() > self.message_bytes {
            let most = self.message_bytes;
            let why = format!("{} bytes, and a message has at most {most}", text.len());
            return Err(Fault::Line(why));
        }
        loop {
            sleep(self.gap).await;
            let refusal = match self.handle.send(&self.room, text).await {
                Ok(_) => return Ok(()),
                Err(Error::Refused(refusal)) => refusal,
                Err(error) => return Err(error.into()),
            };
            let wait = match refusal {
                Refusal {
                    code: ErrorCode::RateLimited,
                    retry_ms: Some(ms),
                    ..
                } => Duration::from_millis(ms.max(1)),
                refusal => return Err(Error::Refused(refusal).into()),
            };
            // A refusal counts against the session, so there must not be one for each line: the gap grows until the
            // rate is met.
            if wait < PUNISHMENT {
                self.gap = (self.gap + wait).min(PUNISHMENT);
            } else {
                sleep(wait).await;
            }
        }
    }

    async fn command(&mut self, line: &str) -> Result<(), Fault> {
        let mut fields = Fields::parse(line)
            .map_err(|_| Fault::Line("no JSON object; --json takes commands".into()))?;
        let kind = fields.field("type").map(RawValue::get);
        let takes_room = matches!(
            kind,
            Some("\"send\"" | "\"signal\"" | "\"leave\"" | "\"users\"" | "\"history\"")
        );
        if takes_room && fields.field("room").is_none() {
            let room = serde_json::value::to_raw_value(&*self.room).ok();
            fields.set("room", room);
        }
        let answer = self.handle.ask(fields).await?;
        // It is on standard output, like all that comes.
        self.failed |= answer.kind() == "error";
        Ok(())
    }
}

/// Why a line was not sent.
enum Fault {
    /// The others may be.
    Line(String),
    /// Neither will the others be.
    Over,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Ended(_) => Self::Over,
            error => Self::Line(harmless::line(&error.to_string())),
        }
    }
}

/// Why nothing more is heard.
enum Heard {
    End(End),
    /// Nobody reads standard output any more.
    Enough,
}

/// Writes what comes, in a thread of its own: a reader that takes its time must not hold up anything but its lines.
struct Writer {
    lines: Option<mpsc::Sender<String>>,
    done: oneshot::Receiver<io::Result<()>>,
    show: Show,
    json: bool,
    own_name: Box<str>,
    escaped: bool,
}

impl Writer {
    fn new(show: Show, json: bool, own_name: Box<str>) -> Self {
        let (lines, mut waiting) = mpsc::channel::<String>(WAITING);
        let (ended, done) = oneshot::channel();
        thread::spawn(move || {
            let mut out = io::BufWriter::new(io::stdout().lock());
            let mut written = Ok(());
            while let (Ok(()), Some(line)) = (&written, waiting.blocking_recv()) {
                written = out.write_all(line.as_bytes());
                if waiting.is_empty() {
                    written = written.and_then(|()| out.flush());
                }
            }
            drop(waiting);
            let _ = ended.send(written);
        });
        Self {
            lines: Some(lines),
            done,
            show,
            json,
            own_name,
            escaped: false,
        }
    }

    /// Writes what comes until the end.
    async fn hear(&mut self, events: &mut Events) -> Heard {
        loop {
            let object = match events.next_object().await {
                Ok(object) => object,
                Err(end) => return Heard::End(end),
            };
            let line = if self.json {
                Some(as_received(&object))
            } else {
                self.as_text(&object)
            };
            if let (Some(line), Some(lines)) = (line, &self.lines)
                && lines.send(line).await.is_err()
            {
                return Heard::Enough;
            }
        }
    }

    fn as_text(&mut self, object: &Object) -> Option<String> {
        match object.event() {
            Event::Init(init) => {
                self.escaped = init.escape.as_deref() == Some("html");
                None
            }
            Event::Left(left) if left.reason.is_some() => {
                let room = harmless::line(&left.room);
                say(format_args!("You were removed from {room}."));
                None
            }
            Event::Message(message) => {
                let of = Told {
                    own_name: &self.own_name,
                    elsewhere: None,
                    escaped: self.escaped,
                };
                Some(self.show.message(&message, &of, true))
            }
            _ => None,
        }
    }

    /// Waits until all is written. That nobody reads it any more is no mistake.
    async fn finish(&mut self) -> Result<(), Ending> {
        self.lines = None;
        match (&mut self.done).await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Ending::other(format_args!("can't write: {error}")))
            }
            _ => Ok(()),
        }
    }
}

/// An object as the server sent it, less the session's id, which is a secret, and an `id` that nobody gave.
fn as_received(object: &Object) -> String {
    // Between its parts, where they mean nothing, JSON may have ends of lines.
    let json = object.json().replace(['\n', '\r'], " ");
    let numbered = object.id().is_some_and(|id| id >= FIRST_OWN_ID);
    let session = object.kind() == "session";
    if !numbered && !session {
        return json + "\n";
    }
    let Ok(mut fields) = Fields::parse(&json) else {
        return json + "\n";
    };
    if numbered {
        fields.set("id", None);
    }
    if session {
        fields.set("session", None);
    }
    format!("{fields}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whole_bounded_and_without_their_ends() {
        let long = "x".repeat(LINE);
        let input = format!("one\r\n\ntwo\n{long}y\nthree");
        let mut input = input.as_bytes();
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut input).unwrap() {
            lines.push(line);
        }
        let read = |text: &str| Ok(text.to_owned());
        assert_eq!(
            lines,
            [
                read("one"),
                read(""),
                read("two"),
                Err("over a mebibyte".into()),
                read("three")
            ]
        );
        assert_eq!(
            read_line(&mut &b"\xff\n"[..]).unwrap(),
            Some(Err("not UTF-8".into()))
        );
    }
}
