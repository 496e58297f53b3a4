//! Names of users and rooms: which are allowed, how they are shown, and when two count as one.

use std::{borrow::Cow, sync::Arc};

use caseless::default_case_fold_str;
use parking_lot::RwLock;
use precis_core::profile::PrecisFastInvocation;
use precis_profiles::UsernameCasePreserved;
use unicode_normalization::{UnicodeNormalization, char::canonical_combining_class};
use unicode_security::confusable_detection::skeleton;

use crate::{
    ErrorCode, Refusal,
    config::{Case, Charset, NamesConfig},
    plugin::PrincipalName,
};

/// Most characters of a name that an authenticator vouches for, and most bytes of a chosen one.
const MAX_NAME: usize = 128;
/// Most characters of a room's name.
const MAX_ROOM: usize = 64;

/// A user's name: as it is shown, the key by which it is unique, and the one by which lists are in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) shown: Arc<str>,
    pub(crate) key: Arc<str>,
    /// Two names with one of these have one `key` too.
    pub(crate) order: Arc<str>,
}

impl NamesConfig {
    /// The canonical form of a principal's name, or `name_invalid` with the rule that it breaks.
    pub(crate) fn canonical(&self, name: &PrincipalName) -> Result<Name, Refusal> {
        let invalid = |why: String| Refusal::new(ErrorCode::NameInvalid, why);
        let shown = match name {
            PrincipalName::Vouched(name) => {
                if name.is_empty()
                    || name.chars().count() > MAX_NAME
                    || name.chars().any(|c| c.is_whitespace() || c.is_control())
                {
                    return Err(invalid(
                        "A name has 1 to 128 characters without space or control.".into(),
                    ));
                }
                name.clone()
            }
            PrincipalName::Chosen { prefix, name } => {
                let (min, max) = (self.min, self.max);
                if !(min..=max).contains(&name.chars().count()) || name.len() > MAX_NAME {
                    return Err(invalid(format!("A name has {min} to {max} characters.")));
                }
                let name = match self.charset {
                    Charset::Ascii => {
                        let allowed =
                            |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
                        if !name.chars().all(allowed) {
                            return Err(invalid(
                                "A name consists of letters, digits, \"_\", \"-\" and \".\"."
                                    .into(),
                            ));
                        }
                        Cow::Borrowed(name.as_str())
                    }
                    Charset::Unicode => {
                        UsernameCasePreserved::enforce(name.as_str()).map_err(|_| {
                            invalid("A name consists of letters, marks and digits of any script, and of printable ASCII without space.".into())
                        })?
                    }
                };
                let name = cased(&name, self.case);
                if name.chars().count() > max || name.len() > MAX_NAME {
                    return Err(invalid(format!(
                        "In its case here the name has over {max} characters."
                    )));
                }
                format!("{prefix}{name}")
            }
        };
        let order = self.order(&shown);
        let key = match self.charset {
            Charset::Ascii => Arc::clone(&order),
            Charset::Unicode => self.key(&shown),
        };
        Ok(Name {
            shown: shown.into(),
            key,
            order,
        })
    }

    /// The name under which a principal is shown, where `guest_prefixes` are those of all authenticators of all
    /// transports, see [`Authenticator::guest_prefix`](crate::plugin::Authenticator::guest_prefix).
    ///
    /// # Errors
    /// `name_invalid`, with the rule that the name breaks.
    pub fn shown<'a>(
        &self,
        name: &PrincipalName,
        guest_prefixes: impl IntoIterator<Item = &'a str>,
    ) -> Result<Arc<str>, Refusal> {
        let canonical = self.canonical(name)?;
        let prefixes = GuestPrefixes::default();
        for prefix in guest_prefixes {
            prefixes.add(self, prefix);
        }
        prefixes.check(name, &canonical)?;
        Ok(canonical.shown)
    }

    /// The key under which a shown name is unique: without regard to case and, in Unicode, to looks.
    pub(crate) fn key(&self, shown: &str) -> Arc<str> {
        match self.charset {
            Charset::Ascii => self.order(shown),
            Charset::Unicode => {
                let folded = default_case_fold_str(shown);
                let looks: String = skeleton(&folded).collect();
                // What a letter looks like may be a capital.
                default_case_fold_str(&looks).into()
            }
        }
    }

    /// The key by which names are in order: without regard to case.
    pub(crate) fn order(&self, shown: &str) -> Arc<str> {
        default_case_fold_str(shown).into()
    }
}

