//! Reading a table into its type, so that every mistake in it comes out and not just the first.
//!
//! serde stops at the first error. Here the entry at fault is reported, taken out, and the rest is read again, until
//! what is left is right or lacks a key that has no default. Text from the environment turns into the number, truth
//! value or list that its place asks for; text in a file stays text.

use std::{
    collections::HashSet,
    fmt::{self, Write},
};

use figment::value::{Dict, Num, Value};
use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, MapAccess, SeqAccess,
        Unexpected, Visitor,
    },
};

use super::{
    document::{Document, KeyPath, Part, Step},
    near::{hint, nearest},
    problem::{Place, Problems},
};

/// One table of the document on its way into its type.
pub(crate) struct Table<'d> {
    document: &'d Document,
    path: KeyPath,
    entries: Dict,
    /// Keys of the same table that are read elsewhere: they too may be what an unknown key was meant to be.
    siblings: Vec<&'static str>,
}

impl<'d> Table<'d> {
    pub(crate) fn new(document: &'d Document, path: KeyPath, entries: Dict) -> Self {
        Self {
            document,
            path,
            entries,
            siblings: Vec::new(),
        }
    }

    pub(crate) fn path(&self) -> &KeyPath {
        &self.path
    }

    /// The keys that are left.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Takes the entries called `keys` out into a table of their own at the same place.
    pub(crate) fn split(&mut self, keys: &[&'static str]) -> Table<'d> {
        self.siblings.extend(keys);
        let taken = keys
            .iter()
            .filter_map(|&key| self.entries.remove_entry(key))
            .collect();
        Table::new(self.document, self.path.clone(), taken)
    }

    /// Takes the entry `key` out and reads it. `None` where it is missing, which is no mistake here, or wrong.
    pub(crate) fn take<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<T> {
        self.siblings.push(key);
        let value = self.entries.remove(key)?;
        let node = Node::new(self.document, &value);
        T::deserialize(node)
            .map_err(|mut fault| {
                fault.path.insert(0, Step::Key(key.into()));
                self.report(&fault, problems);
                problems.blame(self.path.key(key));
            })
            .ok()
    }

    /// The entries that are left.
    pub(crate) fn entries(&self) -> &Dict {
        &self.entries
    }

    /// The same table with what `inherited` says of keys that it does not have itself.
    pub(crate) fn over(mut self, inherited: &Dict) -> Self {
        for (key, value) in inherited {
            if !self.entries.contains_key(key) {
                self.entries.insert(key.clone(), value.clone());
            }
        }
        self
    }

    /// Reads what is left as a `T`. Every mistake goes to `problems`; what was wrong has its default in the result,
    /// which is `None` where there is no default.
    pub(crate) fn read<T: DeserializeOwned>(self, problems: &mut Problems) -> Option<T> {
        self.read_and_keep(problems).0
    }

    /// As [`read`](Self::read), but `None` unless everything is right: for what is built at once and may act on what
    /// its table says, say connect to somebody.
    pub(crate) fn read_sound<T: DeserializeOwned>(self, problems: &mut Problems) -> Option<T> {
        let before = problems.errors();
        self.read(problems).filter(|_| problems.errors() == before)
    }

    /// As [`read`](Self::read), with the entries that were right. Those that were not are known to `problems`.
    pub(crate) fn read_and_keep<T: DeserializeOwned>(
        mut self,
        problems: &mut Problems,
    ) -> (Option<T>, Dict) {
        let mut removed: HashSet<Vec<Step>> = HashSet::new();
        loop {
            let fault = match T::deserialize(Entries {
                document: self.document,
                dict: &self.entries,
            }) {
                Ok(value) => return (Some(value), self.entries),
                Err(fault) => fault,
            };
            let mut path = fault.path.clone();
            if let Kind::Missing(key) = &fault.kind {
                let mut missing = path.clone();
                missing.push(Step::Key(key.clone()));
                // Missing because it was taken out: that has been said already.
                if !removed.contains(&missing) {
                    self.report(&fault, problems);
                }
            } else {
                self.report(&fault, problems);
            }
            // An element out of a list would shift those behind it: the whole list goes.
            if let Some(index) = path.iter().position(|step| matches!(step, Step::Index(_))) {
                path.truncate(index);
            }
            if !remove(&mut self.entries, &path) {
                path.extend(match fault.kind {
                    Kind::Missing(key) => Some(Step::Key(key)),
                    _ => None,
                });
                problems.blame(self.path.join(path));
                return (None, self.entries);
            }
            problems.blame(self.path.join(path.iter().cloned()));
            removed.insert(path);
        }
    }

    fn report(&self, fault: &Fault, problems: &mut Problems) {
        let path = self.path.join(fault.path.iter().cloned());
        match &fault.kind {
            Kind::UnknownKey(key, known) => {
                let around = path.up();
                // The siblings belong to the table itself and not to tables within it.
                let siblings = if around == self.path {
                    self.siblings.as_slice()
                } else {
                    &[]
                };
                let known = || known.iter().chain(siblings).copied();
                // What stands under the misspelt name is not known to the rules of the key that was meant.
                if let Some(meant) = nearest(key, known()).map(|near| around.key(near))
                    && !self.document.contains(&meant)
                {
                    problems.blame(meant);
                }
                let hint = hint(key, known(), "there are");
                problems.error(
                    self.document.locate(&path, Part::Key),
                    format!("{around}: unknown key `{key}`{hint}"),
                );
            }
            Kind::Missing(key) => problems.error(
                self.document.locate(&path, Part::Key),
                format!("{path}: missing key `{key}`"),
            ),
            kind => {
                let place = self.document.locate(&path, Part::Value);
                let mut message = format!("{path}: {kind}");
                // A table of which the file says one part and the environment another.
                if matches!(place, Place::Line { .. })
                    && let Some(variable) = self.document.variables(&path).first()
                {
                    let _ = write!(message, " ({variable} sets a part of it)");
                }
                problems.error(place, message);
            }
        }
    }
}

/// Takes the entry at `path`, which has keys only, out of `dict`. Whether there was one.
fn remove(dict: &mut Dict, path: &[Step]) -> bool {
    match path {
        [] | [Step::Index(_), ..] => false,
        [Step::Key(key)] => dict.remove(key).is_some(),
        [Step::Key(key), rest @ ..] => match dict.get_mut(key) {
            Some(Value::Dict(_, inner)) => remove(inner, rest),
            _ => false,
        },
    }
}

/// What is wrong with a value, and where below the table that is read.
#[derive(Debug)]
pub(crate) struct Fault {
    path: Vec<Step>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Message(String),
    /// Not of the kind expected.
    Unfit {
        expected: String,
        found: String,
    },
    UnknownWord(String, &'static [&'static str]),
    UnknownKey(String, &'static [&'static str]),
    Missing(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(message) => f.write_str(plain(message)),
            Self::Unfit { expected, found } => {
                write!(f, "expected {}, found {found}", plain(expected))
            }
            Self::UnknownWord(word, known) => match nearest(word, known.iter().copied()) {
                Some(near) => write!(f, "unknown value {word:?}; did you mean {near:?}?"),
                None => {
                    let known: Vec<String> = known.iter().map(|word| format!("{word:?}")).collect();
                    write!(f, "unknown value {word:?}; there are {}", known.join(", "))
                }
            },
            Self::UnknownKey(key, _) => write!(f, "unknown key `{key}`"),
            Self::Missing(key) => write!(f, "missing key `{key}`"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl std::error::Error for Fault {}

/// What serde and the standard library call things, in the words of somebody who writes a file.
fn plain(words: &str) -> &str {
    match words {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "a borrowed string" | "path string" => "a text in quotes",
        "a sequence" => "a list",
        "a map" => "a table",
        "invalid socket address syntax" => {
            "expected an IP address with a port, like \"127.0.0.1:8080\""
        }
        _ if words.starts_with("struct ") => "a table",
        _ if words.starts_with("enum ") => "a text in quotes",
        _ => words,
    }
}

fn found(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Str(text) => format!("{text:?}"),
        Unexpected::Bool(boolean) => boolean.to_string(),
        Unexpected::Unsigned(number) => number.to_string(),
        Unexpected::Signed(number) => number.to_string(),
        Unexpected::Float(number) => number.to_string(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "a table".into(),
        other => other.to_string(),
    }
}

impl From<Kind> for Fault {
    fn from(kind: Kind) -> Self {
        Self {
            path: Vec::new(),
            kind,
        }
    }
}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Kind::Message(message.to_string()).into()
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_value(unexpected, expected)
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Kind::Unfit {
            expected: expected.to_string(),
            found: found(unexpected),
        }
        .into()
    }

    fn invalid_length(len: usize, expected: &dyn Expected) -> Self {
        Kind::Unfit {
            expected: expected.to_string(),
            found: len.to_string(),
        }
        .into()
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Kind::UnknownWord(word.into(), known).into()
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Kind::UnknownKey(key.into(), known).into()
    }

    fn missing_field(key: &'static str) -> Self {
        Kind::Missing(key.into()).into()
    }
}

/// A value of the merged configuration, as serde reads it.
#[derive(Clone, Copy)]
enum Node<'d> {
    /// Written in the document, or a table.
    Plain(&'d Document, &'d Value),
    /// Text from the environment, or an element of such a list.
    Text(&'d str),
}

impl<'d> Node<'d> {
    fn new(document: &'d Document, value: &'d Value) -> Self {
        match value {
            Value::String(tag, text) if document.variable(*tag).is_some() => Self::Text(text),
            _ => Self::Plain(document, value),
        }
    }
}

/// Numbers and truth values: text from the environment is parsed, and where that fails handed on as it is, so that
/// the visitor says what it expected.
macro_rules! lenient {
    ($($method:ident => $parse:ident),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match self {
                Node::Text(text) => $parse(text, visitor),
                Node::Plain(..) => self.deserialize_any(visitor),
            }
        })*
    };
}

