//! `kind = "jwt"`: a signed token says who a peer is.
//!
//! A token is believed when one of the configured keys signed it with one of the configured
//! algorithms, and issuer, audience and times are right. Nothing in the token itself (`alg`, `jku`,
//! `x5u`, `jwk`) decides whom to believe.

mod keys;
mod remote;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chinwag_core::{
    clock::{SystemWallClock, WallClock},
    config::Span,
    plugin::{
        AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError, Denial,
        Principal, Verdict,
    },
};
use jsonwebtoken::Algorithm;
use secrecy::ExposeSecret;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};
use tokio::sync::watch;

use self::{
    keys::{KeyFile, KeySet, SET_BYTES, Signature, algorithms},
    remote::Remote,
};
use crate::callout::{
    Asker, are_roles, call_timeout,
    client::{Client, Settings, endpoints},
    connect::Reach,
    is_name,
    tls::TlsFiles,
};

/// The longest token that is looked at.
const TOKEN_BYTES: usize = 16 << 10;
/// What the client of an expired token reads. It learns nothing by it that is not in its token.
const EXPIRED: &str = "The token has expired; get a new one.";
const MAX_LEEWAY: Duration = Duration::from_secs(300);
const LEAST_REFRESH: Duration = Duration::from_secs(10);

/// The table of an authenticator that believes signed tokens (JWT).
///
/// A token has to expire, and its session ends when it does. What is no JWT at all, and a token of
/// another issuer than the configured one, is left to the next authenticator, as are log-ins
/// without a token. A token with a wrong or unknown signature, of another type than the configured
/// one, for another audience, expired, not yet valid or without a proper name is denied; that it has
/// expired is the one reason that the client is told. While a key set can't be had, a token that
/// needs it is told to try again.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Jwt {
    /// The algorithms that tokens may be signed with: of HS256, HS384, HS512, RS256, RS384, RS512,
    /// PS256, PS384, PS512, ES256, ES384 and EdDSA.
    pub algorithms: Vec<String>,
    /// A file with the one key: a public key in PEM form, or for HS algorithms the secret itself, of
    /// at least as many bits as the hash has. At most 256 KiB; read anew when it changes.
    pub key: Option<PathBuf>,
    /// Instead: a JSON Web Key Set of at most 256 KiB and 64 keys, a file (read anew when it changes)
    /// or an `https` URL. Each of its keys verifies what its type and its own `alg` allow; shared
    /// secrets count only in a file.
    pub jwks: Option<String>,
    /// The `typ` that a token's header must have, such as `at+jwt` for access tokens by RFC 9068, so
    /// that a token made for something else is not taken for one of these. In any case, and
    /// `application/` before a word without a slash may be left out, here as there. Default: not
    /// looked at.
    pub typ: Option<String>,
    /// The `iss` that tokens must have. Default: any.
    pub issuer: Option<String>,
    /// Tokens must be for one of these (`aud`). Default: only tokens that are for nobody in
    /// particular are believed.
    #[serde(default)]
    pub audience: Vec<String>,
    /// How far the clock of the issuer may be off, at most five minutes. Default 30 seconds.
    #[serde(default = "default_leeway")]
    pub leeway: Span,
    /// The claim with the user's name. Default `sub`. With dots it leads through objects, unless a
    /// claim is called so.
    #[serde(default = "default_name")]
    pub name: String,
    /// The claim with the roles, a list or words parted by spaces; likewise with dots. Default: no
    /// roles.
    pub roles: Option<String>,
    /// How old a fetched key set gets before it is fetched anew, at least ten seconds. Default ten
    /// minutes.
    #[serde(default = "default_refresh")]
    pub refresh: Span,
    /// How old a key set may get where it can't be fetched anew. Default a day.
    #[serde(default = "default_stale")]
    pub stale: Span,
    /// Who may have signed the certificate of the key set's server, in PEM form. Default: whom the
    /// system trusts.
    pub ca: Option<PathBuf>,
    /// Whether the key set may be fetched from another machine in plain text, where anybody on the
    /// way can put a key of their own in. Default `false`.
    #[serde(default)]
    pub insecure: bool,
}

