use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chinwag_core::{Lifecycle, plugin::Credentials};
use jsonwebtoken::{EncodingKey, Header as JwtHeader, encode, jwk::Jwk as JsonKey};
use rcgen::KeyPair;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::*;
use crate::{
    callout::testing::{
        Answer, Backend, Ears, documentation, is_unavailable, judge, let_in, pipes,
    },
    watch::LOOK_EVERY,
};

/// The time on the wall in these tests, in seconds.
const NOW: u64 = 1_800_000_000;

struct TestClock(AtomicU64);

impl WallClock for TestClock {
    fn unix_millis(&self) -> u64 {
        self.0.load(Ordering::Relaxed) * 1000
    }
}

/// One who signs tokens.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    /// What the server needs to know: a public key in PEM form, or the secret.
    public: String,
}

impl Signer {
    fn new(algorithm: Algorithm) -> Self {
        let kind = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                let secret = KeyPair::generate().unwrap().serialize_pem();
                return Self::shared(algorithm, &secret.replace(char::is_whitespace, ""));
            }
            Algorithm::ES256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Algorithm::ES384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Algorithm::EdDSA => &rcgen::PKCS_ED25519,
            _ => &rcgen::PKCS_RSA_SHA256,
        };
        let pair = KeyPair::generate_for(kind).unwrap();
        let private = pair.serialize_pem();
        let private = private.as_bytes();
        let key = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(private),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(private),
            _ => EncodingKey::from_rsa_pem(private),
        };
        Self {
            algorithm,
            key: key.unwrap(),
            public: pair.public_key_pem(),
        }
    }

    fn shared(algorithm: Algorithm, secret: &str) -> Self {
        Self {
            algorithm,
            key: EncodingKey::from_secret(secret.as_bytes()),
            public: secret.to_owned(),
        }
    }

    /// A token with these claims, by the key called `id`.
    fn sign(&self, id: Option<&str>, claims: &Value) -> Credentials {
        let mut header = JwtHeader::new(self.algorithm);
        header.kid = id.map(str::to_owned);
        Credentials::token(encode(&header, claims, &self.key).unwrap())
    }

    /// A good token for alice.
    fn token(&self) -> Credentials {
        self.sign(None, &json!({"sub": "alice", "exp": NOW + 60}))
    }

    /// Its key in a set, called `id`.
    fn json(&self, id: &str) -> Value {
        if self.algorithm == Algorithm::EdDSA {
            // The public key is the last 32 bytes.
            let der = STANDARD
                .decode(self.public.lines().nth(1).unwrap())
                .unwrap();
            let x = URL_SAFE_NO_PAD.encode(&der[der.len() - 32..]);
            return json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": id});
        }
        let mut key = JsonKey::from_encoding_key(&self.key, self.algorithm).unwrap();
        key.common.key_id = Some(id.to_owned());
        serde_json::to_value(key).unwrap()
    }
}

fn set<const N: usize>(keys: [Value; N]) -> Value {
    json!({ "keys": keys.to_vec() })
}

fn folder<const N: usize>(files: [(&str, &str); N]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

async fn try_start(
    table: &str,
    folder: &TempDir,
    reach: Reach,
) -> Result<JwtAuthenticator, BuildError> {
    let cx = AuthenticatorContext::new("sso", folder.path(), Lifecycle::new());
    let clock = Arc::new(TestClock(AtomicU64::new(NOW)));
    toml::from_str::<Jwt>(table)
        .unwrap()
        .start(&cx, reach, clock)
        .await
}

/// An authenticator that believes `signer` alone.
async fn start(signer: &Signer, table: &str) -> (JwtAuthenticator, TempDir) {
    let folder = folder([("key", &signer.public)]);
    let table = format!(
        "algorithms = [\"{:?}\"]\nkey = \"key\"\n{table}",
        signer.algorithm
    );
    let authenticator = try_start(&table, &folder, Reach::Network).await.unwrap();
    (authenticator, folder)
}

fn reason(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Deny { reason, .. } => reason,
        _ => panic!("{verdict:?}"),
    }
}

