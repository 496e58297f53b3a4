//! Who gets in, under which name, and what the others are told.

use serde_json::json;

use crate::{Kit, code, eventually};

pub(crate) async fn a_guest_gets_a_session_with_the_limits_that_apply(kit: &Kit) {
    kit.check(
        r#"alice > login Alice -> {"type":"session","session":"*","user":"Alice","timeout_ms":30000,"ping_every_ms":15000,"resumed":false,"protocol":1,"limits":{"message_bytes":4096,"frame_bytes":16384,"server_frame_bytes":262144}}"#,
    )
    .await;
}

pub(crate) async fn session_ids_are_long_and_never_the_same(kit: &Kit) {
    let server = kit.setup().start().await;
    let mut ids = Vec::new();
    for over in kit.all() {
        for n in 0..3 {
            let mut client = server.connect(over, "x").await;
            let name = format!("{over}{n}");
            let session = client.log_in(json!({"type": "login", "user": name})).await;
            ids.push(session["session"].as_str().unwrap().to_owned());
        }
    }
    // 128 random bits take 22 characters of base64url.
    let url_safe = |id: &String| {
        id.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    assert!(
        ids.iter().all(|id| id.len() >= 22 && url_safe(id)),
        "{ids:?}"
    );
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3 * kit.all().count());
}

pub(crate) async fn the_log_in_comes_first(kit: &Kit) {
    kit.check(
        r#"
        alice > connect
        alice > join lobby -> error not_logged_in
        alice > say lobby hello -> error not_logged_in
        alice > {"type":"users","room":7} -> error not_logged_in
        alice > login -> {"type":"session","user":"alice"}
        alice > login again -> error already_logged_in
        alice > ping
        "#,
    )
    .await;
    // Without an id, a request is refused before its body is looked at: the rest is for connections.
    kit.check_push(
        r#"
        alice > connect
        alice > {"type":"dance"} -> error unknown_type
        alice > ping -> error not_logged_in
        alice > login
        "#,
    )
    .await;
}

pub(crate) async fn a_name_that_breaks_the_rules_is_refused_and_another_one_may_be_tried(
    kit: &Kit,
) {
    let long = "x".repeat(33);
    kit.check(&format!(
        r#"
        alice > {{"type":"login","user":""}} -> error name_invalid
        alice > {{"type":"login","user":"a b"}} -> error name_invalid
        alice > {{"type":"login","user":"caf\u00e9"}} -> error name_invalid
        alice > {{"type":"login","user":"{long}"}} -> error name_invalid
        alice > {{"type":"login","user":"a.B_c-9"}} -> {{"type":"session","user":"a.B_c-9"}}
        "#
    ))
    .await;
}

pub(crate) async fn a_name_has_one_holder_whatever_its_case(kit: &Kit) {
    kit.check(
        r"
        alice > login Alice
        bob > login aLICE -> error name_in_use
        bob > login Bob
        alice > logout
        carol > login ALICE
        ",
    )
    .await;
}

pub(crate) async fn names_are_shown_in_the_configured_case(kit: &Kit) {
    kit.check_with(
        kit.tables("[names]\nmin = 3\nmax = 12\ncase = \"capitalize\""),
        r#"
        alice > login al -> error name_invalid
        alice > login alICE -> {"type":"session","user":"Alice"}
        bob > login bobobobobobob -> error name_invalid
        bob > login BOB -> {"type":"session","user":"Bob"}
        alice, bob in lobby
        "#,
    )
    .await;
}

pub(crate) async fn unicode_names_are_one_name_where_they_look_alike(kit: &Kit) {
    // The second is the same word with a Cyrillic a, the third has a letter and a combining accent for the one letter.
    kit.check_with(
        kit.tables("[names]\ncharset = \"unicode\""),
        r#"
        alice > {"type":"login","user":"caf\u00e9"} -> {"type":"session","user":"café"}
        bob > {"type":"login","user":"c\u0430f\u00e9"} -> error name_in_use
        bob > {"type":"login","user":"cafe\u0301"} -> error name_in_use
        bob > {"type":"login","user":"a\u0000b"} -> error name_invalid
        bob > {"type":"login","user":"\u0431\u043e\u0431"} -> {"type":"session","user":"боб"}
        "#,
    )
    .await;
}

