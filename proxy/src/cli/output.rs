//! What commands print: results on standard output, everything else on standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use overlane_config::diagnostic::Diagnostic;

use crate::settings::SettingsError;
use crate::store::open::WriteError;

/// The formats of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Only ids, one per line.
    Name,
}

/// Where a command prints.
pub struct Output<'w> {
    result: Box<dyn Write + 'w>,
    notes: Box<dyn Write + 'w>,
    terminal: bool,
}

/// How a word stands out, where a terminal shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Well.
    Green,
    /// Refused.
    Yellow,
    /// Failed.
    Red,
    /// To be seen first.
    Bold,
}

impl Colour {
    /// The text in it, if `colours` are wanted.
    #[must_use]
    pub fn paint(self, text: &str, colours: bool) -> String {
        let code = match self {
            Self::Bold => 1,
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
        };
        if colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

impl Output<'static> {
    /// This process's own.
    #[must_use]
    pub fn standard() -> Self {
        let terminal = io::stdout().is_terminal();
        Self { result: Box::new(io::stdout()), notes: Box::new(io::stderr()), terminal }
    }
}

impl<'w> Output<'w> {
    /// Prints to somewhere else.
    pub fn to(result: impl Write + 'w, notes: impl Write + 'w) -> Self {
        Self { result: Box::new(result), notes: Box::new(notes), terminal: false }
    }

    /// Whether people look at the result on a terminal.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether they want to see it in colours (no-color.org).
    #[must_use]
    pub fn colours(&self) -> bool {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        self.terminal && !plain && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    /// Where results go.
    pub fn result(&mut self) -> &mut dyn Write {
        &mut *self.result
    }

    /// Prints a line of the result.
    ///
    /// # Errors
    /// The reader went away.
    pub fn line(&mut self, line: impl Display) -> Result<(), CliError> {
        writeln!(self.result, "{line}").map_err(CliError::from)
    }

    /// Prints a note: a hint, a warning, progress. A reader that went away misses nothing.
    pub fn note(&mut self, note: impl Display) {
        let _ = writeln!(self.notes, "{note}");
    }

    /// Prints an error and its hint.
    pub fn error(&mut self, error: &CliError) {
        if !error.message.is_empty() {
            self.note(format_args!("error: {}", error.message));
        }
        if let Some(hint) = &error.hint {
            self.note(format_args!("  = help: {hint}"));
        }
    }

    /// Prints diagnostics as they are.
    pub fn diagnostics(&mut self, diagnostics: &[Diagnostic]) {
        for diagnostic in diagnostics {
            self.note(diagnostic);
        }
    }

    /// Prints rows under a header in aligned columns.
    ///
    /// # Errors
    /// The reader went away.
    pub fn table(&mut self, header: &[&str], rows: &[Vec<String>]) -> Result<(), CliError> {
        let width = |column: usize| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .chain([header[column].len()])
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<_> = (0..header.len()).map(width).collect();
        let header: Vec<_> = header.iter().map(|&name| name.to_owned()).collect();
        for row in std::iter::once(&header).chain(rows) {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            self.line(cells.collect::<Vec<_>>().join("   ").trim_end())?;
        }
        Ok(())
    }

    /// Prints a value as JSON or YAML.
    ///
    /// # Errors
    /// The reader went away.
    pub fn value(&mut self, value: &serde_json::Value, format: Format) -> Result<(), CliError> {
        match format {
            Format::Yaml => {
                let text =
                    serde_yaml::to_string(value).map_err(|error| CliError::failure(error.to_string()))?;
                self.line(text.trim_end())
            }
            _ => self.line(format_args!("{value:#}")),
        }
    }
}

/// Why a command failed.
#[derive(Debug, PartialEq, Eq)]
pub struct CliError {
    /// What is wrong; empty where it was printed already.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// The exit code.
    pub exit: u8,
}

impl CliError {
    /// Exit code 1.
    #[must_use]
    pub fn failure(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, exit: 1 }
    }

    /// Exit code 2: the flags do not fit together.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: 2, ..Self::failure(message) }
    }

    /// Exit code 4.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { exit: 4, ..Self::failure(message) }
    }

    /// The same, with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A reader that went away (`| head`) is no failure.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self { message: String::new(), hint: None, exit: 0 },
            _ => match error.get_ref().and_then(|error| error.downcast_ref::<SettingsError>()) {
                Some(settings) => settings.clone().into(),
                None => Self::failure(error.to_string()),
            },
        }
    }
}

impl From<SettingsError> for CliError {
    fn from(error: SettingsError) -> Self {
        Self { message: error.message, hint: error.hint, exit: 1 }
    }
}

impl From<WriteError> for CliError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Exists(id) => Self::failure(format!("`{id}` already exists")).hint("`apply` changes what exists"),
            WriteError::NotFound(what) => Self::not_found(format!("there is no {what}")),
            WriteError::Invalid(diagnostics) => {
                let shown: String = diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect();
                let shown = shown.trim_end().strip_prefix("error: ").map_or_else(|| shown.trim_end().to_owned(), str::to_owned);
                Self::failure(format!("{shown}\n\nnothing was written"))
            }
            WriteError::HasChildren(id, children) => {
                let names: Vec<_> = children.iter().map(ToString::to_string).collect();
                Self::failure(format!("`{id}` has overlays: {}", names.join(", "))).hint("delete them first, or give them another parent")
            }
            WriteError::Shared(id, path) => {
                Self::failure(format!("`{id}` shares the file {path} with other environments, and such files are read and never edited"))
                    .hint("edit the file, or move the document to a file of its own")
            }
            WriteError::OtherParent { environment, flag, file } => {
                let file = file.map_or_else(|| "is a baseline".to_owned(), |file| format!("has `baselineId: {file}`"));
                Self::failure(format!("`--baseline {flag}`, and the file of `{environment}` {file}")).hint("make them agree, or leave `--baseline` out")
            }
            WriteError::Changed(id, now) => {
                let now = now.map_or_else(|| "it is gone".to_owned(), |now| format!("it is at {} now", now.as_str()));
                Self::failure(format!("`{id}` is not what it was: {now}")).hint("look at it again, and decide anew")
            }
            WriteError::Busy | WriteError::Conflict => {
                Self::failure("others write to the store all the time; nothing was written".to_owned()).hint("try again")
            }
            WriteError::NoName(name) => Self::failure(format!("{name:?} is no name of an entry")),
            WriteError::NeverExpires(id) => {
                Self::failure(format!("`{id}` never expires")).hint("`overlane overlay apply --ttl 4h` gives it an end")
            }
            WriteError::Store(fault) => Self::failure(fault.to_string()),
            WriteError::Unsure(fault) => Self::failure(format!("{fault}; it may have been written all the same"))
                .hint("look before it is written again"),
            WriteError::Io(path, error) => Self::failure(format!("{}: {error}", path.display())),
        }
    }
}
