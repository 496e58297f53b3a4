//! Long-lived programs that read questions and write answers, a line of JSON each.
//!
//! - A program is started when it is first needed and stays. What it does wrong (ending, a line
//!   that is no answer or too long, an answer that nobody waits for, one that is late) ends it; it
//!   is started again when it is needed, after a rest that grows while nothing good comes of it.
//! - One that was just started has more time for its first answer: loading what it needs may take
//!   longer than any question. Else it would be ended each time before it could be of use.
//! - Questions that a program had when it ended are answered with "can't tell now", and not asked
//!   again: perhaps it was one of them.
//! - Each has a process group of its own that is killed with it, so that what it started does not
//!   outlive it. A server that is killed closes its programs' standard input, which tells them.
//! - The bounds hold for those who have given up as well: what was asked occupies its program until
//!   it is answered or late.

use std::{
    collections::{HashMap, VecDeque},
    env,
    ffi::OsString,
    fmt, fs, io,
    os::unix::fs::PermissionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    pin::pin,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chinwag_core::{
    CallOutcome, CalloutMetrics, Lifecycle,
    clock::{self, Instant},
    config::Span,
    plugin::{BuildError, Meter},
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
    Asker, Doubt, NoAnswer, RETRY, Secrets, call_timeout,
    lines::{Lines, Long},
    spread,
};
use crate::fair::{Fair, Party};

/// How long a program that failed rests at first, and at most.
const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// How long a program may take to be of use, where the table does not say.
const START: Duration = Duration::from_secs(10);
const LONGEST_START: Duration = Duration::from_secs(300);
/// How long a program may take to end when it is told to.
const LEAVE: Duration = Duration::from_secs(1);
/// How long the last words of a program that failed are waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// The most bytes of a line of standard error that are logged, and lines a second for that and for
/// what a program wants in vain.
const WORDS_BYTES: usize = 1024;
const WORDS_A_SECOND: u32 = 20;
/// How many questions back a program's words are searched for credentials.
const REMEMBERED: usize = 64;
/// The most bytes that a program may have been told unasked and not read.
const UNREAD_BYTES: usize = 64 << 10;
const MAX_PROGRAMS: usize = 256;
const MAX_IN_FLIGHT: usize = 1000;
const MAX_QUEUE: usize = 10_000;

/// What to run and how.
pub(crate) struct Settings {
    /// The path of the table, `authenticators.NAME`, for logs and metrics.
    pub(crate) table: String,
    pub(crate) meter: Meter,
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
    /// For the first answer, from when the program was started.
    pub(crate) start_timeout: Duration,
    /// For an answer, waiting for a program included.
    pub(crate) timeout: Duration,
    /// The longest answer.
    pub(crate) answer_bytes: usize,
}

/// Takes a line without an `id`. `None`: the line is none that a program may write.
pub(crate) type Unasked = Box<dyn Fn(&[u8]) -> Option<Taken> + Send + Sync>;

/// What a line without an `id` came to.
pub(crate) struct Taken {
    /// The line to write back, if one is wanted.
    pub(crate) reply: Option<Vec<u8>>,
    /// The code of what is wrong with it, for the log. What the program wrote is not repeated there.
    pub(crate) mistake: Option<&'static str>,
}

/// The keys of a table that say what runs, and how it is asked.
pub(crate) struct Keys {
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) programs: usize,
    pub(crate) in_flight: usize,
    pub(crate) queue: usize,
    pub(crate) call_timeout: Option<Span>,
    pub(crate) start_timeout: Span,
}

pub(crate) const fn default_start() -> Span {
    Span(START)
}

pub(crate) fn default_environment() -> Vec<String> {
    vec!["PATH".to_owned()]
}

