//! A configuration as text: the TOML document with its spans, the environment merged over it by figment, and the way
//! back from a key to its place in either.

use std::{collections::BTreeMap, fmt, ops::Range, sync::Arc};

use figment::{
    Figment, Metadata, Profile, Provider, Source,
    value::{Dict, Map, Tag, Value},
};
use toml::de::{DeTable, DeValue};

use super::{
    environment::{self, Variable},
    problem::{Place, Problems},
};

/// One step down from a table or a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

/// The way from the document's root to a value. Displays as `transports.web.auth[1]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct KeyPath(pub(crate) Vec<Step>);

impl KeyPath {
    pub(crate) fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self(keys.into_iter().map(|key| Step::Key(key.into())).collect())
    }

    pub(crate) fn join(&self, steps: impl IntoIterator<Item = Step>) -> Self {
        Self(self.0.iter().cloned().chain(steps).collect())
    }

    pub(crate) fn key(&self, key: &str) -> Self {
        self.join([Step::Key(key.into())])
    }

    /// The same less its last step; the root is its own.
    pub(crate) fn up(&self) -> Self {
        Self(self.0.split_last().map_or(&[][..], |(_, up)| up).to_vec())
    }

    /// Whether it is `other`, or leads to a part of it.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if index == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Which part of an entry is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its name; where several values are at fault together, or the name is.
    Key,
    /// What it is set to.
    Value,
}

/// Where an entry stands in the text.
#[derive(Debug)]
struct Node {
    key: Range<usize>,
    value: Range<usize>,
    children: Children,
}

#[derive(Debug)]
enum Children {
    None,
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
}

/// A document whose syntax is right, with the environment merged over it.
#[derive(Debug)]
pub(crate) struct Document {
    name: Arc<str>,
    text: String,
    spans: Node,
    figment: Figment,
    merged: Value,
}

/// The document to figment: its values, without their places.
struct Text<'a> {
    name: &'a str,
    values: Dict,
}

impl Provider for Text<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::from("document", Source::File(self.name.into()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

impl Document {
    /// Parses `text`, which messages call `name`, and lays `variables` over it. `None` where the syntax is wrong: every
    /// such error is then reported, and nothing else can be said of the document.
    pub(crate) fn parse(
        name: &str,
        text: &str,
        variables: Vec<Variable>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let name: Arc<str> = name.into();
        let before = problems.errors();
        let (tree, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            problems.error(line_at(&name, text, span), error.message());
        }
        let mut values = Dict::new();
        let mut wrong = |span, message: &str| problems.error(line_at(&name, text, span), message);
        let spans = Node {
            key: 0..0,
            value: tree.span(),
            children: Children::Table(read_table(tree.get_ref(), &mut values, &mut wrong)),
        };
        if problems.errors() > before {
            return None;
        }
        let document = Text {
            name: &name,
            values,
        };
        let figment = variables
            .into_iter()
            .fold(Figment::from(document), Figment::merge);
        let merged = figment
            .find_value("")
            .expect("neither provider fails, and the empty path is the root");
        Some(Self {
            name,
            text: text.into(),
            spans,
            figment,
            merged,
        })
    }

    /// The top-level tables, environment included.
    pub(crate) fn root(&self) -> &Dict {
        self.merged
            .as_dict()
            .expect("figment merges tables into a table")
    }

    /// What the document's name is in messages.
    pub(crate) fn place(&self) -> Place {
        Place::Document {
            name: self.name.clone(),
        }
    }

    /// The variable that a value came from; `None` where it stands in the text.
    pub(crate) fn variable(&self, tag: Tag) -> Option<&str> {
        self.figment
            .get_metadata(tag)
            .filter(|metadata| {
                metadata.source.as_ref().and_then(Source::custom) == Some(environment::SOURCE)
            })
            .map(|metadata| metadata.name.as_ref())
    }

    /// Whether there is an entry at `path`.
    pub(crate) fn contains(&self, path: &KeyPath) -> bool {
        self.resolve(path).1 == path.0.len()
    }

    /// Where the entry at `path` stands, or else the nearest table around it: a defaulted key is blamed on its table.
    pub(crate) fn locate(&self, path: &KeyPath, part: Part) -> Place {
        let (value, depth) = self.resolve(path);
        let part = if depth < path.0.len() {
            Part::Key
        } else {
            part
        };
        let leaf = !matches!(value, Value::Dict(..));
        if leaf && let Some(variable) = self.variable(value.tag()) {
            return Place::Variable {
                name: variable.into(),
            };
        }
        // What is said of the root has no line: nothing stands there.
        if depth == 0 {
            return self.place();
        }
        match self.node(path.0.get(..depth).unwrap_or_default()) {
            Some(node) => {
                let range = match (part, &node.children) {
                    (Part::Value, Children::None | Children::List(_)) => &node.value,
                    _ => &node.key,
                };
                line_at(&self.name, &self.text, range.clone())
            }
            // A table that only the environment speaks of.
            None => {
                let around = KeyPath(path.0.iter().take(depth).cloned().collect());
                match self.variables(&around).first() {
                    Some(&name) => Place::Variable { name: name.into() },
                    None => self.place(),
                }
            }
        }
    }

    /// The value at `path`, or at as much of it as exists, and how many steps that is.
    fn resolve(&self, path: &KeyPath) -> (&Value, usize) {
        let mut value = &self.merged;
        for (depth, step) in path.0.iter().enumerate() {
            let next = match (step, value) {
                (Step::Key(key), Value::Dict(_, dict)) => dict.get(key),
                (Step::Index(index), Value::Array(_, list)) => list.get(*index),
                _ => None,
            };
            match next {
                Some(next) => value = next,
                None => return (value, depth),
            }
        }
        (value, path.0.len())
    }

    fn node(&self, steps: &[Step]) -> Option<&Node> {
        steps
            .iter()
            .try_fold(&self.spans, |node, step| match (step, &node.children) {
                (Step::Key(key), Children::Table(table)) => table.get(key),
                (Step::Index(index), Children::List(list)) => list.get(*index),
                _ => None,
            })
    }

    /// The variables that set the value at `path` or parts of it.
    pub(crate) fn variables(&self, path: &KeyPath) -> Vec<&str> {
        let mut found = Vec::new();
        let (value, depth) = self.resolve(path);
        if depth == path.0.len() {
            self.collect_variables(value, &mut found);
        }
        found
    }

    fn collect_variables<'a>(&'a self, value: &Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Dict(_, dict) => {
                for inner in dict.values() {
                    self.collect_variables(inner, found);
                }
            }
            _ => found.extend(self.variable(value.tag())),
        }
    }
}