/// What names begin with that clients have chosen: names that somebody vouches for must not, or a guest could sit on one.
#[derive(Debug, Default)]
pub(crate) struct GuestPrefixes(RwLock<Vec<Arc<str>>>);

impl GuestPrefixes {
    /// An empty one keeps nobody out.
    pub(crate) fn add(&self, names: &NamesConfig, prefix: &str) {
        let key = names.key(prefix);
        // Its last letter may have other accents before its own in a key, where the name begins with some.
        let bare = key.trim_end_matches(|c| canonical_combining_class(c) != 0);
        let key = if bare.is_empty() { key } else { bare.into() };
        let mut prefixes = self.0.write();
        if !key.is_empty() && !prefixes.contains(&key) {
            prefixes.push(key);
        }
    }

    /// Checks what has become of a principal's name.
    ///
    /// # Errors
    /// `name_invalid`, where somebody vouches for a name that a guest may have.
    pub(crate) fn check(&self, name: &PrincipalName, canonical: &Name) -> Result<(), Refusal> {
        match name {
            PrincipalName::Vouched(_) if self.may_make(canonical) => {
                let message = "The name begins as those of guests do here.";
                Err(Refusal::new(ErrorCode::NameInvalid, message))
            }
            _ => Ok(()),
        }
    }

    /// Whether a guest may be called so.
    fn may_make(&self, name: &Name) -> bool {
        let prefixes = self.0.read();
        prefixes
            .iter()
            .any(|prefix| name.key.starts_with(&**prefix))
    }
}

fn cased(name: &str, case: Case) -> String {
    match case {
        Case::Preserve => name.to_owned(),
        Case::Upper => name.to_uppercase(),
        Case::Lower => name.to_lowercase(),
        Case::Capitalize => {
            let mut letters = name.chars();
            letters.next().map_or_else(String::new, |first| {
                let mut first = first.to_uppercase();
                let capital = first.next();
                let rest = first.chain(letters).flat_map(char::to_lowercase);
                capital.into_iter().chain(rest).collect()
            })
        }
    }
}

/// Whether there may be a user of that name: 1 to 128 characters without control, and without space at the ends.
pub(crate) fn may_be_a_users(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.chars().count())
        && name.trim() == name
        && !name.chars().any(char::is_control)
}

/// What a name is told from others by where guesses at its password are counted: it is the same for all that some back
/// end may take for one name, and for many more, which then only wait together.
pub(crate) fn counted_as(name: &str) -> Arc<str> {
    let trimmed = name.trim().chars().filter(|c| !c.is_control());
    let composed: String = trimmed.nfkc().collect();
    let folded = default_case_fold_str(&composed);
    // Letters and their accents stand one by one here.
    let looks: String = skeleton(&folded)
        .filter(|c| !matches!(c, '\u{300}'..='\u{36f}'))
        .collect();
    // What a letter looks like may be a capital.
    let folded = default_case_fold_str(&looks);
    folded.chars().take(MAX_NAME).collect::<String>().into()
}

/// Checks a room's name.
pub(crate) fn check_room(name: &str) -> Result<(), Refusal> {
    let invalid = |why: &str| Err(Refusal::new(ErrorCode::RoomInvalid, why));
    if name.is_empty() || name.chars().count() > MAX_ROOM {
        return invalid("A room's name has 1 to 64 characters.");
    }
    if name.chars().any(|c| c.is_ascii_uppercase()) {
        return invalid("A room's name has lower-case letters only; it is not folded.");
    }
    if !name.chars().all(is_room_char) {
        return invalid("A room's name consists of a-z, 0-9 and . _ : -");
    }
    Ok(())
}

