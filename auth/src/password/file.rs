//! The password file: reading it, and setting one user's password in it.
//!
//! One `user:hash[:roles]` a line, roles parted by commas; empty lines and lines that begin with
//! `#` are passed over. Reading is all or nothing and names every line at fault. No error repeats
//! what a line holds: it may be a hash.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use argon2::Params;
use secrecy::{ExposeSecret, SecretString};

use super::{
    PASSWORD_BYTES,
    hash::{BadHash, Hash, HashFailed, fresh},
};

/// The most bytes a password file may have: room for some 500,000 users.
const FILE_BYTES: u64 = 64 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The most characters a user name or a role may have.
const NAME_CHARS: usize = 128;
/// The most lines at fault that one error lists; further ones are counted.
const LISTED: usize = 100;

/// A user as the file knows it.
pub(super) struct User {
    pub(super) name: String,
    pub(super) hash: Arc<Hash>,
    pub(super) roles: Vec<String>,
    /// The hash as the file spells it.
    written: Box<str>,
}

impl User {
    /// Whether nothing that a log-in rests on differs.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.written == other.written && self.roles == other.roles
    }
}

/// What is wrong with a password file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system does not let it be read.
    #[error("{} can't be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is a folder, a pipe, a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What is not a file.
        path: PathBuf,
    },
    /// It has more than 64 MiB.
    #[error("{} has more than {} MiB", path.display(), FILE_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Some of its lines are wrong.
    #[error("{} has wrong lines: {}", path.display(), Listed(lines))]
    Lines {
        /// The file.
        path: PathBuf,
        /// All of them, in order.
        lines: Vec<BadLine>,
    },
}

/// A wrong line of a password file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct BadLine {
    /// Its number; the first is 1.
    pub line: usize,
    /// The first thing that is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a line of a password file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It can't be read as text.
    #[error("not UTF-8")]
    NotUtf8,
    /// It has one part or more than three.
    #[error("not of the form user:hash or user:hash:roles")]
    Form,
    /// Its user name is not one.
    #[error(transparent)]
    User(#[from] BadUser),
    /// A line above has the same user, but perhaps for upper and lower case.
    #[error("the same user as in line {first}, upper and lower case aside")]
    Twice {
        /// The line above.
        first: usize,
    },
    /// Its hash can't be used.
    #[error(transparent)]
    Hash(#[from] BadHash),
    /// One of its roles is not one.
    #[error("a role has 1 to 128 characters without space or control; commas part them")]
    Role,
}

/// A name that no user of a password file can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a user name has 1 to 128 characters without space, control or colon, and does not begin with #"
)]
#[non_exhaustive]
pub struct BadUser;

/// What setting a password has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The file has a new user.
    Added,
    /// The user has a new password and the former roles.
    Replaced,
}