const fn default_leeway() -> Span {
    Span::secs(30)
}

fn default_name() -> String {
    "sub".to_owned()
}

const fn default_refresh() -> Span {
    Span::secs(600)
}

const fn default_stale() -> Span {
    Span::secs(24 * 3600)
}

#[async_trait]
impl AuthenticatorConfig for Jwt {
    const KIND: &'static str = "jwt";

    async fn build(self, cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        let clock = Arc::new(SystemWallClock);
        let built = self.start(&cx, Reach::Network, clock).await?;
        Ok(Arc::new(built))
    }
}

impl Jwt {
    async fn start(
        self,
        cx: &AuthenticatorContext,
        reach: Reach,
        clock: Arc<dyn WallClock>,
    ) -> Result<JwtAuthenticator, BuildError> {
        self.check()?;
        let allowed = algorithms(&self.algorithms, self.key.is_some())?;
        let source = match (&self.key, &self.jwks) {
            (Some(key), None) => {
                let path = cx.base.join(key);
                let open = KeyFile::open("key", path, allowed.clone(), &cx.name, &cx.lifecycle);
                Source::File(open.await?)
            }
            (None, Some(jwks)) if jwks.contains("://") => {
                Source::Remote(self.remote(jwks, allowed.clone(), cx, reach).await?)
            }
            (None, Some(jwks)) => {
                let path = cx.base.join(jwks);
                let open = KeyFile::open("jwks", path, allowed.clone(), &cx.name, &cx.lifecycle);
                Source::File(open.await?)
            }
            _ => {
                return Err(BuildError::new(
                    "name either a `key` or a key set with `jwks`",
                ));
            }
        };
        if matches!(source, Source::File(_)) && (self.ca.is_some() || self.insecure) {
            return Err(BuildError::new(
                "`ca` and `insecure` are for a `jwks` that is fetched",
            ));
        }
        Ok(JwtAuthenticator {
            table: self,
            allowed,
            source,
            clock,
        })
    }

    fn check(&self) -> Result<(), BuildError> {
        if self.leeway.0 > MAX_LEEWAY {
            return Err(BuildError::key(
                "leeway",
                "`leeway` is at most five minutes",
            ));
        }
        if self.refresh.0 < LEAST_REFRESH || self.stale < self.refresh {
            return Err(BuildError::key(
                "refresh",
                "`refresh` is at least ten seconds and at most `stale`",
            ));
        }
        if self.typ.as_deref().is_some_and(|typ| !is_type(typ)) {
            return Err(BuildError::key(
                "typ",
                "`typ` is a media type such as \"at+jwt\" or \"JWT\"; left out, it is not looked at",
            ));
        }
        Ok(())
    }

    async fn remote(
        &self,
        url: &str,
        algorithms: Vec<Algorithm>,
        cx: &AuthenticatorContext,
        reach: Reach,
    ) -> Result<Arc<Remote>, BuildError> {
        let asker = Asker::from(cx);
        let settings = Settings {
            endpoints: endpoints("jwks", &[url.to_owned()], self.insecure)?,
            tls: TlsFiles {
                ca: self.ca.as_ref().map(|ca| asker.base.join(ca)),
                identity: None,
            },
            bearer: None,
            reach,
            connect_timeout: call_timeout(None, asker.timeout)?,
            call_timeout: call_timeout(None, asker.timeout)?,
            calls: 1,
            queue: 0,
            answer_bytes: SET_BYTES,
            meter: asker.meter.clone(),
            timeout: asker.timeout,
            table: asker.table,
        };
        Ok(Arc::new(Remote {
            name: cx.name.clone(),
            client: Client::start(settings, &cx.lifecycle).await?,
            algorithms,
            refresh: self.refresh.0,
            stale: self.stale.0,
            lifecycle: cx.lifecycle.clone(),
            state: Default::default(),
            ended: watch::Sender::new(()),
        }))
    }
}

