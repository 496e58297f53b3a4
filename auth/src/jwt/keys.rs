//! The keys that tokens may be signed with, and which algorithms each is good for.
//!
//! What a key may verify is settled when it is read: by its kind, its strength and the configured
//! list, never by what a token says. So a public key is never taken for a shared secret, and `none`
//! is the name of nothing.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use chinwag_core::{Lifecycle, plugin::BuildError};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, crypto,
    jwk::{Jwk, KeyOperations, PublicKeyUse},
};
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};

use crate::watch::{Unusable, Watch, follow};

/// The most keys of a set.
const KEYS: usize = 64;
/// The largest file of keys, and the largest set that is fetched.
pub(super) const SET_BYTES: usize = 256 << 10;

/// Keys, each with what it is good for.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// There is one key and never another, whatever a token calls it.
    is_all: bool,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// What a set has to say of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signature {
    Right,
    Wrong,
    /// The token names a key that is not there: perhaps in a newer set.
    NoKey,
}

impl KeySet {
    /// Whether one of the keys signed `message`. `id` is the key that the token names.
    pub(super) fn check(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &str,
    ) -> Signature {
        let may_be = |key: &&Key| id.is_none() || key.id.is_none() || key.id.as_deref() == id;
        let signed = |key: &Key| {
            key.algorithms.contains(&algorithm)
                && crypto::verify(signature, message, &key.key, algorithm).unwrap_or(false)
        };
        if self.keys.iter().filter(may_be).any(signed) {
            return Signature::Right;
        }
        let is_known = |id: &str| self.keys.iter().any(|key| key.id.as_deref() == Some(id));
        if self.is_all || id.is_none_or(is_known) {
            Signature::Wrong
        } else {
            Signature::NoKey
        }
    }

    /// A single key: a public one in PEM form, or the bytes of a secret for HS algorithms.
    fn single(text: &[u8], allowed: &[Algorithm]) -> Result<Self, String> {
        let family = allowed.first().map(|it| it.family());
        let key = match family {
            Some(AlgorithmFamily::Hmac) => {
                let secret = text.strip_suffix(b"\n").unwrap_or(text);
                Ok(DecodingKey::from_secret(
                    secret.strip_suffix(b"\r").unwrap_or(secret),
                ))
            }
            _ if contains(text, b"PRIVATE KEY") => {
                return Err("it is a private key; only the public one belongs here".into());
            }
            Some(AlgorithmFamily::Rsa) => DecodingKey::from_rsa_pem(text),
            Some(AlgorithmFamily::Ec) => DecodingKey::from_ec_pem(text),
            Some(AlgorithmFamily::Ed) => DecodingKey::from_ed_pem(text),
            None => return Err("no algorithm is allowed".into()),
        };
        let key = key.map_err(|_| "it is no public key of that kind in PEM form".to_owned())?;
        let fitting = fitting(&key);
        if let Some(unfit) = allowed.iter().find(|it| !fitting.contains(it)) {
            return Err(format!("it is not fit, or too weak, for {unfit:?}"));
        }
        let key = Key {
            id: None,
            algorithms: allowed.to_vec(),
            key,
        };
        Ok(Self {
            keys: vec![key],
            is_all: true,
        })
    }

    /// A JSON Web Key Set. Keys that are for something else, of an unknown kind or too weak are
    /// passed over; secrets are taken where `secrets` says so.
    pub(super) fn set(text: &[u8], allowed: &[Algorithm], secrets: bool) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        // The error of the parser would quote what it does not like.
        let set: Set =
            serde_json::from_slice(text).map_err(|_| "it is no JSON Web Key Set".to_owned())?;
        if set.keys.len() > KEYS {
            return Err(format!("it has over {KEYS} keys"));
        }
        let keys: Vec<_> = set
            .keys
            .into_iter()
            .filter_map(|key| Key::read(key, allowed, secrets))
            .collect();
        if keys.is_empty() {
            return Err("it has no key for the allowed algorithms".into());
        }
        Ok(Self {
            keys,
            is_all: false,
        })
    }
}

impl Key {
    fn read(key: Value, allowed: &[Algorithm], secrets: bool) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        let id = jwk.common.key_id.clone();
        let for_signatures = match (&jwk.common.public_key_use, &jwk.common.key_operations) {
            (Some(PublicKeyUse::Signature) | None, None) => true,
            (Some(PublicKeyUse::Signature) | None, Some(operations)) => {
                operations.contains(&KeyOperations::Verify)
            }
            _ => false,
        };
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let is_allowed = |it: &&Algorithm| {
            let of_the_key = jwk.common.key_algorithm;
            allowed.contains(it) && of_the_key.is_none_or(|only| only == (**it).into())
        };
        let algorithms: Vec<_> = fitting(&key).iter().filter(is_allowed).copied().collect();
        let is_secret = key.family() == AlgorithmFamily::Hmac;
        let usable = for_signatures && !algorithms.is_empty() && (secrets || !is_secret);
        if !usable {
            debug!(key = id, "A key of the set is passed over.");
            return None;
        }
        Some(Self {
            id,
            algorithms,
            key,
        })
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|it| it == part)
}

