//! Kinds of a third party: what they decide arrives at the peer as the protocol says, on every transport.

use std::{sync::Arc, time::Duration};

use chinwag::core::plugin::{
    AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError, Denial,
    Draft, Principal, Rejection, Validator, ValidatorConfig, ValidatorContext, Verdict,
};
use serde::Deserialize;
use serde_json::json;

use crate::{Kit, Server, code};

/// An authenticator that does what the name of the user asks of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Moody {
    /// A key of its own, to show that tables are typed.
    suspended: String,
}

#[async_trait::async_trait]
impl AuthenticatorConfig for Moody {
    const KIND: &'static str = "moody";

    async fn build(self, _cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        Ok(Arc::new(self))
    }
}

#[async_trait::async_trait]
impl Authenticator for Moody {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        match request.credentials.user.as_deref() {
            Some("down") => Verdict::Unavailable {
                retry: Duration::from_secs(3),
            },
            Some("slow") => std::future::pending().await,
            Some("denied") => Verdict::deny("for the test"),
            Some(user) if user == self.suspended => Verdict::Deny {
                denial: Denial::Other,
                reason: "for the test".into(),
                public: Some("This user is suspended.".into()),
            },
            Some(user) => Verdict::Allow(Principal::vouched(user)),
            None => Verdict::Abstain,
        }
    }
}

/// A validator with a table of its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    banned: String,
    instead: String,
}

impl ValidatorConfig for Words {
    const KIND: &'static str = "words";

    fn build(self, _cx: ValidatorContext) -> Result<Arc<dyn Validator>, BuildError> {
        Ok(Arc::new(self))
    }
}

impl Validator for Words {
    fn check(&self, draft: &mut Draft<'_>) -> Result<(), Rejection> {
        let Some(text) = &mut draft.text else {
            return Ok(());
        };
        if *text == self.banned {
            return Err(Rejection::Rejected(format!(
                "{:?} is not said in {}",
                self.banned, draft.room
            )));
        }
        *text = text.replace(&self.banned, &self.instead);
        Ok(())
    }
}

async fn start(kit: &Kit) -> Server {
    let tables = "[validators.manners]\nkind = \"words\"\nbanned = \"darn\"\ninstead = \"oh my\"\n\
                  [room]\nvalidators = [\"not_empty\", \"manners\", \"length\"]";
    kit.setup()
        .for_users_of("kind = \"moody\"\nsuspended = \"mallory\"\ntimeout = \"300ms\"")
        .and(tables)
        .plugins(|plugins| plugins.authenticator::<Moody>().validator::<Words>())
        .start()
        .await
}

pub(crate) async fn a_verdict_is_told_as_what_it_is(kit: &Kit) {
    let server = start(kit).await;
    for over in kit.all() {
        let mut client = server.connect(over, "x").await;
        for (user, expected) in [
            ("down", "unavailable"),
            ("slow", "unavailable"),
            ("denied", "auth_failed"),
            ("mallory", "auth_failed"),
        ] {
            let error = client
                .try_log_in(json!({"type": "login", "user": user}))
                .await;
            assert_eq!(code(&error), expected, "{user} over {over:?}");
            assert_eq!(
                error["retry_ms"].is_u64(),
                expected == "unavailable",
                "{error}"
            );
            let said = error["message"].as_str().unwrap();
            assert_eq!(said.contains("suspended"), user == "mallory", "{error}");
            assert!(!said.contains("for the test"), "{error}");
        }
        // Nobody was wrong twice: an authenticator that is out of reach is never counted against the peer.
        client.log_in(json!({"type": "login", "user": over})).await;
    }
}

pub(crate) async fn an_outage_never_uses_up_the_attempts(kit: &Kit) {
    let server = start(kit).await;
    for over in kit.push() {
        let mut client = server.connect(over, "x").await;
        for _ in 0..20 {
            assert_eq!(
                code(
                    &client
                        .command(json!({"type": "login", "user": "down"}))
                        .await
                ),
                "unavailable"
            );
        }
        client.log_in(json!({"type": "login", "user": over})).await;
    }
}

pub(crate) async fn a_validator_may_change_a_message_or_refuse_it(kit: &Kit) {
    let server = start(kit).await;
    for over in kit.all() {
        let mut client = server.login(over, over).await;
        client.enter(over).await;
        let refused = json!({"type": "send", "room": over, "text": "darn"});
        let refused = client.command(refused).await;
        assert_eq!(code(&refused), "message_rejected");
        assert!(
            refused["message"]
                .as_str()
                .unwrap()
                .contains("is not said in"),
            "{refused}"
        );
        client.say(over, "darn it").await;
        assert_eq!(client.next_event().await["text"], "oh my it");
    }
}
