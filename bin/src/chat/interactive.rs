//! At a terminal: what others say above, what one types below.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::{self, Stdout, stdout},
    thread,
};

use chinwag_client::{End, Error, Event, Events, Handle, Init, LeaveReason, Loss, Session, Users};
use crossterm::event::Event as Key;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::mpsc;

use super::{
    Ending, Entered, come_back,
    editor::{Editor, Wish},
    farewell, harmless, say,
    screen::Screen,
    show::{Show, Told},
};
use crate::{cli::Signals, terminal::TakenOver};

/// Keys that wait to be looked at.
const KEYS: usize = 256;
/// Commands that wait for their answers; more are not taken.
const UNDER_WAY: usize = 32;
/// Events that are drawn at once.
const BATCH: usize = 256;
/// Names that are remembered of a room, to complete them.
const NAMES: usize = 2000;
/// Names that /users lists.
const LISTED: usize = 500;
/// Rooms that one is in; far more than servers let one session into.
const ROOMS: usize = 1000;

const COMMANDS: [(&str, &str); 5] = [
    ("/users", "who is here"),
    (
        "/join ROOM",
        "join another room, or go back to one that you are in",
    ),
    ("/leave [ROOM]", "leave this room, or another one"),
    ("/help", "this list"),
    (
        "/quit",
        "log out; so do Ctrl-D, and Ctrl-C on an empty line",
    ),
];

/// Talks until somebody leaves or the session ends.
pub(super) async fn talk(
    entered: Entered,
    show: Show,
    signals: &mut Signals,
) -> Result<(), Ending> {
    let Entered {
        client,
        session,
        init,
    } = entered;
    let (handle, events) = client.split();
    let gone = |error: io::Error| Ending::other(format_args!("the terminal is gone: {error}"));
    let terminal = TakenOver::take().map_err(gone)?;
    let size = crossterm::terminal::size().unwrap_or_default();
    let talk = Talk {
        screen: Screen::new(stdout(), size),
        editor: Editor::default(),
        show,
        session,
        active: Some(init.room),
        rooms: BTreeMap::new(),
        handle,
        under_way: FuturesUnordered::new(),
        leaving: false,
        terminal,
    };
    talk.run(events, signals).await
}

/// A room that one is in.
#[derive(Default)]
struct Room {
    escaped: bool,
    /// Who is known to be there, to complete names.
    names: BTreeSet<Box<str>>,
}

impl Room {
    fn learn(&mut self, name: &str) {
        if self.names.len() < NAMES {
            self.names.insert(name.into());
        }
    }
}

/// What came of a command.
enum Done {
    Said(Result<(), Error>, String),
    Joined(Result<Init, Error>),
    Left(Result<(), Error>),
    Listed(Result<(Vec<Box<str>>, Users), Error>),
    LoggedOut(Result<(), Error>),
}

struct Talk {
    screen: Screen<Stdout>,
    editor: Editor,
    show: Show,
    session: Session,
    /// The room that is looked at and talked into.
    active: Option<Box<str>>,
    rooms: BTreeMap<Box<str>, Room>,
    handle: Handle,
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
    leaving: bool,
    /// Last, so that the terminal is given back after everything else.
    terminal: TakenOver,
}

impl Talk {
    async fn run(mut self, mut events: Events, signals: &mut Signals) -> Result<(), Ending> {
        let mut keys = read_keys();
        let done = self.talk(&mut events, &mut keys, signals).await;
        let unsent = self.editor.text().to_owned();
        let _ = self.screen.leave("");
        drop(self);
        // Whoever closed the terminal, or insists, has left.
        let Ok(end) = done else { return Ok(()) };
        if !unsent.trim().is_empty() {
            say(format_args!("Not sent: {}", harmless::line(&unsent)));
        }
        match Ending::of(&end) {
            Some(ending) => Err(ending),
            None => {
                say(farewell(&end).unwrap_or_else(|| "You have logged out.".into()));
                Ok(())
            }
        }
    }

    async fn talk(
        &mut self,
        events: &mut Events,
        keys: &mut mpsc::Receiver<Key>,
        signals: &mut Signals,
    ) -> io::Result<End> {
        self.aim();
        let welcome = self
            .show
            .notice("Type, and press Enter to say it. /help lists the commands.");
        self.screen.print(&welcome, &self.editor)?;
        loop {
            let ended = tokio::select! {
                event = events.next() => self.events(event, events)?,
                key = keys.recv() => match key {
                    Some(key) => self.key(key)?,
                    None => return Err(io::ErrorKind::UnexpectedEof.into()),
                },
                Some(done) = self.under_way.next() => self.done(done)?,
                _ = signals.next() => self.leave()?,
            };
            if let Some(end) = ended {
                return Ok(end);
            }
        }
    }

