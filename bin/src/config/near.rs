//! The nearest name: what somebody who wrote a name that does not exist may have meant.

/// What to add to a message about the unknown name `word`: the nearest of `known`, else all of them.
pub(crate) fn hint<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
    listed: &str,
) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("; did you mean `{near}`?"),
        None if known.is_empty() => String::new(),
        None => format!("; {listed} {}", known.join(", ")),
    }
}

/// The name out of `known` that `word` is a slip of: at most a third of its letters are wrong, swapped, missing or
/// too many, or one of the two begins with the other.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let word = plain(word);
    known
        .into_iter()
        .filter_map(|name| {
            let other = plain(name);
            let distance = strsim::damerau_levenshtein(&word, &other);
            let slip = distance * 3 <= word.chars().count().max(other.chars().count());
            let short = word.len() >= 3 && (other.starts_with(&word) || word.starts_with(&other));
            (slip || short).then_some((distance, name))
        })
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_understood_and_guesses_are_not_made() {
        let known = [
            "limits",
            "room",
            "rooms",
            "server",
            "sessions",
            "message_bytes",
        ];
        for (word, meant) in [
            ("limts", Some("limits")),
            ("Limits", Some("limits")),
            ("session", Some("sessions")),
            ("romo", Some("room")),
            ("message-byte", Some("message_bytes")),
            ("message", Some("message_bytes")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
    }

    #[test]
    fn without_a_near_name_all_are_listed() {
        assert_eq!(hint("tpc", ["tcp"], "there are"), "; did you mean `tcp`?");
        assert_eq!(
            hint("irc", ["http", "tcp"], "there are"),
            "; there are http, tcp"
        );
        assert_eq!(hint("irc", [], "there are"), "");
    }
}