pub(crate) async fn fields_of_a_log_in_are_checked(kit: &Kit) {
    kit.check(
        r#"
        alice > {"type":"login","user":7} -> error bad_request user
        alice > {"type":"login","user":"a","password":"b","token":"c"} -> error bad_request
        alice > {"type":"login","user":"a","resumable":true} -> error bad_request yet
        alice > {"type":"login","user":"a","resumable":false,"color":"red","protocol":1} -> {"type":"session","user":"a"}
        "#,
    )
    .await;
}

pub(crate) async fn a_resume_of_an_unknown_session_is_not_logged_in(kit: &Kit) {
    kit.check(
        r#"alice > {"type":"login","resume":"AAAAAAAAAAAAAAAAAAAAAA"} -> error not_logged_in"#,
    )
    .await;
}

pub(crate) async fn a_resume_of_an_ended_session_says_how_it_ended(kit: &Kit) {
    for over in kit.all() {
        let server = kit.setup().start().await;
        let mut alice = server.connect(over, "alice").await;
        let session = alice
            .log_in(json!({"type": "login", "user": "alice"}))
            .await;
        let bye = alice.command(json!({"type": "logout"})).await;
        assert_eq!(code(&bye), "logout");
        alice.expect_closed("logout").await;
        for then in kit.all() {
            let mut again = server.connect(then, "alice").await;
            let resume = json!({"type": "login", "resume": session["session"]});
            let error = again.try_log_in(resume).await;
            assert_eq!(code(&error), "session_expired", "{error}");
            assert_eq!(error["end"], "logout", "{error}");
        }
    }
}

pub(crate) async fn a_resume_of_a_lost_session_says_that_it_was_lost(kit: &Kit) {
    let server = kit.setup().start().await;
    for over in kit.push() {
        let mut alice = server.connect(over, "alice").await;
        let id = alice
            .log_in(json!({"type": "login", "user": "alice"}))
            .await["session"]
            .clone();
        alice.vanish();
        let error = eventually("the session to be ended", async || {
            let mut again = server.connect(over, "again").await;
            let error = again
                .try_log_in(json!({"type": "login", "resume": id}))
                .await;
            (code(&error) == "session_expired").then_some(error)
        });
        assert_eq!(error.await["end"], "disconnected");
    }
}

pub(crate) async fn a_password_lets_in_its_user_alone(kit: &Kit) {
    kit.check_with(
        kit.setup().for_staff(),
        r#"
        alice > login alice wrong -> error auth_failed
        alice > login mallory wonderland -> error auth_failed
        alice > login alice -> error auth_failed
        alice > login alice builder -> error auth_failed
        alice > login alice wonderland -> {"type":"session","user":"alice"}
        bob > login bob builder -> {"type":"session","user":"bob"}
        alice, bob in lobby
        "#,
    )
    .await;
}

pub(crate) async fn a_failed_log_in_reads_the_same_whatever_was_wrong(kit: &Kit) {
    let server = kit.setup().for_staff().start().await;
    for over in kit.all() {
        let mut client = server.connect(over, "x").await;
        let mut texts = Vec::new();
        for (user, password) in [("alice", "wrong"), ("nobody", "wrong"), ("alice", "")] {
            let login = json!({"type": "login", "user": user, "password": password, "id": 1});
            let mut error = client.try_log_in(login).await;
            error.as_object_mut().unwrap().remove("id");
            texts.push(error.to_string());
        }
        texts.dedup();
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(
            texts[0].contains("auth_failed") && !texts[0].contains("alice"),
            "{texts:?}"
        );
    }
}

