//! The terminal: asking without showing the answer, and taking it over to draw on it.

use std::{
    fs::{File, OpenOptions},
    io,
};

use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use secrecy::SecretString;

/// The controlling terminal, silent until this is dropped: it does not show what is typed.
///
/// It is silenced before anything is asked and stays so between two questions. Someone (or some program) who types as
/// soon as the question appears would otherwise be shown what they typed, or have their Ctrl-C end the program in
/// place of the question.
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
        // Key by key and without signals, as whoever reads the answer has it.
        let line_by_line = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        silent.local_modes.remove(line_by_line);
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        termios::tcsetattr(&terminal, OptionalActions::Now, &silent)?;
        Ok(Self { terminal, before })
    }

    /// Asks `question` and takes one line.
    ///
    /// # Errors
    /// The terminal is gone, or at its end.
    #[cfg(any(feature = "auth-test", feature = "password"))]
    pub(crate) fn ask(&self, question: &str) -> io::Result<SecretString> {
        ask(question)
    }
}

/// Asks `question` at the controlling terminal, which is to be [silent](Silence) already, and takes one line. Blocks.
///
/// # Errors
/// The terminal is gone, or at its end.
pub(crate) fn ask(question: &str) -> io::Result<SecretString> {
    rpassword::prompt_password(question).map(SecretString::from)
}

impl Drop for Silence {
    fn drop(&mut self) {
        // Where the terminal is gone, there is nothing to restore.
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// The terminal on standard input and output, until this is dropped: keys come one by one and unseen, and what is pasted
/// comes as one piece.
#[cfg(feature = "chat")]
pub(crate) struct TakenOver(());

#[cfg(feature = "chat")]
impl TakenOver {
    /// Takes it over. Also sees to it that a panic gives it back before it speaks.
    ///
    /// # Errors
    /// It is no terminal, or is gone.
    pub(crate) fn take() -> io::Result<Self> {
        let speak = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = give_back();
            speak(panic);
        }));
        take_over().map(|()| Self(()))
    }

    /// Gives it back, stops this process as Ctrl-Z does, and takes it over again when somebody continues it.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(crate) fn suspend(&self) -> io::Result<()> {
        give_back()?;
        #[cfg(unix)]
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TSTP)?;
        take_over()
    }
}

#[cfg(feature = "chat")]
impl Drop for TakenOver {
    fn drop(&mut self) {
        // Where the terminal is gone, there is nothing to give back.
        let _ = give_back();
    }
}

#[cfg(feature = "chat")]
fn take_over() -> io::Result<()> {
    crossterm::terminal::enable_raw_mode()?;
    crossterm::execute!(io::stdout(), crossterm::event::EnableBracketedPaste)
}

#[cfg(feature = "chat")]
fn give_back() -> io::Result<()> {
    let pasting = crossterm::execute!(io::stdout(), crossterm::event::DisableBracketedPaste);
    crossterm::terminal::disable_raw_mode()?;
    pasting
}
