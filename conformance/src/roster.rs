//! Who is in a room, built from `init`, pages of `users` and events, in whatever order they arrive.

use std::collections::BTreeMap;

use serde_json::Value;

/// When something was true: the form that membership is told in has changed so often, and this is the `seq` or the
/// `rev` since.
type Stamp = (u64, u64);

/// The newest fact about each name wins, so that applying one late does no harm.
#[derive(Debug, Clone)]
pub(crate) struct Roster {
    facts: BTreeMap<String, (Stamp, bool)>,
    form: Form,
    changes: u64,
    /// Where the next page begins, while there is more.
    more: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Form {
    Each,
    Batched,
    Off,
}

impl Roster {
    /// What an `init` tells.
    pub(crate) fn new(init: &Value) -> Self {
        let form = match init["presence"].as_str() {
            Some("each") => Form::Each,
            Some("batched") => Form::Batched,
            Some("off") => Form::Off,
            _ => panic!("no such presence: {init}"),
        };
        let mut roster = Self {
            facts: BTreeMap::new(),
            form,
            changes: 0,
            more: None,
        };
        if form == Form::Off {
            assert!(
                init["users"].as_array().is_none_or(Vec::is_empty),
                "names are not told: {init}"
            );
            return roster;
        }
        let users = init["users"].as_array().expect("init has users");
        let count = init["count"].as_u64().expect("init has a count");
        let last = users
            .last()
            .filter(|_| (users.len() as u64) < count)
            .and_then(Value::as_str);
        assert!(users.len() as u64 <= count, "{init}");
        roster.tell(init, None, last.map(str::to_owned));
        roster
    }

    /// After which name the next page begins; `None` when everything was fetched.
    pub(crate) fn more(&self) -> Option<&str> {
        self.more.as_deref()
    }

    /// A page of `users` that was asked for with `after`.
    pub(crate) fn page(&mut self, page: &Value, after: Option<&str>) {
        let next = page["next"].as_str().map(str::to_owned);
        self.tell(page, after, next);
    }

    /// An event of the room.
    pub(crate) fn event(&mut self, event: &Value) {
        match event["type"].as_str() {
            Some(kind @ ("join" | "leave")) => {
                self.turn(Form::Each);
                let stamp = (self.changes, event["seq"].as_u64().expect("it is numbered"));
                let user = event["user"].as_str().expect("it has a user");
                self.learn(user, stamp, kind == "join");
            }
            Some("presence") if !event["rev"].is_null() => {
                self.turn(Form::Batched);
                let stamp = (
                    self.changes,
                    event["rev"].as_u64().expect("rev is a number"),
                );
                for (key, present) in [("joined", true), ("left", false)] {
                    for user in event[key].as_array().into_iter().flatten() {
                        self.learn(user.as_str().expect("a name"), stamp, present);
                    }
                }
            }
            _ => {}
        }
    }

    /// The names, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let present = self.facts.iter().filter(|(_, (_, present))| *present);
        present.map(|(name, _)| name.clone()).collect()
    }

    /// A list of names that is complete from `after` up to `to`, as of its own stamp.
    fn tell(&mut self, page: &Value, after: Option<&str>, to: Option<String>) {
        let number = |key: &str| page[key].as_u64();
        let (form, number) = match number("rev") {
            Some(rev) => (Form::Batched, rev),
            None => (Form::Each, number("seq").expect("a page has a seq")),
        };
        // A page may be ahead of the events that tell of the same change of form.
        let stamp = (self.changes + u64::from(form != self.form), number);
        let within = |name: &str| {
            after.is_none_or(|after| name > after) && to.as_deref().is_none_or(|to| name <= to)
        };
        let named: Vec<&str> = page["users"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        assert!(named.is_sorted(), "pages are in order of name: {named:?}");
        for (name, fact) in &mut self.facts {
            if within(name) && fact.0 <= stamp && !named.contains(&name.as_str()) {
                *fact = (stamp, false);
            }
        }
        for name in named {
            assert!(
                within(name),
                "{name} does not belong to the page after {after:?}"
            );
            self.learn(name, stamp, true);
        }
        self.more = to;
    }

    fn learn(&mut self, name: &str, stamp: Stamp, present: bool) {
        let fact = self
            .facts
            .entry(name.to_owned())
            .or_insert((stamp, present));
        if fact.0 <= stamp {
            *fact = (stamp, present);
        }
    }

    fn turn(&mut self, form: Form) {
        if self.form != form {
            self.form = form;
            self.changes += 1;
        }
    }
}
