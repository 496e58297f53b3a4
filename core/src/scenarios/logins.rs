//! Log-ins: who is judged, what counts against whom, and what stands beside the chain without touching it.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64},
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use secrecy::ExposeSecret;
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::{
    ErrorCode, Opened, Refusal, Shadow,
    bounded::MAX_KEYS,
    familiar::Claim,
    plugin::{Credentials, Denial},
    session::{UNATTENDED, UNATTENDED_PER_ADDRESS},
};

/// Counters that can be read back.
#[derive(Clone, Default)]
struct Counted(Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>);

impl Counted {
    /// The counters called `name` that are not zero, by their labels.
    fn of(&self, name: &str) -> BTreeMap<String, u64> {
        let counters = self.0.lock();
        counters
            .iter()
            .filter_map(|(key, count)| {
                let labels = key.strip_prefix(name)?.strip_prefix(' ')?;
                let count = count.load(Ordering::Relaxed);
                (count > 0).then(|| (labels.to_owned(), count))
            })
            .collect()
    }
}

impl Recorder for Counted {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels: Vec<_> = key.labels().map(metrics::Label::value).collect();
        let name = format!("{} {}", key.name(), labels.join(" "));
        let count = Arc::clone(self.0.lock().entry(name).or_default());
        Counter::from_arc(count)
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// A server whose only transport asks `chain`.
struct Door {
    hub: Hub,
    scope: Arc<Scope>,
    counted: Counted,
}

impl Door {
    fn new(chain: Vec<ChainLink>, adjust: impl FnOnce(&mut HubConfig)) -> Self {
        let mut config = HubConfig {
            wall: Arc::new(StoppedClock),
            ..HubConfig::default()
        };
        adjust(&mut config);
        let counted = Counted::default();
        let names: Vec<&str> = chain.iter().map(|link| &*link.name).collect();
        let shadows: Vec<_> = chain
            .iter()
            .filter_map(|link| Some((&*link.name, &*link.shadow.as_ref()?.name)))
            .collect();
        let telemetry = Telemetry::new(&counted, &["pipe"], &names, &shadows, &[]);
        let hub = Hub::start(config, telemetry, Lifecycle::new()).expect("a sound configuration");
        let scope = hub.scope(ScopeConfig {
            name: "pipe".into(),
            auth: chain,
            timeout: TIMEOUT,
            login_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
        });
        Self {
            hub,
            scope,
            counted,
        }
    }

    async fn open(&self, credentials: Credentials) -> Result<Opened, Refusal> {
        self.open_from(Stage::peer(), credentials).await
    }

    async fn open_from(&self, peer: Peer, credentials: Credentials) -> Result<Opened, Refusal> {
        self.hub
            .open(&self.scope, peer, b"{}", Some(credentials))
            .await
    }

    /// What becomes of a log-in from the address that ends in `host`.
    async fn code_from(&self, host: u8, user: &str, password: &str) -> Option<ErrorCode> {
        let peer = Peer::new([192, 0, 2, host].into(), false);
        let opened = self.open_from(peer, Credentials::password(user, password));
        opened.await.err().map(|refusal| refusal.code)
    }

    async fn code(&self, credentials: Credentials) -> Option<ErrorCode> {
        self.open(credentials)
            .await
            .err()
            .map(|refusal| refusal.code)
    }

    /// A client that goes as soon as it has said who it is.
    async fn hang_up(&self, credentials: Credentials) {
        self.hang_up_as(Stage::peer(), credentials).await;
    }

    /// The same from the address that ends in `host`.
    async fn hang_up_from(&self, host: u8, credentials: Credentials) {
        let peer = Peer::new([192, 0, 2, host].into(), false);
        self.hang_up_as(peer, credentials).await;
    }

    async fn hang_up_as(&self, peer: Peer, credentials: Credentials) {
        let mut login = Box::pin(self.open_from(peer, credentials));
        let is_judged = poll_fn(|cx| Poll::Ready(login.as_mut().poll(cx).is_ready())).await;
        assert!(!is_judged, "it is judged already");
    }

