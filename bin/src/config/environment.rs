//! Overrides from the environment: `CHINWAG_TRANSPORTS__WEB__BIND` sets `bind` in `[transports.web]`.
//!
//! Only names with a double underscore are configuration, so that `CHINWAG_HOME` and the like stay free for others. A
//! name that ends in `_FILE`, but not in `__FILE`, names a file that holds the value, for secrets. Values stay text
//! here; what they are to be is known where they are read.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::Read,
};

use figment::{
    Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};

use super::{
    document::KeyPath,
    problem::{Place, Problems},
};

/// What every name begins with.
const PREFIX: &str = "CHINWAG_";

/// The source by which figment tells these values from those of the document.
pub(crate) const SOURCE: &str = "environment";

/// Most bytes of a file that a variable names.
const FILE_BYTES: u64 = 64 << 10;

/// One override. To figment each is a provider of its own, so that a value's tag leads to the name of its variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) path: Vec<String>,
    value: String,
}

impl Provider for Variable {
    fn metadata(&self) -> Metadata {
        Metadata::from(self.name.clone(), SOURCE)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let leaf = Value::from(self.value.clone());
        let nested = self.path.iter().rev().fold(leaf, |inner, key| {
            Value::from(Map::from([(key.clone(), inner)]))
        });
        let dict = nested
            .into_dict()
            .expect("a path has at least two keys, so the outermost value is a table");
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

/// The overrides among `variables`, in order of name.
pub(crate) fn overrides(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    problems: &mut Problems,
) -> Vec<Variable> {
    let mut found: Vec<Variable> = variables
        .into_iter()
        .filter_map(|(name, value)| read(&name, value, problems))
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    refuse_conflicts(&mut found, problems);
    found
}

/// The override that a variable is; `None` where it is none, or a broken one, which is then reported.
fn read(name: &OsStr, value: OsString, problems: &mut Problems) -> Option<Variable> {
    let name = name.to_str()?;
    let rest = name.strip_prefix(PREFIX)?;
    if !rest.contains("__") {
        return None;
    }
    let place = Place::Variable { name: name.into() };
    let from_file = rest
        .strip_suffix("_FILE")
        .filter(|rest| !rest.ends_with('_'));
    let path: Vec<String> = from_file
        .unwrap_or(rest)
        .split("__")
        .map(str::to_ascii_lowercase)
        .collect();
    if path.len() < 2 || path.iter().any(String::is_empty) {
        problems.error(
            place,
            "names no key; an override is CHINWAG_TABLE__KEY or CHINWAG_TABLE__NAME__KEY",
        );
        return None;
    }
    let key = || KeyPath::new(path.iter().map(String::as_str));
    if rest.bytes().any(|byte| byte.is_ascii_lowercase()) {
        problems.blame(key());
        problems.error(
            place,
            format!("write it in capitals: {}", name.to_uppercase()),
        );
        return None;
    }
    let Ok(value) = value.into_string() else {
        problems.blame(key());
        problems.error(place, "the value is not UTF-8");
        return None;
    };
    let value = if from_file.is_some() {
        match content(&value) {
            Ok(content) => content,
            Err(cause) => {
                problems.blame(key());
                problems.error(place, format!("can't read {value:?}: {cause}"));
                return None;
            }
        }
    } else {
        value
    };
    Some(Variable {
        name: name.into(),
        path,
        value,
    })
}

/// What a file holds, less one line feed at its end, as editors and `echo` leave it there.
fn content(path: &str) -> Result<String, String> {
    let mut content = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES + 1).read_to_string(&mut content))
        .map_err(|error| error.to_string())?;
    if content.len() as u64 > FILE_BYTES {
        return Err(format!("it has more than {FILE_BYTES} bytes"));
    }
    if content.ends_with('\n') {
        content.pop();
        if content.ends_with('\r') {
            content.pop();
        }
    }
    Ok(content)
}