#[tokio::test]
async fn a_token_of_every_allowed_algorithm_lets_in_until_it_expires() {
    use Algorithm::*;
    let families: [&[Algorithm]; 6] = [
        &[HS256],
        &[HS384],
        &[HS512],
        &[RS256, RS384, RS512, PS256, PS384, PS512],
        &[ES256],
        &[ES384],
    ];
    for algorithms in families.into_iter().chain([&[EdDSA][..]]) {
        let mut signer = Signer::new(algorithms[0]);
        let other = Signer::new(algorithms[0]);
        for algorithm in algorithms {
            signer.algorithm = *algorithm;
            let (authenticator, _folder) = start(&signer, "").await;
            let verdict = judge(&authenticator, signer.token()).await;
            let Verdict::Allow(principal) = verdict else {
                panic!("{algorithm:?}: {verdict:?}")
            };
            assert_eq!(principal.expires_at, Some((NOW + 60 + 30) * 1000));
            assert_eq!(let_in(Verdict::Allow(principal)), "alice");

            let forged = Signer {
                algorithm: *algorithm,
                key: other.key.clone(),
                public: String::new(),
            };
            let verdict = judge(&authenticator, forged.token()).await;
            assert_eq!(reason(&verdict), "the token's signature is wrong");
        }
    }
}

#[tokio::test]
async fn what_a_token_says_of_its_signature_decides_nothing() {
    let signer = Signer::new(Algorithm::RS256);
    let (authenticator, _folder) = start(&signer, "").await;
    let claims = json!({"sub": "alice", "exp": NOW + 60});
    let good = signer.token().token.unwrap();
    let good = good.expose_secret();
    let parts: Vec<_> = good.split('.').collect();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());

    // The public key as a shared secret.
    let public = Signer::shared(Algorithm::HS256, &signer.public);
    let verdict = judge(&authenticator, public.token()).await;
    assert_eq!(
        reason(&verdict),
        "the token is not signed with an allowed algorithm"
    );
    for header in ["none", "None", "NONE", "HS256", "RS384", "ES256", ""] {
        let token = format!("{}.{}.", part(&json!({"alg": header})), parts[1]);
        let verdict = judge(&authenticator, Credentials::token(token)).await;
        assert_eq!(
            reason(&verdict),
            "the token is not signed with an allowed algorithm",
            "{header}"
        );
    }
    let embedded = Signer::new(Algorithm::RS256);
    let header = json!({"alg": "RS256", "jwk": embedded.json("a"), "jku": "http://127.0.0.1:1/"});
    let message = format!("{}.{}", part(&header), part(&claims));
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &embedded.key, Algorithm::RS256).unwrap();
    let verdict = judge(
        &authenticator,
        Credentials::token(format!("{message}.{signature}")),
    )
    .await;
    assert_eq!(reason(&verdict), "the token's signature is wrong");

    let header = json!({"alg": "RS256", "crit": ["b64"], "b64": false});
    let message = format!("{}.{}", part(&header), part(&claims));
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &signer.key, Algorithm::RS256).unwrap();
    let verdict = judge(
        &authenticator,
        Credentials::token(format!("{message}.{signature}")),
    )
    .await;
    assert_eq!(
        reason(&verdict),
        "the token demands what is not understood here"
    );

    let other = part(&json!({"sub": "root", "exp": NOW + 60}));
    for changed in [
        format!("{}.{other}.{}", parts[0], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}.AAAA", parts[0], parts[1]),
        format!("{}.{}.{}=", parts[0], parts[1], parts[2]),
        format!("{}.{}.{} ", parts[0], parts[1], parts[2]),
    ] {
        let verdict = judge(&authenticator, Credentials::token(changed.clone())).await;
        assert_eq!(
            reason(&verdict),
            "the token's signature is wrong",
            "{changed}"
        );
    }
    let_in(judge(&authenticator, Credentials::token(good)).await);
}

#[tokio::test]
async fn what_is_no_token_of_this_kind_is_left_to_others() {
    let signer = Signer::new(Algorithm::HS256);
    let (authenticator, _folder) = start(&signer, "issuer = \"https://id\"").await;
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = part("{\"alg\":\"HS256\"}");
    let mut others: Vec<Credentials> = ["", "a", "a.b.c", "a.b", "..", "opaque-token", "ey.ey.ey"]
        .map(Credentials::token)
        .to_vec();
    others.extend([
        Credentials::default(),
        Credentials::name("alice"),
        Credentials::password("alice", "a.b.c"),
        Credentials::token(format!("{}.{}.x", part("{}"), part("{}"))),
        Credentials::token(format!("{header}.{}.x.y", part("{}"))),
        Credentials::token(format!(
            "{header}.{}.x",
            part("{\"iss\":\"https://other\"}")
        )),
        Credentials::token(format!("{header}.{}.x", "y".repeat(TOKEN_BYTES))),
        signer.token(),
    ]);
    for credentials in others {
        let verdict = judge(&authenticator, credentials.clone()).await;
        assert!(
            matches!(verdict, Verdict::Abstain),
            "{credentials:?}: {verdict:?}"
        );
    }
    let ours = json!({"sub": "alice", "exp": NOW + 60, "iss": "https://id"});
    let_in(judge(&authenticator, signer.sign(None, &ours)).await);
}