fn integer<'de, V: Visitor<'de>>(text: &str, visitor: V) -> Result<V::Value, Fault> {
    if let Ok(number) = text.trim().parse::<i64>() {
        visitor.visit_i64(number)
    } else if let Ok(number) = text.trim().parse::<u64>() {
        visitor.visit_u64(number)
    } else {
        visitor.visit_str(text)
    }
}

fn float<'de, V: Visitor<'de>>(text: &str, visitor: V) -> Result<V::Value, Fault> {
    match text.trim().parse::<f64>() {
        Ok(number) => visitor.visit_f64(number),
        Err(_) => visitor.visit_str(text),
    }
}

fn boolean<'de, V: Visitor<'de>>(text: &str, visitor: V) -> Result<V::Value, Fault> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => visitor.visit_bool(true),
        "false" | "no" | "off" | "0" => visitor.visit_bool(false),
        _ => visitor.visit_str(text),
    }
}

/// A comma-separated list; empty text is an empty list.
fn list<'de, V: Visitor<'de>>(text: &str, visitor: V) -> Result<V::Value, Fault> {
    let items = text
        .split(',')
        .map(str::trim)
        .filter(|_| !text.trim().is_empty())
        .map(Node::Text)
        .collect::<Vec<_>>();
    visitor.visit_seq(Items(items.into_iter().enumerate()))
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let (document, value) = match self {
            Self::Text(text) => return visitor.visit_str(text),
            Self::Plain(document, value) => (document, value),
        };
        match value {
            Value::String(_, text) => visitor.visit_str(text),
            Value::Char(_, c) => visitor.visit_char(*c),
            Value::Bool(_, boolean) => visitor.visit_bool(*boolean),
            Value::Num(_, Num::I64(number)) => visitor.visit_i64(*number),
            Value::Num(_, number) => match number.to_f64() {
                Some(number) => visitor.visit_f64(number),
                // The document's provider makes only these two kinds of number.
                None => visitor.visit_str(&format!("{number:?}")),
            },
            Value::Empty(..) => visitor.visit_unit(),
            Value::Dict(_, dict) => Entries { document, dict }.deserialize_any(visitor),
            Value::Array(_, items) => {
                let items: Vec<_> = items.iter().map(|item| Node::new(document, item)).collect();
                visitor.visit_seq(Items(items.into_iter().enumerate()))
            }
        }
    }

    lenient! {
        deserialize_bool => boolean,
        deserialize_u8 => integer, deserialize_u16 => integer, deserialize_u32 => integer,
        deserialize_u64 => integer, deserialize_u128 => integer,
        deserialize_i8 => integer, deserialize_i16 => integer, deserialize_i32 => integer,
        deserialize_i64 => integer, deserialize_i128 => integer,
        deserialize_f32 => float, deserialize_f64 => float,
        deserialize_seq => list,
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self {
            Self::Text(text) => visitor.visit_enum(text.into_deserializer()),
            Self::Plain(_, Value::String(_, text)) => {
                visitor.visit_enum(text.as_str().into_deserializer())
            }
            Self::Plain(document, Value::Dict(_, dict)) => visitor.visit_enum(
                de::value::MapAccessDeserializer::new(Pairs::new(document, dict)),
            ),
            Self::Plain(..) => self.deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        char str string bytes byte_buf map struct unit unit_struct ignored_any identifier
    }
}