/// The line that `span` begins in, with the part of it that `span` covers.
fn line_at(name: &Arc<str>, text: &str, span: Range<usize>) -> Place {
    // Spans lie on character borders; should one not, blaming its neighbour is better than a panic.
    let start = floor_border(text, span.start);
    let end = floor_border(text, span.end.max(start));
    let (before, rest) = text.split_at(start);
    let (line_start, line) = before
        .rfind('\n')
        .map_or((0, 1), |at| (at + 1, before.matches('\n').count() + 1));
    let line_end = start + rest.find('\n').unwrap_or(rest.len());
    let chars = |range: Range<usize>| text.get(range).map_or(0, |part| part.chars().count());
    let shown = text.get(line_start..line_end).unwrap_or_default();
    let shown = shown.trim_end_matches('\r');
    let may_hold_secret = is_of_plugin(text.get(..line_start).unwrap_or_default(), shown);
    Place::Line {
        name: name.clone(),
        line,
        column: chars(line_start..start) + 1,
        text: if may_hold_secret {
            masked(shown)
        } else {
            shown.into()
        },
        width: chars(start..end.min(line_end)).max(1),
    }
}

/// Whether a line belongs to the table of an authenticator or a session manager and is none that everybody may see.
/// Where the document does not parse, its lines are all there is to tell by.
fn is_of_plugin(before: &str, line: &str) -> bool {
    const SECTIONS: [&str; 2] = ["authenticators", "session_managers"];
    const HARMLESS: [&str; 7] = [
        "kind",
        "timeout",
        "file",
        "prefix",
        "shadow",
        "session_manager",
        "on_unreachable",
    ];
    let is_of_section = |line: &str| SECTIONS.iter().any(|section| line.starts_with(section));
    let line = line.trim_start();
    let key = line.split(['=', ' ', '\t']).next().unwrap_or_default();
    let last_header = || {
        before
            .lines()
            .rev()
            .map(str::trim_start)
            .find(|line| line.starts_with('['))
    };
    let is_within = is_of_section(line)
        || last_header()
            .is_some_and(|header| is_of_section(header.trim_start_matches('[').trim_start()));
    is_within && !line.starts_with('[') && !HARMLESS.contains(&key)
}