#[tokio::test]
async fn claims_decide_who_may_come_in_and_when() {
    let signer = Signer::new(Algorithm::HS256);
    let table = "audience = [\"chat\", \"chat-test\"]\nleeway = \"10s\"\nname = \"user.name\"\n\
                 roles = \"realm.roles\"";
    let (authenticator, _folder) = start(&signer, table).await;
    let good = json!({
        "user": {"name": "alice"}, "exp": NOW + 60, "aud": "chat", "realm": {"roles": ["a", "b"]},
    });
    let with = |changes: Value| {
        let mut claims = good.clone();
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        signer.sign(None, &claims)
    };
    for (changes, roles) in [
        (json!({}), &["a", "b"][..]),
        (json!({"aud": ["other", "chat-test"]}), &["a", "b"]),
        (json!({"exp": NOW - 9}), &["a", "b"]),
        (json!({"exp": 1_800_000_000.5}), &["a", "b"]),
        (json!({"nbf": NOW + 10}), &["a", "b"]),
        (json!({"realm": {"roles": "a  b"}}), &["a", "b"]),
        (json!({"realm": {}}), &[]),
        (json!({"realm": null, "realm.roles": ["c"]}), &["c"]),
    ] {
        let verdict = judge(&authenticator, with(changes.clone())).await;
        let Verdict::Allow(principal) = verdict else {
            panic!("{changes}: {verdict:?}")
        };
        assert_eq!(principal.roles, roles, "{changes}");
    }
    for (changes, why) in [
        (json!({"exp": NOW - 10}), "the token has expired"),
        (json!({"exp": 0}), "the token has expired"),
        (
            json!({"exp": null}),
            "the token does not say when it expires",
        ),
        (
            json!({"exp": "1900000000"}),
            "the token does not say when it expires",
        ),
        (json!({"exp": -1}), "the token does not say when it expires"),
        (
            json!({"exp": 1e300}),
            "the token does not say when it expires",
        ),
        (json!({"nbf": NOW + 11}), "the token is not valid yet"),
        (json!({"nbf": "now"}), "the token is not valid yet"),
        (json!({"aud": "other"}), "the token is for somebody else"),
        (json!({"aud": []}), "the token is for somebody else"),
        (json!({"aud": null}), "the token is for somebody else"),
        (
            json!({"aud": {"chat": 1}}),
            "the token is for somebody else",
        ),
        (
            json!({"user": {"name": "a b"}}),
            "the token has no proper name",
        ),
        (
            json!({"user": {"name": ""}}),
            "the token has no proper name",
        ),
        (json!({"user": {"name": 7}}), "the token has no proper name"),
        (json!({"user": {}}), "the token has no proper name"),
        (
            json!({"realm": {"roles": 7}}),
            "the token's roles are not words",
        ),
        (
            json!({"realm": {"roles": ["a b"]}}),
            "the token's roles are not words",
        ),
        (
            json!({"realm": {"roles": [7]}}),
            "the token's roles are not words",
        ),
    ] {
        let verdict = judge(&authenticator, with(changes.clone())).await;
        assert_eq!(reason(&verdict), why, "{changes}");
        let Verdict::Deny { public, .. } = verdict else {
            panic!("{verdict:?}")
        };
        let told = (why == "the token has expired").then_some(EXPIRED);
        assert_eq!(public.as_deref(), told, "{changes}: what the client reads");
    }

    let mut as_bob = with(json!({}));
    as_bob.user = Some("bob".into());
    let verdict = judge(&authenticator, as_bob.clone()).await;
    assert_eq!(reason(&verdict), "the token is another user's");
    as_bob.user = Some("alice".into());
    assert_eq!(let_in(judge(&authenticator, as_bob).await), "alice");
}

