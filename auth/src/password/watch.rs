//! Tells when a file has changed, by looking at it from time to time.
//!
//! The look follows symbolic links, so a link that is turned to another file counts as a change. A
//! change is taken once the file has stood still from one look to the next: a file that is being
//! written is not read half, and a write that falls into the same tick of the file system's clock
//! as the one before is not lost.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A file and how it looked.
pub(super) struct Watch {
    path: PathBuf,
    taken: Option<Stamp>,
    seen: Option<Stamp>,
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

impl Watch {
    /// A watch over `path`, whose present content counts as taken: read it after this.
    pub(super) fn new(path: PathBuf) -> Self {
        let stamp = Stamp::of(&path).ok();
        Self {
            path,
            taken: stamp,
            seen: stamp,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks once, and gives what `read` makes of the file when it has changed since it was last
    /// taken. A file that has gone is a change as well: `read` finds out.
    pub(super) fn look<T>(&mut self, read: impl FnOnce(&Path) -> T) -> Option<T> {
        let now = Stamp::of(&self.path).ok();
        let settled = now == self.seen;
        self.seen = now;
        if !settled || now == self.taken {
            return None;
        }
        let content = read(&self.path);
        if Stamp::of(&self.path).ok() != now {
            return None;
        }
        self.taken = now;
        Some(content)
    }
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

    fn text(path: &Path) -> io::Result<String> {
        fs::read_to_string(path)
    }

    /// What two looks in a row make of a file that stands still.
    fn settle(watch: &mut Watch) -> Option<io::Result<String>> {
        assert!(
            watch.look(text).is_none(),
            "a change is not taken at first sight"
        );
        watch.look(text)
    }

    #[test]
    fn an_untouched_file_is_never_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = Watch::new(path);
        for _ in 0..3 {
            assert!(watch.look(text).is_none());
        }
    }

    #[test]
    fn a_change_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = Watch::new(path.clone());
        fs::write(&path, "other").unwrap();
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "other");
        assert!(watch.look(text).is_none());
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
        let mut watch = Watch::new(path.clone());
        fs::rename(&other, &path).unwrap();
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "two");
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
        let mut watch = Watch::new(at("file"));
        symlink("2", at("next")).unwrap();
        fs::rename(at("next"), at("now")).unwrap();
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "two");
    }

    #[test]
    fn a_file_that_goes_and_comes_back_is_two_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("file"), folder.path().join("aside"));
        fs::write(&path, "one").unwrap();
        let mut watch = Watch::new(path.clone());
        fs::rename(&path, &aside).unwrap();
        assert!(settle(&mut watch).unwrap().is_err());
        assert!(watch.look(text).is_none(), "told once");
        fs::rename(&aside, &path).unwrap();
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "one");
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = Watch::new(path.clone());
        fs::write(&path, "half").unwrap();
        assert!(watch.look(text).is_none());
        let torn = watch.look(|path| {
            let half = text(path);
            fs::write(path, "half and half").unwrap();
            half
        });
        assert!(torn.is_none());
        assert_eq!(settle(&mut watch).unwrap().unwrap(), "half and half");
    }
}
