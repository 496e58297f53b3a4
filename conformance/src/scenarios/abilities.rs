//! What holds for authenticators that can do more than let in and refuse, an ability each.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::verdicts::{arrange, gets_in, start, try_login};
use crate::{Client, Gatekeeper, Login, Over, PATIENCE, Server, code, eventually};

/// Everybody gets in again, without having to wait for what happened before.
async fn all_are_let_in_again(gatekeeper: &dyn Gatekeeper, server: &Server) {
    for login in gatekeeper.good() {
        let back = async || {
            let (client, answer) = try_login(server, Over::Tcp, &login.fields).await;
            (answer["user"] == login.user).then_some(client)
        };
        eventually("the authenticator to be back", back).await;
    }
}

fn is_unavailable(over: Over, answer: &Value) {
    assert_eq!(code(answer), "unavailable", "{over:?}: {answer}");
    assert!(answer["retry_ms"].is_u64(), "{answer}");
}

pub(crate) mod outages {
    use super::{super::verdicts::keeps_secrets, *};

    pub(crate) async fn an_outage_is_told_as_one_and_counts_against_nobody(
        gatekeeper: &dyn Gatekeeper,
    ) {
        let server = start(gatekeeper, true).await;
        gatekeeper.break_down(server.folder()).await;
        for over in Over::ALL {
            for login in gatekeeper.good() {
                let (_, answer) = try_login(&server, over, &login.fields).await;
                is_unavailable(over, &answer);
            }
        }
        gatekeeper.mend(server.folder()).await;
        all_are_let_in_again(gatekeeper, &server).await;
    }

    pub(crate) async fn no_secret_is_told_of_in_an_outage(gatekeeper: &dyn Gatekeeper) {
        keeps_secrets(gatekeeper, true).await;
    }
}

pub(crate) mod silence {
    use std::pin::pin;

    use futures_util::future::{Either, join_all, select};

    use super::*;

    /// A machine with other work to do may keep the others busy till those who ask have their answer, and then says
    /// nothing of the authenticator. It may do so now and then.
    const ROUNDS: usize = 3;

    pub(crate) async fn a_silent_back_end_costs_those_who_ask_it_their_time_and_nobody_else(
        gatekeeper: &dyn Gatekeeper,
    ) {
        let server = start(gatekeeper, true).await;
        let good = gatekeeper.good();
        let mut room = vec![gets_in(&server, Over::Tcp, &good[0]).await];
        room[0].enter("lobby").await;
        for round in 1..=ROUNDS {
            gatekeeper.hush(server.folder()).await;
            let asked = join_all(Over::ALL.map(|over| asks_in_vain(&server, over, &good[1])));
            let others = talk(&server, &mut room, round);
            let do_not_wait = match select(pin!(asked), pin!(others)).await {
                Either::Left((_, others)) => {
                    others.await;
                    false
                }
                Either::Right(((), asked)) => {
                    asked.await;
                    true
                }
            };
            gatekeeper.mend(server.folder()).await;
            all_are_let_in_again(gatekeeper, &server).await;
            if do_not_wait {
                return;
            }
        }
        panic!("those who do not ask it wait as long as those who do, in each of {ROUNDS} rounds");
    }

    async fn asks_in_vain(server: &Server, over: Over, login: &Login) {
        let began = Instant::now();
        let mut client = server.connect(over.table(), "patient").await;
        client.patient();
        let mut login = login.fields.clone();
        login["type"] = "login".into();
        let answer = client.try_log_in(login).await;
        is_unavailable(over, &answer);
        assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    }

    /// Guests, whom it does not judge, come in by every transport, and everybody in the room hears everybody.
    async fn talk(server: &Server, room: &mut Vec<Client>, round: usize) {
        for over in Over::ALL {
            let guest = json!({ "user": format!("{}{round}", over.table()) });
            let (mut client, answer) = try_login(server, over, &guest).await;
            assert_eq!(answer["type"], "session", "{over:?}: {answer}");
            client.enter("lobby").await;
            room.push(client);
        }
        for speaker in 0..room.len() {
            let seq = room[speaker].say("lobby", "hello").await["seq"].clone();
            for member in &mut *room {
                member
                    .events_until("what was said", |event| event["seq"] == seq)
                    .await;
            }
        }
    }
}

pub(crate) mod removal {
    use super::*;

    pub(crate) async fn who_is_taken_out_is_logged_out_and_nobody_else(
        gatekeeper: &dyn Gatekeeper,
    ) {
        let server = start(gatekeeper, false).await;
        let good = gatekeeper.good();
        let mut out = gets_in(&server, Over::Tcp, &good[0]).await;
        let mut stays = gets_in(&server, Over::WebSocket, &good[1]).await;
        gatekeeper.take_out(server.folder(), &good[0]).await;
        out.expect_bye("auth_expired").await;
        let (_, answer) = try_login(&server, Over::Tcp, &good[0].fields).await;
        assert_eq!(code(&answer), "auth_failed", "{answer}");
        stays.ping().await;
    }
}

pub(crate) mod expiry {
    use super::*;

    /// Long enough for everybody to come in, also on a machine with other work to do.
    const STAY: Duration = Duration::from_secs(10);
    /// How late the end may be.
    const LATE: Duration = Duration::from_secs(5);
    /// Many count in whole seconds.
    const SECOND: Duration = Duration::from_secs(1);

