//! `chinwag auth test`: a log-in put to a transport's authenticators without a server.

use serde_json::{Value, json};

use crate::harness::{Authority, Program, STAFF, Setup};

/// Members and guests on a transport, and for members a shadow that knows one of them under another password.
const TABLES: &str = r#"
[transports.door]
kind = "tcp"
bind = "127.0.0.1:0"
auth = ["staff", "guests"]
[authenticators.staff]
kind = "password"
file = "users.txt"
shadow = "next"
[authenticators.next]
kind = "password"
file = "next.txt"
[authenticators.guests]
kind = "anonymous"
prefix = "~"
[transports.strict]
kind = "tcp"
bind = "127.0.0.1:0"
auth = ["staff"]
[transports.down]
kind = "tcp"
bind = "127.0.0.1:0"
auth = ["backend", "guests"]
[authenticators.backend]
kind = "http"
endpoints = ["http://127.0.0.1:1/"]
timeout = "2s"
[log]
level = "error"
"#;

/// A folder with that document as `chinwag.toml`, and what it names.
fn folder(document: &str) -> tempfile::TempDir {
    let folder = Setup::default().folder();
    let (alice, bob) = (STAFF[0], STAFF[1]);
    let next = format!("{}:{}\n", alice.0, bob.2);
    std::fs::write(folder.path().join("next.txt"), next).unwrap();
    std::fs::write(folder.path().join("chinwag.toml"), document).unwrap();
    folder
}

/// Runs the command on the document in `folder`: exit code and output.
async fn run(folder: &tempfile::TempDir, arguments: &[&str], input: &str) -> (i32, String) {
    let file = folder.path().join("chinwag.toml");
    let mut all = vec!["auth", "test", "--config", file.to_str().unwrap()];
    all.extend(arguments);
    let (code, out, err) = Program::run(&all, input).await;
    (code.expect("it was not killed"), out + &err)
}

