//! Long-lived programs that read questions and write answers, a line of JSON each.
//!
//! - A program is started when it is first needed and stays. What it does wrong (ending, a line
//!   that is no answer or too long, an answer that nobody waits for, one that is late) ends it; it
//!   is started again when it is needed, after a rest that grows while nothing good comes of it.
//! - Questions that a program had when it ended are answered with "can't tell now", and not asked
//!   again: perhaps it was one of them.
//! - Each has a process group of its own that is killed with it, so that what it started does not
//!   outlive it. A server that is killed closes its programs' standard input, which tells them.
//! - The bounds hold for those who have given up as well: what was asked occupies its program until
//!   it is answered or late.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsString,
    fmt, io,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chinwag_core::{
    Lifecycle,
    clock::{self, Instant},
};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{Notify, oneshot, watch},
    time::{sleep_until, timeout, timeout_at},
};
use tracing::{debug, info, warn};

use super::{
    RETRY, Secrets,
    lines::{Lines, Long},
    spread,
};

/// How long a program that failed rests at first, and at most.
const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// How long a program may take to end when it is told to.
const LEAVE: Duration = Duration::from_secs(1);
/// How long the last words of a program that failed are waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// The most bytes of a line of standard error, and lines a second, that are logged.
const WORDS_BYTES: usize = 1024;
const WORDS_A_SECOND: u32 = 20;
/// How many questions back a program's words are searched for credentials.
const REMEMBERED: usize = 64;

/// What to run and how.
pub(crate) struct Settings {
    /// The name of the authenticator's table, for logs.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Where it runs.
    pub(crate) folder: PathBuf,
    /// Everything that its environment has.
    pub(crate) environment: Vec<(String, OsString)>,
    /// How many run at the same time.
    pub(crate) programs: usize,
    /// How many questions each may have at once.
    pub(crate) in_flight: usize,
    /// How many questions may wait for a program.
    pub(crate) queue: usize,
    /// For an answer, from when the program was asked.
    pub(crate) call_timeout: Duration,
    /// For an answer, waiting for a program included.
    pub(crate) timeout: Duration,
    /// The longest answer.
    pub(crate) answer_bytes: usize,
}

/// The programs. They end when it is dropped or the server drains.
pub(crate) struct Programs {
    shared: Arc<Shared>,
    next: AtomicU64,
    _alive: watch::Sender<()>,
}

struct Shared {
    settings: Settings,
    queue: Mutex<Queue>,
    arrived: Notify,
}

struct Queue {
    waiting: VecDeque<Job>,
    /// How many questions programs have, of `programs` × `in_flight`.
    busy: usize,
    /// Until when each program rests.
    resting: Vec<Option<Instant>>,
}

struct Job {
    id: u64,
    line: Vec<u8>,
    secrets: Secrets,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Vec<u8>, Duration>>;

/// A question that a program has.
struct Place<'a>(&'a Shared);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().busy -= 1;
    }
}

impl Programs {
    /// Starts nothing yet.
    pub(crate) fn new(settings: Settings, lifecycle: &Lifecycle) -> Self {
        let (alive, gone) = watch::channel(());
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                busy: 0,
                resting: vec![None; settings.programs],
            }),
            arrived: Notify::new(),
            settings,
        });
        for index in 0..shared.settings.programs {
            let (shared, ears, mut gone) = (Arc::clone(&shared), lifecycle.clone(), gone.clone());
            lifecycle.spawn(async move {
                let stop = async {
                    tokio::select! {
                        () = ears.draining() => {}
                        _ = gone.changed() => {}
                    }
                };
                shared.keep_up(index, stop).await;
                // Nobody is there for those who come now.
                shared.rest(index, clock::now() + LONGEST_REST);
            });
        }
        Self {
            shared,
            next: AtomicU64::new(1),
            _alive: alive,
        }
    }

    /// A number for the next question.
    pub(crate) fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks one of the programs: `question` is a JSON object with that `id`, and so is the answer.
    /// Dropping the future gives up waiting.
    ///
    /// # Errors
    /// When to try again. What went wrong is in the log.
    pub(crate) async fn ask(
        &self,
        id: u64,
        mut question: Vec<u8>,
        secrets: Secrets,
    ) -> Result<Vec<u8>, Duration> {
        let deadline = clock::now() + self.shared.settings.timeout;
        question.push(b'\n');
        let (reply, answer) = oneshot::channel();
        self.shared.push(Job {
            id,
            line: question,
            secrets,
            reply,
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_lost)) => Err(spread(RETRY)),
            Err(_elapsed) => {
                let authenticator = &self.shared.settings.name;
                debug!(authenticator, "No program answered in time.");
                Err(spread(RETRY))
            }
        }
    }
}

