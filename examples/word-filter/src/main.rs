//! chinwag with a validator of its own: words that are masked or refused.

use std::{collections::HashSet, path::PathBuf, process::ExitCode, sync::Arc};

use chinwag::{
    Plugins,
    core::plugin::{BuildError, Draft, Rejection, Validator, ValidatorConfig, ValidatorContext},
};

/// A table of `kind = "words"`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    /// Words that are not said, one a line; lines that begin with `#` are comments. Read at the start.
    file: Option<PathBuf>,
    /// More of them.
    #[serde(default)]
    also: Vec<String>,
    /// What becomes of a message with one.
    #[serde(default)]
    action: Action,
    /// What stands in place of each letter of a masked word.
    #[serde(default = "asterisk")]
    mask: char,
}

#[derive(Default, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    #[default]
    Mask,
    Refuse,
}

fn asterisk() -> char {
    '*'
}

impl ValidatorConfig for Words {
    const KIND: &'static str = "words";

    fn build(self, cx: ValidatorContext) -> Result<Arc<dyn Validator>, BuildError> {
        let mut words = HashSet::new();
        if let Some(file) = &self.file {
            let path = cx.base.join(file);
            let text = std::fs::read_to_string(&path).map_err(|error| {
                BuildError::key("file", format!("can't read {}: {error}", path.display()))
            })?;
            let lines = text.lines().map(str::trim);
            words.extend(
                lines
                    .filter(|line| !line.is_empty() && !line.starts_with('#'))
                    .map(folded),
            );
        }
        words.extend(self.also.iter().map(|word| folded(word)));
        if let Some(wrong) = words.iter().find(|word| !word.chars().all(is_of_word)) {
            return Err(BuildError::new(format!(
                "{wrong:?} is no word: it must be made of letters and digits alone"
            )));
        }
        if words.is_empty() {
            return Err(BuildError::new(
                "no word is named: give `file`, `also` or both",
            ));
        }
        // A mask of more bytes could make a message longer than it may be.
        if !self.mask.is_ascii() || self.mask.is_ascii_control() {
            return Err(BuildError::key(
                "mask",
                "must be one visible ASCII character",
            ));
        }
        Ok(Arc::new(Filter {
            words,
            action: self.action,
            mask: self.mask,
        }))
    }
}

struct Filter {
    words: HashSet<String>,
    action: Action,
    mask: char,
}

impl Validator for Filter {
    fn check(&self, draft: &mut Draft<'_>) -> Result<(), Rejection> {
        // Only what people read: `data` is for programs.
        let Some(text) = &mut draft.text else {
            return Ok(());
        };
        let mut masked = String::with_capacity(text.len());
        let mut found = false;
        for piece in text.split_inclusive(|letter| !is_of_word(letter)) {
            let word = piece.trim_end_matches(|letter| !is_of_word(letter));
            if !self.words.contains(&folded(word)) {
                masked += piece;
                continue;
            }
            found = true;
            masked.extend(word.chars().map(|_| self.mask));
            masked.extend(piece.strip_prefix(word));
        }
        match (found, self.action) {
            (false, _) => Ok(()),
            (true, Action::Mask) => {
                *text = masked;
                Ok(())
            }
            (true, Action::Refuse) => Err(Rejection::Rejected(format!(
                "That is not said in {}.",
                draft.room
            ))),
        }
    }
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric()
}

fn folded(word: &str) -> String {
    word.to_lowercase()
}

fn main() -> ExitCode {
    chinwag::run(Plugins::builtin().validator::<Words>())
}