/// The output with every time left out, and what is padded for it.
fn timeless(output: &str) -> String {
    let words = output.lines().map(|line| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        while let Some(at) = words.iter().position(|word| *word == "ms") {
            words.drain(at - 1..=at);
        }
        words.join(" ")
    });
    words.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_is_told_and_the_exit_says_the_verdict() {
    let folder = folder(TABLES);
    for (arguments, input, code, told) in [
        (
            &["-t", "door", "-u", "alice"][..],
            "wonderland\n",
            0,
            "transports.door is asked for user alice with a password, from 127.0.0.1\n\
             1 staff allow as alice\n\
             next deny shadow, differs; wrong_secret: wrong password\n\
             guests not asked\n\
             let in as alice",
        ),
        (
            &["-t", "door", "-u", "alice", "--address", "192.0.2.7"],
            "builder",
            3,
            "transports.door is asked for user alice with a password, from 192.0.2.7\n\
             1 staff deny wrong_secret: wrong password\n\
             next allow shadow, differs; as alice\n\
             guests not asked\n\
             denied",
        ),
        (
            &["-t", "door", "-u", "eve", "--no-password"],
            "",
            0,
            "transports.door is asked for user eve without a password, from 127.0.0.1\n\
             1 staff abstain\n\
             next abstain shadow, agrees\n\
             2 guests allow as ~eve\n\
             let in as ~eve",
        ),
        (
            &["-t", "strict", "--token"],
            "token\n",
            3,
            "transports.strict is asked for a token, from 127.0.0.1\n\
             1 staff abstain\n\
             next abstain shadow, agrees\n\
             denied: no authenticator knows what was presented",
        ),
        (
            &["-t", "door", "-u", "e v e", "--no-password"],
            "",
            4,
            "transports.door is asked for user e v e without a password, from 127.0.0.1\n\
             1 staff abstain\n\
             next abstain shadow, agrees\n\
             2 guests allow as ~e v e\n\
             refused: A name consists of letters, digits, \"_\", \"-\" and \".\".",
        ),
    ] {
        let (exit, output) = run(&folder, arguments, input).await;
        assert_eq!(timeless(&output), told, "{arguments:?}");
        assert_eq!(exit, code, "{arguments:?}");
    }
    let (exit, output) = run(&folder, &["-t", "down", "-u", "alice"], "x\n").await;
    assert_eq!(exit, 5, "{output}");
    assert!(output.contains("unavailable: try again in"), "{output}");
    assert!(output.contains("guests   not asked"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_whose_name_begins_as_guests_do_is_refused_on_every_transport() {
    let folder = folder(TABLES);
    let users = format!("~ada:{}\n", STAFF[0].2);
    std::fs::write(folder.path().join("users.txt"), users).unwrap();
    for transport in ["door", "strict"] {
        let arguments = ["-t", transport, "-u", "~ada"];
        let (exit, output) = run(&folder, &arguments, "wonderland\n").await;
        assert_eq!(exit, 4, "{output}");
        let told = timeless(&output);
        assert!(told.contains("staff allow as ~ada"), "{output}");
        let refused = "refused: The name begins as those of guests do here.";
        assert!(told.ends_with(refused), "{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_json_it_tells_the_same() {
    let folder = folder(TABLES);
    let arguments = ["-t", "door", "-u", "alice", "--json"];
    let (exit, output) = run(&folder, &arguments, "wonderland\n").await;
    assert_eq!(exit, 0, "{output}");
    let mut report: Value = serde_json::from_str(&output).unwrap();
    for pointer in ["/steps/0/ms", "/steps/0/shadow/ms"] {
        let time = report.pointer_mut(pointer).unwrap().take();
        assert!(time.as_f64().is_some_and(|time| time > 0.0), "{time}");
    }
    let plain = |user: &str| json!({"user": user, "roles": [], "rooms": null, "expires_at": null, "limits": {}});
    let expected = json!({
        "transport": "door",
        "address": "127.0.0.1",
        "steps": [{
            "authenticator": "staff", "verdict": "allow", "ms": null, "principal": plain("alice"),
            "shadow": {
                "authenticator": "next", "verdict": "deny", "ms": null, "denial": "wrong_secret",
                "reason": "wrong password", "public": null, "agrees": false,
            },
        }],
        "not_asked": ["guests"],
        "outcome": "let in",
        "user": "alice",
        "principal": plain("alice"),
    });
    assert_eq!(report, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_tested_is_said() {
    let folder = folder(TABLES);
    for (arguments, code, said) in [
        (&["-t", "dor", "-u", "x"][..], 1, "there are"),
        (&["-t", "door"], 64, "--user"),
        (&["-u", "x"], 64, "--transport"),
        (&["-t", "door", "-u", "x", "--token"], 64, "--token"),
        (&["-t", "door", "--cert", "nowhere.pem"], 1, "nowhere.pem"),
        (&["-t", "door", "-u", "x", "--header", "odd"], 64, "a colon"),
    ] {
        let (exit, output) = run(&folder, arguments, "x\n").await;
        assert_eq!(exit, code, "{arguments:?}: {output}");
        assert!(output.contains(said), "{arguments:?}: {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_judged_as_at_the_door() {
    let tables = format!(
        "{TABLES}\n{}",
        r#"
[tls.public]
cert = "server.pem"
key = "server.key"
client_ca = "clients.pem"
client_cert = "required"
[transports.certs]
kind = "tcp"
bind = "127.0.0.1:0"
tls = "public"
auth = ["devices"]
[authenticators.devices]
kind = "certificate"
user = "san-email"
"#
    );
    let folder = folder(&tables);
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let (ours, theirs) = (Authority::root("Ours"), Authority::root("Theirs"));
    for (name, text) in certificates(&ours, &theirs) {
        put(name, &text);
    }
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (cert, user, code, told) in [
        ("alice.pem", None, 0, "let in as alice@example.org"),
        ("alice.pem", Some("alice@example.org"), 0, "let in as"),
        ("alice.pem", Some("bob@example.org"), 3, "deny"),
        ("stranger.pem", None, 3, "refused"),
        ("nameless.pem", None, 3, "no_name"),
    ] {
        let cert = file(cert);
        let mut arguments = vec!["-t", "certs", "--cert", &cert];
        arguments.extend(user.into_iter().flat_map(|user| ["-u", user]));
        let (exit, output) = run(&folder, &arguments, "").await;
        assert_eq!(exit, code, "{arguments:?}: {output}");
        assert!(output.contains(told), "{arguments:?}: {output}");
    }
    let (exit, output) = run(&folder, &["-t", "certs", "-u", "x", "--no-password"], "").await;
    assert_eq!(exit, 3, "{output}");
    assert!(output.contains("without a certificate"), "{output}");
    let alice = file("alice.pem");
    let (exit, output) = run(&folder, &["-t", "door", "--cert", &alice], "").await;
    assert_eq!(exit, 3, "{output}");
    assert!(output.contains("speaks no TLS"), "{output}");
}

/// The server's files, whom it trusts, and clients' certificates: one that is good, one that somebody else has signed,
/// and one that names nobody.
fn certificates(ours: &Authority, theirs: &Authority) -> Vec<(&'static str, String)> {
    let server = ours.server();
    let alice = |ca: &Authority| {
        ca.client("Alice", |params| {
            let name = "alice@example.org".try_into().unwrap();
            params.subject_alt_names = vec![rcgen::SanType::Rfc822Name(name)];
        })
    };
    vec![
        ("server.pem", server.pem()),
        ("server.key", server.key_pem()),
        ("clients.pem", ours.pem()),
        ("alice.pem", alice(ours).pem()),
        ("stranger.pem", alice(theirs).pem()),
        ("nameless.pem", ours.client("Alice", |_| ()).pem()),
    ]
}
