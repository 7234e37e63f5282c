//! Diagnostics: what is wrong, where, and what to do about it.

mod near;

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::name::EnvironmentId;
use crate::time::UnixMillis;

pub use near::did_you_mean;

/// One file (or standard input) as it was read.
#[derive(Debug)]
pub struct Source {
    /// The path as it is shown to people.
    pub path: Arc<str>,
    /// The whole text.
    pub text: String,
    /// When the file was last modified; a ttl written by hand counts from here.
    pub modified: Option<UnixMillis>,
    /// Made when a place is first asked for: most files never are.
    milestones: OnceLock<Box<[Milestone]>>,
}

/// How many bytes lie between two [`Milestone`]s.
const MILESTONE: usize = 4096;

/// What is known every [`MILESTONE`] bytes, so that no place is counted from the beginning: a file of
/// a hundred thousand documents can have as many diagnostics.
#[derive(Debug, Clone, Copy, Default)]
struct Milestone {
    /// The line ends before it.
    lines: usize,
    /// The characters before it on its line.
    characters: usize,
}

impl Milestone {
    /// The milestone behind `bytes`.
    fn pass(self, bytes: &[u8]) -> Self {
        let characters = |bytes: &[u8]| bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        match bytes.iter().rposition(|byte| *byte == b'\n') {
            None => Self { characters: self.characters + characters(bytes), ..self },
            Some(last) => Self {
                lines: self.lines + bytes.iter().filter(|byte| **byte == b'\n').count(),
                characters: characters(&bytes[last + 1..]),
            },
        }
    }
}

impl Source {
    /// A text, the path it is shown with, and when it was last modified.
    #[must_use]
    pub fn new(path: Arc<str>, text: String, modified: Option<UnixMillis>) -> Self {
        Self { path, text, modified, milestones: OnceLock::new() }
    }

    /// What lies before the byte `at`.
    fn milestone(&self, at: usize) -> Milestone {
        let bytes = self.text.as_bytes();
        if at < MILESTONE {
            return Milestone::default().pass(&bytes[..at]);
        }
        let milestones = self.milestones.get_or_init(|| {
            let pass = |at: &mut Milestone, bytes| Some(std::mem::replace(at, at.pass(bytes)));
            let whole = bytes.chunks(MILESTONE).scan(Milestone::default(), pass);
            whole.collect()
        });
        let number = (at / MILESTONE).min(milestones.len() - 1);
        milestones[number].pass(&bytes[number * MILESTONE..at])
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, &self.text, self.modified) == (&other.path, &other.text, other.modified)
    }
}

impl Eq for Source {}

/// A range of bytes in a [`Source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The first byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands in its source.
    pub span: Span,
}

/// A place in a source: enough to print the line and point at the characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub source: Arc<Source>,
    /// The characters concerned.
    pub span: Span,
}

impl Location {
    fn start(&self) -> usize {
        let mut start = (self.span.start as usize).min(self.source.text.len());
        while !self.source.text.is_char_boundary(start) {
            start -= 1;
        }
        start
    }

    /// The line number, from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        1 + self.source.milestone(self.start()).lines
    }

    /// The column in characters, from 1.
    #[must_use]
    pub fn column(&self) -> usize {
        1 + self.source.milestone(self.start()).characters
    }

    /// The line itself, without its end.
    #[must_use]
    pub fn text(&self) -> &str {
        let text = &self.source.text;
        let from = text[..self.start()].rfind('\n').map_or(0, |at| at + 1);
        let to = text[self.start()..].find('\n').map_or(text.len(), |at| self.start() + at);
        text[from..to].trim_end_matches('\r')
    }

    /// How many characters are concerned on the first line; at least one.
    fn width(&self) -> usize {
        let rest = &self.source.text.as_bytes()[self.start()..];
        let length = (self.span.end.saturating_sub(self.span.start) as usize).min(rest.len());
        let on_line = rest[..length].iter().take_while(|b| !matches!(b, b'\n' | b'\r'));
        on_line.filter(|b| **b & 0xC0 != 0x80).count().max(1)
    }
}

/// `path:line:column`, as editors and terminals make clickable.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source.path, self.line(), self.column())
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The environment, or the file, cannot be used as it stands.
    Error,
    /// It can be used, and may not be what was meant.
    Warning,
}