/// Why a password was not set. The file is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// The user name is not one.
    #[error(transparent)]
    User(#[from] BadUser),
    /// The file has that user in another spelling.
    #[error("the file has {name:?} in line {line}, which differs by upper and lower case alone")]
    OtherCase {
        /// The user as the file spells it.
        name: String,
        /// The line; the first is 1.
        line: usize,
    },
    /// The password is empty.
    #[error("the password is empty")]
    Empty,
    /// No log-in could give that password.
    #[error("the password has more than {PASSWORD_BYTES} bytes")]
    TooLong,
    /// The password could not be hashed.
    #[error(transparent)]
    Hash(#[from] HashFailed),
    /// The file can't be read, or would be wrong even with the new line in it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file can't be written.
    #[error("{} can't be written: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// Gives `user` that password in the file at `path`: a fresh argon2id hash in the user's line, or
/// in a new line at the end. Makes the file when there is none, readable by its owner only.
///
/// Roles, comments, other lines, mode and owner stay as they are. The file is replaced in one step,
/// so that a reader sees all of the old or all of the new one, also after a power cut; where `path`
/// is a symbolic link, what it points to is replaced. Calls at the same time follow one another.
/// Blocks: hashing takes a moment and up to 19 MiB.
///
/// # Errors
/// When the user name is bad, the password empty or longer than 1024 bytes, the file wrong in some
/// other line, or not to be read or written. Nothing has changed then.
pub fn set(path: &Path, user: &str, password: &SecretString) -> Result<Outcome, SetError> {
    check_user(user)?;
    match password.expose_secret().len() {
        0 => return Err(SetError::Empty),
        1..=PASSWORD_BYTES => {}
        _ => return Err(SetError::TooLong),
    }
    put(path, user, &fresh(password, Params::default())?)
}

/// All users of the file at `path`, in its order.
pub(super) fn read(path: &Path) -> Result<Vec<User>, FileError> {
    parse(&bytes(path)?).map_err(|lines| FileError::Lines {
        path: path.to_owned(),
        lines,
    })
}

fn bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |error| FileError::Read {
        path: path.to_owned(),
        error,
    };
    // Asked before it is opened, since opening a pipe waits for its writer.
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    let mut file = File::open(path).map_err(failed)?.take(FILE_BYTES + 1);
    if metadata.len() > FILE_BYTES
        || file.read_to_end(&mut bytes).map_err(failed)? as u64 > FILE_BYTES
    {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
        });
    }
    // Some editors put one before the first name, where nobody would see why that user is unknown.
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Vec<User>, Vec<BadLine>> {
    let mut users = Vec::new();
    let mut lines: HashMap<String, usize> = HashMap::new();
    let mut bad = Vec::new();
    for (line, user) in (1..).zip(bytes.split(|byte| *byte == b'\n').map(parse_line)) {
        let user = user.and_then(|user| match user {
            Some(user) => match *lines.entry(folded(&user.name)).or_insert(line) {
                first if first != line => Err(Fault::Twice { first }),
                _ => Ok(Some(user)),
            },
            None => Ok(None),
        });
        match user {
            Ok(user) => users.extend(user),
            Err(fault) => bad.push(BadLine { line, fault }),
        }
    }
    if bad.is_empty() { Ok(users) } else { Err(bad) }
}

fn parse_line(line: &[u8]) -> Result<Option<User>, Fault> {
    let line = str::from_utf8(line.trim_ascii()).map_err(|_not_utf8| Fault::NotUtf8)?;
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let mut parts = line.split(':');
    let (Some(name), Some(hash), roles, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Fault::Form);
    };
    check_user(name)?;
    let written = hash.into();
    let hash = Arc::new(Hash::parse(hash)?);
    let roles = match roles {
        None | Some("") => Vec::new(),
        Some(roles) => roles
            .split(',')
            .map(|role| {
                if is_name(role) {
                    Ok(role.to_owned())
                } else {
                    Err(Fault::Role)
                }
            })
            .collect::<Result<_, _>>()?,
    };
    Ok(Some(User {
        name: name.to_owned(),
        hash,
        roles,
        written,
    }))
}

