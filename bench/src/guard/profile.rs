//! What `callgrind` counts, by function: instructions of a program and its libraries, those among them that lock the
//! bus, system calls where they are made, and calls to the allocator, which are calls like any other.
//!
//! Nothing is traced by the system's means, which is often forbidden in containers.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs,
    io::{self, Read},
    net::{SocketAddr, TcpStream},
    ops::AddAssign,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::SplitAsciiWhitespace,
    thread,
    time::Duration,
};

use crate::clock::Stopwatch;

/// What gives out memory; giving it back goes with it.
const ALLOCATORS: [&str; 7] = [
    "malloc",
    "calloc",
    "realloc",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
];
/// Beginnings of the names of what stands between Rust code and the allocator.
const WRAPPERS: [&str; 4] = ["__rust", "__rdl", "alloc::alloc::", "alloc::raw_vec::"];
/// Clocks are read without the kernel, but not under valgrind, which hides the way around it.
const CLOCKS: [&str; 4] = ["clock_gettime", "gettimeofday", "time", "getcpu"];

/// How often a program that may be asleep is woken to be asked. Each time is counted with the rest.
const POKE: Duration = Duration::from_millis(50);
/// After so many blocks of its code it looks whether it is asked: a tenth as many as it would otherwise, so that it
/// need not be woken often.
const LOOKS: &str = "--vgdb-poll=500";

/// A program under callgrind.
#[derive(Debug)]
pub(super) struct Watched {
    file: PathBuf,
    /// Where the program and who asks it find each other.
    folder: tempfile::TempDir,
}

impl Watched {
    /// One that writes profiles whose names begin with `file`.
    ///
    /// # Errors
    /// If no temporary folder can be made, or a profile of an earlier run, which could be taken for one of this, can't
    /// be removed.
    pub(super) fn new(file: PathBuf) -> io::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("chinwag-bench-")
            .tempdir()?;
        let watched = Self { file, folder };
        for number in 1..=2 {
            match fs::remove_file(watched.profile(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => (),
            }
        }
        Ok(watched)
    }

    /// `valgrind`, to be followed by the program.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("valgrind");
        command
            .args(["--tool=callgrind", "--quiet", LOOKS])
            .args(["--collect-systime=yes", "--collect-bus=yes"])
            .arg(option("--callgrind-out-file=", &self.file))
            .arg(self.meeting_point());
        command
    }

    fn meeting_point(&self) -> OsString {
        option("--vgdb-prefix=", &self.folder.path().join("vgdb"))
    }

    /// What the `number`th [`dump`](Self::dump) writes, from 1.
    pub(super) fn profile(&self, number: u32) -> PathBuf {
        let mut name = self.file.as_os_str().to_owned();
        name.push(format!(".{number}"));
        name.into()
    }

    /// Makes the program with this process id write what was counted since it did so the last time, and begin again.
    ///
    /// It looks only now and then whether it is asked, and never while it sleeps; so somebody comes by at `addr`, where
    /// it listens, until it has done it.
    ///
    /// # Errors
    /// If it does not do it within `limit`.
    pub(super) fn dump(&self, pid: u32, addr: SocketAddr, limit: Duration) -> io::Result<()> {
        let mut asking = Command::new("vgdb")
            .args([format!("--pid={pid}"), "--max-invoke-ms=0".to_owned()])
            .arg(self.meeting_point())
            .arg("dump")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let done = poke_until_done(&mut asking, addr, limit);
        if done.is_err() {
            // Fails only if it has ended and was waited for.
            _ = asking.kill();
            _ = asking.wait();
        }
        done
    }
}

fn poke_until_done(asking: &mut Child, addr: SocketAddr, limit: Duration) -> io::Result<()> {
    let start = Stopwatch::start();
    loop {
        match asking.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                let mut said = String::new();
                if let Some(mut pipe) = asking.stderr.take() {
                    pipe.read_to_string(&mut said)?;
                }
                let said = said.trim();
                return Err(io::Error::other(format!("vgdb: {status}: {said}")));
            }
            None if start.elapsed() > limit => {
                let why = format!("the program does not answer vgdb within {limit:?}");
                return Err(io::Error::other(why));
            }
            None => (),
        }
        drop(TcpStream::connect_timeout(&addr, limit)?);
        thread::sleep(POKE);
    }
}

fn option(name: &str, value: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(value);
    option
}

/// Counts by function.
#[derive(Debug, Default)]
pub(super) struct Profile {
    functions: BTreeMap<String, Cost>,
    /// Calls from one function to another.
    calls: BTreeMap<(String, String), u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cost {
    instructions: u64,
    atomics: u64,
    syscalls: u64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.instructions += other.instructions;
        self.atomics += other.atomics;
        self.syscalls += other.syscalls;
    }
}