    /// Shows an event and those that are there already, all at once.
    fn events(
        &mut self,
        first: Result<Event, End>,
        events: &mut Events,
    ) -> io::Result<Option<End>> {
        let mut text = String::new();
        let mut ended = None;
        let mut next = Some(first);
        let mut more = BATCH;
        while let Some(event) = next {
            match event {
                Ok(event) => text += &self.event(event),
                Err(end) => {
                    ended = Some(end);
                    break;
                }
            }
            more -= 1;
            next = if more > 0 {
                events.next().now_or_never()
            } else {
                None
            };
        }
        if !text.is_empty() {
            self.screen.print(&text, &self.editor)?;
        }
        Ok(ended)
    }

    /// What an event looks like; mostly a line.
    fn event(&mut self, event: Event) -> String {
        let show = &self.show;
        let active = self.active.as_deref();
        // The room, where it is not the one that is looked at.
        let elsewhere = |room| (active != Some(room)).then_some(room);
        match event {
            Event::Init(init)
                if self.rooms.len() >= ROOMS && !self.rooms.contains_key(&init.room) =>
            {
                String::new()
            }
            Event::Init(init) => {
                let room = self.rooms.entry(init.room.clone()).or_default();
                room.escaped = init.escape.as_deref() == Some("html");
                room.names.clear();
                for name in &init.users {
                    room.learn(name);
                }
                show.entered(&init, &self.session.user)
            }
            Event::Join(join) => {
                if let Some(room) = self.rooms.get_mut(&join.room) {
                    room.learn(&join.user);
                }
                if join.user == self.session.user {
                    return String::new();
                }
                show.joined(join.at, &join.user, elsewhere(&join.room))
            }
            Event::Leave(leave) => {
                if let Some(room) = self.rooms.get_mut(&leave.room) {
                    room.names.remove(&leave.user);
                }
                show.left(leave.at, &leave.user, &leave.reason, elsewhere(&leave.room))
            }
            Event::Left(left) => {
                self.rooms.remove(&left.room);
                let room = harmless::line(&left.room);
                let was_active = self.active.as_deref() == Some(&*left.room);
                let next = self.rooms.keys().next().filter(|_| was_active).cloned();
                let text = match left.reason {
                    None => match &next {
                        Some(next) => show.notice(format_args!(
                            "You have left {room} and are back in {}.",
                            harmless::line(next)
                        )),
                        None => show.notice(format_args!("You have left {room}.")),
                    },
                    Some(LeaveReason::Expired) => show.complaint(format_args!(
                        "You were silent in {room} for too long and are out."
                    )),
                    Some(_) => show.complaint(format_args!("You were removed from {room}.")),
                };
                if was_active {
                    self.active = next;
                    self.aim();
                }
                text
            }
            Event::Message(message) => {
                let room = self.rooms.get_mut(&message.room);
                let of = Told {
                    own_name: &self.session.user,
                    elsewhere: elsewhere(&message.room),
                    escaped: room.as_ref().is_some_and(|room| room.escaped),
                };
                if let Some(room) = room {
                    room.learn(&message.user);
                }
                show.message(&message, &of, false)
            }
            Event::Presence(change) => {
                if let Some(room) = self.rooms.get_mut(&change.room) {
                    for name in &change.left {
                        room.names.remove(name);
                    }
                    for name in &change.joined {
                        room.learn(name);
                    }
                }
                show.presence(&change, elsewhere(&change.room))
                    .unwrap_or_default()
            }
            Event::Refused(refusal) => show.complaint(harmless::line(&refusal.message)),
            _ => String::new(),
        }
    }

    fn key(&mut self, key: Key) -> io::Result<Option<End>> {
        match key {
            Key::Key(key) => match self.editor.key(key) {
                Wish::Nothing => (),
                Wish::Submit => return self.submit(),
                Wish::Complete => return self.complete().map(|()| None),
                Wish::Quit => return self.leave(),
                Wish::Clear => return self.screen.clear(&self.editor).map(|()| None),
                Wish::Suspend => {
                    self.screen.leave("")?;
                    self.terminal.suspend()?;
                    let size = crossterm::terminal::size().unwrap_or_default();
                    return self.screen.resize(size, &self.editor).map(|()| None);
                }
            },
            Key::Paste(text) => self.editor.paste(&text),
            Key::Resize(columns, lines) => {
                return self
                    .screen
                    .resize((columns, lines), &self.editor)
                    .map(|()| None);
            }
            _ => return Ok(None),
        }
        self.screen.refresh(&self.editor).map(|()| None)
    }