impl Keys {
    /// What they come to for `asker`.
    ///
    /// # Errors
    /// Numbers out of their bounds, a program that is not there, and a limit that is too long.
    pub(crate) fn settings(
        self,
        asker: Asker<'_>,
        answer_bytes: usize,
    ) -> Result<Settings, BuildError> {
        let (base, table) = (asker.base, &asker.table);
        let numbers = [
            ("programs", self.programs, 1, MAX_PROGRAMS),
            ("in_flight", self.in_flight, 1, MAX_IN_FLIGHT),
            ("queue", self.queue, 0, MAX_QUEUE),
        ];
        for (key, value, least, most) in numbers {
            if !(least..=most).contains(&value) {
                return Err(BuildError::key(
                    key,
                    format!("`{key}` is {least} to {most}"),
                ));
            }
        }
        if self.start_timeout.0 > LONGEST_START {
            return Err(BuildError::key(
                "start_timeout",
                format!("`start_timeout` is at most {LONGEST_START:?}"),
            ));
        }
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(BuildError::key(
                "command",
                "`command` names a program and its arguments",
            ));
        };
        let environment = self.environment.iter().filter_map(|name| {
            let value = env::var_os(name);
            if value.is_none() {
                warn!(table, variable = name, "There is no such variable.");
            }
            Some((name.clone(), value?))
        });
        // A configuration that was named without a folder is in none, and a program can't be started in that.
        let folder = std::path::absolute(base.join(".")).map_err(|error| {
            BuildError::key(
                "command",
                format!("the folder to run in is not known: {error}"),
            )
        })?;
        Ok(Settings {
            program: find(program, base)?,
            arguments: arguments.to_vec(),
            folder,
            environment: environment.collect(),
            programs: self.programs,
            in_flight: self.in_flight,
            queue: self.queue,
            call_timeout: call_timeout(self.call_timeout, asker.timeout)?,
            start_timeout: self.start_timeout.0,
            answer_bytes,
            meter: asker.meter.clone(),
            timeout: asker.timeout,
            table: asker.table,
        })
    }
}

/// The file to run for `program`.
fn find(program: &str, base: &Path) -> Result<PathBuf, BuildError> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    let refuse = |why: String| BuildError::key("command", why);
    if program.contains('/') {
        // The program runs in another folder than the server.
        let path = std::path::absolute(base.join(program))
            .map_err(|error| refuse(format!("{program:?} can't be found: {error}")))?;
        let wrong = format!("{} is no file that may be executed", path.display());
        return Some(path).filter(is_program).ok_or_else(|| refuse(wrong));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = env::split_paths(&path).map(|folder| folder.join(program));
    candidates.find(is_program).ok_or_else(|| {
        refuse(format!(
            "{program:?} is not in PATH; beside the configuration it is \"./{program}\""
        ))
    })
}

/// The programs. They end when it is dropped or the server drains.
pub(crate) struct Programs {
    shared: Arc<Shared>,
    next: AtomicU64,
    _alive: watch::Sender<()>,
}

struct Shared {
    settings: Settings,
    /// Takes lines that answer nothing. Without it a program has nothing to say unasked.
    unasked: Option<Unasked>,
    metrics: Arc<CalloutMetrics>,
    queue: Mutex<Queue>,
    arrived: Notify,
}

struct Queue {
    waiting: Fair<Job>,
    /// How many questions programs have, of `programs` × `in_flight`.
    busy: usize,
    /// Until when each program rests.
    resting: Vec<Option<Instant>>,
}

/// One question.
pub(crate) struct Question {
    /// From [`Programs::id`].
    pub(crate) id: u64,
    /// Whose turn it takes.
    pub(crate) party: Party,
    /// A JSON object with that `id`.
    pub(crate) line: Vec<u8>,
    /// What it presents and no log may have.
    pub(crate) secrets: Secrets,
}

struct Job {
    question: Question,
    reply: Box<dyn Reply>,
    /// Raised when a program gets the question.
    doubt: Doubt,
}

/// Where the answer to a question goes. It is made sense of right where it came, so that what it says
/// has taken effect before the program's next line does.
trait Reply: Send {
    /// Nobody waits for it any more.
    fn is_closed(&self) -> bool;

    fn give(self: Box<Self>, answer: Result<&[u8], Lost>);
}