/// A table, as serde reads it.
struct Entries<'d> {
    document: &'d Document,
    dict: &'d Dict,
}

impl<'de> Deserializer<'de> for Entries<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_map(Pairs::new(self.document, self.dict))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Pairs<'d> {
    document: &'d Document,
    rest: std::collections::btree_map::Iter<'d, String, Value>,
    pending: Option<(&'d String, &'d Value)>,
}

impl<'d> Pairs<'d> {
    fn new(document: &'d Document, dict: &'d Dict) -> Self {
        Self {
            document,
            rest: dict.iter(),
            pending: None,
        }
    }
}

fn within(step: Step) -> impl FnOnce(Fault) -> Fault {
    |mut fault| {
        fault.path.insert(0, step);
        fault
    }
}

impl<'de> MapAccess<'de> for Pairs<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        self.pending = self.rest.next();
        let Some((key, _)) = self.pending else {
            return Ok(None);
        };
        let deserializer: de::value::StrDeserializer<'_, Fault> = key.as_str().into_deserializer();
        seed.deserialize(deserializer)
            .map(Some)
            .map_err(within(Step::Key(key.clone())))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, value) = self
            .pending
            .take()
            .expect("serde asks for a value only after its key");
        seed.deserialize(Node::new(self.document, value))
            .map_err(within(Step::Key(key.clone())))
    }
}