    /// Says or does what was typed.
    fn submit(&mut self) -> io::Result<Option<End>> {
        let line = self.editor.text();
        let most = self.session.limits.message_bytes;
        if line.trim().is_empty() {
            self.editor.take();
            return self.screen.refresh(&self.editor).map(|()| None);
        }
        let is_command = line.starts_with('/') && !line.starts_with("//");
        // What can't be said stays where it is, to be mended.
        let obstacle = if self.under_way.len() >= UNDER_WAY && line.trim() != "/quit" {
            Some("The server has not answered yet; wait a moment.".into())
        } else if is_command {
            None
        } else if self.active.is_none() {
            Some("You are in no room; /join ROOM enters one.".into())
        } else if line.len() > most {
            let bytes = line.len();
            Some(format!(
                "Too long: {bytes} bytes, and a message has at most {most}."
            ))
        } else {
            None
        };
        if let Some(obstacle) = obstacle {
            return self.complain(obstacle);
        }
        let line = self.editor.take();
        if is_command {
            return self.command(line.trim());
        }
        if let Some(room) = self.active.clone() {
            let text = line.strip_prefix('/').filter(|rest| rest.starts_with('/'));
            let text = text.unwrap_or(&line).to_owned();
            let handle = self.handle.clone();
            self.begin(async move {
                let said = handle.send(&room, &text).await;
                Done::Said(said.map(drop), text)
            });
        }
        self.screen.refresh(&self.editor).map(|()| None)
    }

    fn command(&mut self, line: &str) -> io::Result<Option<End>> {
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let handle = self.handle.clone();
        match (name, argument) {
            ("/quit", "") => {
                self.screen.refresh(&self.editor)?;
                return self.leave();
            }
            ("/help", "") => {
                let text = self.help();
                self.screen.print(&text, &self.editor)?;
            }
            ("/users", "") => match self.active.clone() {
                Some(room) => self.begin(async move { Done::Listed(list(&handle, &room).await) }),
                None => return self.complain("You are in no room; /join ROOM enters one."),
            },
            ("/join", "") => return self.complain("/join needs the name of a room."),
            ("/join", room) if self.rooms.contains_key(room) => {
                self.active = Some(room.into());
                self.aim();
            }
            ("/join", room) => {
                let room = room.to_owned();
                self.begin(async move { Done::Joined(handle.join(&*room).await) });
            }
            ("/leave", room) => {
                let room = match room {
                    "" => self.active.as_deref().map(str::to_owned),
                    room => Some(room.to_owned()),
                };
                match room {
                    Some(room) => {
                        self.begin(async move { Done::Left(handle.leave(&room).await) });
                    }
                    None => return self.complain("You are in no room."),
                }
            }
            ("/quit" | "/help" | "/users", _) => {
                return self.complain(format_args!("{name} takes nothing else."));
            }
            _ => {
                let line = harmless::line(line);
                return self.complain(format_args!(
                    "There is no such command. /help lists them; //… says it: /{line}"
                ));
            }
        }
        self.screen.refresh(&self.editor).map(|()| None)
    }

    fn help(&self) -> String {
        let mut text = String::new();
        for (command, what) in COMMANDS {
            let _ = writeln!(text, "  {command:14} {what}");
        }
        let _ = writeln!(text, "  {:14} say /text", "//text");
        let rooms: Vec<String> = self.rooms.keys().map(|room| harmless::line(room)).collect();
        if rooms.len() > 1 {
            let _ = writeln!(text, "You are in {}.", rooms.join(", "));
        }
        text
    }