struct ReadFor<T, F> {
    waiting: oneshot::Sender<Result<T, Lost>>,
    read: F,
}

impl<T, F> Reply for ReadFor<T, F>
where
    T: Send,
    F: FnOnce(&[u8]) -> Result<T, String> + Send,
{
    fn is_closed(&self) -> bool {
        self.waiting.is_closed()
    }

    fn give(self: Box<Self>, answer: Result<&[u8], Lost>) {
        if self.is_closed() {
            return;
        }
        let read = self.read;
        let answer = answer.and_then(|answer| {
            // Whoever asked would not outlive it; the others who ask this program do.
            let read = catch_unwind(AssertUnwindSafe(|| read(answer)));
            let read = read.unwrap_or_else(|_| Err("reading it panicked".into()));
            read.map_err(Lost::Senseless)
        });
        // Whoever gives up in this moment does not want to know.
        let _gave_up = self.waiting.send(answer);
    }
}

/// Why a question has no answer.
enum Lost {
    /// Every program rests, for so long.
    Resting(Duration),
    /// Too many wait, or no program was free in time.
    Busy,
    Unstartable,
    /// The program that had it took too long.
    Late,
    /// The program that had it is no more.
    Broken,
    Senseless(String),
}

impl Lost {
    fn retry(&self) -> Duration {
        match self {
            Self::Resting(rest) => spread(RETRY.max(*rest)),
            _ => spread(RETRY),
        }
    }

    const fn outcome(&self) -> CallOutcome {
        match self {
            Self::Resting(_) => CallOutcome::Resting,
            Self::Busy => CallOutcome::Busy,
            Self::Unstartable => CallOutcome::Unreachable,
            Self::Late => CallOutcome::Late,
            Self::Broken => CallOutcome::Broken,
            Self::Senseless(_) => CallOutcome::Senseless,
        }
    }
}

/// A question that a program has.
struct Place<'a>(&'a Shared);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().busy -= 1;
    }
}

impl Programs {
    /// Starts nothing yet. `unasked` takes lines that answer nothing; without it a program has nothing
    /// to say unasked.
    pub(crate) fn new(settings: Settings, unasked: Option<Unasked>, lifecycle: &Lifecycle) -> Self {
        let (alive, gone) = watch::channel(());
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                waiting: Fair::default(),
                busy: 0,
                resting: vec![None; settings.programs],
            }),
            arrived: Notify::new(),
            metrics: CalloutMetrics::of_programs(&settings.meter, &settings.table),
            settings,
            unasked,
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

    /// Asks one of the programs: the answer is a JSON object with the question's `id`, which `read`
    /// makes sense of, before anything is done that the program writes behind it. `doubt` is there when
    /// a program may have got the question and gave no answer. Dropping the future gives up waiting.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: Question,
        read: impl FnOnce(&[u8]) -> Result<T, String> + Send + 'static,
        doubt: &Doubt,
    ) -> Result<T, NoAnswer> {
        let began = clock::now();
        let answer = self.exchange(question, read, doubt).await;
        let metrics = &self.shared.metrics;
        match &answer {
            Ok(_) => metrics.called(CallOutcome::Ok, began.elapsed()),
            Err(lost @ (Lost::Resting(_) | Lost::Busy)) => metrics.turned_away(lost.outcome()),
            Err(lost) => metrics.called(lost.outcome(), began.elapsed()),
        }
        match &answer {
            Ok(_) => doubt.set(false),
            Err(Lost::Senseless(error)) => {
                let table = &self.shared.settings.table;
                warn!(table, error, "A program's answer makes no sense.");
            }
            Err(_) => {}
        }
        answer.map_err(|lost| NoAnswer {
            retry: lost.retry(),
            was_busy: matches!(lost, Lost::Busy),
        })
    }

    async fn exchange<T: Send + 'static>(
        &self,
        mut question: Question,
        read: impl FnOnce(&[u8]) -> Result<T, String> + Send + 'static,
        doubt: &Doubt,
    ) -> Result<T, Lost> {
        let table = &self.shared.settings.table;
        let deadline = clock::now() + self.shared.settings.timeout;
        question.line.push(b'\n');
        let (waiting, answer) = oneshot::channel();
        self.shared.push(Job {
            question,
            reply: Box::new(ReadFor { waiting, read }),
            doubt: doubt.clone(),
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_dropped)) => Err(Lost::Broken),
            Err(_elapsed) if doubt.is_there() => {
                debug!(table, "A program did not answer in time.");
                Err(Lost::Late)
            }
            Err(_elapsed) => {
                debug!(table, "No program was free in time.");
                Err(Lost::Busy)
            }
        }
    }
}

