//! Events of the YAML reader to a small tree with places; JSON comes the same way, being YAML 1.2.
//!
//! One document is built at a time. Reading stops at the first anchor or alias and at a nesting
//! that no blueprint needs, so that no input can make it large or slow.

use std::sync::Arc;

use granit_parser::{Event, Options, Parser, ScalarStyle, StrInput};

use super::MAX_NESTING;
use crate::diagnostic::{Diagnostic, Source, Span};

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) kind: Kind,
}

/// What kind of value.
#[derive(Debug)]
pub(super) enum Kind {
    /// A scalar; `plain` when it is not quoted.
    Scalar { text: String, plain: bool },
    /// A list.
    List(Vec<Node>),
    /// A mapping, in order.
    Mapping(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) span: Span,
    pub(super) text: String,
}

impl Node {
    /// Whether it is YAML's null: `~`, `null`, or nothing at all.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The value of `key`, if this is a mapping that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Mapping(entries) => entries.iter().find(|(own, _)| own.text == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// What it is, in words, for messages.
    pub(super) fn what(&self) -> &'static str {
        match &self.kind {
            Kind::Scalar { .. } if self.is_null() => "nothing",
            Kind::Scalar { .. } => "a single value",
            Kind::List(_) => "a list",
            Kind::Mapping(_) => "a mapping",
        }
    }
}

/// The documents of a source, one after the other.
pub(super) struct Documents<'s> {
    source: &'s Arc<Source>,
    parser: Parser<'s, StrInput<'s>>,
    /// Mistakes that do not stop the reading: duplicate keys.
    pub(super) problems: Vec<Diagnostic>,
}

type Spanned<'s> = (Event<'s>, Span);

impl<'s> Documents<'s> {
    pub(super) fn new(source: &'s Arc<Source>) -> Self {
        let mut options = Options::default();
        options.flow_nesting_limit = MAX_NESTING;
        options.block_nesting_limit = MAX_NESTING;
        options.set_emit_comments(false);
        Self {
            source,
            parser: Parser::new_from_str_with_options(&source.text, options),
            problems: Vec::new(),
        }
    }

    /// The next document that is not empty; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Node>, Box<Diagnostic>> {
        loop {
            match self.event()? {
                None | Some((Event::StreamEnd, _)) => return Ok(None),
                Some((Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd, _)) => {}
                Some(event) => {
                    let node = self.node(event, 0)?;
                    if !node.is_null() {
                        return Ok(Some(node));
                    }
                }
            }
        }
    }

    fn event(&mut self) -> Result<Option<Spanned<'s>>, Box<Diagnostic>> {
        match self.parser.next() {
            None => Ok(None),
            Some(Ok((event, span))) => {
                let at = |marker: granit_parser::Marker| {
                    marker.byte_offset().and_then(|at| u32::try_from(at).ok()).unwrap_or_default()
                };
                Ok(Some((event, Span { start: at(span.start), end: at(span.end) })))
            }
            Some(Err(error)) => {
                let start =
                    error.marker().byte_offset().and_then(|at| u32::try_from(at).ok()).unwrap_or_default();
                let problem = Diagnostic::error(
                    self.source,
                    Span { start, end: start },
                    format!("not valid YAML: {}", error.info()),
                );
                Err(Box::new(problem.hint("check indentation, colons and quotes at and above this line")))
            }
        }
    }

    fn node(&mut self, (event, span): Spanned<'s>, depth: usize) -> Result<Node, Box<Diagnostic>> {
        if depth > MAX_NESTING {
            return Err(Box::new(
                Diagnostic::error(self.source, span, format!("nested deeper than {MAX_NESTING} levels"))
                    .hint("no blueprint needs that"),
            ));
        }
        match event {
            Event::Scalar(text, style, anchor, _) => {
                self.no_anchor(anchor, span)?;
                Ok(Node {
                    span,
                    kind: Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain },
                })
            }
            Event::SequenceStart(_, anchor, _) => {
                self.no_anchor(anchor, span)?;
                let mut items = Vec::new();
                loop {
                    match self.inside(span)? {
                        (Event::SequenceEnd, end) => {
                            return Ok(Node { span: Span { end: end.end, ..span }, kind: Kind::List(items) });
                        }
                        event => items.push(self.node(event, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(_, anchor, _) => {
                self.no_anchor(anchor, span)?;
                self.mapping(span, depth)
            }
            _ => Err(Box::new(
                Diagnostic::error(self.source, span, "aliases and anchors are not read")
                    .hint("write the value out"),
            )),
        }
    }

    fn mapping(&mut self, span: Span, depth: usize) -> Result<Node, Box<Diagnostic>> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let event = match self.inside(span)? {
                (Event::MappingEnd, end) => {
                    return Ok(Node { span: Span { end: end.end, ..span }, kind: Kind::Mapping(entries) });
                }
                event => event,
            };
            let key = self.node(event, depth + 1)?;
            let Kind::Scalar { text, .. } = key.kind else {
                return Err(Box::new(
                    Diagnostic::error(self.source, key.span, "a key must be a single value")
                        .hint("write `name: value`"),
                ));
            };
            let value = self.inside(span)?;
            let value = self.node(value, depth + 1)?;
            match entries.iter().find(|(known, _)| known.text == text) {
                None => entries.push((Key { span: key.span, text }, value)),
                Some((first, _)) => {
                    let line =
                        crate::diagnostic::Location { source: self.source.clone(), span: first.span }.line();
                    let shown = crate::name::printable(&text, 60);
                    let problem =
                        Diagnostic::error(self.source, key.span, format!("duplicate key `{shown}`"));
                    self.problems
                        .push(problem.hint(format!("it is already on line {line}; keep one of them")));
                }
            }
        }
    }

    fn inside(&mut self, opened: Span) -> Result<Spanned<'s>, Box<Diagnostic>> {
        self.event()?
            .ok_or_else(|| Box::new(Diagnostic::error(self.source, opened, "the file ends inside this")))
    }

    fn no_anchor(&self, anchor: usize, span: Span) -> Result<(), Box<Diagnostic>> {
        if anchor == 0 {
            return Ok(());
        }
        Err(Box::new(
            Diagnostic::error(self.source, span, "aliases and anchors are not read")
                .hint("write the value out"),
        ))
    }
}