    /// Logs out; who asks again does not wait for it.
    fn leave(&mut self) -> io::Result<Option<End>> {
        if self.leaving {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.leaving = true;
        let handle = self.handle.clone();
        self.begin(async move { Done::LoggedOut(handle.logout().await.map(drop)) });
        Ok(None)
    }

    fn begin(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.under_way.push(work.boxed());
    }

    /// Tells what came of a command. The stream of events tells the rest.
    fn done(&mut self, done: Done) -> io::Result<Option<End>> {
        let failed = match done {
            Done::LoggedOut(Err(Error::NoAnswer(after))) => {
                return Ok(Some(End::Lost(Loss::Silent(after))));
            }
            Done::Said(Err(error), text) => {
                let mut first: String = harmless::line(&text).chars().take(41).collect();
                if first.chars().count() > 40 {
                    first.pop();
                    first.push('…');
                }
                Some((error, format!(" Not said: {first}")))
            }
            Done::Joined(Ok(init)) => {
                self.active = Some(init.room);
                self.aim();
                self.screen.refresh(&self.editor)?;
                None
            }
            Done::Listed(Ok((names, page))) => {
                let text = self.listed(&names, &page);
                self.screen.print(&text, &self.editor)?;
                None
            }
            Done::Joined(Err(error)) | Done::Left(Err(error)) | Done::Listed(Err(error)) => {
                Some((error, String::new()))
            }
            Done::LoggedOut(Err(error)) => Some((error, " Once more leaves all the same.".into())),
            Done::Said(Ok(()), _) | Done::Left(Ok(())) | Done::LoggedOut(Ok(())) => None,
        };
        match failed {
            // How it ended is told at the end.
            None | Some((Error::Ended(_), _)) => Ok(None),
            Some((error, what)) => {
                let retry = match &error {
                    Error::Refused(refusal) => come_back(refusal.retry_ms),
                    _ => String::new(),
                };
                let why = harmless::line(&error.to_string());
                let gap = if retry.is_empty() { "" } else { " " };
                self.complain(format_args!("{why}{gap}{retry}{what}"))
            }
        }
    }

    fn listed(&self, names: &[Box<str>], page: &Users) -> String {
        let room = harmless::line(&page.room);
        if names.is_empty() {
            return self.show.notice(format_args!(
                "{} in {room}; names are not told.",
                page.count
            ));
        }
        let mut shown: Vec<String> = names.iter().map(|name| harmless::line(name)).collect();
        if page.next.is_some() {
            shown.push("…".into());
        }
        self.show.notice(format_args!(
            "{} in {room}: {}",
            page.count,
            shown.join(", ")
        ))
    }

    fn complain(&mut self, text: impl std::fmt::Display) -> io::Result<Option<End>> {
        let text = self.show.complaint(text.to_string().trim_end());
        self.screen.print(&text, &self.editor).map(|()| None)
    }

    /// Completes the word before the cursor where there is one way, and shows the ways where there are several.
    fn complete(&mut self) -> io::Result<()> {
        let before = self.editor.before_cursor();
        let start = before
            .char_indices()
            .rev()
            .find(|(_, c)| c.is_whitespace())
            .map_or(0, |(at, c)| at + c.len_utf8());
        let word = before.get(start..).unwrap_or_default();
        let line = before.get(..start).unwrap_or_default().trim();
        let (ways, after): (Vec<&str>, &str) = if start == 0 && word.starts_with('/') {
            let names = COMMANDS.map(|(command, _)| command.split(' ').next().unwrap_or(command));
            (
                names
                    .into_iter()
                    .filter(|name| name.starts_with(word))
                    .collect(),
                " ",
            )
        } else if matches!(line, "/join" | "/leave") {
            let rooms = self.rooms.keys().map(|room| &**room);
            (rooms.filter(|room| room.starts_with(word)).collect(), "")
        } else if word.is_empty() {
            return Ok(());
        } else {
            let room = self.active.as_ref().and_then(|room| self.rooms.get(room));
            let names = room
                .into_iter()
                .flat_map(|room| &room.names)
                .map(|name| &**name);
            let lower = word.to_lowercase();
            let fits = |name: &&str| name.to_lowercase().starts_with(&lower);
            (
                names.filter(fits).collect(),
                if start == 0 { ": " } else { " " },
            )
        };
        match *ways {
            [] => Ok(()),
            [way] => {
                let whole = format!("{way}{after}");
                self.editor.replace_from(start, &whole);
                self.screen.refresh(&self.editor)
            }
            _ => {
                let shown: Vec<String> = ways
                    .iter()
                    .take(50)
                    .map(|way| harmless::line(way))
                    .collect();
                let text = self.show.notice(shown.join("  "));
                self.screen.print(&text, &self.editor)
            }
        }
    }

    /// Has the prompt name the room that is talked into.
    fn aim(&mut self) {
        let (plain, painted) = self.show.prompt(self.active.as_deref());
        self.screen.set_prompt(plain, painted);
    }
}

/// The names in a room, page by page, up to [`LISTED`].
async fn list(handle: &Handle, room: &str) -> Result<(Vec<Box<str>>, Users), Error> {
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let mut page = handle.users(room, after.as_deref()).await?;
        names.append(&mut page.users);
        after.clone_from(&page.next);
        if after.is_none() || names.len() >= LISTED {
            return Ok((names, page));
        }
    }
}

/// Reads keys in a thread of its own: at a terminal that was closed, reading never returns.
fn read_keys() -> mpsc::Receiver<Key> {
    let (to, keys) = mpsc::channel(KEYS);
    thread::spawn(move || {
        while let Ok(key) = crossterm::event::read() {
            if to.blocking_send(key).is_err() {
                break;
            }
        }
    });
    keys
}
