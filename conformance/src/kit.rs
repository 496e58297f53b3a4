//! What the scenarios are played with: the transports under test and those that they are mixed with.

use std::sync::Arc;

use crate::{Delivery, FrontEnd, Over, Setup};

/// The transports under test, and the mixes that scripts are played over.
#[derive(Debug, Clone)]
pub struct Kit {
    front_ends: Vec<Arc<dyn FrontEnd>>,
    subjects: Vec<String>,
    mixes: Vec<Vec<String>>,
}

impl Kit {
    /// The three transports that chinwag has: each alone, and all of them together in every order of coming.
    #[must_use]
    pub fn builtin() -> Self {
        let names = Over::ALL.map(|over| over.table().to_owned());
        let [line, web, poll] = &names;
        Self {
            front_ends: Over::ALL.map(|over| Arc::new(over) as _).to_vec(),
            mixes: mixes([
                [line, line, line],
                [web, web, web],
                [poll, poll, poll],
                [line, web, poll],
                [web, poll, line],
                [poll, line, web],
            ]),
            subjects: names.to_vec(),
        }
    }

    /// A transport of one's own: alone, and with each of those that chinwag has in the same rooms.
    ///
    /// # Panics
    /// If its name is that of a table of theirs: `line`, `web` or `poll`.
    #[must_use]
    pub fn of(front_end: impl FrontEnd) -> Self {
        let [line, web, poll] = Over::ALL.map(Over::table);
        let own = front_end.name().to_owned();
        assert!(![line, web, poll].contains(&&*own), "{own} is taken");
        let mut front_ends: Vec<Arc<dyn FrontEnd>> = vec![Arc::new(front_end)];
        front_ends.extend(Over::ALL.map(|over| Arc::new(over) as _));
        Self {
            front_ends,
            mixes: mixes([
                [&own, &own, &own],
                [&own, line, web],
                [poll, &own, line],
                [web, poll, &own],
            ]),
            subjects: vec![own],
        }
    }

    /// Three transports of one's own, together in every order of coming and with no other.
    #[must_use]
    pub fn together(front_ends: [impl FrontEnd; 3]) -> Self {
        let front_ends = front_ends.map(|front_end| Arc::new(front_end) as Arc<dyn FrontEnd>);
        let names = front_ends
            .each_ref()
            .map(|front_end| front_end.name().to_owned());
        let [one, two, three] = &names;
        Self {
            mixes: mixes([[one, two, three], [two, three, one], [three, one, two]]),
            subjects: names.to_vec(),
            front_ends: front_ends.to_vec(),
        }
    }

    /// A server with all of them, for anonymous users.
    #[must_use]
    pub fn setup(&self) -> Setup {
        Setup::with(self.front_ends.iter().cloned())
    }

    /// The same with more tables.
    #[must_use]
    pub fn tables(&self, tables: &str) -> Setup {
        self.setup().and(tables)
    }

    /// The names of the transports under test.
    pub(crate) fn all(&self) -> impl Iterator<Item = &str> {
        self.subjects.iter().map(String::as_str)
    }

    /// Those that keep a connection open.
    pub(crate) fn push(&self) -> impl Iterator<Item = &str> {
        self.all().filter(|name| self.is_push(name))
    }

    /// A transport for a witness of what happens on `than`: another one, and one that has a connection if there is one.
    pub(crate) fn other(&self, than: &str) -> &str {
        let others = || self.front_ends.iter().map(|front_end| front_end.name());
        others()
            .find(|name| *name != than && self.is_push(name))
            .expect("there are three transports at least")
    }

    pub(crate) fn is_push(&self, name: &str) -> bool {
        let is_it = |front_end: &&Arc<dyn FrontEnd>| front_end.name() == name;
        let found = self.front_ends.iter().find(is_it);
        found.is_some_and(|front_end| front_end.delivery() == Delivery::Push)
    }

    /// Plays `script` over every mix, each on a server of its own with default limits.
    pub(crate) async fn check(&self, script: &str) {
        self.check_with(self.setup(), script).await;
    }

    /// The same on servers with this setup.
    pub(crate) async fn check_with(&self, setup: Setup, script: &str) {
        setup.play(&self.mixes, script).await;
    }

    /// Plays `script` over those mixes alone in which everybody has a connection.
    pub(crate) async fn check_push(&self, script: &str) {
        let mut mixes = self.mixes.clone();
        for mix in &mut mixes {
            mix.retain(|name| self.is_push(name));
        }
        mixes.retain(|mix| !mix.is_empty());
        mixes.sort();
        mixes.dedup();
        self.setup().play(&mixes, script).await;
    }
}

fn mixes<const N: usize>(mixes: [[&str; 3]; N]) -> Vec<Vec<String>> {
    mixes.map(|mix| mix.map(str::to_owned).to_vec()).to_vec()
}