impl Shared {
    fn push(&self, job: Job) -> Result<(), Duration> {
        let authenticator = &self.settings.name;
        let mut queue = self.queue.lock();
        if let Some(rest) = queue.rest(clock::now()) {
            debug!(authenticator, "Every program rests after a failure.");
            return Err(spread(rest.max(RETRY)));
        }
        let free = self.settings.programs * self.settings.in_flight - queue.busy;
        let bound = self.settings.queue + free;
        if queue.waiting.len() >= bound {
            // Those who gave up must not keep others out.
            queue.waiting.retain(|job| !job.reply.is_closed());
            if queue.waiting.len() >= bound {
                debug!(authenticator, "Too many questions wait already.");
                return Err(spread(RETRY));
            }
        }
        queue.waiting.push_back(job);
        drop(queue);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next question that somebody wants to know the answer to.
    fn pop(&self) -> Option<(Job, Place<'_>)> {
        let mut queue = self.queue.lock();
        loop {
            let job = queue.waiting.pop_front()?;
            if !job.reply.is_closed() {
                queue.busy += 1;
                return Some((job, Place(self)));
            }
        }
    }

    /// Waits for the next question. Cancel safe.
    async fn wait(&self) -> (Job, Place<'_>) {
        loop {
            let arrived = self.arrived.notified();
            if let Some(job) = self.pop() {
                return job;
            }
            arrived.await;
        }
    }

    /// Nothing is asked of the program at `index` until then. When that was the last one, those who
    /// wait need not.
    fn rest(&self, index: usize, until: Instant) {
        let mut queue = self.queue.lock();
        queue.resting[index] = Some(until);
        let Some(rest) = queue.rest(clock::now()) else {
            return;
        };
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        for job in waiting {
            let _gave_up = job.reply.send(Err(spread(rest.max(RETRY))));
        }
    }

    /// Has one program running whenever it is needed, until `stop`.
    async fn keep_up(&self, index: usize, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let authenticator = &self.settings.name;
        let mut length = FIRST_REST;
        loop {
            let (job, place) = tokio::select! {
                job = self.wait() => job,
                () = &mut stop => return,
            };
            match Program::start(&self.settings) {
                Ok(mut program) => {
                    let pid = program.pid;
                    debug!(authenticator, pid, "A program is started.");
                    let outcome = program.serve(self, (job, place), stop.as_mut()).await;
                    let Err(failure) = outcome else {
                        program.leave().await;
                        return;
                    };
                    if program.was_good {
                        length = FIRST_REST;
                    }
                    let status = program.end(authenticator).await;
                    warn!(
                        authenticator, pid, %failure, %status,
                        "A program failed; it is started again when it is needed."
                    );
                }
                Err(error) => {
                    drop(place);
                    let program = self.settings.program.display();
                    warn!(authenticator, %program, %error, "A program can't be started.");
                    let _gave_up = job.reply.send(Err(spread(RETRY)));
                }
            }
            let until = clock::now() + length;
            length = (2 * length).min(LONGEST_REST);
            self.rest(index, until);
            tokio::select! {
                () = sleep_until(until) => {}
                () = &mut stop => return,
            }
            self.queue.lock().resting[index] = None;
        }
    }
}

impl Queue {
    /// How long it is until a program can be asked, where all of them rest.
    fn rest(&self, now: Instant) -> Option<Duration> {
        let until = self.resting.iter().copied().min()??;
        Some(until.saturating_duration_since(now))
    }
}

/// Why a program has to be started anew.
enum Failure {
    Ended,
    Deaf(io::Error),
    Unreadable(io::Error),
    NoAnswer,
    Unasked(u64),
    Late,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("it ended or closed its standard output"),
            Self::Deaf(error) => write!(f, "it does not read: {error}"),
            Self::Unreadable(error) => write!(f, "its output can't be read: {error}"),
            Self::NoAnswer => f.write_str("it wrote a line that is no JSON object with an `id`"),
            Self::Unasked(id) => write!(f, "it answered {id}, which nobody waits for"),
            Self::Late => f.write_str("it did not answer in time"),
        }
    }
}

/// A program that runs.
struct Program {
    // Dropped first: a group's number is only safe to use while its leader has not been waited for.
    group: Group,
    pid: u32,
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<ChildStdout>,
    words: Lines<ChildStderr>,
    /// Credentials of the last questions, which its words may not repeat.
    recent: VecDeque<Secrets>,
    quota: Quota,
    /// It has given an answer.
    was_good: bool,
}

/// A process group, killed when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.take() {
            // It fails where nobody of the group is left, and then there is nothing to do.
            let _gone = kill_process_group(leader, Signal::KILL);
        }
    }
}

struct Asked<'a> {
    reply: Reply,
    deadline: Instant,
    _place: Place<'a>,
}

/// What every answer has.
#[derive(Deserialize)]
struct Head {
    id: u64,
}