struct JwtAuthenticator {
    table: Jwt,
    allowed: Vec<Algorithm>,
    source: Source,
    clock: Arc<dyn WallClock>,
}

enum Source {
    File(Arc<KeyFile>),
    Remote(Arc<Remote>),
}

impl Source {
    async fn keys(&self) -> Result<Arc<KeySet>, Duration> {
        match self {
            Self::File(file) => Ok(file.keys()),
            Self::Remote(remote) => remote.keys().await,
        }
    }

    async fn newest(&self) -> Result<Arc<KeySet>, Duration> {
        match self {
            Self::File(file) => Ok(file.keys()),
            Self::Remote(remote) => remote.newest().await,
        }
    }
}

/// A token taken apart; nothing of it is believed yet.
struct Token<'a> {
    header: Header,
    claims: Option<Map<String, Value>>,
    message: &'a str,
    signature: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
    #[serde(default)]
    typ: Value,
}

impl<'a> Token<'a> {
    /// `None` where it is no JWT.
    fn take_apart(token: &'a str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        if claims.contains('.') {
            return None;
        }
        let json = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        Some(Self {
            header: serde_json::from_slice(&json(header)?).ok()?,
            claims: json(claims).and_then(|claims| serde_json::from_slice(&claims).ok()),
            message,
            signature,
        })
    }
}

#[async_trait]
impl Authenticator for JwtAuthenticator {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let credentials = &request.credentials;
        let Some(token) = credentials.token.as_ref().map(ExposeSecret::expose_secret) else {
            return Verdict::Abstain;
        };
        if token.len() > TOKEN_BYTES {
            return Verdict::Abstain;
        }
        let Some(token) = Token::take_apart(token) else {
            return Verdict::Abstain;
        };
        let Some(claims) = &token.claims else {
            return Verdict::deny_for(Denial::Malformed, "the token has no claims");
        };
        if let Some(issuer) = &self.table.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Verdict::Abstain;
        }
        if token.header.crit.is_some() {
            return Verdict::deny_for(
                Denial::Malformed,
                "the token demands what is not understood here",
            );
        }
        let algorithm = token.header.alg.parse::<Algorithm>().ok();
        let Some(algorithm) = algorithm.filter(|it| self.allowed.contains(it)) else {
            return Verdict::deny_for(
                Denial::Signature,
                "the token is not signed with an allowed algorithm",
            );
        };
        match self.signature(&token, algorithm).await {
            Ok(Signature::Right) => {}
            Ok(Signature::Wrong) => {
                return Verdict::deny_for(Denial::Signature, "the token's signature is wrong");
            }
            Ok(Signature::NoKey) => {
                return Verdict::deny_for(Denial::Signature, "the token's key is unknown");
            }
            Err(retry) => return Verdict::Unavailable { retry },
        }
        if let Some(wanted) = &self.table.typ
            && !token
                .header
                .typ
                .as_str()
                .is_some_and(|typ| is_same_type(typ, wanted))
        {
            return Verdict::deny_for(Denial::Audience, "the token is of another type");
        }
        self.judge(claims, credentials.user.as_deref())
    }
}

impl JwtAuthenticator {
    async fn signature(
        &self,
        token: &Token<'_>,
        algorithm: Algorithm,
    ) -> Result<Signature, Duration> {
        let check = |keys: Arc<KeySet>| {
            let id = token.header.kid.as_deref();
            keys.check(id, algorithm, token.message.as_bytes(), token.signature)
        };
        match check(self.source.keys().await?) {
            Signature::NoKey => Ok(check(self.source.newest().await?)),
            known => Ok(known),
        }
    }

