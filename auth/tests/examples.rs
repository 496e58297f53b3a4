//! The examples of back ends, asked as their users would have them asked.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use chinwag_auth::{Exec, Http};
use chinwag_core::{
    Lifecycle,
    plugin::{
        AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, Credentials, Verdict,
    },
};

fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
}

/// Builds what the example's own configuration says of its authenticator, with `change`s.
async fn build<C: AuthenticatorConfig>(
    folder: &PathBuf,
    lifecycle: &Lifecycle,
    change: impl FnOnce(&mut toml::Table),
) -> Arc<dyn Authenticator> {
    let text = std::fs::read_to_string(folder.join("chinwag.toml")).unwrap();
    let document: toml::Table = text.parse().unwrap();
    let mut table = document["authenticators"]["backend"]
        .as_table()
        .unwrap()
        .clone();
    assert_eq!(table.remove("kind").unwrap().as_str(), Some(C::KIND));
    // A busy machine takes its time.
    table.insert("call_timeout".into(), "40s".into());
    change(&mut table);
    let mut cx = AuthenticatorContext::new("backend", folder, lifecycle.clone());
    cx.timeout = Duration::from_secs(60);
    table.try_into::<C>().unwrap().build(cx).await.unwrap()
}

async fn judge(authenticator: &dyn Authenticator, credentials: Credentials) -> Verdict {
    let address = IpAddr::from(Ipv4Addr::LOCALHOST);
    let request = AuthRequest::new(credentials, "line".into(), address);
    authenticator.authenticate(&request).await
}

/// What every back end says of the users that the examples have.
async fn knows_its_users(authenticator: &dyn Authenticator) {
    let verdict = judge(authenticator, Credentials::password("alice", "wonderland")).await;
    let Verdict::Allow(alice) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(alice.roles, ["staff"]);
    assert_eq!(alice.rooms, None);
    let verdict = judge(authenticator, Credentials::password("bob", "can we fix it")).await;
    let Verdict::Allow(bob) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(bob.rooms.map(|rooms| rooms.len()), Some(2));
    let verdict = judge(authenticator, Credentials::password("alice", "wrong")).await;
    assert!(
        matches!(verdict, Verdict::Deny { public: None, .. }),
        "{verdict:?}"
    );
    let verdict = judge(authenticator, Credentials::password("mallory", "let me in")).await;
    assert!(
        matches!(
            verdict,
            Verdict::Deny {
                public: Some(_),
                ..
            }
        ),
        "{verdict:?}"
    );
    for other in [Credentials::password("eve", "x"), Credentials::token("t")] {
        let verdict = judge(authenticator, other).await;
        assert!(matches!(verdict, Verdict::Abstain), "{verdict:?}");
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[tokio::test]
async fn the_python_back_end_answers_over_http() {
    let folder = example("http-auth");
    let mut program = Command::new("python3")
        .args([
            "auth.py",
            "--port",
            "0",
            "--bearer-file",
            "bearer.txt",
            "users.json",
        ])
        .current_dir(&folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map(Running)
        .unwrap();
    let mut line = String::new();
    let output = program.0.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let address = line
        .trim()
        .strip_prefix("listening on ")
        .unwrap()
        .to_owned();

    let lifecycle = Lifecycle::new();
    let endpoints = |table: &mut toml::Table| {
        table["endpoints"] = vec![format!("http://{address}/")].into();
        table.insert("connect_timeout".into(), "20s".into());
    };
    let authenticator = build::<Http>(&folder, &lifecycle, endpoints).await;
    knows_its_users(&*authenticator).await;

    let stranger = |table: &mut toml::Table| {
        endpoints(table);
        table.remove("bearer_file");
    };
    let authenticator = build::<Http>(&folder, &lifecycle, stranger).await;
    let verdict = judge(
        &*authenticator,
        Credentials::password("alice", "wonderland"),
    )
    .await;
    assert!(
        matches!(verdict, Verdict::Unavailable { .. }),
        "{verdict:?}"
    );
    lifecycle.kill();
}

#[tokio::test]
async fn the_javascript_program_answers_line_by_line() {
    let lifecycle = Lifecycle::new();
    let authenticator = build::<Exec>(&example("exec-auth"), &lifecycle, |_| ()).await;
    knows_its_users(&*authenticator).await;
    lifecycle.kill();
}
