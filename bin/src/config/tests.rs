//! What the loader says of whole documents: a table of wrong ones, with the exact text, and the right ones.

use std::path::Path;

use super::*;

#[cfg(all(
    feature = "tcp",
    feature = "websocket",
    feature = "http-polling",
    feature = "anonymous",
    feature = "password",
    feature = "web"
))]
mod with_every_kind {
    use super::*;

    /// What most documents below need besides what they are about.
    const REST: &str = "
[transports.line]
kind = \"tcp\"
bind = \"127.0.0.1:0\"
auth = [\"guests\"]
[authenticators.guests]
kind = \"anonymous\"
";

    /// Loads `document` with `variables`; documents that have no transport of their own get [`REST`].
    async fn load(
        document: &str,
        variables: &[(&str, &str)],
        builtin: bool,
    ) -> Result<Loaded, ConfigError> {
        let text = if document.contains("transports") {
            document.to_owned()
        } else {
            format!("{document}{REST}")
        };
        let source = Source {
            name: "chat.toml",
            text: &text,
            base: Path::new("/nonexistent"),
            builtin,
        };
        let variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        let lifecycle = Lifecycle::new();
        let loaded = async {
            Draft::read(&Plugins::builtin(), source, variables)?
                .build(&lifecycle)
                .await
        }
        .await;
        lifecycle.kill();
        loaded
    }

    async fn right(document: &str) -> Loaded {
        match load(document, &[], false).await {
            Ok(loaded) => loaded,
            Err(error) => panic!("{error}"),
        }
    }

    /// Documents with mistakes: a name behind `====`, variables behind `$`, then the text.
    const WRONG: &str = include_str!("wrong_documents.txt");

    /// The snapshot is what an operator reads: review it as a whole.
    #[tokio::test]
    async fn wrong_documents() {
        let mut text = String::new();
        for row in WRONG.split("==== ").skip(1) {
            let (name, rest) = row.split_once('\n').unwrap();
            let mut variables = Vec::new();
            let mut document = String::new();
            for line in rest.lines() {
                match line.strip_prefix("$ ") {
                    Some(variable) => variables.push(variable.split_once('=').unwrap()),
                    None => document = document + line + "\n",
                }
            }
            let Err(error) = load(&document, &variables, false).await else {
                panic!("{name}: nothing was found wrong")
            };
            let _ = write!(text, "==== {name}\n\n{error}\n\n");
        }
        insta::assert_snapshot!("wrong_documents", text);
    }

    #[tokio::test]
    async fn what_may_not_be_meant_is_warned_of_and_loads() {
        let loaded = right(
            "
[sessions]
timeout = \"0s\"
[transports.a]
kind = \"tcp\"
bind = \"127.0.0.1:0\"
timeout = \"0s\"
[transports.b]
kind = \"tcp\"
bind = \"127.0.0.1:0\"
auth = []
[authenticators.others]
kind = \"anonymous\"
",
        )
        .await;
        let warnings: Vec<String> = loaded.warnings.iter().map(Problem::brief).collect();
        assert_eq!(
            warnings,
            [
                "chat.toml:3:11: sessions.timeout: silence never ends a session",
                "chat.toml:4:13: transports.a: nobody gets in without `auth`, the authenticators that it asks",
                "chat.toml:7:11: transports.a.timeout: silence never ends a session of this transport",
                "chat.toml:11:1: transports.b: nobody gets in without `auth`, the authenticators that it asks",
                "chat.toml:12:17: authenticators.others: no transport asks it in `auth`, and it is nobody's `shadow`",
            ]
        );
        assert_eq!(loaded.warnings[0].severity(), Severity::Warning);
    }

    #[tokio::test]
    async fn guests_from_other_machines_are_warned_of() {
        let document = |bind: &str| {
            format!(
                "[transports.line]\nkind = \"tcp\"\nbind = \"{bind}:0\"\ninsecure = true\nauth = [\"guests\"]\n\
                 [authenticators.guests]\nkind = \"anonymous\"\nallow_public = true\n"
            )
        };
        let warnings = |loaded: Loaded| {
            loaded
                .warnings
                .iter()
                .map(Problem::brief)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            warnings(right(&document("0.0.0.0")).await),
            [
                "chat.toml:8:16: authenticators.guests.allow_public: anybody who reaches transports.line logs in without a password"
            ]
        );
        assert_eq!(warnings(right(&document("127.0.0.1")).await), [""; 0]);
    }

    #[tokio::test]
    async fn the_built_in_document_is_right_and_without_a_warning() {
        let loaded = load(BUILTIN, &[], true).await.unwrap();
        assert_eq!(loaded.warnings, []);
        let names: Vec<_> = loaded
            .transports
            .iter()
            .map(|transport| (transport.name.as_str(), transport.kind.as_str()))
            .collect();
        assert_eq!(
            names,
            [
                ("line", "tcp"),
                ("poll", "http-polling"),
                ("web", "websocket")
            ]
        );
        for transport in &loaded.transports {
            assert!(transport.listener.bind.ip().is_loopback());
            assert_eq!(transport.auth.len(), 1);
        }
    }

    /// The built-in document writes every default out: were one to differ from what a file without the key gets, the
    /// documentation would be wrong.
    #[tokio::test]
    async fn every_default_is_the_documented_one() {
        let tables = |loaded: &Loaded| -> BTreeMap<String, String> {
            loaded
                .effective
                .iter()
                .filter(|(table, _)| !table.contains('.') && table != "metrics" && table != "web")
                .map(|(table, text)| (table.clone(), text.replace("Some(\"lobby\")", "None")))
                .collect()
        };
        let documented = load(BUILTIN, &[], true).await.unwrap();
        let defaults = right("").await;
        assert_eq!(tables(&documented), tables(&defaults));
        assert_eq!(tables(&defaults).len(), 7);

        let minimal = right(
            "
[transports.web]
kind = \"websocket\"
bind = \"127.0.0.1:8080\"
[transports.poll]
kind = \"http-polling\"
bind = \"127.0.0.1:8080\"
[transports.line]
kind = \"tcp\"
bind = \"127.0.0.1:4020\"
timeout = \"0s\"
",
        )
        .await;
        let listeners = |loaded: &Loaded| -> Vec<ListenerConfig> {
            loaded
                .transports
                .iter()
                .map(|transport| transport.listener.clone())
                .collect()
        };
        assert_eq!(listeners(&documented), listeners(&minimal));
    }

    #[tokio::test]
    async fn variables_override_the_file_and_add_to_it() {
        let loaded = load(
            "[limits]\nrooms = 5\nsends = { rate = 1, per = \"1s\", burst = 1 }\n",
            &[
                ("CHINWAG_LIMITS__ROOMS", "7"),
                ("CHINWAG_LIMITS__SENDS__BURST", "9"),
                ("CHINWAG_TRANSPORTS__LINE__AUTH", ""),
                ("CHINWAG_TRANSPORTS__EXTRA__KIND", "tcp"),
                ("CHINWAG_TRANSPORTS__EXTRA__BIND", "127.0.0.1:0"),
                ("CHINWAG_TRANSPORTS__EXTRA__AUTH", "guests"),
                ("CHINWAG_TRANSPORTS__EXTRA__MAX_CONNECTIONS", "12"),
                ("CHINWAG_METRICS__BIND", "127.0.0.1:0"),
                ("CHINWAG_HOME", "is nothing of ours"),
            ],
            false,
        )
        .await
        .unwrap();
        assert_eq!(loaded.hub.limits.rooms, 7);
        assert_eq!(
            format!("{:?}", loaded.hub.limits.sends),
            "Limited { rate: 1, per: 1s, burst: 9 }"
        );
        let [extra, line] = loaded.transports.as_slice() else {
            panic!("two transports")
        };
        assert_eq!(line.auth.len(), 0);
        assert_eq!(extra.auth.len(), 1);
        assert_eq!(extra.listener.max_connections, 12);
        assert!(loaded.metrics.is_some());
    }

    #[tokio::test]
    async fn a_room_inherits_what_it_does_not_say() {
        let loaded = right(
            "
[room]
members = 7
history = { events = 1, bytes = \"1KiB\", age = \"1s\" }
[rooms.games]
match = \"game:*\"
members = 9
[rooms.hall]
history = { events = 2, bytes = \"2KiB\", age = \"2s\" }
",
        )
        .await;
        let [(_, games_match, games), (_, hall_match, hall)] = loaded.hub.rooms.as_slice() else {
            panic!("two rooms")
        };
        assert_eq!(*games_match, "game:*".parse().unwrap());
        assert_eq!(*hall_match, "hall".parse().unwrap());
        assert_eq!((games.members, games.history.events), (9, 1));
        assert_eq!((hall.members, hall.history.events), (7, 2));
    }

    #[tokio::test]
    async fn no_secret_is_among_the_effective_values() {
        let loaded = right(REST).await;
        assert!(
            loaded
                .effective
                .iter()
                .any(|(table, text)| table == "transports.line" && text.contains("tcp")),
            "{:?}",
            loaded.effective
        );
        for (table, text) in &loaded.effective {
            assert!(
                !table.starts_with("authenticators.") || !text.contains('"'),
                "{table}: {text}"
            );
        }
    }

    #[cfg(all(feature = "http", feature = "exec"))]
    #[tokio::test]
    async fn the_sum_of_memory_is_of_what_applies_wherever_it_is_said() {
        let document = format!(
            "
[server]
memory_budget = \"1000GiB\"
[transports.line]
kind = \"tcp\"
bind = \"127.0.0.1:0\"
auth = [\"members\"]
[authenticators.members]
kind = \"password\"
file = \"{}/../configs/users.txt\"
hash_threads = 3
session_manager = \"books\"
[session_managers.books]
kind = \"exec\"
command = [\"cat\"]
notices = {{ queue = 5 }}
[control]
bind = \"127.0.0.1:0\"
",
            env!("CARGO_MANIFEST_DIR")
        );
        for (variables, parts) in [
            (
                &[][..],
                [
                    "hash_threads 3 x",
                    "notices.queue 5 x 1KiB + bytes 64MiB",
                    "control.max_connections 256 x",
                ],
            ),
            (
                &[
                    ("CHINWAG_AUTHENTICATORS__MEMBERS__HASH_THREADS", "7"),
                    ("CHINWAG_SESSION_MANAGERS__BOOKS__NOTICES__QUEUE", "6"),
                    ("CHINWAG_SESSION_MANAGERS__BOOKS__NOTICES__BYTES", "1MiB"),
                    ("CHINWAG_CONTROL__MAX_CONNECTIONS", "20"),
                ],
                [
                    "hash_threads 7 x",
                    "notices.queue 6 x 1KiB + bytes 1MiB",
                    "control.max_connections 20 x",
                ],
            ),
        ] {
            let loaded = load(&document, variables, false).await;
            let worst = loaded.unwrap_or_else(|error| panic!("{error}")).memory;
            let text = worst.expect("there is a budget").to_string();
            for part in parts {
                assert!(text.contains(part), "{part:?} is missing:\n{text}");
            }
        }
    }

    /// The configuration of the page that `[web]` and `transports` make.
    async fn page(transports: &str) -> PageConfig {
        let document = format!(
            "
{transports}
[web]
bind = \"127.0.0.1:0\"
[authenticators.guests]
kind = \"anonymous\"
prefix = \"~\"
[authenticators.members]
kind = \"password\"
file = \"{}/../configs/users.txt\"
",
            env!("CARGO_MANIFEST_DIR")
        );
        right(&document).await.page.expect("there is a page")
    }

    #[tokio::test]
    async fn the_page_is_told_where_to_log_in_and_with_what() {
        use crate::web::Passwords;

        let told = page(
            "
[server]
default_room = \"hall\"
[names]
max = 8
charset = \"unicode\"
[transports.other]
kind = \"websocket\"
bind = \"127.0.0.2:0\"
path = \"/other\"
[transports.push]
kind = \"websocket\"
bind = \"127.0.0.1:0\"
path = \"/push\"
hosts = [\"chat.example\"]
auth = [\"guests\"]
",
        )
        .await;
        assert_eq!(told.transport, "push");
        assert_eq!(
            serde_json::to_value(told.settings).unwrap(),
            serde_json::json!({
                "websocket": "/push", "polling": false, "room": "hall", "password": "none",
                "names": "1 to 8 letters or digits of any script, without spaces",
            })
        );

        let poll = "[transports.poll]\nkind = \"http-polling\"\nbind = \"127.0.0.1:0\"\nauth = ";
        for (auth, password) in [
            ("[]", Passwords::None),
            ("[\"guests\"]", Passwords::None),
            ("[\"members\"]", Passwords::Required),
            ("[\"members\", \"guests\"]", Passwords::Optional),
        ] {
            let told = page(&format!("{poll}{auth}")).await;
            assert_eq!(told.transport, "poll");
            assert_eq!(told.settings.password, password, "{auth}");
            assert_eq!(
                (told.settings.websocket, told.settings.polling),
                (None, true)
            );
        }
    }

    #[tokio::test]
    async fn ports_of_the_systems_choice_clash_with_nothing() {
        let loaded = right(
            "
[transports.a]
kind = \"tcp\"
bind = \"127.0.0.1:0\"
[transports.b]
kind = \"tcp\"
bind = \"127.0.0.1:0\"
[transports.c]
kind = \"websocket\"
bind = \"127.0.0.1:0\"
[transports.d]
kind = \"http-polling\"
bind = \"127.0.0.1:0\"
[metrics]
bind = \"127.0.0.1:0\"
",
        )
        .await;
        assert_eq!(loaded.transports.len(), 4);
    }
}

/// Kinds of this test's own, so that it holds whatever features a build has.
#[tokio::test]
async fn a_kind_that_was_left_out_is_named_so() {
    let source = Source {
        name: "chat.toml",
        text: "[transports.a]\nkind = \"websocket\"\n[authenticators.b]\nkind = \"password\"\n",
        base: Path::new(""),
        builtin: false,
    };
    let error = match Draft::read(&Plugins::empty(), source, []) {
        Ok(draft) => draft.build(&Lifecycle::new()).await.err(),
        Err(error) => Some(error),
    };
    let error = error.unwrap().to_string();
    let expected = if cfg!(feature = "websocket") {
        "transports.a: unknown kind \"websocket\"; this binary has none"
    } else {
        "transports.a: this binary is built without `websocket`; this binary has none"
    };
    assert!(error.contains(expected), "{error}");
}
