//! Asking at a terminal.

use std::{
    fs::{File, OpenOptions},
    io,
};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use secrecy::SecretString;

/// The controlling terminal, silent until this is dropped: it does not show what is typed.
///
/// It is silenced before anything is asked and stays so between two questions. Someone (or some program) who types as
/// soon as the question appears would otherwise be shown what they typed.
pub(crate) struct Silence {
    terminal: File,
    before: Termios,
}

impl Silence {
    /// Silences the terminal.
    ///
    /// # Errors
    /// The process has no controlling terminal.
    pub(crate) fn keep() -> io::Result<Self> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        let before = termios::tcgetattr(&terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(&terminal, OptionalActions::Now, &silent)?;
        Ok(Self { terminal, before })
    }

    /// Asks `question` and takes one line.
    ///
    /// # Errors
    /// The terminal is gone, or at its end.
    pub(crate) fn ask(&self, question: &str) -> io::Result<SecretString> {
        rpassword::prompt_password(question).map(SecretString::from)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // Where the terminal is gone, there is nothing to restore.
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