impl Profile {
    /// Reads what callgrind wrote.
    ///
    /// # Errors
    /// If there is no such file, or it is none of callgrind's.
    pub(super) fn read(file: &Path) -> io::Result<Self> {
        parse(&fs::read_to_string(file)?)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// Instructions of the program and its libraries, without the kernel's.
    pub(super) fn instructions(&self) -> u64 {
        self.functions.values().map(|cost| cost.instructions).sum()
    }

    /// Instructions that processors have to agree on: each lock takes two, each reference counted one.
    pub(super) fn atomics(&self) -> u64 {
        self.functions.values().map(|cost| cost.atomics).sum()
    }

    /// System calls, without those that read a clock.
    pub(super) fn syscalls(&self) -> u64 {
        self.functions
            .iter()
            .filter(|(name, _)| !is_one_of(name, &CLOCKS))
            .map(|(_, cost)| cost.syscalls)
            .sum()
    }

    /// Calls that allocate.
    pub(super) fn allocations(&self) -> u64 {
        self.calls
            .iter()
            .filter(|((caller, callee), _)| {
                is_one_of(callee, &ALLOCATORS) && !is_one_of(caller, &ALLOCATORS)
            })
            .map(|(_, count)| count)
            .sum()
    }

    /// The functions with the most instructions of their own, most first.
    pub(super) fn busiest(&self) -> Vec<(&str, u64)> {
        most(
            self.functions
                .iter()
                .map(|(name, cost)| (&**name, cost.instructions)),
        )
    }

    /// The functions with the most atomic instructions of their own, most first.
    pub(super) fn sharing(&self) -> Vec<(&str, u64)> {
        most(
            self.functions
                .iter()
                .map(|(name, cost)| (&**name, cost.atomics)),
        )
    }

    /// The functions that make the most system calls, most first.
    pub(super) fn callers_of_the_kernel(&self) -> Vec<(&str, u64)> {
        most(
            self.functions
                .iter()
                .filter(|(name, _)| !is_one_of(name, &CLOCKS))
                .map(|(name, cost)| (&**name, cost.syscalls)),
        )
    }

    /// The functions that allocate most often, most first; what only passes it on to the allocator is left out.
    pub(super) fn allocating(&self) -> Vec<(&str, u64)> {
        let is_between = |name: &str| {
            let plain = name.trim_start_matches('<');
            is_one_of(name, &ALLOCATORS) || WRAPPERS.iter().any(|start| plain.starts_with(start))
        };
        let mut callers: BTreeMap<&str, u64> = BTreeMap::new();
        for ((caller, callee), count) in &self.calls {
            if is_between(callee) && !is_between(caller) {
                *callers.entry(caller).or_default() += count;
            }
        }
        most(callers)
    }
}

fn most<'n>(counts: impl IntoIterator<Item = (&'n str, u64)>) -> Vec<(&'n str, u64)> {
    let mut counts: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// Whether a function is one of these, whatever version of it the linker picked.
fn is_one_of(name: &str, names: &[&str]) -> bool {
    let name = name.split(['@', '\'']).next().unwrap_or(name);
    names.contains(&name)
}

/// Reads callgrind's format: names are given once with a number and then by the number; a line of costs belongs to the
/// function named last, or, after `calls=`, to what it called.
pub(super) fn parse(text: &str) -> Result<Profile, String> {
    let mut lines = text.lines().peekable();
    if lines.peek() != Some(&"# callgrind format") {
        return Err("it is no profile of callgrind".to_owned());
    }
    let mut profile = Profile::default();
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut columns = None;
    let mut positions = 1;
    let mut caller = None;
    let mut callee = None;
    let mut is_inclusive = false;
    for line in lines {
        if let Some(list) = line.strip_prefix("positions: ") {
            positions = list.split_ascii_whitespace().count();
        } else if let Some(list) = line.strip_prefix("events: ") {
            columns = Some(Columns::of(list)?);
        } else if let Some(name) = line.strip_prefix("fn=") {
            caller = Some(resolve(name, &mut names)?);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            callee = Some(resolve(name, &mut names)?);
        } else if let Some(call) = line.strip_prefix("calls=") {
            let count = number(call.split_ascii_whitespace().next())?;
            let edge = (
                caller.ok_or("a call by nobody")?.to_owned(),
                callee.ok_or("a call of nothing")?.to_owned(),
            );
            *profile.calls.entry(edge).or_default() += count;
            is_inclusive = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // What a call took in all is counted where it was taken.
            if std::mem::take(&mut is_inclusive) {
                continue;
            }
            let columns = columns.ok_or("costs before it is said of what")?;
            let cost = columns.read(line.split_ascii_whitespace(), positions)?;
            let name = caller.ok_or("costs of nothing")?;
            if !profile.functions.contains_key(name) {
                profile.functions.insert(name.to_owned(), Cost::default());
            }
            *profile.functions.get_mut(name).expect("just inserted") += cost;
        }
    }
    if profile.instructions() == 0 {
        return Err("nothing was counted in it".to_owned());
    }
    Ok(profile)
}

/// `(NUMBER) NAME`, or `(NUMBER)` of a name that was given before, or a name alone.
fn resolve<'t>(name: &'t str, names: &mut HashMap<&'t str, &'t str>) -> Result<&'t str, String> {
    let Some((number, full)) = name.strip_prefix('(').and_then(|name| name.split_once(')')) else {
        return Ok(name);
    };
    let full = full.trim_start();
    if full.is_empty() {
        return names
            .get(number)
            .copied()
            .ok_or_else(|| format!("no name has the number {number}"));
    }
    names.insert(number, full);
    Ok(full)
}