fn check_user(name: &str) -> Result<(), BadUser> {
    if is_name(name) && !name.contains(':') && !name.starts_with('#') {
        Ok(())
    } else {
        Err(BadUser)
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_CHARS).contains(&text.chars().count())
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// The same for names that differ in case alone. Through upper case, where more letters meet than
/// in lower case.
fn folded(name: &str) -> String {
    name.chars()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect()
}

fn put(path: &Path, user: &str, hash: &str) -> Result<Outcome, SetError> {
    let failed = |error| SetError::Write {
        path: path.to_owned(),
        error,
    };
    let target = match path.canonicalize() {
        // A link to nowhere exists, and is better not replaced by a file that its owner looks for
        // elsewhere.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
            path.to_owned()
        }
        other => other.map_err(failed)?,
    };
    let folder = match target.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // Held until the end, against another call that starts from the same old content. Where folders
    // can't be opened or locked, the last one to write wins.
    let lock = File::open(folder).ok();
    if let Some(lock) = &lock {
        lock.lock().ok();
    }

    let old = match bytes(&target) {
        Err(FileError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let (new, outcome) = edit(&old, user, hash)?;
    parse(&new).map_err(|lines| FileError::Lines {
        path: path.to_owned(),
        lines,
    })?;
    replace(&target, folder, &new).map_err(failed)?;
    if let Some(lock) = lock.filter(|_| cfg!(unix)) {
        lock.sync_all().map_err(failed)?;
    }
    Ok(outcome)
}

fn edit(old: &[u8], user: &str, hash: &str) -> Result<(Vec<u8>, Outcome), SetError> {
    let mut new = Vec::with_capacity(old.len() + user.len() + hash.len() + 3);
    let mut outcome = Outcome::Added;
    for (number, line) in (1..).zip(old.split_inclusive(|byte| *byte == b'\n')) {
        let content = line.trim_ascii();
        let mut parts = content.splitn(3, |byte| *byte == b':');
        let name = parts
            .next()
            .and_then(|name| str::from_utf8(name).ok())
            .unwrap_or_default();
        if name != user {
            if folded(name) == folded(user) {
                return Err(SetError::OtherCase {
                    name: name.to_owned(),
                    line: number,
                });
            }
            new.extend_from_slice(line);
            continue;
        }
        outcome = Outcome::Replaced;
        new.extend_from_slice(format!("{user}:{hash}").as_bytes());
        if let Some(roles) = parts.nth(1) {
            new.push(b':');
            new.extend_from_slice(roles);
        }
        new.extend_from_slice(&line[line.trim_ascii_end().len()..]);
    }
    if outcome == Outcome::Added {
        if new.last().is_some_and(|byte| *byte != b'\n') {
            new.push(b'\n');
        }
        new.extend_from_slice(format!("{user}:{hash}\n").as_bytes());
    }
    Ok((new, outcome))
}

fn replace(target: &Path, folder: &Path, content: &[u8]) -> io::Result<()> {
    // Made for its owner only, and removed again when anything below fails.
    let mut temporary = tempfile::Builder::new()
        .prefix(".passwd-")
        .suffix(".tmp")
        .tempfile_in(folder)?;
    temporary.write_all(content)?;
    match fs::metadata(target) {
        Ok(old) => keep_access(temporary.as_file(), &old)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    temporary.as_file().sync_all()?;
    temporary.persist(target)?;
    Ok(())
}

/// Root may set a password in a file that a server reads as another user: neither owner nor mode
/// may change.
fn keep_access(file: &File, old: &fs::Metadata) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            fchown(file, Some(old.uid()), Some(old.gid())).map_err(|error| {
                io::Error::new(error.kind(), format!("its owner can't be kept: {error}"))
            })?;
        }
    }
    file.set_permissions(old.permissions())
}