pub(crate) async fn a_connection_has_so_many_attempts(kit: &Kit) {
    let server = kit
        .setup()
        .for_staff()
        .and("[sessions]\nlogin_attempts = 3")
        .start()
        .await;
    for over in kit.push() {
        let mut client = server.connect(over, "x").await;
        for _ in 0..3 {
            let login = json!({"type": "login", "user": "bob", "password": "wrong"});
            assert_eq!(code(&client.command(login).await), "auth_failed");
        }
        client.expect_bye("auth_failed").await;
    }
}

pub(crate) async fn guessing_a_name_s_password_becomes_slow(kit: &Kit) {
    let limits = "[limits]\nlogin_failures_per_name = { rate = 1, per = \"1h\", burst = 3 }";
    kit.check_with(
        kit.setup().for_staff().and(limits),
        r#"
        alice > login alice 1 -> error auth_failed
        alice > login alice 2 -> error auth_failed
        alice > login alice 3 -> error auth_failed
        alice > login alice 4 -> {"type":"error","code":"rate_limited","retry_ms":"*"}
        bob > login bob builder
        "#,
    )
    .await;
}

pub(crate) async fn a_second_log_in_of_an_identity_replaces_the_first(kit: &Kit) {
    // The third user of the script is the same person as the first, on another transport in the mixes.
    kit.check_with(
        kit.setup().for_staff(),
        r#"
        alice > login alice wonderland
        bob > login bob builder
        alice, bob in lobby
        again > login alice wonderland
        alice < bye replaced
        bob < leave lobby alice replaced
        again > say lobby hello -> error not_joined
        again > join lobby -> {"type":"init","users":["bob"],"count":1,"seq":3}
        again < join lobby alice
        bob < join lobby alice
        "#,
    )
    .await;
}

pub(crate) async fn a_second_log_in_may_be_refused_instead(kit: &Kit) {
    kit.check_with(
        kit.setup()
            .for_staff()
            .and("[sessions]\nduplicate_login = \"reject\""),
        r#"
        alice > login alice wonderland
        bob > login alice wrong -> error auth_failed
        bob > login alice wonderland -> error name_in_use
        alice > logout
        bob > login alice wonderland -> {"type":"session","user":"alice"}
        "#,
    )
    .await;
}

pub(crate) async fn sessions_of_one_identity_may_live_side_by_side_as_one_member(kit: &Kit) {
    kit.check_with(
        kit.setup()
            .for_staff()
            .and("[sessions]\nduplicate_login = { allow = 2 }"),
        r#"
        alice > login alice wonderland
        bob > login bob builder
        alice, bob in lobby
        again > login alice wonderland
        third > login alice wonderland -> error too_many 2 sessions
        again > say lobby hello -> error not_joined
        again > join lobby -> {"type":"init","users":["alice","bob"],"count":2,"seq":2}
        again > say lobby hello
        alice < message lobby alice hello
        bob < message lobby alice hello
        again < message lobby alice hello
        alice > leave lobby
        third > login alice wrong -> error auth_failed
        bob > say lobby still
        again < message lobby bob still
        bob < message lobby bob still
        again > logout
        bob < leave lobby alice logout
        third > login alice wonderland
        "#,
    )
    .await;
}

pub(crate) async fn guests_beside_members_carry_their_prefix(kit: &Kit) {
    kit.check_with(
        kit.setup().for_staff_and_guests(),
        r#"
        alice > login alice wonderland
        bob > login guest -> {"type":"session","user":"~guest"}
        carol > login alice wrong -> error auth_failed
        "#,
    )
    .await;
}

pub(crate) async fn a_server_has_so_many_sessions(kit: &Kit) {
    // Two of the users take turns, so that every transport is the one that is refused.
    let setup = kit.tables("[limits]\nsessions = 1");
    let script = r#"
        alice > login
        bob > login -> error too_many session
        alice > logout
        bob > login
    "#;
    kit.check_with(setup, script).await;
}
