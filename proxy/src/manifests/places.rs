//! Where each value of a YAML text stands.

use std::ops::Range;

use granit_parser::{Event, Options, Parser, Span, StrInput, StructureStyle};

/// The deepest nesting that is read: that of `serde_yaml`.
const MAX_NESTING: usize = 128;

/// A value's place, and those of what is in it.
#[derive(Debug)]
pub(super) struct Node {
    /// From its first byte to behind its last; without the line end behind it.
    pub(super) span: Range<usize>,
    pub(super) kind: Kind,
}

/// What kind of value it is.
#[derive(Debug)]
pub(super) enum Kind {
    /// A single value, or an alias.
    Scalar,
    /// A list, in brackets (`flow`) or on lines of its own.
    List { flow: bool, items: Vec<Node> },
    /// A mapping, in braces (`flow`) or on lines of its own, with the places of its keys.
    Mapping { flow: bool, entries: Vec<(Range<usize>, Node)> },
}

/// The documents of a text, without the empty ones; `None` where they cannot be told.
pub(super) fn documents(text: &str) -> Option<Vec<Node>> {
    let mut options = Options::default();
    options.flow_nesting_limit = MAX_NESTING;
    options.block_nesting_limit = MAX_NESTING;
    options.set_emit_comments(false);
    let mut reader = Reader { text, parser: Parser::new_from_str_with_options(text, options) };
    let mut documents = Vec::new();
    loop {
        match reader.event()? {
            (Event::StreamEnd, _) => return Some(documents),
            (Event::DocumentStart(..), _) => {
                let event = reader.event()?;
                let node = reader.node(event)?;
                if !matches!(node.kind, Kind::Scalar) {
                    documents.push(node);
                }
            }
            _ => {}
        }
    }
}

struct Reader<'s> {
    text: &'s str,
    parser: Parser<'s, StrInput<'s>>,
}

impl<'s> Reader<'s> {
    fn event(&mut self) -> Option<(Event<'s>, Range<usize>)> {
        let (event, span) = self.parser.next()?.ok()?;
        Some((event, self.place(span)))
    }

    fn node(&mut self, (event, place): (Event<'s>, Range<usize>)) -> Option<Node> {
        match event {
            Event::Scalar(..) => Some(Node { span: self.written(place), kind: Kind::Scalar }),
            Event::Alias(_) => Some(Node { span: place, kind: Kind::Scalar }),
            Event::SequenceStart(style, ..) => {
                let mut items = Vec::new();
                let end = loop {
                    match self.event()? {
                        (Event::SequenceEnd, end) => break end,
                        item => items.push(self.node(item)?),
                    }
                };
                let flow = style == StructureStyle::Flow;
                let last = items.last().map(|item| item.span.end);
                Some(Node { span: span(place, end, flow, last), kind: Kind::List { flow, items } })
            }
            Event::MappingStart(style, ..) => {
                let mut entries = Vec::new();
                let end = loop {
                    match self.event()? {
                        (Event::MappingEnd, end) => break end,
                        key => {
                            let key = self.node(key)?;
                            let value = self.event()?;
                            entries.push((key.span, self.node(value)?));
                        }
                    }
                };
                let flow = style == StructureStyle::Flow;
                let last = entries.last().map(|(_, value)| value.span.end);
                Some(Node { span: span(place, end, flow, last), kind: Kind::Mapping { flow, entries } })
            }
            _ => None,
        }
    }

    /// Where a single value is written: without the white space behind it. What is not written at all stands behind
    /// what comes before it.
    fn written(&self, place: Range<usize>) -> Range<usize> {
        let end = place.start + self.text[place.clone()].trim_end().len();
        if end > place.start {
            return place.start..end;
        }
        let at = self.text[..place.start].trim_end().len();
        at..at
    }

    /// A place as a range of the text. Its reader counts bytes, since it reads a text.
    fn place(&self, span: Span) -> Range<usize> {
        let within = |at: Option<usize>| at.unwrap_or_default().min(self.text.len());
        let start = within(span.start.byte_offset());
        start..within(span.end.byte_offset()).max(start)
    }
}

/// Where a list or a mapping stands. One without brackets ends with what is last in it.
fn span(start: Range<usize>, end: Range<usize>, flow: bool, last: Option<usize>) -> Range<usize> {
    let end = if flow { end.end } else { last.unwrap_or(start.end) };
    start.start..end
}
