//! Tells when files have changed, by looking at them from time to time.
//!
//! The look follows symbolic links, so a link that is turned to another file counts as a change. A
//! change is taken once the files have stood still from one look to the next: a file that is being
//! written is not read half, a key is not read without its certificate, and a write that falls into
//! the same tick of the file system's clock as the one before is not lost.
//!
//! What the system would not let us read (no descriptor left, a disk or a network that fails) is
//! tried again after a while that grows, since nothing about a file tells when that has passed.

use std::{
    fmt::Display,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use chinwag_core::{
    Lifecycle,
    clock::{self, Instant},
};
use tokio::task::spawn_blocking;

/// How often files are looked at. A change has to last from one look to the next, so it is taken
/// within twice that.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When files that could not be read are tried again first. Each further failure doubles the wait.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Why files can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable<E> {
    /// The system did not let them be read, and may do so later.
    #[error("{0}; it is tried again")]
    Unread(E),
    /// What they hold won't do, until it changes.
    #[error("{0}")]
    Bad(E),
}

#[cfg(feature = "_client")]
impl<E> Unusable<E> {
    /// What is wrong, for those who don't try again.
    pub(crate) fn into_fault(self) -> E {
        match self {
            Self::Unread(fault) | Self::Bad(fault) => fault,
        }
    }
}

/// Files and how they looked.
pub(crate) struct Watch {
    paths: Vec<PathBuf>,
    taken: Vec<Option<Stamp>>,
    seen: Vec<Option<Stamp>>,
    again: Option<Again>,
}

/// When to try again, after which wait that is, and why.
struct Again {
    at: Instant,
    after: Duration,
    why: String,
}

impl Watch {
    /// A watch over `paths`, whose present content counts as taken: read it after this.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let stamps = stamps(&paths);
        Self {
            paths,
            taken: stamps.clone(),
            seen: stamps,
            again: None,
        }
    }

    /// Looks once, and gives what `read` makes of the files when one has changed since they were
    /// last taken, or when it is time to try again. A file that has gone is a change as well: `read`
    /// finds out. That files still can't be read is given only when the reason is another.
    pub(crate) fn look<T, E: Display>(
        &mut self,
        read: impl FnOnce() -> Result<T, Unusable<E>>,
    ) -> Option<Result<T, Unusable<E>>> {
        let now = stamps(&self.paths);
        let is_settled = now == self.seen;
        self.seen.clone_from(&now);
        let has_changed = now != self.taken;
        let again = self.again.as_ref();
        let is_due = has_changed || again.is_some_and(|again| again.at <= clock::now());
        if !is_settled || !is_due {
            return None;
        }
        let content = read();
        if stamps(&self.paths) != now {
            return None;
        }
        self.taken = now;
        let before = self.again.take();
        if let Err(Unusable::Unread(why)) = &content {
            let why = why.to_string();
            let (after, is_told) = match before {
                None => (FIRST_WAIT, false),
                Some(before) => (
                    (2 * before.after).min(LONGEST_WAIT),
                    !has_changed && before.why == why,
                ),
            };
            let at = clock::now() + after;
            self.again = Some(Again { at, after, why });
            if is_told {
                return None;
            }
        }
        Some(content)
    }
}

/// Looks every [`LOOK_EVERY`] until the server drains or `owner` is gone. When the files have
/// changed or are to be tried again, `read` runs where it may block, and `take` gets what came of
/// it and is news.
pub(crate) fn follow<O, T, E>(
    lifecycle: &Lifecycle,
    owner: &Arc<O>,
    watch: Watch,
    read: fn(&O) -> Result<T, Unusable<E>>,
    take: fn(&O, Result<T, Unusable<E>>),
) where
    O: Send + Sync + 'static,
    T: Send + 'static,
    E: Display + Send + 'static,
{
    let (owner, ears) = (Arc::downgrade(owner), lifecycle.clone());
    lifecycle.spawn(async move {
        tokio::select! {
            () = ears.draining() => {}
            () = keep_up(owner, watch, read, take) => {}
        }
    });
}

async fn keep_up<O, T, E>(
    owner: Weak<O>,
    mut watch: Watch,
    read: fn(&O) -> Result<T, Unusable<E>>,
    take: fn(&O, Result<T, Unusable<E>>),
) where
    O: Send + Sync + 'static,
    T: Send + 'static,
    E: Display + Send + 'static,
{
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(of) = owner.upgrade() else {
            return;
        };
        let looked = spawn_blocking(move || {
            let content = watch.look(|| read(&of));
            (watch, of, content)
        });
        // Looking does not panic, so it was cancelled, and the whole program ends.
        let Ok((same_watch, of, content)) = looked.await else {
            return;
        };
        watch = same_watch;
        if let Some(content) = content {
            take(&of, content);
        }
    }
}