    /// As many clients go as may be judged without them, from as few addresses as can be, among which is not that of
    /// [`Stage::peer`]. `user` is whom each claims to be.
    async fn take_all_places(&self, user: impl Fn(usize) -> Credentials) {
        for n in 0..UNATTENDED {
            let host = u8::try_from(100 + n / UNATTENDED_PER_ADDRESS).unwrap();
            self.hang_up_from(host, user(n)).await;
        }
    }
}

fn link(name: &str, authenticator: impl Authenticator) -> ChainLink {
    ChainLink {
        name: name.into(),
        authenticator: Arc::new(authenticator),
        timeout: Duration::from_secs(60),
        revocations: Revocations::default(),
        manager: None,
        shadow: None,
    }
}

fn shadowed(link: ChainLink, shadow: &ChainLink) -> ChainLink {
    ChainLink {
        shadow: Some(Shadow::of(shadow)),
        ..link
    }
}

fn user(name: &str) -> Credentials {
    Credentials::password(name, "a password")
}

/// One denial a minute.
fn strict(config: &mut HubConfig) {
    config.limits.login_failures_per_ip = Rate::Limited {
        rate: 1,
        per: Duration::from_secs(60),
        burst: 1,
    };
}

/// Does what the user's name says.
#[derive(Default)]
struct Moody {
    /// "late" waits until there is a permit for it.
    go: Option<Arc<Semaphore>>,
    judged: Arc<AtomicUsize>,
    pretended: Arc<AtomicUsize>,
}

#[async_trait]
impl Authenticator for Moody {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let name = request.credentials.user.as_deref().unwrap_or_default();
        let (when, what) = name.split_once('-').unwrap_or(("", name));
        if let (Some(go), "late") = (&self.go, when) {
            go.acquire().await.unwrap().forget();
        }
        self.judged.fetch_add(1, Ordering::SeqCst);
        match what {
            "wrong" => Verdict::deny_for(Denial::WrongSecret, "as the test wants"),
            "expired" => Verdict::deny_for(Denial::Expired, format!("{what} in the test")),
            "stranger" => Verdict::Abstain,
            "down" => Verdict::Unavailable {
                retry: Duration::from_secs(7),
            },
            "panic" => panic!("as the test wants"),
            "never" => std::future::pending().await,
            name => Verdict::Allow(Principal::vouched(name)),
        }
    }

    async fn pretend(&self, _: &AuthRequest) {
        self.pretended.fetch_add(1, Ordering::SeqCst);
    }
}

/// Lets in whoever has the right password, by the name that is claimed; with "guest" as one that anybody may choose.
struct Vault;

#[async_trait]
impl Authenticator for Vault {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let credentials = &request.credentials;
        let name = credentials.user.as_deref().unwrap();
        match credentials.password.as_ref().unwrap().expose_secret() {
            "right" => Verdict::Allow(Principal::vouched(name)),
            "guest" => Verdict::Allow(Principal::chosen("guest-", name)),
            _ => Verdict::deny_for(Denial::WrongSecret, "as the test wants"),
        }
    }
}

/// Two denials of a name in ten seconds.
fn two_per_name(config: &mut HubConfig) {
    config.limits.login_failures_per_name = Rate::Limited {
        rate: 1,
        per: Duration::from_secs(10),
        burst: 2,
    };
}