impl Program {
    fn start(settings: &Settings) -> io::Result<Self> {
        let mut child = Command::new(&settings.program)
            .args(&settings.arguments)
            .current_dir(&settings.folder)
            .env_clear()
            .envs(
                settings
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        let leader = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let piped = "standard streams are pipes";
        Ok(Self {
            group: Group(leader),
            pid,
            input: Some(child.stdin.take().expect(piped)),
            output: Lines::new(
                child.stdout.take().expect(piped),
                settings.answer_bytes,
                Long::Refused,
            ),
            words: Lines::new(child.stderr.take().expect(piped), WORDS_BYTES, Long::Cut),
            child,
            recent: VecDeque::new(),
            quota: Quota::new(),
            was_good: false,
        })
    }

    /// Answers questions, `first` to begin with, until `stop` and all of them are answered.
    async fn serve<'a>(
        &mut self,
        shared: &'a Shared,
        first: (Job, Place<'a>),
        mut stop: impl Future<Output = ()> + Unpin,
    ) -> Result<(), Failure> {
        let settings = &shared.settings;
        let mut asked: HashMap<u64, Asked<'a>> = HashMap::new();
        let mut unwritten: VecDeque<u8> = VecDeque::new();
        let mut next = Some(first);
        let (mut stopping, mut speaks) = (false, true);
        loop {
            if let Some((job, place)) = next.take() {
                unwritten.extend(&job.line);
                self.recent.truncate(REMEMBERED - 1);
                self.recent.push_front(job.secrets);
                let deadline = clock::now() + settings.call_timeout;
                let reply = job.reply;
                let _place = place;
                asked.insert(
                    job.id,
                    Asked {
                        reply,
                        deadline,
                        _place,
                    },
                );
            }
            if stopping && asked.is_empty() {
                next = shared.pop();
                if next.is_some() {
                    continue;
                }
                return Ok(());
            }
            let has_room = asked.len() < settings.in_flight && !stopping;
            let late = asked.values().map(|it| it.deadline).min();
            let late = late.unwrap_or_else(|| clock::now() + settings.call_timeout);
            let Some(input) = &mut self.input else {
                return Ok(());
            };
            tokio::select! {
                job = shared.wait(), if has_room => next = Some(job),
                written = input.write(unwritten.as_slices().0), if !unwritten.is_empty() => {
                    drop(unwritten.drain(..written.map_err(Failure::Deaf)?));
                }
                line = self.output.next() => {
                    let line = line.map_err(Failure::Unreadable)?.ok_or(Failure::Ended)?;
                    let head = serde_json::from_slice::<Head>(&line);
                    let id = head.map_err(|_| Failure::NoAnswer)?.id;
                    let Some(asked) = asked.remove(&id) else {
                        return Err(Failure::Unasked(id));
                    };
                    self.was_good = true;
                    let _gave_up = asked.reply.send(Ok(line));
                }
                words = self.words.next(), if speaks => match words {
                    Ok(Some(words)) => self.log(&settings.name, &words),
                    Ok(None) | Err(_) => speaks = false,
                },
                () = sleep_until(late), if !asked.is_empty() => return Err(Failure::Late),
                () = &mut stop, if !stopping => stopping = true,
            }
        }
    }

    fn log(&mut self, authenticator: &str, words: &[u8]) {
        let pid = self.pid;
        match self.quota.take(clock::now()) {
            Allowed::No => return,
            Allowed::Yes => {}
            Allowed::After(lost) => {
                info!(
                    authenticator,
                    pid, lost, "A program said more than is logged."
                );
            }
        }
        let words = String::from_utf8_lossy(words);
        let repeats = |secrets: &&Secrets| secrets.are_in(&words);
        let secrets = self
            .recent
            .iter()
            .find(repeats)
            .cloned()
            .unwrap_or_default();
        let words = secrets.scrub(words.trim_end());
        info!(authenticator, pid, words, "A program says.");
    }

    /// Tells it to end, and ends it.
    async fn leave(mut self) {
        drop(self.input.take());
        let output = &mut self.output;
        let ended = async { while let Ok(Some(_line)) = output.next().await {} };
        let _took_too_long = timeout(LEAVE, ended).await;
        self.kill().await;
    }

    /// Ends it, and gives how it ended.
    async fn end(mut self, authenticator: &str) -> String {
        drop(Group(self.group.0.take()));
        let last_words = async {
            while let Ok(Some(words)) = self.words.next().await {
                self.log(authenticator, &words);
            }
        };
        let _took_too_long = timeout(LAST_WORDS, last_words).await;
        self.kill().await
    }

    async fn kill(mut self) -> String {
        drop(self.group);
        match timeout(LEAVE, self.child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "it does not end".to_owned(),
        }
    }
}

/// How much of what a program says is logged.
struct Quota {
    began: Instant,
    said: u32,
    lost: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Allowed {
    Yes,
    No,
    /// So many lines were lost before this one.
    After(u64),
}

impl Quota {
    fn new() -> Self {
        Self {
            began: clock::now(),
            said: 0,
            lost: 0,
        }
    }

    fn take(&mut self, now: Instant) -> Allowed {
        if now >= self.began + Duration::from_secs(1) {
            self.began = now;
            self.said = 0;
        }
        if self.said == WORDS_A_SECOND {
            self.lost += 1;
            return Allowed::No;
        }
        self.said += 1;
        match std::mem::take(&mut self.lost) {
            0 => Allowed::Yes,
            lost => Allowed::After(lost),
        }
    }
}