struct Listed<'a>(&'a [BadLine]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.0.iter().take(LISTED).enumerate() {
            write!(f, "{}{line}", if index == 0 { "" } else { "; " })?;
        }
        match self.0.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::password::{
        hash::tests::{cheap, cheap_bcrypt},
        memory::Memory,
    };

    fn names(text: &str) -> Vec<String> {
        parse(text.as_bytes())
            .unwrap()
            .into_iter()
            .map(|user| user.name)
            .collect()
    }

    fn faults(text: &[u8]) -> Vec<(usize, Fault)> {
        match parse(text) {
            Ok(_) => Vec::new(),
            Err(lines) => lines.into_iter().map(|bad| (bad.line, bad.fault)).collect(),
        }
    }

    #[test]
    fn users_hashes_and_roles_are_read() {
        let (argon2, bcrypt) = (cheap("a"), cheap_bcrypt("b"));
        let text = format!(
            "# staff\n\nalice:{argon2}:admin,ops\r\n  bob:{bcrypt}  \nжора:{argon2}:\n  # end"
        );
        let users = parse(text.as_bytes()).unwrap();
        let seen: Vec<_> = users
            .iter()
            .map(|user| (user.name.as_str(), user.roles.join("+")))
            .collect();
        assert_eq!(
            seen,
            [
                ("alice", "admin+ops".into()),
                ("bob", String::new()),
                ("жора", String::new())
            ]
        );
        assert!(
            users[1]
                .hash
                .check(&"b".into(), &mut Memory::default())
                .unwrap()
        );
        assert!(names("").is_empty());
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        fs::write(&path, format!("\u{feff}alice:{}\n", cheap("a"))).unwrap();
        assert_eq!(put(&path, "alice", &cheap("b")).unwrap(), Outcome::Replaced);
        assert_eq!(read(&path).unwrap().len(), 1);
    }

    #[test]
    fn every_wrong_line_is_named_at_once() {
        let hash = cheap("a");
        let long = "x".repeat(129);
        let lines = [
            ("alice".into(), Some(Fault::Form)),
            (format!("alice:{hash}"), None),
            (format!("alice:{hash}:a:b"), Some(Fault::Form)),
            (format!(":{hash}"), Some(Fault::User(BadUser))),
            (format!("a b:{hash}"), Some(Fault::User(BadUser))),
            (format!("a\u{1}b:{hash}"), Some(Fault::User(BadUser))),
            (format!("a\u{a0}b:{hash}"), Some(Fault::User(BadUser))),
            (format!("{long}:{hash}"), Some(Fault::User(BadUser))),
            (format!("{}:{hash}", "y".repeat(128)), None),
            ("bob:plain".into(), Some(Fault::Hash(BadHash::Kind))),
            (format!("ALICE:{hash}"), Some(Fault::Twice { first: 2 })),
            (format!("carol:{hash}:a,,b"), Some(Fault::Role)),
            (format!("dave:{hash}:a, b"), Some(Fault::Role)),
            (format!("ΟΔΟΣ:{hash}"), None),
            (format!("οδος:{hash}"), Some(Fault::Twice { first: 14 })),
        ];
        let text: String = lines.iter().map(|(line, _)| format!("{line}\n")).collect();
        let expected: Vec<_> = (1..)
            .zip(&lines)
            .filter_map(|(number, (_, fault))| fault.map(|fault| (number, fault)))
            .collect();
        assert_eq!(faults(text.as_bytes()), expected);
        assert_eq!(faults(b"# fine\n\xff:x\n"), [(2, Fault::NotUtf8)]);
    }

    #[test]
    fn an_error_lists_lines_and_never_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let hash = cheap("a");
        fs::write(
            &path,
            format!("alice:{hash}x:{hash}:y\n\n{hash}\n{hash}:bob\n"),
        )
        .unwrap();
        let Err(error) = read(&path) else {
            panic!("taken")
        };
        let text = error.to_string();
        for part in [
            "users has wrong lines: line 1: ",
            "; line 3: ",
            "; line 4: ",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let salt = hash.split('$').nth(4).unwrap();
        assert!(!text.contains(salt), "{text}");
        assert!(!format!("{error:?}").contains(salt), "{error:?}");

        fs::write(&path, "x\n".repeat(LISTED + 5)).unwrap();
        let Err(error) = read(&path) else {
            panic!("taken")
        };
        assert!(error.to_string().ends_with("; and 5 more"), "{error}");
    }

    #[test]
    fn only_regular_files_of_some_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            read(folder.path()),
            Err(FileError::NotAFile { .. })
        ));
        let path = folder.path().join("users");
        assert!(matches!(read(&path), Err(FileError::Read { .. })));
        File::create(&path)
            .unwrap()
            .set_len(FILE_BYTES + 1)
            .unwrap();
        assert!(matches!(read(&path), Err(FileError::TooLarge { .. })));
    }

    #[test]
    fn setting_keeps_all_but_the_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let (old, new) = (cheap("old"), cheap("new"));
        fs::write(
            &path,
            format!("# staff\r\nalice:{old}:admin,ops\r\n\nbob:{old}"),
        )
        .unwrap();

        assert_eq!(put(&path, "alice", &new).unwrap(), Outcome::Replaced);
        let expected = format!("# staff\r\nalice:{new}:admin,ops\r\n\nbob:{old}");
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);

        assert_eq!(put(&path, "carol", &new).unwrap(), Outcome::Added);
        let expected = format!("{expected}\ncarol:{new}\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn setting_mends_the_users_own_line_and_refuses_a_file_with_other_faults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let hash = cheap("a");
        fs::write(&path, "alice:plain:admin\n").unwrap();
        assert_eq!(put(&path, "alice", &hash).unwrap(), Outcome::Replaced);
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!("alice:{hash}:admin\n")
        );

        fs::write(&path, "alice:plain\nbob:plain\n").unwrap();
        let error = put(&path, "alice", &hash).unwrap_err();
        let SetError::File(FileError::Lines { lines, .. }) = error else {
            panic!("{error:?}")
        };
        assert_eq!(
            lines,
            [BadLine {
                line: 2,
                fault: Fault::Hash(BadHash::Kind)
            }]
        );
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "alice:plain\nbob:plain\n"
        );
    }

    #[test]
    fn setting_refuses_what_could_not_log_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        for user in ["", "a b", "a:b", "#a", "a\n"] {
            assert!(
                matches!(set(&path, user, &"x".into()), Err(SetError::User(_))),
                "{user:?}"
            );
        }
        assert!(matches!(
            set(&path, "alice", &"".into()),
            Err(SetError::Empty)
        ));
        let long = "x".repeat(PASSWORD_BYTES + 1);
        assert!(matches!(
            set(&path, "alice", &long.into()),
            Err(SetError::TooLong)
        ));
        assert!(!path.exists());

        put(&path, "alice", &cheap("a")).unwrap();
        let error = put(&path, "Alice", &cheap("a")).unwrap_err();
        assert!(
            matches!(&error, SetError::OtherCase { name, line: 1 } if name == "alice"),
            "{error}"
        );
    }

    #[test]
    fn what_can_not_be_written_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = put(&folder.path().join("no/users"), "alice", &cheap("a")).unwrap_err();
        assert!(matches!(error, SetError::Write { .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_is_its_owners_and_an_old_one_keeps_its_mode_and_owner() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        put(&path, "alice", &cheap("a")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        // Only root can give a file away; everybody else tests the mode alone.
        let owner = fs::metadata(&path).unwrap().uid();
        let other = if chown(&path, Some(4711), None).is_ok() {
            4711
        } else {
            owner
        };
        put(&path, "alice", &cheap("b")).unwrap();
        assert_eq!(mode(&path), 0o640);
        assert_eq!(fs::metadata(&path).unwrap().uid(), other);
    }

    #[cfg(unix)]
    #[test]
    fn setting_goes_through_a_link_and_not_over_a_broken_one() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "").unwrap();
        symlink("real", &link).unwrap();
        put(&link, "alice", &cheap("a")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(names(&fs::read_to_string(&real).unwrap()), ["alice"]);

        fs::remove_file(&real).unwrap();
        assert!(matches!(
            put(&link, "alice", &cheap("a")),
            Err(SetError::Write { .. })
        ));
        assert!(link.is_symlink());
    }

    #[test]
    fn sets_at_the_same_time_lose_no_user() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let hash = cheap("a");
        thread::scope(|scope| {
            for number in 0..16 {
                let (path, hash) = (&path, &hash);
                scope.spawn(move || put(path, &format!("user{number}"), hash).unwrap());
            }
        });
        assert_eq!(read(&path).unwrap().len(), 16);
    }
}