/// Which column of a line of costs is which.
#[derive(Debug, Clone, Copy)]
struct Columns {
    instructions: usize,
    atomics: usize,
    syscalls: usize,
}

impl Columns {
    fn of(list: &str) -> Result<Self, String> {
        let column = |wanted: &str| {
            list.split_ascii_whitespace()
                .position(|name| name == wanted)
                .ok_or_else(|| format!("{wanted} was not counted"))
        };
        Ok(Self {
            instructions: column("Ir")?,
            atomics: column("Ge")?,
            syscalls: column("sysCount")?,
        })
    }

    /// A line of costs. Zeros at its end are left out.
    fn read(self, words: SplitAsciiWhitespace<'_>, positions: usize) -> Result<Cost, String> {
        let mut cost = Cost::default();
        for (column, word) in words.skip(positions).enumerate() {
            let count = number(Some(word))?;
            if column == self.instructions {
                cost.instructions = count;
            } else if column == self.atomics {
                cost.atomics = count;
            } else if column == self.syscalls {
                cost.syscalls = count;
            }
        }
        Ok(cost)
    }
}

fn number(word: Option<&str>) -> Result<u64, String> {
    let word = word.unwrap_or("");
    word.parse().map_err(|_| format!("{word:?} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# callgrind format
version: 1
creator: callgrind-3.19.0
positions: line
event: sysTime : sysTime (elapsed ms)
events: Ir Ge sysCount sysTime
summary: 9999 99 9

ob=(1) /usr/bin/server
fl=(1) lane.rs
fn=(1) lane::turn
10 100
+1 5 2
cfn=(2) adapter::deliver
calls=7 20
* 4000 7 7 1
fi=(2) inlined.rs
-3 20

fn=(2)
20 70 1
cob=(2) libc.so.6
cfn=(3) send
calls=7 1
+1 70 0 7 1
cfn=(4) __rustc::__rust_alloc
calls=2 1
+1 60
cfn=(7) <alloc::raw_vec::RawVecInner>::finish_grow
calls=3 1
+1 90

fn=(4)
1 4
cfn=(5) malloc
calls=2 1
1 50

fn=(7)
1 0
cfn=(8) realloc
calls=3 1
1 90

ob=(2)
fn=(8)
1 0
cfn=(5)
calls=3 1
1 90
fn=(3)
1 70 0 7 1
fn=(5)
1 50
fn=(6) clock_gettime@@GLIBC_2.17
1 8 0 4

totals: 327 3 11 1
";

    #[test]
    fn what_a_function_does_itself_is_told_from_what_it_calls() {
        let profile = parse(TEXT).unwrap();
        assert_eq!(profile.instructions(), 327);
        assert_eq!(
            profile.busiest()[..2],
            [("lane::turn", 125), ("adapter::deliver", 70)]
        );
        assert_eq!(
            profile.calls[&("lane::turn".into(), "adapter::deliver".into())],
            7
        );
    }

    #[test]
    fn what_locks_the_bus_is_told_from_other_instructions() {
        let profile = parse(TEXT).unwrap();
        assert_eq!(profile.atomics(), 3);
        assert_eq!(
            profile.sharing(),
            [("lane::turn", 2), ("adapter::deliver", 1)]
        );
    }

    #[test]
    fn a_look_at_the_clock_is_no_system_call() {
        let profile = parse(TEXT).unwrap();
        assert_eq!(profile.syscalls(), 7);
        assert_eq!(profile.callers_of_the_kernel(), [("send", 7)]);
    }

    #[test]
    fn an_allocation_is_counted_once_and_blamed_on_who_wanted_it() {
        let profile = parse(TEXT).unwrap();
        assert_eq!(profile.allocations(), 5);
        assert_eq!(profile.allocating(), [("adapter::deliver", 5)]);
    }

    #[test]
    fn what_is_no_profile_or_counts_nothing_is_refused() {
        let refused = |text: &str| parse(text).unwrap_err();
        assert!(refused("").contains("no profile"));
        assert!(
            refused("# callgrind format\nevents: Ir Ge\n").contains("sysCount was not counted")
        );
        let empty = "# callgrind format\nevents: Ir Ge sysCount sysTime\n";
        assert!(refused(empty).contains("nothing was counted"));
        assert!(refused(&format!("{empty}fn=(1)\n")).contains("no name"));
        assert!(refused(&format!("{empty}10 5\n")).contains("costs of nothing"));
        assert!(refused(&format!("{empty}fn=(1) f\n10 x\n")).contains("\"x\" is no number"));
    }
}
