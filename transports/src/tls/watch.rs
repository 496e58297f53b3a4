//! Tells when files have changed, by looking at them from time to time.
//!
//! The look follows symbolic links, so a link that is turned to another file, or a folder above it to another folder,
//! counts as a change. A change is taken once the files have stood still from one look to the next: a key is not read
//! without its certificate, and no file half.

use std::{fs, io, path::PathBuf, time::SystemTime};

/// Files and how they looked.
#[derive(Debug)]
pub(super) struct Watch {
    paths: Vec<PathBuf>,
    taken: Vec<Option<Stamp>>,
    seen: Vec<Option<Stamp>>,
}

impl Watch {
    /// A watch over `paths`, whose present content counts as taken: read it after this. Blocks.
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        let stamps = stamps(&paths);
        Self {
            paths,
            taken: stamps.clone(),
            seen: stamps,
        }
    }

    /// Looks once: whether the files have changed since they were last taken, and stand still. Blocks.
    pub(super) fn has_changed(&mut self) -> bool {
        let now = stamps(&self.paths);
        let is_settled = now == self.seen;
        self.seen = now;
        is_settled && self.seen != self.taken
    }

    /// Has `read` read the files as they are now. Should they change meanwhile, that is a change to come. Blocks.
    pub(super) fn take<T>(&mut self, read: impl FnOnce() -> T) -> T {
        self.taken = stamps(&self.paths);
        read()
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