/// How a file looks from outside. Two that differ mean a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: (u64, u64),
    /// Unlike the time of modification this can't be set back, and it moves when permissions are
    /// mended.
    #[cfg(unix)]
    changed: (i64, i64),
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| Stamp::of(path).ok()).collect()
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Ok(Self {
            len: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: (metadata.dev(), metadata.ino()),
            #[cfg(unix)]
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watch over one file.
    fn watch(path: &Path) -> Watch {
        Watch::new(vec![path.to_owned()])
    }

    type Read<T = String> = Result<T, Unusable<io::Error>>;

    fn look(watch: &mut Watch) -> Option<Read> {
        let path = watch.paths[0].clone();
        watch.look(|| fs::read_to_string(path).map_err(Unusable::Unread))
    }

    /// What two looks in a row make of a file that stands still.
    fn settle(watch: &mut Watch) -> Option<Read> {
        assert!(
            look(watch).is_none(),
            "a change is not taken at first sight"
        );
        look(watch)
    }

    #[test]
    fn an_untouched_file_is_never_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = watch(&path);
        for _ in 0..3 {
            assert!(look(&mut watch).is_none());
        }
    }

    #[test]
    fn a_change_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = watch(&path);
        fs::write(&path, "other").unwrap();
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "other");
        assert!(look(&mut watch).is_none());
    }

    #[test]
    fn a_file_put_in_its_place_is_a_change_though_length_and_time_are_equal() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("file"), folder.path().join("other"));
        fs::write(&path, "one").unwrap();
        fs::write(&other, "two").unwrap();
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::File::options()
            .write(true)
            .open(&other)
            .unwrap()
            .set_modified(time)
            .unwrap();
        let mut watch = watch(&path);
        fs::rename(&other, &path).unwrap();
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "two");
    }

    #[tokio::test(start_paused = true)]
    async fn following_ends_with_the_drain_and_with_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let watched = || watch(&folder.path().join("file"));
        let lifecycle = Lifecycle::new();
        let owner = Arc::new(());
        let read: fn(&()) -> Read<()> = |()| Ok(());
        follow(&lifecycle, &owner, watched(), read, |(), _| ());
        assert_eq!(lifecycle.shut_down(LOOK_EVERY / 2).await, 0);

        let lifecycle = Lifecycle::new();
        follow(&lifecycle, &owner, watched(), read, |(), _| ());
        let weak = Arc::downgrade(&owner);
        drop(owner);
        let keeping_up = keep_up(weak, watched(), read, |(), _| ());
        tokio::time::timeout(5 * LOOK_EVERY, keeping_up)
            .await
            .expect("nobody wants to know");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_turned_to_another_file_is_a_change() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name| folder.path().join(name);
        fs::create_dir(at("1")).unwrap();
        fs::create_dir(at("2")).unwrap();
        fs::write(at("1/file"), "one").unwrap();
        fs::write(at("2/file"), "two").unwrap();
        symlink("1", at("now")).unwrap();
        symlink("now/file", at("file")).unwrap();
        let mut watch = watch(&at("file"));
        symlink("2", at("next")).unwrap();
        fs::rename(at("next"), at("now")).unwrap();
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "two");
    }

    #[test]
    fn a_file_that_goes_and_comes_back_is_two_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("file"), folder.path().join("aside"));
        fs::write(&path, "one").unwrap();
        let mut watch = watch(&path);
        fs::rename(&path, &aside).unwrap();
        assert!(settle(&mut watch).unwrap().is_err());
        assert!(look(&mut watch).is_none(), "told once");
        fs::rename(&aside, &path).unwrap();
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "one");
    }

    #[test]
    fn a_change_of_one_file_is_one_of_all() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["cert", "key"].map(|name| folder.path().join(name));
        for path in &paths {
            fs::write(path, "one").unwrap();
        }
        let mut watch = Watch::new(paths.to_vec());
        let mut look = || watch.look(|| Read::Ok(())).is_some();
        fs::write(&paths[0], "other").unwrap();
        assert!(!look());
        fs::write(&paths[1], "other").unwrap();
        assert!(!look(), "they have not stood still");
        assert!(look());
        assert!(!look(), "told once");
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = watch(&path);
        fs::write(&path, "half").unwrap();
        assert!(look(&mut watch).is_none());
        let torn = watch.look(|| {
            let half = fs::read_to_string(&path);
            fs::write(&path, "half and half").unwrap();
            half.map_err(Unusable::Unread)
        });
        assert!(torn.is_none());
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "half and half");
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_read_is_tried_again_ever_more_seldom_and_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = watch(&path);
        let unread = |why| Err::<(), _>(Unusable::Unread(why));
        fs::write(&path, "other").unwrap();
        assert!(watch.look(|| unread("no descriptor")).is_none());
        assert!(watch.look(|| unread("no descriptor")).is_some());
        let mut tries = Vec::new();
        for second in 1..=250 {
            tokio::time::advance(LOOK_EVERY).await;
            let told = watch.look(|| {
                tries.push(second);
                unread("no descriptor")
            });
            assert!(told.is_none(), "told again in second {second}");
        }
        assert_eq!(tries, [1, 3, 7, 15, 31, 63, 123, 183, 243]);

        tokio::time::advance(LONGEST_WAIT).await;
        let told = watch.look(|| unread("the disk fails"));
        assert!(
            told.is_some_and(|told| told.is_err()),
            "another reason is news"
        );
        tokio::time::advance(LONGEST_WAIT).await;
        let told = watch.look(|| Ok::<_, Unusable<&str>>(()));
        assert!(told.is_some_and(|told| told.is_ok()), "it could be read");
        tokio::time::advance(LONGEST_WAIT).await;
        assert!(watch.look(|| unread("nobody asked")).is_none());
        assert!(watch.again.is_none(), "it was not read again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_and_will_not_do_waits_for_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = watch(&path);
        let bad = || Err::<(), _>(Unusable::Bad("a wrong line"));
        fs::write(&path, "other").unwrap();
        assert!(watch.look(bad).is_none());
        assert!(watch.look(bad).is_some());
        tokio::time::advance(2 * LONGEST_WAIT).await;
        assert!(watch.look(bad).is_none());
    }
}