    pub(crate) async fn who_may_stay_for_a_while_is_logged_out_at_its_end_and_nobody_else(
        gatekeeper: &dyn Gatekeeper,
    ) {
        let (setup, folder) = arrange(gatekeeper, false);
        let made = Instant::now();
        let short = gatekeeper.short(folder.path(), STAY).await;
        let server = setup.start_in(folder).await;
        let mut visitors = Vec::new();
        for over in Over::ALL {
            visitors.push(gets_in(&server, over, &short).await);
        }
        let due = Instant::now() + STAY;
        let mut stays = gets_in(&server, Over::Tcp, &gatekeeper.good()[0]).await;
        for visitor in &mut visitors {
            let patience = (due + LATE).saturating_duration_since(Instant::now());
            visitor.expect_bye_within("auth_expired", patience).await;
            assert!(made.elapsed() > STAY - SECOND, "{:?}", made.elapsed());
        }
        stays.ping().await;
    }
}

pub(crate) mod rooms {
    use super::*;

    pub(crate) async fn who_may_enter_some_rooms_enters_no_others(gatekeeper: &dyn Gatekeeper) {
        let (setup, folder) = arrange(gatekeeper, false);
        let login = gatekeeper.confined(folder.path(), &["den", "team:*"]).await;
        let server = setup.start_in(folder).await;
        for over in Over::ALL {
            let mut client = gets_in(&server, over, &login).await;
            for room in ["den", "team:1"] {
                client.join(room).await;
            }
            for room in ["den2", "team"] {
                is_closed(&mut client, over, room).await;
            }
        }
    }
}

async fn is_closed(client: &mut Client, over: Over, room: &str) {
    let answer = client.command(json!({"type": "join", "room": room})).await;
    assert_eq!(code(&answer), "forbidden", "{over:?}: {room}: {answer}");
}

pub(crate) mod roles {
    use super::*;

    const TABLE: &str = "[rooms.vault]\nmatch = \"vault\"\njoin_roles = [\"vault-keeper\"]\n";

    pub(crate) async fn a_role_opens_the_rooms_that_ask_for_it(gatekeeper: &dyn Gatekeeper) {
        let (setup, folder) = arrange(gatekeeper, false);
        let keeper = gatekeeper.with_role(folder.path(), "vault-keeper").await;
        let server = setup.and(TABLE).start_in(folder).await;
        let others = gatekeeper.good();
        let others: Vec<Login> = others
            .into_iter()
            .filter(|it| it.user != keeper.user)
            .collect();
        assert!(!others.is_empty(), "somebody has no such role");
        for over in Over::ALL {
            let mut keeper = gets_in(&server, over, &keeper).await;
            keeper.join("vault").await;
            for login in &others {
                let mut other = gets_in(&server, over, login).await;
                is_closed(&mut other, over, "vault").await;
            }
        }
    }
}

pub(crate) mod passwords {
    use std::sync::Arc;

    use async_trait::async_trait;
    use chinwag::core::plugin::{
        AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError, Verdict,
    };
    use serde::Deserialize;

    use super::*;

    /// Log-ins of each kind, one after the other.
    const ROUNDS: usize = 11;
    /// What nobody tells from the noise of a network.
    const UNSEEN: Duration = Duration::from_millis(10);

    pub(crate) async fn a_wrong_password_takes_as_long_as_an_unknown_user(
        gatekeeper: &dyn Gatekeeper,
    ) {
        let server = start(gatekeeper, false).await;
        look_the_same(&server, &gatekeeper.wrong_and_unknown()).await;
    }

    pub(crate) async fn a_user_of_somebody_else_takes_as_long_as_an_unknown_one(
        gatekeeper: &dyn Gatekeeper,
    ) {
        let [_, unknown] = gatekeeper.wrong_and_unknown();
        let mut theirs = unknown.clone();
        theirs["user"] = ELSEWHERE.into();
        let (setup, folder) = arrange(gatekeeper, false);
        let setup = setup
            .asking_first("elsewhere", "kind = \"elsewhere\"")
            .plugins(|plugins| plugins.authenticator::<Elsewhere>());
        let server = setup.start_in(folder).await;
        look_the_same(&server, &[theirs, unknown]).await;
    }

    /// Both are denied, and by the time that takes nobody can tell which is which.
    async fn look_the_same(server: &Server, logins: &[Value; 2]) {
        let mut took = [const { Vec::new() }; 2];
        for _ in 0..ROUNDS {
            for (login, took) in logins.iter().zip(&mut took) {
                let mut client = server.connect(Over::Tcp.table(), "guesser").await;
                let mut login = login.clone();
                login["type"] = "login".into();
                let began = Instant::now();
                let answer = client.try_log_in(login).await;
                took.push(began.elapsed());
                assert_eq!(code(&answer), "auth_failed", "{answer}");
            }
        }
        let [one, other] = took.map(|mut took| {
            took.sort_unstable();
            took[ROUNDS / 2]
        });
        let (less, more) = (one.min(other), one.max(other));
        assert!(
            more - less <= UNSEEN || more <= 2 * less,
            "the answers take {one:?} and {other:?}, which tells who is known"
        );
    }

    const ELSEWHERE: &str = "somebody-elsewhere";

    /// Knows one user, whose password nobody has, and says so at once.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Elsewhere {}

    #[async_trait]
    impl AuthenticatorConfig for Elsewhere {
        const KIND: &'static str = "elsewhere";

        async fn build(
            self,
            _: AuthenticatorContext,
        ) -> Result<Arc<dyn Authenticator>, BuildError> {
            Ok(Arc::new(self))
        }
    }

    #[async_trait]
    impl Authenticator for Elsewhere {
        async fn authenticate(&self, request: &AuthRequest) -> Verdict {
            if request.credentials.user.as_deref() == Some(ELSEWHERE) {
                Verdict::deny("not that password")
            } else {
                Verdict::Abstain
            }
        }
    }
}