#[tokio::test]
async fn a_type_that_is_wanted_is_compared_as_media_types_are() {
    let signer = Signer::new(Algorithm::HS256);
    let typed = |typ: Option<Value>| {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut header = json!({"alg": "HS256"});
        if let Some(typ) = typ {
            header["typ"] = typ;
        }
        let claims = json!({"sub": "alice", "exp": NOW + 60});
        let message = format!("{}.{}", part(&header), part(&claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &signer.key, Algorithm::HS256).unwrap();
        Credentials::token(format!("{message}.{signature}"))
    };
    let any = [
        None,
        Some(json!(null)),
        Some(json!(7)),
        Some(json!("")),
        Some(json!("JWT")),
        Some(json!("at+jwt")),
    ];
    let (authenticator, _folder) = start(&signer, "").await;
    for typ in any.clone() {
        let_in(judge(&authenticator, typed(typ)).await);
    }
    for (wanted, taken, not_taken) in [
        (
            "at+jwt",
            &[
                "at+jwt",
                "AT+JWT",
                "application/at+jwt",
                "Application/At+Jwt",
            ][..],
            &[
                "JWT",
                "text/at+jwt",
                "application/application/at+jwt",
                "at+jwt ",
            ][..],
        ),
        (
            "application/at+jwt",
            &["at+jwt", "application/AT+jwt"],
            &["jwt", "/at+jwt"],
        ),
        ("JWT", &["JWT", "jwt", "application/jwt"], &["at+jwt", "J"]),
    ] {
        let (authenticator, _folder) = start(&signer, &format!("typ = {wanted:?}")).await;
        for typ in taken {
            let_in(judge(&authenticator, typed(Some(json!(typ)))).await);
        }
        let wrong = not_taken.iter().map(|typ| Some(json!(typ)));
        for typ in wrong.chain(any.clone().into_iter().take(4)) {
            let verdict = judge(&authenticator, typed(typ.clone())).await;
            assert_eq!(reason(&verdict), "the token is of another type", "{typ:?}");
            let Verdict::Deny { denial, public, .. } = verdict else {
                panic!("{verdict:?}")
            };
            assert_eq!((denial, public), (Denial::Audience, None), "{typ:?}");
        }
    }
    // Whoever can't sign learns nothing of what is wanted.
    let (authenticator, _folder) = start(&signer, "typ = \"at+jwt\"").await;
    let forged = Signer::new(Algorithm::HS256).token();
    let verdict = judge(&authenticator, forged).await;
    assert_eq!(reason(&verdict), "the token's signature is wrong");
}

#[tokio::test]
async fn a_token_for_somebody_is_not_believed_where_no_audience_is_configured() {
    let signer = Signer::new(Algorithm::HS256);
    let (authenticator, _folder) = start(&signer, "").await;
    let claims = json!({"sub": "alice", "exp": NOW + 60, "aud": "another-service"});
    let verdict = judge(&authenticator, signer.sign(None, &claims)).await;
    assert_eq!(reason(&verdict), "the token is for somebody else");
}

#[tokio::test(start_paused = true)]
async fn a_key_file_that_changes_is_read_anew_and_a_broken_one_changes_nothing() {
    let [old, new] = [(); 2].map(|()| Signer::new(Algorithm::ES256));
    let folder = folder([("key", &old.public)]);
    let table = "algorithms = [\"ES256\"]\nkey = \"key\"";
    let authenticator = try_start(table, &folder, Reach::Network).await.unwrap();
    let_in(judge(&authenticator, old.token()).await);
    fs::write(folder.path().join("key"), "nonsense").unwrap();
    sleep(5 * LOOK_EVERY).await;
    let_in(judge(&authenticator, old.token()).await);
    fs::write(folder.path().join("key"), &new.public).unwrap();
    sleep(5 * LOOK_EVERY).await;
    let_in(judge(&authenticator, new.token()).await);
    let verdict = judge(&authenticator, old.token()).await;
    assert_eq!(reason(&verdict), "the token's signature is wrong");
}

#[tokio::test]
async fn keys_of_a_set_verify_what_their_kind_and_alg_allow() {
    let [rsa, ec, ed, secret, later] = [
        Algorithm::RS256,
        Algorithm::ES256,
        Algorithm::EdDSA,
        Algorithm::HS256,
        Algorithm::ES384,
    ]
    .map(Signer::new);
    let mut for_encryption = later.json("enc");
    for_encryption["use"] = json!("enc");
    let mut any_rsa = rsa.json("any");
    any_rsa.as_object_mut().unwrap().remove("alg");
    let keys = set([
        rsa.json("rsa"),
        any_rsa,
        ec.json("ec"),
        ed.json("ed"),
        secret.json("secret"),
        for_encryption,
        json!({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "odd"}),
        json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "weak"}),
        json!({"kty": "oct", "k": "c2hvcnQ", "kid": "short"}),
        json!("no key"),
    ]);
    let folder = folder([("keys.json", &keys.to_string())]);
    let table = "algorithms = [\"RS256\", \"PS256\", \"ES256\", \"ES384\", \"EdDSA\", \"HS256\"]\n\
                 jwks = \"keys.json\"";
    let authenticator = try_start(table, &folder, Reach::Network).await.unwrap();
    let claims = json!({"sub": "alice", "exp": NOW + 60});
    for (signer, id) in [(&rsa, "rsa"), (&ec, "ec"), (&ed, "ed"), (&secret, "secret")] {
        let_in(judge(&authenticator, signer.sign(Some(id), &claims)).await);
        let_in(judge(&authenticator, signer.sign(None, &claims)).await);
    }
    let pss = Signer {
        algorithm: Algorithm::PS256,
        key: rsa.key.clone(),
        public: String::new(),
    };
    let_in(judge(&authenticator, pss.sign(Some("any"), &claims)).await);
    for (signer, id, why) in [
        (&pss, "rsa", "the token's signature is wrong"),
        (&rsa, "ec", "the token's signature is wrong"),
        (&later, "ec", "the token's signature is wrong"),
        (&later, "enc", "the token's key is unknown"),
        (&rsa, "weak", "the token's key is unknown"),
        (&rsa, "none", "the token's key is unknown"),
        (
            &Signer::shared(Algorithm::HS256, "short"),
            "short",
            "the token's key is unknown",
        ),
    ] {
        let verdict = judge(&authenticator, signer.sign(Some(id), &claims)).await;
        assert_eq!(reason(&verdict), why, "{id}");
    }
}

