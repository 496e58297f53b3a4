//! The two kinds of hash that a password file may hold, and what they may cost.
//!
//! Comparing takes constant time, as the libraries do it. Hashes are never printed: nothing here has `Debug` or
//! `Display` but errors, and those speak of kinds and bounds only.

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{
        PasswordHasher,
        phc::{Output, PasswordHash, Salt},
    },
};
use secrecy::{ExposeSecret, SecretString};

use super::memory::Memory;

/// The most memory that one argon2id hash may take, in KiB: 2 GiB.
const ARGON2_MEMORY: u32 = 1 << 21;
/// The most memory that all passes of one argon2id hash may go over, in KiB: 4 GiB, some seconds of
/// a core.
const ARGON2_WORK: u64 = 1 << 22;
/// bcrypt's costs: 16 is about ten seconds of a core.
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=16;
/// bcrypt looks at no byte beyond these.
const BCRYPT_BYTES: usize = 72;

/// A hash of a password, ready to check others against.
pub(super) enum Hash {
    Argon2(Box<Argon2id>),
    Bcrypt(String),
}

/// An argon2id hash, taken apart.
pub(super) struct Argon2id {
    argon2: Argon2<'static>,
    salt: Salt,
    output: Output,
}

/// Why a hash can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadHash {
    /// Of another kind, or no hash at all.
    #[error("the hash is neither argon2id ($argon2id$) nor bcrypt ($2a$, $2b$, $2y$)")]
    Kind,
    /// An argon2id hash with a part missing or out of its bounds.
    #[error("the argon2id hash is malformed: it needs v (16 or 19), m, t, p, a salt and an output")]
    Argon2,
    /// A bcrypt hash of the wrong length, or with characters that it can't have.
    #[error("the bcrypt hash is malformed: it has 60 characters, cut off or changed")]
    Bcrypt,
    /// It would block a hash thread for too long, or take too much memory.
    #[error(
        "the hash costs too much: argon2id may take 2 GiB and m times t 4 GiB, bcrypt a cost of 16"
    )]
    Cost,
}

/// Why a password could be neither hashed nor checked, such as for want of memory. Its owner is not
/// at fault.
#[derive(Debug, thiserror::Error)]
#[error("hashing failed: {0}")]
pub struct HashFailed(String);

impl Hash {
    /// Reads a hash as it stands in the file.
    pub(super) fn parse(text: &str) -> Result<Self, BadHash> {
        if text.starts_with("$argon2id$") {
            parse_argon2(text).map(|hash| Self::Argon2(Box::new(hash)))
        } else if ["$2a$", "$2b$", "$2y$"]
            .iter()
            .any(|kind| text.starts_with(kind))
        {
            let parts: bcrypt::HashParts = text.parse().map_err(|_malformed| BadHash::Bcrypt)?;
            if !BCRYPT_COSTS.contains(&parts.get_cost()) {
                return Err(BadHash::Cost);
            }
            Ok(Self::Bcrypt(text.to_owned()))
        } else {
            Err(BadHash::Kind)
        }
    }

    /// A hash that costs what new ones cost and that no password is known for.
    pub(super) fn nobodys() -> Self {
        let text = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGlzIGhlcmU\
                    $AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        Self::parse(text).expect("the text above is well formed")
    }

    /// How many blocks of `Memory` checking a password takes.
    pub(super) fn blocks(&self) -> usize {
        match self {
            Self::Argon2(hash) => hash.argon2.params().block_count(),
            Self::Bcrypt(_) => 0,
        }
    }

    /// Whether `password` is the right one. Takes the same time for every wrong one.
    ///
    /// bcrypt ignores what comes after 72 bytes and repeats what comes before a NUL, so that
    /// several passwords share a hash. Those that it can't tell apart are wrong, after the same
    /// work as any other.
    pub(super) fn check(
        &self,
        password: &SecretString,
        memory: &mut Memory,
    ) -> Result<bool, HashFailed> {
        let password = password.expose_secret().as_bytes();
        match self {
            Self::Argon2(hash) => hash.check(password, memory),
            Self::Bcrypt(hash) => {
                let matches = bcrypt::verify(password, hash)
                    .map_err(|error| HashFailed(format!("bcrypt: {error}")))?;
                Ok(matches && password.len() <= BCRYPT_BYTES && !password.contains(&0))
            }
        }
    }
}

