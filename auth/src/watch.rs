//! Tells when files have changed, by looking at them from time to time.
//!
//! The look follows symbolic links, so a link that is turned to another file counts as a change. A
//! change is taken once the files have stood still from one look to the next: a file that is being
//! written is not read half, a key is not read without its certificate, and a write that falls into
//! the same tick of the file system's clock as the one before is not lost.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use chinwag_core::Lifecycle;
use tokio::task::spawn_blocking;

/// How often files are looked at. A change has to last from one look to the next, so it is taken
/// within twice that.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Files and how they looked.
pub(crate) struct Watch {
    paths: Vec<PathBuf>,
    taken: Vec<Option<Stamp>>,
    seen: Vec<Option<Stamp>>,
}

impl Watch {
    /// A watch over `paths`, whose present content counts as taken: read it after this.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let stamps = stamps(&paths);
        Self {
            paths,
            taken: stamps.clone(),
            seen: stamps,
        }
    }

    /// Looks once, and gives what `read` makes of the files when one has changed since they were
    /// last taken. A file that has gone is a change as well: `read` finds out.
    pub(crate) fn look<T>(&mut self, read: impl FnOnce() -> T) -> Option<T> {
        let now = stamps(&self.paths);
        let settled = now == self.seen;
        self.seen.clone_from(&now);
        if !settled || now == self.taken {
            return None;
        }
        let content = read();
        if stamps(&self.paths) != now {
            return None;
        }
        self.taken = now;
        Some(content)
    }
}

/// Looks every [`LOOK_EVERY`] until the server drains or `owner` is gone. When the files have
/// changed, `read` runs where it may block, and `take` gets what came of it.
pub(crate) fn follow<O, T>(
    lifecycle: &Lifecycle,
    owner: &Arc<O>,
    watch: Watch,
    read: fn(&O) -> T,
    take: fn(&O, T),
) where
    O: Send + Sync + 'static,
    T: Send + 'static,
{
    let (owner, ears) = (Arc::downgrade(owner), lifecycle.clone());
    lifecycle.spawn(async move {
        tokio::select! {
            () = ears.draining() => {}
            () = keep_up(owner, watch, read, take) => {}
        }
    });
}

async fn keep_up<O, T>(owner: Weak<O>, mut watch: Watch, read: fn(&O) -> T, take: fn(&O, T))
where
    O: Send + Sync + 'static,
    T: Send + 'static,
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

    fn look(watch: &mut Watch) -> Option<io::Result<String>> {
        let path = watch.paths[0].clone();
        watch.look(|| fs::read_to_string(path))
    }

    /// What two looks in a row make of a file that stands still.
    fn settle(watch: &mut Watch) -> Option<io::Result<String>> {
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
        follow(&lifecycle, &owner, watched(), |()| (), |(), ()| ());
        assert_eq!(lifecycle.shut_down(LOOK_EVERY / 2).await, 0);

        let lifecycle = Lifecycle::new();
        follow(&lifecycle, &owner, watched(), |()| (), |(), ()| ());
        let weak = Arc::downgrade(&owner);
        drop(owner);
        tokio::time::timeout(
            5 * LOOK_EVERY,
            keep_up(weak, watched(), |()| (), |(), ()| ()),
        )
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
        fs::write(&paths[0], "other").unwrap();
        assert!(watch.look(|| ()).is_none());
        fs::write(&paths[1], "other").unwrap();
        assert!(watch.look(|| ()).is_none(), "they have not stood still");
        assert!(watch.look(|| ()).is_some());
        assert!(watch.look(|| ()).is_none(), "told once");
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
            half
        });
        assert!(torn.is_none());
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "half and half");
    }
}