struct Items<'d>(std::iter::Enumerate<std::vec::IntoIter<Node<'d>>>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.0.next() else {
            return Ok(None);
        };
        seed.deserialize(node)
            .map(Some)
            .map_err(within(Step::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use chinwag_core::config::{LimitsConfig, RoomConfig, Size};
    use serde::Deserialize;

    use super::*;
    use crate::config::environment;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Everything {
        count: u16,
        #[serde(default)]
        ratio: f64,
        #[serde(default)]
        on: bool,
        #[serde(default)]
        list: Vec<u8>,
        #[serde(default)]
        words: Vec<String>,
        #[serde(default)]
        text: Option<String>,
        #[serde(default)]
        choice: Choice,
        #[serde(default)]
        inner: Option<Inner>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Choice {
        #[default]
        First,
        Second,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        rate: u8,
        burst: u8,
    }

    /// Reads the table `[t]` of `text`: the value, and every problem without the quoted line.
    fn read<T: DeserializeOwned>(
        text: &str,
        variables: &[(&str, &str)],
    ) -> (Option<T>, Vec<String>) {
        let mut problems = Problems::default();
        let variables = environment::overrides(
            variables
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
            &mut problems,
        );
        let document = Document::parse("f", text, variables, &mut problems).unwrap();
        let entries = document.root()["t"].as_dict().unwrap().clone();
        let value = Table::new(&document, KeyPath::new(["t"]), entries).read(&mut problems);
        let problems = problems
            .into_result()
            .err()
            .map(|error| {
                error
                    .problems()
                    .iter()
                    .map(|problem| problem.brief())
                    .collect()
            })
            .unwrap_or_default();
        (value, problems)
    }

    #[test]
    fn every_mistake_of_a_table_comes_out_at_once() {
        let (value, problems) = read::<Everything>(
            "[t]\ncount = \"x\"\nratio = true\nlist = [1, 2, 300, -1]\nchoice = \"secondo\"\ncolour = 1\n\
             inner = { rate = 1.5, burst = \"2\", brust = 2 }\n",
            &[],
        );
        assert_eq!(value, None, "count has no default");
        assert_eq!(
            problems,
            [
                "f:2:9: t.count: expected a whole number from 0 to 65535, found \"x\"",
                "f:3:9: t.ratio: expected a number, found true",
                "f:4:15: t.list[2]: expected a whole number from 0 to 255, found 300",
                "f:5:10: t.choice: unknown value \"secondo\"; did you mean \"second\"?",
                "f:6:1: t: unknown key `colour`; there are count, ratio, on, list, words, text, choice, inner",
                "f:7:18: t.inner.rate: expected a whole number from 0 to 255, found 1.5",
                "f:7:31: t.inner.burst: expected a whole number from 0 to 255, found \"2\"",
                "f:7:36: t.inner: unknown key `brust`; did you mean `burst`?",
            ]
        );
    }

    #[test]
    fn what_was_wrong_has_its_default_in_the_result() {
        let (limits, problems) =
            read::<LimitsConfig>("[t]\nrooms = \"many\"\nframe_bytes = \"1MiB\"", &[]);
        let limits = limits.unwrap();
        assert_eq!(limits.rooms, LimitsConfig::default().rooms);
        assert_eq!(limits.frame_bytes, Size(1 << 20));
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn a_missing_key_is_said_once_and_only_if_it_was_not_there() {
        let (_, problems) = read::<Everything>("[t]\n", &[]);
        assert_eq!(problems, ["f:1:2: t: missing key `count`"]);
        let (_, problems) = read::<Everything>("[t]\ncount = 1\ninner = { burst = 1 }\n", &[]);
        assert_eq!(problems, ["f:3:1: t.inner: missing key `rate`"]);
        let (_, problems) = read::<Everything>("[t]\ncount = 70000\n", &[]);
        assert_eq!(problems.len(), 1, "{problems:?}");
    }

    #[test]
    fn text_of_the_environment_becomes_what_its_place_asks_for() {
        let (value, problems) = read::<Everything>(
            "[t]\ncount = 1\ntext = \"a,b\"",
            &[
                ("CHINWAG_T__COUNT", " 7"),
                ("CHINWAG_T__RATIO", "0.5"),
                ("CHINWAG_T__ON", "True"),
                ("CHINWAG_T__LIST", "1, 2,3"),
                ("CHINWAG_T__WORDS", ""),
                ("CHINWAG_T__TEXT", "0012345"),
                ("CHINWAG_T__CHOICE", "second"),
                ("CHINWAG_T__INNER__RATE", "1"),
                ("CHINWAG_T__INNER__BURST", "2"),
            ],
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(
            value.unwrap(),
            Everything {
                count: 7,
                ratio: 0.5,
                on: true,
                list: vec![1, 2, 3],
                words: vec![],
                text: Some("0012345".into()),
                choice: Choice::Second,
                inner: Some(Inner { rate: 1, burst: 2 }),
            }
        );
    }

    #[test]
    fn text_of_a_file_stays_text() {
        let (_, problems) = read::<Everything>("[t]\ncount = \"7\"\nlist = \"1\"", &[]);
        assert_eq!(
            problems,
            [
                "f:2:9: t.count: expected a whole number from 0 to 65535, found \"7\"",
                "f:3:8: t.list: expected a list, found \"1\"",
            ]
        );
    }

    #[test]
    fn a_variable_is_blamed_for_what_it_says_and_for_nothing_else() {
        let (_, problems) = read::<Everything>(
            "[t]\ncount = 1\non = 5",
            &[
                ("CHINWAG_T__COUNT", "-3"),
                ("CHINWAG_T__LIST", "1,two"),
                ("CHINWAG_T__WODRS", "x"),
            ],
        );
        assert_eq!(
            problems,
            [
                "f:3:6: t.on: expected true or false, found 5",
                "CHINWAG_T__COUNT: t.count: expected a whole number from 0 to 65535, found -3",
                "CHINWAG_T__LIST: t.list[1]: expected a whole number from 0 to 255, found \"two\"",
                "CHINWAG_T__WODRS: t: unknown key `wodrs`; did you mean `words`?",
            ]
        );
    }

    #[test]
    fn the_types_of_the_core_are_read_from_either() {
        let (room, problems) = read::<RoomConfig>(
            "[t]\nhistory = { events = 1, bytes = \"1KiB\", age = \"1s\" }\n",
            &[
                ("CHINWAG_T__SENDS__RATE", "5"),
                ("CHINWAG_T__SENDS__PER", "1s"),
                ("CHINWAG_T__SENDS__BURST", "5"),
                ("CHINWAG_T__HISTORY__EVENTS", "9"),
                ("CHINWAG_T__VALIDATORS", "length, not_empty"),
                ("CHINWAG_T__LINGER", "3m"),
            ],
        );
        assert_eq!(problems, [""; 0]);
        let room = room.unwrap();
        assert_eq!(room.history.events, 9);
        assert_eq!(room.history.bytes, Size(1 << 10));
        assert_eq!(room.validators, ["length", "not_empty"]);
    }
}