pub(crate) fn is_room_char(c: char) -> bool {
    matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | ':' | '-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chosen(config: &NamesConfig, name: &str) -> Option<(String, String)> {
        let name = PrincipalName::Chosen {
            prefix: String::new(),
            name: name.into(),
        };
        config
            .canonical(&name)
            .ok()
            .map(|name| (name.shown.to_string(), name.key.to_string()))
    }

    #[test]
    fn a_chosen_name_keeps_to_the_rules() {
        let config = NamesConfig {
            min: 2,
            max: 5,
            ..NamesConfig::default()
        };
        for bad in [
            "", "x", "toolong", "sp ce", "new\nl", "über", "a\u{0}b", "a/b",
        ] {
            assert_eq!(chosen(&config, bad), None, "{bad:?}");
        }
        assert_eq!(
            chosen(&config, "Bo_1"),
            Some(("Bo_1".into(), "bo_1".into()))
        );
    }

    #[test]
    fn case_is_shown_as_configured_and_never_tells_names_apart() {
        for (case, shown) in [
            (Case::Preserve, "mcDuck"),
            (Case::Upper, "MCDUCK"),
            (Case::Lower, "mcduck"),
            (Case::Capitalize, "Mcduck"),
        ] {
            let config = NamesConfig {
                case,
                ..NamesConfig::default()
            };
            assert_eq!(
                chosen(&config, "mcDuck"),
                Some((shown.into(), "mcduck".into()))
            );
        }
    }

    #[test]
    fn look_alikes_share_a_key() {
        let config = NamesConfig {
            charset: Charset::Unicode,
            ..NamesConfig::default()
        };
        let latin = chosen(&config, "paypal").unwrap();
        let mixed = chosen(&config, "p\u{0430}ypal").unwrap();
        assert_eq!(latin.1, mixed.1, "a Cyrillic a looks like a Latin one");
        assert_ne!(latin.0, mixed.0);
        assert_eq!(
            chosen(&config, "Ünsal").unwrap().1,
            chosen(&config, "ÜNSAL").unwrap().1
        );
        assert_eq!(chosen(&config, "two words"), None);
    }

    #[test]
    fn case_is_folded_as_a_whole() {
        let config = NamesConfig {
            charset: Charset::Unicode,
            ..NamesConfig::default()
        };
        let key = |name: &str| chosen(&config, name).unwrap().1;
        assert_eq!(key("Μάριος"), key("ΜΆΡΙΟΣ"), "a final sigma is a sigma");
        assert_eq!(key("Straße"), key("STRASSE"));
        let capital = NamesConfig {
            case: Case::Capitalize,
            ..config.clone()
        };
        assert_eq!(chosen(&capital, "ßeta").unwrap().0, "Sseta");
        let upper = NamesConfig {
            case: Case::Upper,
            ..config
        };
        assert_eq!(
            chosen(&upper, &format!("{}ß", "x".repeat(31))),
            None,
            "33 characters"
        );
    }

    #[test]
    fn a_vouched_name_needs_only_to_be_printable() {
        let config = NamesConfig {
            max: 3,
            ..NamesConfig::default()
        };
        let vouched = |name: &str| {
            config
                .canonical(&PrincipalName::Vouched(name.into()))
                .is_ok()
        };
        assert!(vouched("alice@example.org") && vouched("日本"));
        assert!(!vouched("") && !vouched("a b") && !vouched("a\tb") && !vouched(&"x".repeat(129)));
    }

    #[test]
    fn guesses_are_counted_together_however_a_name_is_spelt() {
        for spelt in [
            "ALICE",
            " alice",
            "\talice",
            "alice\u{a0}",
            "ａｌｉｃｅ",
            "Ａlice",
            "álice",
            "a\u{301}lice",
            "\u{430}lice",
            "al\u{200b}ice",
            "\u{feff}alice",
            "a\u{0}lice",
            "𝐚lice",
            "AL\u{130}CE",
        ] {
            assert_eq!(counted_as(spelt), counted_as("alice"), "{spelt:?}");
        }
        assert_eq!(counted_as("Straße"), counted_as("STRASSE"));
        assert_ne!(counted_as("alice"), counted_as("bob"));
        assert_ne!(counted_as("user1"), counted_as("user2"));
        assert!(counted_as(&"\u{fdfa}".repeat(1000)).chars().count() <= MAX_NAME);
    }

    #[test]
    fn what_no_user_can_be_called_is_known_before_anybody_is_asked() {
        for good in ["alice", "Alice Smith", "日本", &"é".repeat(128)] {
            assert!(may_be_a_users(good), "{good:?}");
        }
        for bad in [
            "",
            " ",
            "alice ",
            "\talice",
            "alice\u{3000}",
            "al\u{0}ice",
            &"x".repeat(129),
        ] {
            assert!(!may_be_a_users(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_prefix_is_outside_the_rules() {
        let config = NamesConfig {
            max: 3,
            ..NamesConfig::default()
        };
        let name = PrincipalName::Chosen {
            prefix: "~guest-".into(),
            name: "Bob".into(),
        };
        assert_eq!(&*config.canonical(&name).unwrap().shown, "~guest-Bob");
    }

    #[test]
    fn a_name_begins_as_guests_do_whatever_its_case_and_looks() {
        let unicode = NamesConfig {
            charset: Charset::Unicode,
            ..NamesConfig::default()
        };
        let is_like = |config: &NamesConfig, prefix: &str, name: &str| {
            let prefixes = GuestPrefixes::default();
            prefixes.add(config, prefix);
            let name = config.canonical(&PrincipalName::Vouched(name.into()));
            prefixes.may_make(&name.expect("a sound name"))
        };
        let ascii = NamesConfig::default();
        for (prefix, name, expected) in [
            ("~", "~bob", true),
            ("~", "bob~", false),
            ("Guest-", "GuesT-1", true),
            ("guest-", "guest", false),
            ("", "bob", false),
        ] {
            assert_eq!(is_like(&ascii, prefix, name), expected, "{prefix} {name}");
            assert_eq!(is_like(&unicode, prefix, name), expected, "{prefix} {name}");
        }
        assert!(
            is_like(&unicode, "pal-", "p\u{0430}l-bob"),
            "it looks like one"
        );
        assert!(is_like(&unicode, "r", "mice"), "an m looks like rn");
        assert!(
            !is_like(&ascii, "pal-", "p\u{0430}l-bob"),
            "no guest can be called so"
        );
        for config in [&ascii, &unicode] {
            assert!(
                is_like(config, "é", "é\u{327}bob"),
                "its accents change places"
            );
        }
    }

    proptest! {
        /// Whatever a guest makes of its prefix, nobody is vouched for under that name.
        #[test]
        fn no_guest_is_called_as_a_user_may_be(
            prefix in "[~a-zA-Z0-9éñ가ß]{1,16}",
            name in prop_oneof!["[a-zA-Z0-9_.-]{1,20}", "[\\p{L}\\p{M}\\p{N}]{1,12}"],
            is_unicode in any::<bool>(),
        ) {
            let config = NamesConfig {
                charset: if is_unicode { Charset::Unicode } else { Charset::Ascii },
                ..NamesConfig::default()
            };
            let prefixes = GuestPrefixes::default();
            prefixes.add(&config, &prefix);
            if let Ok(guest) = config.canonical(&PrincipalName::Chosen { prefix, name }) {
                prop_assert!(prefixes.may_make(&guest), "{guest:?}");
            }
        }
    }

    #[test]
    fn a_room_name_is_never_folded() {
        assert!(check_room("lobby").is_ok() && check_room("game:42.a_b-c").is_ok());
        assert!(
            check_room("Lobby")
                .unwrap_err()
                .message
                .contains("not folded")
        );
        for bad in ["", "a b", "café", "a/b", &"x".repeat(65)] {
            assert!(check_room(bad).is_err(), "{bad:?}");
        }
    }
}