/// A door with an authenticator that waits for permits, and those.
fn gated(adjust: impl FnOnce(&mut HubConfig)) -> (Door, Arc<Semaphore>) {
    let go = Arc::new(Semaphore::new(0));
    let moody = Moody {
        go: Some(Arc::clone(&go)),
        ..Moody::default()
    };
    (Door::new(vec![link("all", moody)], adjust), go)
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_before_the_verdict_has_not_failed() {
    let (door, go) = gated(strict);
    for late in ["late-down", "late-alice", "late-stranger"] {
        door.hang_up(user(late)).await;
        assert_eq!(door.code(user("bob")).await, None, "{late} waits");
    }
    // All that went are judged now; the last is denied, since nobody knows it.
    go.add_permits(2);
    settle().await;
    assert_eq!(door.code(user("bob")).await, None);
    assert_eq!(door.counted.of("chinwag_logins_total")["pipe abandoned"], 3);
    go.add_permits(1);
    settle().await;
    assert_eq!(door.code(user("bob")).await, Some(ErrorCode::RateLimited));
}

#[tokio::test(start_paused = true)]
async fn hanging_up_makes_no_guess_free() {
    let (door, go) = gated(strict);
    door.hang_up(user("late-wrong")).await;
    go.add_permits(1);
    settle().await;
    assert_eq!(door.code(user("alice")).await, Some(ErrorCode::RateLimited));
}

#[tokio::test(start_paused = true)]
async fn who_runs_out_of_time_is_judged_to_the_end_too() {
    let (door, go) = gated(strict);
    let refused = door.code(user("late-wrong")).await;
    assert_eq!(
        refused,
        Some(ErrorCode::Unavailable),
        "ten seconds are over"
    );
    assert_eq!(door.code(user("alice")).await, None);
    go.add_permits(1);
    settle().await;
    assert_eq!(door.code(user("alice")).await, Some(ErrorCode::RateLimited));
}

#[tokio::test(start_paused = true)]
async fn beyond_a_bound_of_those_who_hung_up_the_next_one_pays() {
    let (door, go) = gated(|config| {
        strict(config);
        config.limits.login_failures_per_name = Rate::Unlimited;
    });
    door.take_all_places(|_| user("late-alice")).await;
    assert_eq!(door.code(user("bob")).await, None);
    door.hang_up(user("late-alice")).await;
    assert_eq!(door.code(user("bob")).await, Some(ErrorCode::RateLimited));
    go.add_permits(UNATTENDED);
    settle().await;
    sleep(Duration::from_secs(60)).await;
    door.hang_up(user("late-alice")).await;
    assert_eq!(door.code(user("bob")).await, None, "there is room again");
}

#[tokio::test(start_paused = true)]
async fn one_address_takes_more_than_its_share_of_those_places_only_while_half_of_them_are_free() {
    let (door, go) = gated(|config| {
        strict(config);
        config.limits.login_failures_per_name = Rate::Unlimited;
    });
    let (greedy, other) = (1, 2);
    for _ in 0..UNATTENDED / 2 {
        door.hang_up_from(greedy, user("late-alice")).await;
    }
    assert_eq!(door.code_from(greedy, "bob", "a password").await, None);
    door.hang_up_from(greedy, user("late-alice")).await;
    let limited = Some(ErrorCode::RateLimited);
    assert_eq!(door.code_from(greedy, "bob", "a password").await, limited);
    door.hang_up_from(other, user("late-alice")).await;
    assert_eq!(door.code_from(other, "bob", "a password").await, None);
    go.add_permits(UNATTENDED / 2 + 1);
    settle().await;
    sleep(Duration::from_secs(60)).await;
    door.hang_up_from(greedy, user("late-alice")).await;
    let code = door.code_from(greedy, "bob", "a password").await;
    assert_eq!(code, None, "there is room again");
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_where_nobody_is_judged_costs_the_name_nothing() {
    let (door, go) = gated(|config| {
        config.limits.login_failures_per_name = Rate::Limited {
            rate: 1,
            per: Duration::from_secs(60),
            burst: 1,
        };
    });
    door.take_all_places(|n| user(&format!("late-{n}"))).await;
    door.hang_up(user("late-alice")).await;
    go.add_permits(UNATTENDED + 1);
    settle().await;
    assert_eq!(door.code(user("late-alice")).await, None);
}

#[tokio::test(start_paused = true)]
async fn whose_time_is_over_costs_nobody_anything_though_nobody_is_judged() {
    let (door, _go) = gated(|config| {
        strict(config);
        config.limits.login_failures_per_name = Rate::Unlimited;
    });
    door.take_all_places(|_| user("late-alice")).await;
    let refused = door.code(user("late-alice")).await;
    assert_eq!(refused, Some(ErrorCode::Unavailable));
    assert_eq!(door.code(user("bob")).await, None);
}

#[tokio::test(start_paused = true)]
async fn no_more_of_a_name_are_judged_at_a_time_than_may_fail_and_the_others_come_again() {
    let (door, go) = gated(two_per_name);
    for _ in 0..2 {
        door.hang_up(user("late-alice")).await;
    }
    let began = clock::now();
    let refusal = door.open(user("late-alice")).await.err().unwrap();
    assert_eq!(refusal.code, ErrorCode::Unavailable);
    assert_eq!(refusal.retry, Some(Duration::from_secs(1)));
    assert_eq!(began.elapsed(), Duration::ZERO, "it was not judged");
    go.add_permits(3);
    settle().await;
    assert_eq!(door.code(user("late-alice")).await, None, "there is room");
}

#[tokio::test(start_paused = true)]
async fn whoever_guesses_elsewhere_keeps_nobody_out_who_has_logged_in_from_there() {
    let door = Door::new(vec![link("all", Vault)], two_per_name);
    let (home, elsewhere, other) = (1, 2, 3);
    let failed = Some(ErrorCode::AuthFailed);
    let limited = Some(ErrorCode::RateLimited);
    assert_eq!(door.code_from(home, "alice", "right").await, None);
    for _ in 0..2 {
        assert_eq!(door.code_from(elsewhere, "alice", "guess").await, failed);
    }
    for stranger in [elsewhere, other] {
        assert_eq!(door.code_from(stranger, "alice", "right").await, limited);
    }
    assert_eq!(door.code_from(home, "Alice", "right").await, None);
    // Who guesses at home is limited there, and there only.
    for _ in 0..2 {
        assert_eq!(door.code_from(home, "alice", "guess").await, failed);
    }
    assert_eq!(door.code_from(home, "alice", "right").await, limited);
    assert_eq!(door.code_from(home, "bob", "right").await, None);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(door.code_from(other, "alice", "right").await, None);
}

#[tokio::test(start_paused = true)]
async fn strangers_who_fill_the_table_of_failures_keep_nobody_out_who_has_logged_in_from_there() {
    let door = Door::new(vec![link("all", Vault)], two_per_name);
    let (home, elsewhere) = (1, 2);
    assert_eq!(door.code_from(home, "alice", "right").await, None);
    for n in 0..MAX_KEYS {
        let strangers = &door.scope.hub.failures_of_strangers;
        for _ in 0..2 {
            let claim = Claim::Anywhere(n.to_string().into());
            strangers.attempt(claim).expect("it need not wait").denied();
        }
    }
    let failed = Some(ErrorCode::AuthFailed);
    let limited = Some(ErrorCode::RateLimited);
    for stranger in ["bob", "carol"] {
        assert_eq!(door.code_from(elsewhere, stranger, "guess").await, failed);
    }
    let code = door.code_from(elsewhere, "dora", "right").await;
    assert_eq!(code, limited, "newcomers share one account");
    assert_eq!(door.code_from(home, "alice", "a typo").await, failed);
    assert_eq!(door.code_from(home, "alice", "right").await, None);
}

#[tokio::test(start_paused = true)]
async fn what_failed_where_a_name_is_not_known_any_more_takes_no_room() {
    let door = Door::new(vec![link("all", Vault)], two_per_name);
    let limited = Some(ErrorCode::RateLimited);
    assert_eq!(door.code_from(1, "alice", "right").await, None);
    for _ in 0..2 {
        door.code_from(1, "alice", "a typo").await;
    }
    assert_eq!(door.code_from(1, "alice", "right").await, limited);
    for home in 2..10 {
        assert_eq!(door.code_from(home, "alice", "right").await, None);
    }
    // Now it is one of all the addresses from where strangers come, and then familiar once more.
    for _ in 0..2 {
        assert_eq!(door.code_from(1, "alice", "right").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_anybody_may_choose_makes_no_address_known() {
    let door = Door::new(vec![link("all", Vault)], two_per_name);
    for host in 1..=3 {
        // The first has the name now.
        let expected = (host > 1).then_some(ErrorCode::NameInUse);
        assert_eq!(door.code_from(host, "alice", "guest").await, expected);
    }
    for host in 1..=2 {
        let code = door.code_from(host, "alice", "guess").await;
        assert_eq!(code, Some(ErrorCode::AuthFailed));
    }
    let code = door.code_from(3, "alice", "guess").await;
    assert_eq!(code, Some(ErrorCode::RateLimited));
}

#[tokio::test(start_paused = true)]
async fn guesses_at_a_name_are_counted_however_it_is_spelt() {
    let door = Door::new(vec![link("all", Vault)], two_per_name);
    for (spelt, code) in [
        ("ａｌｉｃｅ", ErrorCode::AuthFailed),
        ("Álice", ErrorCode::AuthFailed),
        ("alice", ErrorCode::RateLimited),
        ("\u{430}lice", ErrorCode::RateLimited),
    ] {
        assert_eq!(door.code(user(spelt)).await, Some(code), "{spelt}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_password_for_a_name_that_nobody_can_have_is_put_to_nobody_and_denied() {
    let moody = Moody::default();
    let judged = Arc::clone(&moody.judged);
    let door = Door::new(vec![link("all", moody)], strict);
    for name in ["", "alice ", "\talice", "al\u{0}ice", &"x".repeat(300)] {
        let refusal = door.open(user(name)).await.err().unwrap();
        assert_eq!(refusal, Refusal::auth_failed(), "{name:?}");
        let code = door.code(user("alice")).await;
        assert_eq!(code, Some(ErrorCode::RateLimited), "the address pays");
        sleep(Duration::from_secs(120)).await;
    }
    assert_eq!(judged.load(Ordering::SeqCst), 0);
    assert_eq!(door.code(user("alice")).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_whoever_hung_up() {
    let (door, _go) = gated(|_| ());
    door.hang_up(user("late-alice")).await;
    let began = clock::now();
    door.hub.drain(Duration::from_secs(10)).await;
    let dropped = door
        .hub
        .lifecycle()
        .shut_down(Duration::from_secs(10))
        .await;
    assert_eq!((dropped, began.elapsed()), (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn only_a_denial_counts_and_each_makes_the_next_wait_longer() {
    let door = Door::new(vec![link("all", Moody::default())], two_per_name);
    for _ in 0..100 {
        assert_eq!(door.code(user("down")).await, Some(ErrorCode::Unavailable));
    }
    for _ in 0..2 {
        assert_eq!(door.code(user("wrong")).await, Some(ErrorCode::AuthFailed));
    }
    for seconds in [10, 20, 40, 60, 60] {
        let refusal = door.open(user("Wrong")).await.err().unwrap();
        assert_eq!(refusal.code, ErrorCode::RateLimited, "whatever its case");
        assert_eq!(refusal.retry, Some(Duration::from_secs(seconds)));
        assert_eq!(door.code(user("alice")).await, None, "others don't wait");
        sleep(Duration::from_secs(seconds)).await;
        assert_eq!(door.code(user("wrong")).await, Some(ErrorCode::AuthFailed));
    }
    let logins = door.counted.of("chinwag_logins_total");
    let expected = [
        ("pipe denied", 7),
        ("pipe session", 5),
        ("pipe throttled", 5),
        ("pipe unavailable", 100),
    ];
    assert_eq!(
        logins,
        expected.map(|(it, count)| (it.to_owned(), count)).into()
    );
}

#[tokio::test(start_paused = true)]
async fn a_denial_is_counted_by_its_reason() {
    let door = Door::new(vec![link("all", Moody::default())], |_| ());
    for name in ["wrong", "expired", "expired", "stranger"] {
        assert_eq!(door.code(user(name)).await, Some(ErrorCode::AuthFailed));
    }
    let denials = door.counted.of("chinwag_auth_denials_total");
    let expected = [("all expired", 2), ("all wrong_secret", 1)];
    assert_eq!(
        denials,
        expected.map(|(it, count)| (it.to_owned(), count)).into()
    );
    assert_eq!(door.counted.of("chinwag_logins_total")["pipe unknown"], 1);
}

#[tokio::test(start_paused = true)]
async fn an_authenticator_that_panics_can_not_tell() {
    let door = Door::new(vec![link("all", Moody::default())], strict);
    for _ in 0..3 {
        let refusal = door.open(user("panic")).await.err().unwrap();
        assert_eq!(refusal.code, ErrorCode::Unavailable);
        assert!(refusal.retry.is_some_and(|retry| !retry.is_zero()));
    }
    assert_eq!(door.code(user("alice")).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_denied_password_costs_what_an_unknown_user_does_in_the_rest_of_the_chain() {
    let [first, second] = [Moody::default(), Moody::default()];
    let (judged, pretended) = (Arc::clone(&second.judged), Arc::clone(&second.pretended));
    let own = Arc::clone(&first.pretended);
    let door = Door::new(vec![link("first", first), link("second", second)], |_| ());
    let count = || {
        (
            judged.load(Ordering::SeqCst),
            pretended.load(Ordering::SeqCst),
        )
    };
    door.code(user("stranger")).await;
    assert_eq!(count(), (1, 0));
    door.code(user("wrong")).await;
    assert_eq!(count(), (1, 1));
    for other in [user("alice"), user("down"), Credentials::name("wrong")] {
        door.code(other).await;
        assert_eq!(count(), (1, 1));
    }
    assert_eq!(own.load(Ordering::SeqCst), 0, "it has done the work itself");
}

#[tokio::test(start_paused = true)]
async fn a_shadow_is_compared_and_changes_nothing() {
    let other = |user: &str| match user {
        // Lets in whom the first denies, and somebody else for carol.
        "wrong" => Verdict::Allow(Principal::vouched("wrong")),
        "carol" => Verdict::Allow(Principal::vouched("carola")),
        "dora" => {
            Verdict::Allow(Principal::vouched("dora").with_roles(vec!["b".into(), "a".into()]))
        }
        "alice" => {
            let mut principal = Principal::vouched("alice");
            principal.expires_at = Some(1);
            Verdict::Allow(principal)
        }
        "expired" => Verdict::deny("in other words"),
        _ => Verdict::Abstain,
    };
    struct Says<F>(F);
    #[async_trait]
    impl<F: Fn(&str) -> Verdict + Send + Sync + 'static> Authenticator for Says<F> {
        async fn authenticate(&self, request: &AuthRequest) -> Verdict {
            (self.0)(request.credentials.user.as_deref().unwrap())
        }
    }
    struct Roles(Moody);
    #[async_trait]
    impl Authenticator for Roles {
        async fn authenticate(&self, request: &AuthRequest) -> Verdict {
            if request.credentials.user.as_deref() == Some("dora") {
                let roles = vec!["a".into(), "b".into()];
                return Verdict::Allow(Principal::vouched("dora").with_roles(roles));
            }
            self.0.authenticate(request).await
        }
    }
    let chain = vec![shadowed(
        link("old", Roles(Moody::default())),
        &link("new", Says(other)),
    )];
    let door = Door::new(chain, |_| ());
    for (name, code) in [
        ("alice", None),
        ("bob", None),
        ("carol", None),
        ("dora", None),
        ("wrong", Some(ErrorCode::AuthFailed)),
        ("expired", Some(ErrorCode::AuthFailed)),
        ("down", Some(ErrorCode::Unavailable)),
        ("stranger", Some(ErrorCode::AuthFailed)),
    ] {
        assert_eq!(door.code(user(name)).await, code, "{name}");
    }
    settle().await;
    let expected = [
        ("old new agree abstain abstain", 1),
        ("old new agree allow allow", 2),
        ("old new agree deny deny", 1),
        ("old new differ allow abstain", 1),
        ("old new differ allow allow", 1),
        ("old new differ deny allow", 1),
        ("old new differ unavailable abstain", 1),
    ];
    assert_eq!(
        door.counted.of("chinwag_shadow_verdicts_total"),
        expected.map(|(it, count)| (it.to_owned(), count)).into()
    );
    let verdicts = door.counted.of("chinwag_auth_verdicts_total");
    assert!(
        verdicts.keys().all(|key| key.starts_with("old ")),
        "{verdicts:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shadow_that_hangs_or_panics_delays_nobody_and_is_bounded() {
    /// Never says a word, but counts how many wait for one.
    struct Hangs(Arc<AtomicUsize>);
    #[async_trait]
    impl Authenticator for Hangs {
        async fn authenticate(&self, request: &AuthRequest) -> Verdict {
            self.0.fetch_add(1, Ordering::SeqCst);
            assert_ne!(request.credentials.user.as_deref(), Some("panic0"));
            std::future::pending().await
        }
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let chain = vec![shadowed(
        link("old", Moody::default()),
        &link("new", Hangs(Arc::clone(&asked))),
    )];
    let door = Door::new(chain, |_| ());
    let began = clock::now();
    for n in 0..100 {
        assert_eq!(door.code(user(&format!("alice{n}"))).await, None);
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    settle().await;
    assert_eq!(asked.load(Ordering::SeqCst), 64);
    assert_eq!(
        door.counted.of("chinwag_shadow_skipped_total")["old new"],
        36
    );
    // Their time is over, and then there is room.
    sleep(Duration::from_secs(61)).await;
    assert_eq!(door.code(user("panic0")).await, None);
    settle().await;
    let verdicts = door.counted.of("chinwag_shadow_verdicts_total");
    assert_eq!(
        verdicts["old new differ allow unavailable"], 65,
        "{verdicts:?}"
    );
    // One that hangs does not hold up the stop.
    assert_eq!(door.code(user("last")).await, None);
    settle().await;
    door.hub.drain(Duration::from_secs(1)).await;
    let began = clock::now();
    let dropped = door
        .hub
        .lifecycle()
        .shut_down(Duration::from_secs(10))
        .await;
    assert_eq!((dropped, began.elapsed()), (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_shadow_sees_the_log_in_while_it_is_judged() {
    struct Sees(Arc<AtomicBool>, Arc<Notify>);
    #[async_trait]
    impl Authenticator for Sees {
        async fn authenticate(&self, request: &AuthRequest) -> Verdict {
            let credentials = &request.credentials;
            let password = credentials.password.as_ref().unwrap().expose_secret();
            let is_same = credentials.user.as_deref() == Some("alice")
                && password == "a password"
                && &*request.transport == "pipe"
                && request.address == Stage::peer().address;
            self.0.store(is_same, Ordering::SeqCst);
            self.1.notify_one();
            Verdict::Abstain
        }
    }
    /// Judges only once the shadow has.
    struct Waits(Arc<Notify>);
    #[async_trait]
    impl Authenticator for Waits {
        async fn authenticate(&self, _: &AuthRequest) -> Verdict {
            self.0.notified().await;
            Verdict::Allow(Principal::vouched("alice"))
        }
    }
    let (saw, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let shadow = link("new", Sees(Arc::clone(&saw), Arc::clone(&seen)));
    let door = Door::new(vec![shadowed(link("old", Waits(seen)), &shadow)], |_| ());
    assert_eq!(door.code(user("alice")).await, None);
    assert!(saw.load(Ordering::SeqCst));
}

/// Guests choose a name that `~` is put before; who has a password is whoever it says.
struct GuestsAndUsers;

#[async_trait]
impl Authenticator for GuestsAndUsers {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let credentials = &request.credentials;
        let user = credentials.user.as_deref().unwrap_or_default();
        Verdict::Allow(match credentials.password {
            None => Principal::chosen("~", user),
            Some(_) => Principal::vouched(user),
        })
    }

    fn guest_prefix(&self) -> Option<&str> {
        Some("~")
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_whose_name_begins_as_guests_do_is_refused_and_counted() {
    let counted = Counted::default();
    let stage = Stage::recorded(&counted, |_| ());
    // Whoever asks: the names of all transports are one realm.
    let _other = Stage::scope_of(&stage.hub, GuestsAndUsers);
    let mut client = stage.connect();
    let login = |user: &str| json!({"type": "login", "user": user, "password": "right"});
    let refused = client.ask(login("~bob")).await;
    assert_eq!(refused["code"], "name_invalid", "{refused}");
    let denials = counted.of("chinwag_auth_denials_total");
    assert_eq!(denials, BTreeMap::from([("all bad_name".to_owned(), 1)]));
    assert_eq!(client.ask(login("bob~")).await["user"], "bob~");
}

#[tokio::test]
async fn log_ins_of_one_user_at_the_same_moment_hold_up_nobody() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 300;
    let stage = Arc::new(Stage::new(|_| ()));
    let (done, finished) = std::sync::mpsc::channel();
    // Threads of their own, which nothing waits for that they could hold up.
    for _ in 0..THREADS {
        let (stage, done) = (Arc::clone(&stage), done.clone());
        let runtime = tokio::runtime::Handle::current();
        std::thread::spawn(move || {
            runtime.block_on(async {
                for _ in 0..ROUNDS {
                    let body = br#"{"user":"ann","password":"right"}"#;
                    let opened = stage.hub.open(&stage.scope, Stage::peer(), body, None);
                    let _ = done.send(opened.await.map(drop));
                }
            });
        });
    }
    for n in 0..THREADS * ROUNDS {
        let outcome = finished.recv_timeout(Duration::from_secs(20));
        let outcome = outcome.unwrap_or_else(|_| panic!("log-in {n} did not come back"));
        assert!(outcome.is_ok(), "log-in {n}: {outcome:?}");
    }
}
