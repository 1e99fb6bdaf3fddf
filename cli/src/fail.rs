//! How a command ends when it cannot do what was asked: the error, its causes, the next step, the exit code.

use crate::visible;
use blkcopy::block::{Error, Kind};
use std::error::Error as _;
use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Code {
    /// What was asked is done.
    Done,
    /// The answer is no: verification found a difference, `--require` is unmet, the plan has a FAIL.
    No,
    /// An error.
    Error,
    /// Stopped by a signal.
    Cancelled,
}

impl Code {
    /// The process's exit code.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::No => 1,
            Self::Error => 2,
            Self::Cancelled => 130,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.number())
    }
}

/// An error on its way to the user.
#[derive(Debug)]
pub(crate) struct Fail {
    pub(crate) error: Error,
    /// The next step, when the message does not hold it.
    pub(crate) hint: Option<String>,
    pub(crate) code: Code,
}

impl Fail {
    /// A usage or input error.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Error::new(Kind::InvalidInput, text.into()).into()
    }

    /// With the next step.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the exit code "the answer is no".
    pub(crate) fn no(mut self) -> Self {
        self.code = Code::No;
        self
    }

    /// With the exit code of a command that was stopped by a signal.
    pub(crate) fn cancelled(mut self) -> Self {
        self.code = Code::Cancelled;
        self
    }

    /// Writes it to stderr; returns the exit code.
    pub(crate) fn print(&self) -> Code {
        print_error(&self.error, self.hint.as_deref());
        self.code
    }
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        let hint = match error.kind() {
            Kind::Permission => Some("run blkcopy as a user who may open it"),
            _ => None,
        };
        Self { error, hint: hint.map(str::to_owned), code: Code::Error }
    }
}

/// Writes an error with its causes, each once, and the next step.
pub(crate) fn print_error(error: &Error, hint: Option<&str>) {
    let mut text = format!("blkcopy: {}\n", visible::line(&error.to_string()));
    let mut cause = error.source();
    while let Some(c) = cause {
        text += &format!("  cause: {}\n", visible::line(&c.to_string()));
        cause = c.source();
    }
    if let Some(hint) = hint {
        text += &format!("  try: {}\n", visible::line(hint));
    }
    crate::output::err(&text);
}