/// The line with its texts made unreadable, as wide as it was.
fn masked(line: &str) -> String {
    let mut quote = None;
    line.chars()
        .map(|c| match quote {
            None => {
                quote = matches!(c, '"' | '\'').then_some(c);
                c
            }
            Some(open) if c == open => {
                quote = None;
                c
            }
            Some(_) => '*',
        })
        .collect()
}

fn floor_border(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}

/// Copies a parsed table into figment's form and keeps where everything stood.
fn read_table(
    table: &DeTable<'_>,
    values: &mut Dict,
    wrong: &mut impl FnMut(Range<usize>, &str),
) -> BTreeMap<String, Node> {
    table
        .iter()
        .map(|(key, value)| {
            let name = key.get_ref().to_string();
            let (converted, children) = read_value(value.get_ref(), &value.span(), wrong);
            values.insert(name.clone(), converted);
            let node = Node {
                key: key.span(),
                value: value.span(),
                children,
            };
            (name, node)
        })
        .collect()
}

fn read_value(
    value: &DeValue<'_>,
    span: &Range<usize>,
    wrong: &mut impl FnMut(Range<usize>, &str),
) -> (Value, Children) {
    let leaf = |value: Value| (value, Children::None);
    match value {
        DeValue::String(text) => leaf(Value::from(text.as_ref())),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => leaf(Value::from(number)),
            Err(_) => {
                wrong(span.clone(), "the number is too large");
                leaf(Value::from(0_i64))
            }
        },
        DeValue::Float(float) => match float.as_str().parse::<f64>() {
            Ok(number) => leaf(Value::from(number)),
            Err(_) => {
                wrong(span.clone(), "no number that can be represented");
                leaf(Value::from(0.0_f64))
            }
        },
        DeValue::Boolean(boolean) => leaf(Value::from(*boolean)),
        // figment has no dates, and no key of ours is one.
        DeValue::Datetime(datetime) => leaf(Value::from(datetime.to_string())),
        DeValue::Array(array) => {
            let (values, nodes): (Vec<Value>, Vec<Node>) = array
                .iter()
                .map(|item| {
                    let (converted, children) = read_value(item.get_ref(), &item.span(), wrong);
                    let node = Node {
                        key: item.span(),
                        value: item.span(),
                        children,
                    };
                    (converted, node)
                })
                .unzip();
            (Value::from(values), Children::List(nodes))
        }
        DeValue::Table(table) => {
            let mut values = Dict::new();
            let children = read_table(table, &mut values, wrong);
            (Value::from(values), Children::Table(children))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
[limits]
rooms = 5
sends = { rate = 1, per = \"1s\" }

[transports.\"odd name\"]
auth = [
  \"a\",
  \"b\",
]

[transports]
web.bind = \"x\" # ä
";

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Document, String> {
        let mut problems = Problems::default();
        let variables = environment::overrides(
            variables
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
            &mut problems,
        );
        let document = Document::parse("f.toml", text, variables, &mut problems);
        document.ok_or_else(|| problems.into_result().unwrap_err().to_string())
    }

    fn place(document: &Document, path: KeyPath, part: Part) -> String {
        match document.locate(&path, part) {
            Place::Document { name } | Place::Variable { name } => name.to_string(),
            Place::Line {
                line,
                column,
                width,
                ..
            } => format!("{line}:{column}+{width}"),
        }
    }

    #[test]
    fn a_line_that_may_hold_a_secret_is_masked() {
        let text = "\
[authenticators.api]
kind = \"tokens\"
tokens = { alice = \"hunter2\", bob = 7 }
[authenticators.api.more]
key = 'hunter3' # \"hunter4\"
[session_managers.api]
bearer = \"hunter5\"
[transports.web]
bind = \"here\"
";
        let document = parse(text, &[]).unwrap();
        let line = |path: &str| match document.locate(&KeyPath::new(path.split('/')), Part::Value) {
            Place::Line { text, .. } => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            line("authenticators/api/tokens/bob"),
            "tokens = { alice = \"*******\", bob = 7 }"
        );
        assert_eq!(
            line("authenticators/api/more/key"),
            "key = '*******' # \"*******\""
        );
        assert_eq!(line("authenticators/api/kind"), "kind = \"tokens\"");
        assert_eq!(line("session_managers/api/bearer"), "bearer = \"*******\"");
        assert_eq!(line("transports/web/bind"), "bind = \"here\"");
        let broken = parse("[authenticators.api]\ntoken = \"hunter2\" x\n", &[]);
        assert!(broken.is_err_and(|error| !error.contains("hunter2")));
    }

    #[test]
    fn every_entry_is_found_where_it_stands() {
        let document = parse(TEXT, &[]).unwrap();
        let key = |path: &str, part| place(&document, KeyPath::new(path.split('/')), part);
        assert_eq!(key("limits", Part::Key), "1:2+6");
        assert_eq!(key("limits", Part::Value), "1:2+6");
        assert_eq!(key("limits/rooms", Part::Key), "2:1+5");
        assert_eq!(key("limits/rooms", Part::Value), "2:9+1");
        assert_eq!(key("limits/sends/rate", Part::Value), "3:18+1");
        assert_eq!(key("transports/odd name", Part::Key), "5:13+10");
        assert_eq!(key("transports/web/bind", Part::Value), "12:12+3");
        let second = KeyPath::new(["transports", "odd name", "auth"]).join([Step::Index(1)]);
        assert_eq!(place(&document, second, Part::Value), "8:3+3");
    }

    #[test]
    fn what_is_not_there_is_blamed_on_the_table_around_it() {
        let document = parse(TEXT, &[]).unwrap();
        let key = |path: &str| place(&document, KeyPath::new(path.split('/')), Part::Value);
        assert_eq!(key("limits/frame_bytes"), "1:2+6");
        assert_eq!(key("limits/sends/burst"), "3:1+5");
        assert_eq!(key("names/min"), "f.toml");
    }

    #[test]
    fn what_a_variable_says_is_blamed_on_the_variable() {
        let document = parse(
            TEXT,
            &[
                ("CHINWAG_LIMITS__ROOMS", "7"),
                ("CHINWAG_LIMITS__SENDS__BURST", "7"),
                ("CHINWAG_NAMES__MIN", "7"),
            ],
        )
        .unwrap();
        let key = |path: &str| place(&document, KeyPath::new(path.split('/')), Part::Value);
        assert_eq!(key("limits/rooms"), "CHINWAG_LIMITS__ROOMS");
        assert_eq!(key("limits/sends/burst"), "CHINWAG_LIMITS__SENDS__BURST");
        assert_eq!(key("limits/sends/rate"), "3:18+1");
        assert_eq!(key("names"), "CHINWAG_NAMES__MIN");
        assert_eq!(key("names/max"), "CHINWAG_NAMES__MIN");
    }

    #[test]
    fn every_error_of_syntax_is_told_and_a_number_has_64_bits() {
        assert_eq!(
            parse("a = 1\na = 2\nb = \n", &[]).unwrap_err(),
            "\
f.toml:2:1: error: duplicate key
 2 | a = 2
   | ^

f.toml:3:5: error: string values must be quoted, expected literal string
 3 | b = 
   |     ^"
        );
        assert_eq!(
            parse("a = 99999999999999999999", &[]).unwrap_err(),
            "f.toml:1:5: error: the number is too large\n 1 | a = 99999999999999999999\n   |     ^^^^^^^^^^^^^^^^^^^^"
        );
        let document = parse("a = -0x1\n", &[]);
        assert!(document.is_err(), "{document:?}");
        let document = parse("a = 1_000\nb = 0xff\nc = -5", &[]).unwrap();
        let number = |key| document.root()[key].to_i128();
        assert_eq!(number("a"), Some(1000));
        assert_eq!(number("b"), Some(255));
        assert_eq!(number("c"), Some(-5));
    }

    #[test]
    fn the_last_line_may_have_no_end_and_lines_may_end_as_on_windows() {
        assert_eq!(
            parse("a = 1\r\na = 2", &[]).unwrap_err(),
            "f.toml:2:1: error: duplicate key\n 2 | a = 2\n   | ^"
        );
        assert_eq!(
            parse("a = 1\r\nb c\r\n", &[]).unwrap_err().lines().nth(1),
            Some(" 2 | b c")
        );
    }
}