impl Argon2id {
    /// What the library's own `verify_password` does, but for the memory: that takes new one for
    /// every password, and gives back little of it.
    fn check(&self, password: &[u8], memory: &mut Memory) -> Result<bool, HashFailed> {
        let failed = |error: &dyn std::fmt::Display| HashFailed(format!("argon2id: {error}"));
        let blocks = memory
            .blocks(self.argon2.params().block_count())
            .map_err(|error| failed(&error))?;
        let mut buffer = [0; Output::MAX_LENGTH];
        let computed = buffer
            .get_mut(..self.output.len())
            .expect("no output is longer than the longest");
        self.argon2
            .hash_password_into_with_memory(password, &self.salt, computed, blocks)
            .map_err(|error| failed(&error))?;
        let computed = Output::new(computed).map_err(|error| failed(&error))?;
        // In constant time, which comparing the bytes would not be.
        Ok(computed == self.output)
    }
}

/// A fresh argon2id hash of `password` with a random salt.
pub(super) fn fresh(password: &SecretString, params: Params) -> Result<String, HashFailed> {
    Argon2::from(params)
        .hash_password(password.expose_secret().as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| HashFailed(format!("argon2id: {error}")))
}

fn parse_argon2(text: &str) -> Result<Argon2id, BadHash> {
    let hash = PasswordHash::new(text).map_err(|_malformed| BadHash::Argon2)?;
    // The library takes defaults of its own for what is missing, and then no password would ever be
    // right.
    let named = ["m", "t", "p"]
        .iter()
        .all(|name| hash.params.get(*name).is_some());
    let version = hash
        .version
        .and_then(|version| Version::try_from(version).ok());
    let (true, Some(version), Some(salt), Some(output)) = (named, version, hash.salt, hash.hash)
    else {
        return Err(BadHash::Argon2);
    };
    let params = Params::try_from(&hash).map_err(|_out_of_bounds| BadHash::Argon2)?;
    let work = u64::from(params.m_cost()) * u64::from(params.t_cost());
    if params.m_cost() > ARGON2_MEMORY || work > ARGON2_WORK {
        return Err(BadHash::Cost);
    }
    Ok(Argon2id {
        argon2: Argon2::new(Algorithm::Argon2id, version, params),
        salt,
        output,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A hash that takes next to no time.
    pub(in crate::password) fn cheap(password: &str) -> String {
        fresh(&password.into(), Params::new(8, 1, 1, None).unwrap()).unwrap()
    }

    pub(in crate::password) fn cheap_bcrypt(password: &str) -> String {
        bcrypt::hash_with_salt(password, 4, [7; 16])
            .unwrap()
            .format_for_version(bcrypt::Version::TwoY)
    }

    fn right(hash: &str, password: &str) -> bool {
        right_in(hash, password, &mut Memory::default())
    }

    fn right_in(hash: &str, password: &str, memory: &mut Memory) -> bool {
        let hash = Hash::parse(hash).unwrap();
        hash.check(&password.into(), memory).unwrap()
    }

    fn fault(hash: &str) -> BadHash {
        match Hash::parse(hash) {
            Ok(_) => panic!("{hash} was taken"),
            Err(fault) => fault,
        }
    }

    #[test]
    fn hashes_of_other_programs_are_understood() {
        // Test vectors of the two reference implementations.
        let argon2 = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ\
                      $nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        assert!(right(argon2, "password"));
        assert!(!right(argon2, "passwore"));
        let bcrypt = "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
        assert!(right(bcrypt, "U*U"));
        assert!(right(&bcrypt.replace("$2y$", "$2a$"), "U*U"));
        assert!(right(&bcrypt.replace("$2y$", "$2b$"), "U*U"));
        assert!(!right(bcrypt, "U*U*"));
    }

    #[test]
    fn what_was_hashed_before_in_the_same_memory_changes_nothing() {
        let hashes: Vec<_> = [(8, 1, 1), (300, 2, 3), (64, 3, 2), (8, 1, 1)]
            .into_iter()
            .map(|(m, t, p)| {
                let params = Params::new(m, t, p, Some(16)).unwrap();
                fresh(&"secret".into(), params).unwrap()
            })
            .collect();
        let mut memory = Memory::default();
        for hash in hashes.iter().chain(hashes.iter().rev()) {
            assert!(right_in(hash, "secret", &mut memory), "{hash}");
            assert!(!right_in(hash, "Secret", &mut memory), "{hash}");
        }
    }

    #[test]
    fn it_takes_as_much_memory_as_it_says() {
        let hash = fresh(&"secret".into(), Params::new(300, 1, 3, None).unwrap()).unwrap();
        // Four slices of equal length in each of three lanes.
        assert_eq!(Hash::parse(&hash).unwrap().blocks(), 300);
        assert_eq!(Hash::nobodys().blocks(), 19_456);
        assert_eq!(Hash::parse(&cheap_bcrypt("a")).unwrap().blocks(), 0);
    }

    #[test]
    fn a_fresh_hash_is_right_for_its_password_only_and_never_the_same() {
        let hash = cheap("secret");
        assert!(hash.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{hash}");
        assert!(right(&hash, "secret"));
        assert!(!right(&hash, "Secret"));
        assert!(!right(&hash, ""));
        assert_ne!(hash, cheap("secret"));
    }

    #[test]
    fn bcrypt_never_takes_one_password_for_another() {
        let longest = "x".repeat(72);
        let hash = cheap_bcrypt(&longest);
        assert!(right(&hash, &longest));
        assert!(!right(&hash, &"x".repeat(73)));
        let hash = cheap_bcrypt("ab");
        assert!(right(&hash, "ab"));
        assert!(!right(&hash, "ab\0ab"));
    }

    #[test]
    fn what_can_not_be_used_is_named() {
        let good = cheap("secret");
        assert_eq!(fault("secret"), BadHash::Kind);
        assert_eq!(fault(&good.replace("argon2id", "argon2i")), BadHash::Kind);
        assert_eq!(fault("$apr1$x$y"), BadHash::Kind);
        assert_eq!(
            fault(&cheap_bcrypt("a").replace("$2y$", "$2x$")),
            BadHash::Kind
        );
        for bad in [
            good.replace("$v=19", ""),
            good.replace("v=19", "v=18"),
            good.replace(",p=1", ""),
            good.replace("m=8", "m=7"),
            good.rsplit_once('$').unwrap().0.to_owned(),
            "$argon2id$".to_owned(),
        ] {
            assert_eq!(fault(&bad), BadHash::Argon2, "{bad}");
        }
        assert_eq!(fault(cheap_bcrypt("a").get(..59).unwrap()), BadHash::Bcrypt);
        assert_eq!(
            fault(&cheap_bcrypt("a").replace("$04$", "$17$")),
            BadHash::Cost
        );
        assert_eq!(
            fault(&cheap_bcrypt("a").replace("$04$", "$03$")),
            BadHash::Cost
        );
        assert_eq!(fault(&good.replace("m=8", "m=2097153")), BadHash::Cost);
        assert_eq!(fault(&good.replace("t=1", "t=4294967295")), BadHash::Cost);
    }

    #[test]
    fn nobodys_hash_costs_what_a_new_one_costs() {
        let Hash::Argon2(hash) = Hash::nobodys() else {
            panic!("not argon2id")
        };
        let params = hash.argon2.params();
        assert_eq!(
            (params.m_cost(), params.t_cost(), params.p_cost()),
            (
                Params::DEFAULT_M_COST,
                Params::DEFAULT_T_COST,
                Params::DEFAULT_P_COST
            )
        );
        assert_eq!(params.output_len(), Some(Params::DEFAULT_OUTPUT_LEN));
    }
}