/// Two variables for one key, or one for a key and another for a part of it: neither is what was meant.
fn refuse_conflicts(found: &mut Vec<Variable>, problems: &mut Problems) {
    let clashing: Vec<bool> = found
        .iter()
        .map(|variable| {
            let other = found.iter().find(|other| {
                other.name != variable.name && variable.path.starts_with(&other.path)
            });
            if let Some(other) = other {
                let place = Place::Variable {
                    name: variable.name.as_str().into(),
                };
                problems.error(place, format!("{} sets the same key", other.name));
                problems.blame(KeyPath::new(variable.path.iter().map(String::as_str)));
            }
            other.is_some()
        })
        .collect();
    let mut clashing = clashing.into_iter();
    found.retain(|_| !clashing.next().unwrap_or(false));
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read_all(variables: &[(&str, &str)]) -> (Vec<(String, String)>, Vec<String>) {
        let mut problems = Problems::default();
        let found = overrides(
            variables
                .iter()
                .map(|(name, value)| (OsString::from(name), OsString::from(value))),
            &mut problems,
        );
        let found = found
            .into_iter()
            .map(|variable| (variable.path.join("."), variable.value))
            .collect();
        let problems = problems
            .into_result()
            .err()
            .map(|error| error.problems().iter().map(ToString::to_string).collect())
            .unwrap_or_default();
        (found, problems)
    }

    #[test]
    fn only_names_with_a_double_underscore_are_configuration() {
        let (found, problems) = read_all(&[
            ("CHINWAG_HOME", "/srv"),
            ("PATH", "/bin"),
            ("OTHER__THING", "1"),
            ("CHINWAG_TRANSPORTS__MY_WEB__BIND", "127.0.0.1:1"),
        ]);
        assert_eq!(
            found,
            [("transports.my_web.bind".into(), "127.0.0.1:1".into())]
        );
        assert_eq!(problems, [""; 0]);
    }

    #[test]
    fn a_name_that_ends_in_file_names_a_file_unless_the_key_is_called_so() {
        let mut secret = tempfile::NamedTempFile::new().unwrap();
        secret.write_all(b"0012345\n").unwrap();
        let path = secret.path().to_str().unwrap();
        let (found, problems) = read_all(&[
            ("CHINWAG_AUTHENTICATORS__A__SECRET_FILE", path),
            ("CHINWAG_AUTHENTICATORS__B__FILE", "users.txt"),
        ]);
        assert_eq!(
            found,
            [
                ("authenticators.a.secret".into(), "0012345".into()),
                ("authenticators.b.file".into(), "users.txt".into()),
            ]
        );
        assert_eq!(problems, [""; 0]);
    }

    #[test]
    fn what_can_not_be_meant_is_refused() {
        let (found, problems) = read_all(&[
            ("CHINWAG_LIMITS__", "1"),
            ("CHINWAG___SENDS", "1"),
            ("CHINWAG_limits__rooms", "1"),
            ("CHINWAG_ROOM__SENDS", "unlimited"),
            ("CHINWAG_ROOM__SENDS__RATE", "5"),
            ("CHINWAG_AUTHENTICATORS__A__KEY_FILE", "/nonexistent/key"),
        ]);
        assert_eq!(found, [("room.sends".into(), "unlimited".into())]);
        assert_eq!(
            problems,
            [
                "CHINWAG_AUTHENTICATORS__A__KEY_FILE: error: can't read \"/nonexistent/key\": No such file or directory (os error 2)",
                "CHINWAG_LIMITS__: error: names no key; an override is CHINWAG_TABLE__KEY or CHINWAG_TABLE__NAME__KEY",
                "CHINWAG_ROOM__SENDS__RATE: error: CHINWAG_ROOM__SENDS sets the same key",
                "CHINWAG___SENDS: error: names no key; an override is CHINWAG_TABLE__KEY or CHINWAG_TABLE__NAME__KEY",
                "CHINWAG_limits__rooms: error: write it in capitals: CHINWAG_LIMITS__ROOMS",
            ]
        );
    }

    #[test]
    fn one_key_by_value_and_by_file_is_refused() {
        let (_, problems) = read_all(&[
            ("CHINWAG_AUTHENTICATORS__A__KEY", "x"),
            ("CHINWAG_AUTHENTICATORS__A__KEY_FILE", "/dev/null"),
        ]);
        assert_eq!(
            problems,
            [
                "CHINWAG_AUTHENTICATORS__A__KEY: error: CHINWAG_AUTHENTICATORS__A__KEY_FILE sets the same key",
                "CHINWAG_AUTHENTICATORS__A__KEY_FILE: error: CHINWAG_AUTHENTICATORS__A__KEY sets the same key",
            ]
        );
    }
}