impl Shared {
    fn push(&self, job: Job) -> Result<(), Lost> {
        let table = &self.settings.table;
        let mut queue = self.queue.lock();
        if let Some(rest) = queue.rest(clock::now()) {
            debug!(table, "Every program rests after a failure.");
            return Err(Lost::Resting(rest));
        }
        let free = self.settings.programs * self.settings.in_flight - queue.busy;
        let (party, bound) = (job.question.party, self.settings.queue + free);
        let is_gone = |job: &Job| job.reply.is_closed();
        let pushed = queue.waiting.push(party, job, bound, is_gone);
        drop(queue);
        let displaced = pushed.map_err(|_full| {
            debug!(table, "Too many questions wait already.");
            Lost::Busy
        })?;
        if let Some(job) = displaced {
            job.reply.give(Err(Lost::Busy));
        }
        self.arrived.notify_one();
        Ok(())
    }

    /// The next question that somebody wants to know the answer to.
    fn pop(&self) -> Option<(Job, Place<'_>)> {
        let mut queue = self.queue.lock();
        loop {
            let job = queue.waiting.pop()?;
            if !job.reply.is_closed() {
                queue.busy += 1;
                return Some((job, Place(self)));
            }
        }
    }

    /// Waits for the next question. Cancel safe.
    async fn wait(&self) -> (Job, Place<'_>) {
        loop {
            let mut arrived = pin!(self.arrived.notified());
            // Before the look: else two that arrive right after it would wake but one of those who
            // have found nothing.
            arrived.as_mut().enable();
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
        for job in waiting.into_items() {
            job.reply.give(Err(Lost::Resting(rest)));
        }
    }

    /// Has one program running whenever it is needed, until `stop`.
    async fn keep_up(&self, index: usize, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let table = &self.settings.table;
        let mut length = FIRST_REST;
        loop {
            let (job, place) = tokio::select! {
                job = self.wait() => job,
                () = &mut stop => return,
            };
            match Program::start(&self.settings) {
                Ok(mut program) => {
                    let pid = program.pid;
                    debug!(table, pid, "A program is started.");
                    self.metrics.started();
                    let outcome = program.serve(self, (job, place), stop.as_mut()).await;
                    let Err(failure) = outcome else {
                        program.leave().await;
                        return;
                    };
                    if program.was_good {
                        length = FIRST_REST;
                    }
                    self.metrics.failed();
                    let status = program.end(table).await;
                    warn!(
                        table, pid, %failure, %status,
                        "A program failed; it is started again when it is needed."
                    );
                }
                Err(error) => {
                    drop(place);
                    let program = self.settings.program.display();
                    warn!(table, %program, %error, "A program can't be started.");
                    self.metrics.failed();
                    job.reply.give(Err(Lost::Unstartable));
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
    Heedless,
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
            Self::Heedless => f.write_str("it does not read what it wanted to be told"),
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
    started: Instant,
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
    /// `None`: it was said already that it takes too long.
    reply: Option<Box<dyn Reply>>,
    deadline: Instant,
    _place: Place<'a>,
}

/// What every answer has.
#[derive(Deserialize)]
struct Head {
    id: Option<u64>,
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
            started: clock::now(),
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
        // How much was put there that answers lines of its own, since it was last empty.
        let mut unread = 0;
        let mut next = Some(first);
        let (mut stopping, mut speaks) = (false, true);
        loop {
            if let Some((job, _place)) = next.take() {
                let Job {
                    question,
                    reply,
                    doubt,
                } = job;
                doubt.raise();
                if reply.is_closed() {
                    continue; // Given up before there was doubt, and nobody looks for it any more.
                }
                unwritten.extend(&question.line);
                self.recent.truncate(REMEMBERED - 1);
                self.recent.push_front(question.secrets);
                let deadline = clock::now() + settings.call_timeout;
                asked.insert(
                    question.id,
                    Asked {
                        reply: Some(reply),
                        deadline,
                        _place,
                    },
                );
            }
            if stopping && asked.values().all(|it| it.reply.is_none()) {
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
                    if unwritten.is_empty() {
                        unread = 0;
                    }
                }
                line = self.output.next() => {
                    let line = line.map_err(Failure::Unreadable)?.ok_or(Failure::Ended)?;
                    let head = serde_json::from_slice::<Head>(&line);
                    let Some(id) = head.map_err(|_| Failure::NoAnswer)?.id else {
                        let take = shared.unasked.as_ref().ok_or(Failure::NoAnswer)?;
                        let taken = catch_unwind(AssertUnwindSafe(|| take(&line)));
                        let taken = taken.ok().flatten().ok_or(Failure::NoAnswer)?;
                        if let Some(code) = taken.mistake
                            && self.may_log(&settings.table)
                        {
                            let (table, pid) = (&settings.table, self.pid);
                            warn!(table, pid, code, "What a program wants is refused.");
                        }
                        let reply = taken.reply.unwrap_or_default();
                        unread += reply.len();
                        if unread > UNREAD_BYTES {
                            return Err(Failure::Heedless);
                        }
                        unwritten.extend(&reply);
                        continue;
                    };
                    let Some(asked) = asked.remove(&id) else {
                        return Err(Failure::Unasked(id));
                    };
                    self.was_good = true;
                    if let Some(reply) = asked.reply {
                        reply.give(Ok(&line));
                    }
                }
                words = self.words.next(), if speaks => match words {
                    Ok(Some(words)) => self.log(&settings.table, &words),
                    Ok(None) | Err(_) => speaks = false,
                },
                () = sleep_until(late), if !asked.is_empty() => {
                    let (now, ready) = (clock::now(), self.started + settings.start_timeout);
                    let is_starting = !self.was_good && now < ready;
                    for late in asked.values_mut() {
                        if is_starting && now < late.deadline {
                            continue;
                        }
                        late.deadline = ready;
                        if let Some(reply) = late.reply.take() {
                            reply.give(Err(Lost::Late));
                        }
                    }
                    if !is_starting {
                        return Err(Failure::Late);
                    }
                }
                () = &mut stop, if !stopping => stopping = true,
            }
        }
    }

    /// Whether its quota has a line left for the log.
    fn may_log(&mut self, table: &str) -> bool {
        let pid = self.pid;
        match self.quota.take(clock::now()) {
            Allowed::No => return false,
            Allowed::Yes => {}
            Allowed::After(lost) => {
                info!(table, pid, lost, "A program said more than is logged.");
            }
        }
        true
    }

    fn log(&mut self, table: &str, words: &[u8]) {
        if !self.may_log(table) {
            return;
        }
        let pid = self.pid;
        let words = String::from_utf8_lossy(words);
        let repeats = |secrets: &&Secrets| secrets.are_in(&words);
        let secrets = self
            .recent
            .iter()
            .find(repeats)
            .cloned()
            .unwrap_or_default();
        let words = secrets.scrub(words.trim_end());
        info!(table, pid, words, "A program says.");
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
    async fn end(mut self, table: &str) -> String {
        drop(Group(self.group.0.take()));
        let last_words = async {
            while let Ok(Some(words)) = self.words.next().await {
                self.log(table, &words);
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

/// How much of what a program says, and wants in vain, is logged.
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