    /// Judges what a rightly signed token says.
    fn judge(&self, claims: &Map<String, Value>, user: Option<&str>) -> Verdict {
        let table = &self.table;
        let now = self.clock.unix_millis();
        let leeway = table.leeway.as_millis();
        let Some(expires) = claims.get("exp").and_then(millis) else {
            return Verdict::deny_for(Denial::Malformed, "the token does not say when it expires");
        };
        let expires_at = expires.saturating_add(leeway);
        if expires_at <= now {
            return Verdict::Deny {
                denial: Denial::Expired,
                reason: "the token has expired".into(),
                public: Some(EXPIRED.to_owned()),
            };
        }
        match claims.get("nbf").map(millis) {
            None => {}
            Some(Some(from)) if from <= now.saturating_add(leeway) => {}
            Some(_) => return Verdict::deny_for(Denial::NotYetValid, "the token is not valid yet"),
        }
        if !self.is_for_us(claims.get("aud")) {
            return Verdict::deny_for(Denial::Audience, "the token is for somebody else");
        }
        let name = claim(claims, &table.name).and_then(Value::as_str);
        let Some(name) = name.filter(|name| is_name(name)) else {
            return Verdict::deny_for(Denial::BadName, "the token has no proper name");
        };
        if user.is_some_and(|user| user != name) {
            return Verdict::deny_for(Denial::OtherUser, "the token is another user's");
        }
        let Some(roles) = self.roles(claims) else {
            return Verdict::deny_for(Denial::Malformed, "the token's roles are not words");
        };
        let mut principal = Principal::vouched(name).with_roles(roles);
        principal.expires_at = Some(expires_at);
        Verdict::Allow(principal)
    }

    fn is_for_us(&self, audience: Option<&Value>) -> bool {
        let wanted = &self.table.audience;
        let is_ours = |it: &Value| {
            it.as_str()
                .is_some_and(|it| wanted.iter().any(|us| us == it))
        };
        match audience {
            None => wanted.is_empty(),
            Some(Value::Array(all)) => all.iter().any(is_ours),
            Some(one) => is_ours(one),
        }
    }

    fn roles(&self, claims: &Map<String, Value>) -> Option<Vec<String>> {
        let value = self
            .table
            .roles
            .as_ref()
            .and_then(|path| claim(claims, path));
        let roles = match value {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(words)) => words.split_whitespace().map(str::to_owned).collect(),
            Some(Value::Array(list)) => list
                .iter()
                .map(|role| role.as_str().map(str::to_owned))
                .collect::<Option<_>>()?,
            Some(_) => return None,
        };
        Some(roles).filter(|roles| are_roles(roles))
    }
}

/// Whether `text` can be a `typ`: a media type without parameters, whose `application/` may be left out.
fn is_type(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "!#$&-^_.+".contains(c))
    };
    match text.split_once('/') {
        None => is_word(text),
        Some((kind, of_that_kind)) => is_word(kind) && is_word(of_that_kind),
    }
}

/// Whether two `typ`s are the same as RFC 7515 (4.1.9) compares them: without regard to case, and
/// with `application/` before what has no slash.
fn is_same_type(one: &str, other: &str) -> bool {
    fn full(typ: &str) -> (&str, &str) {
        typ.split_once('/').unwrap_or(("application", typ))
    }
    let ((kind, word), (other_kind, other_word)) = (full(one), full(other));
    kind.eq_ignore_ascii_case(other_kind) && word.eq_ignore_ascii_case(other_word)
}

/// The claim called `path`, or the one that it leads to.
fn claim<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    claims.get(path).or_else(|| {
        let (object, rest) = path.split_once('.')?;
        claim(claims.get(object)?.as_object()?, rest)
    })
}

/// A time in seconds since the Unix epoch, whole or not, in milliseconds.
fn millis(seconds: &Value) -> Option<u64> {
    if let Some(whole) = seconds.as_u64() {
        return whole.checked_mul(1000);
    }
    let seconds = seconds.as_f64().filter(|it| (0.0..1e15).contains(it))?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|it| u64::try_from(it.as_millis()).ok())
}

#[cfg(test)]
mod tests;