/// One mistake: what, where, and a hint that can be acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong; lower case, names in backticks.
    pub message: String,
    /// The file, also where no characters in it can be named (unreadable, not UTF-8).
    pub path: Arc<str>,
    /// The characters concerned.
    pub location: Option<Location>,
    /// What to do.
    pub hint: Option<String>,
    /// The environment concerned, where it is known.
    pub environment: Option<EnvironmentId>,
}

impl Diagnostic {
    /// An error at `span` of `source`.
    #[must_use]
    pub fn error(source: &Arc<Source>, span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            path: source.path.clone(),
            location: Some(Location { source: source.clone(), span }),
            hint: None,
            environment: None,
        }
    }

    /// An error about a whole file.
    #[must_use]
    pub fn file(path: &Arc<str>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            path: path.clone(),
            location: None,
            hint: None,
            environment: None,
        }
    }

    /// The same, as a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// The same, with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same, said of an environment.
    #[must_use]
    pub fn of(mut self, environment: &EnvironmentId) -> Self {
        self.environment = Some(environment.clone());
        self
    }

    /// Whether this is an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// One line: `path:line:column: message`, for logs.
    #[must_use]
    pub fn short(&self) -> String {
        match &self.location {
            Some(location) => format!("{location}: {}", self.message),
            None => format!("{}: {}", self.path, self.message),
        }
    }
}

/// Several lines in the manner of rustc: severity and message, place, the line, the marker, the hint.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        writeln!(f, "{severity}: {}", self.message)?;
        match &self.location {
            None => writeln!(f, "  --> {}", self.path)?,
            Some(location) => {
                let number = location.line().to_string();
                let gutter = " ".repeat(number.len());
                // Long lines (JSON on one line) are cut around the place; tabs count as one column.
                let column = location.column();
                let skipped = column.saturating_sub(60).min(column - 1);
                let shown: String = location
                    .text()
                    .chars()
                    .skip(skipped)
                    .take(120)
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .collect();
                let width = location.width().min(120);
                let marker = " ".repeat(column - 1 - skipped) + &"^".repeat(width);
                writeln!(f, "{gutter}--> {location}")?;
                writeln!(f, "{gutter} |\n{number} | {shown}\n{gutter} | {marker}")?;
            }
        }
        match &self.hint {
            Some(hint) => writeln!(f, "  = help: {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown_wherever_the_span_points() {
        let text = "a: 1\nné: \t2\r\nlast";
        let source = Arc::new(Source::new("f".into(), text.to_owned(), None));
        for start in 0..=text.len() as u32 + 2 {
            for end in [0, start, start + 1, start + 3, u32::MAX] {
                let diagnostic = Diagnostic::error(&source, Span { start, end }, "message");
                let shown = format!("{diagnostic}{}", diagnostic.short());
                assert!(shown.contains("^") && !shown.contains('\r'), "{shown}");
            }
        }
        let at = |start| Location { source: source.clone(), span: Span { start, end: start + 1 } };
        assert_eq!((at(5).line(), at(5).column(), at(5).text()), (2, 1, "né: \t2"));
        assert_eq!((at(7).column(), at(8).column()), (2, 3), "columns are characters");
        assert_eq!(at(99).to_string(), "f:3:5");
    }

    #[test]
    fn lines_and_columns_are_counted_right_far_into_a_text() {
        let lines: Vec<_> = (0..3_000).map(|line| "é-".repeat(line % 7) + "\n").collect();
        let text = lines.concat() + &"ü".repeat(3 * MILESTONE);
        let source = Arc::new(Source::new("f".into(), text.clone(), None));
        let mut at = (1, 1);
        for (start, character) in text.char_indices() {
            let location = Location { source: source.clone(), span: Span { start: start as u32, end: 0 } };
            assert_eq!((location.line(), location.column()), at, "byte {start}");
            at = if character == '\n' { (at.0 + 1, 1) } else { (at.0, at.1 + 1) };
        }
        let end = Span { start: text.len() as u32, end: 0 };
        let end = Location { source, span: end };
        assert_eq!((end.line(), end.column()), at);
    }
}
