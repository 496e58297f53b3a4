//! Tells when files have changed, by looking at them from time to time.
//!
//! The look follows symbolic links, so a link that is turned to another file, or a folder above it to another folder,
//! counts as a change. A change is taken once the files have stood still from one look to the next: a key is not read
//! without its certificate, and no file half.
//!
//! What the system would not let us read (no descriptor left, a disk or a network that fails) is tried again after a
//! while that grows, since nothing about a file tells when that has passed.

use std::{
    fs, io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use chinwag_core::clock::{self, Instant};

/// When files that could not be read are tried again first. Each further failure doubles the wait.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Files and how they looked.
#[derive(Debug)]
pub(super) struct Watch {
    paths: Vec<PathBuf>,
    taken: Vec<Option<Stamp>>,
    seen: Vec<Option<Stamp>>,
    again: Option<Again>,
}

/// Why files are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// They have changed, or somebody wants them to be taken anew.
    Changed,
    /// They are as they were, and could not be read the last time.
    Again,
}

/// When to try again, and after which wait that is.
#[derive(Debug)]
struct Again {
    at: Instant,
    after: Duration,
}

impl Watch {
    /// A watch over `paths`, whose present content counts as taken: read it after this. Blocks.
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        let stamps = stamps(&paths);
        Self {
            paths,
            taken: stamps.clone(),
            seen: stamps,
            again: None,
        }
    }

    /// Looks once: whether the files are to be read, as they have changed since they were last taken and stand still, or
    /// as it is time to try again. Blocks.
    pub(super) fn look(&mut self) -> Option<Due> {
        let now = stamps(&self.paths);
        let is_settled = now == self.seen;
        self.seen = now;
        if !is_settled {
            None
        } else if self.seen != self.taken {
            Some(Due::Changed)
        } else {
            let again = self.again.as_ref()?;
            (again.at <= clock::now()).then_some(Due::Again)
        }
    }

    /// Has `read` read the files as they are now. Should they change meanwhile, that is a change to come. Blocks.
    pub(super) fn take<T>(&mut self, read: impl FnOnce() -> T) -> T {
        self.taken = stamps(&self.paths);
        read()
    }

    /// Has the files tried again though they stay as they are; or no more, as they could be read.
    pub(super) fn try_again(&mut self, is_unread: bool) {
        self.again = is_unread.then(|| {
            let before = self.again.as_ref();
            let after = before.map_or(FIRST_WAIT, |again| (2 * again.after).min(LONGEST_WAIT));
            let at = clock::now() + after;
            Again { at, after }
        });
    }
}

/// How a file looks from outside. Two that differ mean a change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: (u64, u64),
    /// Unlike the time of modification this can't be set back.
    #[cfg(unix)]
    changed: (i64, i64),
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| stamp(path).ok()).collect()
}

fn stamp(path: &PathBuf) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    #[cfg(unix)]
    use std::os::unix::fs::MetadataExt;
    Ok(Stamp {
        len: metadata.len(),
        modified: metadata.modified().ok(),
        #[cfg(unix)]
        inode: (metadata.dev(), metadata.ino()),
        #[cfg(unix)]
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}