const ID: &str = "http://id/keys.json";

/// An authenticator whose keys come from `backend`.
async fn remote(backend: &Arc<Backend>, table: &str) -> JwtAuthenticator {
    let table = format!("algorithms = [\"ES256\"]\njwks = \"{ID}\"\ninsecure = true\n{table}");
    try_start(&table, &folder([]), pipes([("id", backend)]))
        .await
        .unwrap()
}

fn named(signer: &Signer, id: &str) -> Credentials {
    signer.sign(Some(id), &json!({"sub": "alice", "exp": NOW + 60}))
}

#[tokio::test(start_paused = true)]
async fn a_key_set_is_fetched_once_for_all_and_again_when_it_is_old() {
    let signer = Signer::new(Algorithm::ES256);
    let slow = Answer::After(
        Duration::from_secs(1),
        Box::new(Answer::json(&set([signer.json("a")]))),
    );
    let backend = Backend::new(slow);
    let authenticator = remote(&backend, "refresh = \"1m\"").await;
    assert_eq!(backend.connections(), 0, "nobody has asked yet");
    let all = (0..100).map(|_| judge(&authenticator, named(&signer, "a")));
    for verdict in futures_util::future::join_all(all).await {
        let_in(verdict);
    }
    assert_eq!(backend.asked().len(), 1);
    sleep(Duration::from_secs(61)).await;
    let began = Instant::now();
    let_in(judge(&authenticator, named(&signer, "a")).await);
    assert_eq!(began.elapsed(), Duration::ZERO, "it is fetched aside");
    sleep(Duration::from_secs(2)).await;
    let_in(judge(&authenticator, named(&signer, "a")).await);
    assert_eq!(backend.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_is_looked_for_at_once_but_not_all_the_time() {
    let [old, new] = [(); 2].map(|()| Signer::new(Algorithm::ES256));
    let backend = Backend::new(Answer::json(&set([old.json("old")])));
    let authenticator = remote(&backend, "").await;
    let_in(judge(&authenticator, named(&old, "old")).await);
    for _ in 0..100 {
        let verdict = judge(&authenticator, named(&new, "new")).await;
        assert_eq!(reason(&verdict), "the token's key is unknown");
    }
    assert_eq!(backend.asked().len(), 1, "the set is brand new");

    sleep(Duration::from_secs(11)).await;
    backend.set(Answer::json(&set([old.json("old"), new.json("new")])));
    let_in(judge(&authenticator, named(&new, "new")).await);
    for _ in 0..100 {
        let verdict = judge(&authenticator, named(&old, "other")).await;
        assert_eq!(reason(&verdict), "the token's key is unknown");
    }
    assert_eq!(backend.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn while_the_key_set_can_not_be_had_nobody_is_refused_for_it() {
    let [old, new] = [(); 2].map(|()| Signer::new(Algorithm::ES256));
    let good = Answer::json(&set([old.json("old")]));
    let nothing = [
        Answer::Refuse,
        Answer::Silence,
        Answer::Json("{}".into()),
        Answer::Json("{\"keys\":[]}".into()),
        Answer::json(&set([Signer::new(Algorithm::HS256).json("new")])),
        Answer::Http(500, vec![], Bytes::new()),
        Answer::Endless,
    ];
    for answer in nothing {
        let backend = Backend::new(answer.clone());
        let authenticator = remote(&backend, "stale = \"1h\"").await;
        let began = Instant::now();
        let all = (0..100).map(|_| judge(&authenticator, named(&old, "old")));
        for verdict in futures_util::future::join_all(all).await {
            assert!(is_unavailable(&verdict), "{answer:?}: {verdict:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{answer:?}");

        backend.set(good.clone());
        sleep(Duration::from_secs(5)).await;
        let_in(judge(&authenticator, named(&old, "old")).await);
        backend.set(answer.clone());
        backend.hang_up();
        sleep(Duration::from_secs(1800)).await;
        let_in(judge(&authenticator, named(&old, "old")).await);
        let verdict = judge(&authenticator, named(&new, "new")).await;
        assert!(is_unavailable(&verdict), "{answer:?}: {verdict:?}");
        sleep(Duration::from_secs(1801)).await;
        let verdict = judge(&authenticator, named(&old, "old")).await;
        assert!(is_unavailable(&verdict), "{answer:?}: too old: {verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_set_that_is_too_large_is_not_taken_and_the_log_says_why() {
    let ears = Ears::open();
    let signer = Signer::new(Algorithm::ES256);
    let mut keys = set([signer.json("a")]);
    for (bytes, is_taken) in [(SET_BYTES, true), (SET_BYTES + 1, false)] {
        keys["filler"] = json!("");
        let filler = bytes - keys.to_string().len();
        keys["filler"] = json!("x".repeat(filler));
        let text = keys.to_string();
        assert_eq!(text.len(), bytes);
        let backend = Backend::new(Answer::Json(text.clone()));
        let verdict = judge(&remote(&backend, "").await, named(&signer, "a")).await;
        assert_eq!(!is_unavailable(&verdict), is_taken, "{verdict:?}");

        let folder = folder([("keys.json", &text)]);
        let table = "algorithms = [\"ES256\"]\njwks = \"keys.json\"";
        match try_start(table, &folder, Reach::Network).await {
            Ok(authenticator) => {
                assert!(is_taken);
                let_in(judge(&authenticator, named(&signer, "a")).await);
            }
            Err(error) => {
                assert!(!is_taken, "{error}");
                assert_eq!(error.key, Some("jwks"));
                assert!(
                    error.to_string().ends_with("keys.json is over 256 KiB"),
                    "{error}"
                );
            }
        }
    }
    let backend = Backend::new(Answer::Endless);
    let verdict = judge(&remote(&backend, "").await, named(&signer, "a")).await;
    assert!(is_unavailable(&verdict), "{verdict:?}");
    let heard = ears.heard();
    let told = heard.matches("its answer is larger than 256KiB").count();
    assert_eq!(told, 2, "{heard}");
}

#[tokio::test]
async fn the_documentation_tells_what_the_client_of_an_expired_token_reads() {
    assert!(documentation("auth.md").contains(EXPIRED));
}

#[tokio::test]
async fn the_documentation_shows_a_table_that_can_be_read() {
    let text = documentation("auth.md");
    let block = text
        .split("```toml\n[authenticators.tokens]\nkind = \"jwt\"\n")
        .nth(1);
    let block = block.unwrap().split("```").next().unwrap();
    let table: Jwt = toml::from_str(block).unwrap();
    assert!(table.check().is_ok());
    for key in [
        "algorithms",
        "jwks",
        "typ",
        "issuer",
        "audience",
        "leeway",
        "name",
        "roles",
        "refresh",
        "stale",
        "ca",
    ] {
        let is_told = |line: &str| line.starts_with(&format!("{key} = "));
        assert!(block.lines().any(is_told), "{key}");
    }
}

#[tokio::test]
async fn a_table_that_can_not_work_is_refused_with_its_key() {
    let rsa = Signer::new(Algorithm::RS256);
    let p256 = Signer::new(Algorithm::ES256);
    let private = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)
        .unwrap()
        .serialize_pem();
    let folder = folder([
        ("rsa", &rsa.public),
        ("p256", &p256.public),
        ("private", &private),
        ("weak", WEAK),
        ("short", &"s".repeat(31)),
        ("empty", "{\"keys\":[]}"),
        ("large", &"s".repeat(SET_BYTES + 1)),
    ]);
    let remote = "algorithms = [\"RS256\"]\njwks = \"https://id/\"\n";
    for (table, key) in [
        ("algorithms = []\nkey = \"rsa\"", "algorithms"),
        ("algorithms = [\"none\"]\nkey = \"rsa\"", "algorithms"),
        (
            "algorithms = [\"RS256\", \"HS256\"]\nkey = \"rsa\"",
            "algorithms",
        ),
        (
            "algorithms = [\"RS256\", \"ES256\"]\nkey = \"rsa\"",
            "algorithms",
        ),
        ("algorithms = [\"RS256\"]", ""),
        (
            "algorithms = [\"RS256\"]\nkey = \"rsa\"\njwks = \"empty\"",
            "",
        ),
        ("algorithms = [\"RS256\"]\nkey = \"none\"", "key"),
        ("algorithms = [\"RS256\"]\nkey = \"private\"", "key"),
        ("algorithms = [\"RS256\"]\nkey = \"p256\"", "key"),
        ("algorithms = [\"RS256\"]\nkey = \"weak\"", "key"),
        ("algorithms = [\"ES384\"]\nkey = \"p256\"", "key"),
        ("algorithms = [\"EdDSA\"]\nkey = \"p256\"", "key"),
        ("algorithms = [\"HS256\"]\nkey = \"short\"", "key"),
        ("algorithms = [\"HS256\"]\nkey = \"large\"", "key"),
        ("algorithms = [\"RS256\"]\nkey = \"rsa\"\ntyp = \"\"", "typ"),
        (
            "algorithms = [\"RS256\"]\nkey = \"rsa\"\ntyp = \"at jwt\"",
            "typ",
        ),
        (
            "algorithms = [\"RS256\"]\nkey = \"rsa\"\ntyp = \"a/b/c\"",
            "typ",
        ),
        ("algorithms = [\"RS256\"]\njwks = \"empty\"", "jwks"),
        ("algorithms = [\"RS256\"]\njwks = \"rsa\"", "jwks"),
        ("algorithms = [\"RS256\"]\njwks = \"http://id/\"", "jwks"),
        ("algorithms = [\"RS256\"]\nkey = \"rsa\"\nca = \"rsa\"", ""),
        (&format!("{remote}leeway = \"6m\""), "leeway"),
        (&format!("{remote}refresh = \"1s\""), "refresh"),
        (&format!("{remote}stale = \"1m\""), "refresh"),
        (&format!("{remote}ca = \"none\""), "ca"),
    ] {
        let Err(error) = try_start(table, &folder, Reach::Network).await else {
            panic!("built from {table}")
        };
        assert_eq!(error.key.unwrap_or_default(), key, "{table}: {error}");
        let told = error.to_string();
        assert!(!told.contains("BEGIN") && !told.contains("sss"), "{told}");
    }
    for bad in [
        "",
        "algorithms = \"RS256\"",
        "algorithms = [\"RS256\"]\nkeys = \"a\"",
    ] {
        assert!(toml::from_str::<Jwt>(bad).is_err(), "{bad}");
    }
}

/// An RSA key of 1024 bits.
const WEAK: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDAcwmdPXUzKMUlfOWaVAX2E5I5\n\
grNsVRJvrigGKMDAWjc9uElkxWk9e5XNhHbI5lepJCoHa7c9lyrp3Wh5bTmKR93S\n\
qUEVdCTGJKikhdhwcjAc8znfXD5GU8xiU4xO5+n0brDCsV4pr/1S7lgJSvJQNCzG\n\
a+WnZbhf5a37zIbqrQIDAQAB\n\
-----END PUBLIC KEY-----\n\
";