/// What a key is good for: nothing, where it is too weak. A secret has at least as many bits as its
/// hash, and an RSA key 2048.
fn fitting(key: &DecodingKey) -> &'static [Algorithm] {
    use Algorithm::{
        ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
    };
    let length = match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, .. } => significant(n),
        DecodingKeyKind::SecretOrDer(der) if key.family() == AlgorithmFamily::Rsa => {
            let utilities = &crypto::aws_lc::DEFAULT_PROVIDER.key_utils;
            (utilities.rsa_pub_components_from_public_key)(der).map_or(0, |(n, _)| significant(&n))
        }
        DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
    };
    match (key.family(), length) {
        (AlgorithmFamily::Hmac, 64..) => &[HS256, HS384, HS512],
        (AlgorithmFamily::Hmac, 48..) => &[HS256, HS384],
        (AlgorithmFamily::Hmac, 32..) => &[HS256],
        (AlgorithmFamily::Rsa, 256..=1024) => &[RS256, RS384, RS512, PS256, PS384, PS512],
        // A point, uncompressed.
        (AlgorithmFamily::Ec, 65) => &[ES256],
        (AlgorithmFamily::Ec, 97) => &[ES384],
        (AlgorithmFamily::Ed, 32) => &[EdDSA],
        _ => &[],
    }
}

/// How many bytes a number has without leading zeros.
fn significant(number: &[u8]) -> usize {
    number.iter().skip_while(|byte| **byte == 0).count()
}

/// Reads the list of allowed algorithms. A single key is of one kind, so its algorithms are as well.
pub(super) fn algorithms(names: &[String], single: bool) -> Result<Vec<Algorithm>, BuildError> {
    let refuse = |why: String| BuildError::key("algorithms", why);
    let all: Vec<_> = names
        .iter()
        .map(|name| {
            Algorithm::from_str(name).map_err(|_| {
                refuse(format!(
                    "{name:?} is none of HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, \
                     PS512, ES256, ES384, EdDSA"
                ))
            })
        })
        .collect::<Result<_, _>>()?;
    let Some(first) = all.first() else {
        return Err(refuse(
            "name the algorithms that tokens may be signed with, such as [\"RS256\"]".into(),
        ));
    };
    if single && all.iter().any(|it| it.family() != first.family()) {
        return Err(refuse(
            "these need keys of several kinds, and `key` is one: keep those of one kind".into(),
        ));
    }
    Ok(all)
}

/// A file of keys, read anew when it changes.
pub(super) struct KeyFile {
    name: String,
    path: PathBuf,
    is_set: bool,
    algorithms: Vec<Algorithm>,
    keys: RwLock<Option<Arc<KeySet>>>,
}

impl KeyFile {
    /// Reads the file under the table's key `of`.
    pub(super) async fn open(
        of: &'static str,
        path: PathBuf,
        algorithms: Vec<Algorithm>,
        name: &str,
        lifecycle: &Lifecycle,
    ) -> Result<Arc<Self>, BuildError> {
        let file = Arc::new(Self {
            name: name.to_owned(),
            path,
            is_set: of == "jwks",
            algorithms,
            keys: RwLock::default(),
        });
        let reader = Arc::clone(&file);
        let (watch, keys) = spawn_blocking(move || {
            let watch = Watch::new(vec![reader.path.clone()]);
            let keys = reader.read();
            (watch, keys)
        })
        .await
        .map_err(|error| BuildError::key(of, format!("reading it failed: {error}")))?;
        let keys = keys.map_err(|error| BuildError::key(of, error.into_fault()))?;
        *file.keys.write() = Some(Arc::new(keys));
        follow(lifecycle, &file, watch, Self::read, Self::take);
        Ok(file)
    }

    pub(super) fn keys(&self) -> Arc<KeySet> {
        let keys = self.keys.read();
        Arc::clone(
            keys.as_ref()
                .expect("keys are read before the file is given out"),
        )
    }

    fn read(&self) -> Result<KeySet, Unusable<String>> {
        let text = read(&self.path)?;
        let keys = if self.is_set {
            KeySet::set(&text, &self.algorithms, true)
        } else {
            KeySet::single(&text, &self.algorithms)
        };
        keys.map_err(|why| Unusable::Bad(format!("{} can't be used: {why}", self.path.display())))
    }

    fn take(&self, read: Result<KeySet, Unusable<String>>) {
        let authenticator = &self.name;
        match read {
            Ok(keys) => {
                info!(authenticator, keys = keys.keys.len(), "Keys read anew.");
                *self.keys.write() = Some(Arc::new(keys));
            }
            Err(error) => warn!(
                authenticator, %error,
                "The changed keys can't be used; those read before stay."
            ),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Unusable<String>> {
    let failed = |error| Unusable::Unread(format!("{} can't be read: {error}", path.display()));
    // Asked before it is opened, since opening a pipe waits for its writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Unusable::Bad(format!("{} is not a file", path.display())));
    }
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(SET_BYTES as u64 + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() > SET_BYTES {
        return Err(Unusable::Bad(format!("{} is over 256 KiB", path.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_can_not_be_read_is_tried_again_and_a_faulty_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = KeyFile {
            name: "tokens".into(),
            path: folder.path().join("key"),
            is_set: false,
            algorithms: vec![Algorithm::ES256],
            keys: RwLock::default(),
        };
        assert!(matches!(file.read(), Err(Unusable::Unread(_))));
        fs::write(&file.path, "nonsense").unwrap();
        assert!(matches!(file.read(), Err(Unusable::Bad(_))));
    }
}
