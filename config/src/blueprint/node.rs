//! Events of the YAML reader to a small tree with places; JSON comes the same way, being YAML 1.2.
//!
//! One document is built at a time, and its text is borrowed from the source. Reading a document
//! stops at the first anchor or alias, and at a size or a nesting that no blueprint needs, so that
//! no input can make it large or slow; it goes on with the next document.

use std::borrow::Cow;
use std::sync::Arc;

use granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::{MAX_NESTING, MAX_NODES};
use crate::diagnostic::{Diagnostic, Source, Span};

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node<'s> {
    pub(super) span: Span,
    pub(super) kind: Kind<'s>,
}

/// What kind of value.
#[derive(Debug)]
pub(super) enum Kind<'s> {
    /// A scalar; `plain` when it is not quoted.
    Scalar { text: Cow<'s, str>, plain: bool },
    /// A list.
    List(Vec<Node<'s>>),
    /// A mapping, in order; each key once.
    Mapping(Vec<(Key<'s>, Node<'s>)>),
}

/// A key of a mapping.
#[derive(Debug)]
pub(super) struct Key<'s> {
    pub(super) span: Span,
    pub(super) text: Cow<'s, str>,
}

/// A key that is twice in a mapping.
#[derive(Debug)]
pub(super) struct Duplicate<'s> {
    pub(super) first: Span,
    pub(super) second: Key<'s>,
}

/// One document.
#[derive(Debug)]
pub(super) struct Tree<'s> {
    pub(super) root: Node<'s>,
    /// The whole document, with the comments before and after it.
    pub(super) span: Span,
    pub(super) duplicates: Vec<Duplicate<'s>>,
}

impl<'s> Node<'s> {
    /// Whether it is YAML's null: `~`, `null`, or nothing at all.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The key and value of a field, if this is a mapping that has it.
    pub(super) fn entry(&self, field: &str) -> Option<&(Key<'s>, Node<'s>)> {
        match &self.kind {
            Kind::Mapping(entries) => entries.iter().find(|(key, _)| key.text == field),
            _ => None,
        }
    }

    /// The value of a field, if this is a mapping that has it.
    pub(super) fn get(&self, field: &str) -> Option<&Node<'s>> {
        self.entry(field).map(|(_, value)| value)
    }

    /// The text of a single value; empty for null.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { .. } if self.is_null() => Some(""),
            Kind::Scalar { text, .. } => Some(text),
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

/// The documents of a source, one after the other, without the empty ones.
pub(super) struct Documents<'s> {
    source: &'s Arc<Source>,
    parser: Parser<'s, StrInput<'s>>,
    /// Whether no document was read yet: all text before it belongs to the first.
    first: bool,
    /// How many nodes the document has so far.
    nodes: usize,
    duplicates: Vec<Duplicate<'s>>,
}

type Placed<'s> = (Event<'s>, granit_parser::Span);
/// Boxed because a diagnostic is much larger than a node.
type Refused = Box<Diagnostic>;

impl<'s> Iterator for Documents<'s> {
    type Item = Result<Tree<'s>, Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.document() {
                Ok(None) => return None,
                Ok(Some(tree)) if tree.root.is_null() => {}
                Ok(Some(tree)) => return Some(Ok(tree)),
                Err(problem) => {
                    self.first = false;
                    // Where there is no next document, the next event says so.
                    let _ = self.parser.proceed_next_document();
                    return Some(Err(problem));
                }
            }
        }
    }
}

impl<'s> Documents<'s> {
    pub(super) fn new(source: &'s Arc<Source>) -> Self {
        let mut options = Options::default();
        options.flow_nesting_limit = MAX_NESTING;
        options.block_nesting_limit = MAX_NESTING;
        // Both would be refused without this too, but not in our words and at their own places.
        options.emit_anchor_events = true;
        options.emit_unresolved_aliases = true;
        options.set_emit_comments(false);
        Self {
            source,
            parser: Parser::new_from_str_with_options(&source.text, options),
            first: true,
            nodes: 0,
            duplicates: Vec::new(),
        }
    }

    /// The next document; `None` at the end.
    fn document(&mut self) -> Result<Option<Tree<'s>>, Refused> {
        let begin = loop {
            match self.event()? {
                None | Some((Event::StreamEnd, _)) => return Ok(None),
                Some((Event::DocumentStart(marked, _), span)) => break self.begin(marked, span),
                Some(_) => {}
            }
        };
        self.nodes = 0;
        self.duplicates = Vec::new();
        let event = self.inside(span_of(begin, begin))?;
        let root = self.node(event, 0)?;
        let (_, end) = self.inside(root.span)?;
        let last = matches!(self.parser.peek(), Some(Ok((Event::StreamEnd, _))));
        let end = if last { self.source.text.len() } else { self.place(end).start as usize };
        let duplicates = std::mem::take(&mut self.duplicates);
        Ok(Some(Tree { root, span: span_of(begin, end), duplicates }))
    }

    /// Where the text of a document begins that `span` starts: behind its `---`, if it is `marked`
    /// with one, so that it can stand in a file of its own.
    fn begin(&mut self, marked: bool, span: granit_parser::Span) -> usize {
        let Span { start, end } = self.place(span);
        match (std::mem::take(&mut self.first), marked) {
            (true, _) => 0,
            (false, true) => after_line_end(&self.source.text, end as usize),
            (false, false) => line_start(&self.source.text, start as usize),
        }
    }

    fn event(&mut self) -> Result<Option<Placed<'s>>, Refused> {
        match self.parser.next() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => Err(self.syntax(&error)),
        }
    }

    /// The next event of something that `opened` and has not ended.
    fn inside(&mut self, opened: Span) -> Result<Placed<'s>, Refused> {
        let event = self.event()?;
        event.ok_or_else(|| self.refuse(opened, "the file ends inside this", "finish it"))
    }

    fn node(&mut self, (event, span): Placed<'s>, depth: usize) -> Result<Node<'s>, Refused> {
        let place = self.place(span);
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let message = format!("the document has more than {MAX_NODES} values");
            return Err(self.refuse(place, message, "write one document per environment"));
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.properties(anchor, tag.as_deref(), span)?;
                // `! 1` and `!!str 1` are texts, as `"1"` is.
                let text_by_tag =
                    tag.is_some_and(|tag| tag.is_custom() || tag.is_yaml_core_schema_tag("str"));
                let plain = style == ScalarStyle::Plain && !text_by_tag;
                Ok(Node { span: place, kind: Kind::Scalar { text, plain } })
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.properties(anchor, tag.as_deref(), span)?;
                self.list(place, depth + 1)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.properties(anchor, tag.as_deref(), span)?;
                self.mapping(place, depth + 1)
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => Err(self.no_aliases(place)),
            _ => Err(self.refuse(place, "a value is missing here", "write one")),
        }
    }

    fn list(&mut self, opened: Span, depth: usize) -> Result<Node<'s>, Refused> {
        self.not_too_deep(opened, depth)?;
        let mut items = Vec::new();
        loop {
            match self.inside(opened)? {
                (Event::SequenceEnd, end) => {
                    let span = Span { end: self.place(end).end, ..opened };
                    return Ok(Node { span, kind: Kind::List(items) });
                }
                item => items.push(self.node(item, depth)?),
            }
        }
    }

    fn mapping(&mut self, opened: Span, depth: usize) -> Result<Node<'s>, Refused> {
        self.not_too_deep(opened, depth)?;
        let mut entries = Vec::new();
        loop {
            let key = match self.inside(opened)? {
                (Event::MappingEnd, end) => {
                    let span = Span { end: self.place(end).end, ..opened };
                    let duplicates = &mut self.duplicates;
                    let entries = distinct(
                        entries,
                        |(key, _): &(Key<'_>, _)| &key.text,
                        |(first, _), (second, _)| {
                            duplicates.push(Duplicate { first: first.span, second });
                        },
                    );
                    return Ok(Node { span, kind: Kind::Mapping(entries) });
                }
                key => self.node(key, depth)?,
            };
            let Kind::Scalar { text, .. } = key.kind else {
                let span = Span { end: key.span.start, ..key.span };
                return Err(self.refuse(span, "a key must be a single value", "write `name: value`"));
            };
            let value = self.inside(opened)?;
            entries.push((Key { span: key.span, text }, self.node(value, depth)?));
        }
    }

    /// Refuses what may stand before a value and has no meaning here.
    fn properties(
        &mut self,
        anchor: usize,
        tag: Option<&Tag>,
        span: granit_parser::Span,
    ) -> Result<(), Refused> {
        if anchor != 0 {
            // The anchor's own place is in the event after that of its node.
            let place = match self.event() {
                Ok(Some((Event::Anchor(..), span))) => self.place(span),
                _ => self.place(span),
            };
            return Err(self.no_aliases(place));
        }
        match tag {
            Some(tag) if tag.is_custom() && tag.parts() != ("", "!") => {
                let place = self.place(span.tag_span().unwrap_or(span));
                Err(self.refuse(place, "tags are not read", "leave it out; quote a value to make it a text"))
            }
            _ => Ok(()),
        }
    }

    fn not_too_deep(&self, opened: Span, depth: usize) -> Result<(), Refused> {
        if depth > MAX_NESTING { Err(self.too_deep(opened)) } else { Ok(()) }
    }

    fn too_deep(&self, place: Span) -> Refused {
        self.refuse(place, format!("nested deeper than {MAX_NESTING} levels"), "no blueprint needs that")
    }

    fn no_aliases(&self, place: Span) -> Refused {
        self.refuse(place, "aliases and anchors are not read", "write the value out")
    }

    fn syntax(&self, error: &ScanError) -> Refused {
        let place = self.place(granit_parser::Span::empty(*error.marker()));
        let hint = match error.kind() {
            ErrorKind::RecursionLimitExceeded => return self.too_deep(place),
            ErrorKind::TabNotAllowed | ErrorKind::TabInIndentation | ErrorKind::TabInBlockIndentation => {
                "indent with spaces"
            }
            _ => "check indentation, colons and quotes at and above this line",
        };
        self.refuse(place, format!("not valid YAML: {}", error.info()), hint)
    }

    fn refuse(&self, place: Span, message: impl Into<String>, hint: &str) -> Refused {
        Box::new(Diagnostic::error(self.source, place, message).hint(hint))
    }

    /// A place as a range of the source. Its reader counts bytes, since it reads a text.
    fn place(&self, span: granit_parser::Span) -> Span {
        let within = |at: Option<usize>| at.unwrap_or_default().min(self.source.text.len());
        let (start, end) = (within(span.start.byte_offset()), within(span.end.byte_offset()));
        span_of(start, end.max(start))
    }
}

/// The items without those that have the name of an earlier one; `repeat` gets the first of that name, and
/// the later one.
pub(super) fn distinct<T, K: Ord + ?Sized>(
    items: Vec<T>,
    name: impl Fn(&T) -> &K,
    mut repeat: impl FnMut(&T, T),
) -> Vec<T> {
    let repeated = repeated(&items, name);
    if repeated.is_empty() {
        return items;
    }
    let mut repeated = repeated.into_iter().peekable();
    let (mut kept, mut places) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    for (at, item) in items.into_iter().enumerate() {
        places.push(kept.len());
        match repeated.next_if(|(_, later)| *later == at) {
            Some((first, _)) => repeat(&kept[places[first]], item),
            None => kept.push(item),
        }
    }
    kept
}

/// The place of each item that has the name of an earlier one, behind the place of the first of that name.
///
/// Few are compared each with each, and many sorted: a mapping of a hundred thousand keys takes no longer
/// than its size.
fn repeated<T, K: Ord + ?Sized>(items: &[T], name: impl Fn(&T) -> &K) -> Vec<(usize, usize)> {
    let mut repeated = Vec::new();
    if items.len() <= 16 {
        for (later, item) in items.iter().enumerate() {
            let first = items[..later].iter().position(|earlier| name(earlier) == name(item));
            repeated.extend(first.map(|first| (first, later)));
        }
        return repeated;
    }
    let mut order: Vec<usize> = (0..items.len()).collect();
    // The sort is stable: the first of the same names stays first.
    order.sort_by_key(|at| name(&items[*at]));
    for group in order.chunk_by(|one, other| name(&items[*one]) == name(&items[*other])) {
        repeated.extend(group[1..].iter().map(|later| (group[0], *later)));
    }
    repeated.sort_unstable_by_key(|(_, later)| *later);
    repeated
}

/// A range of a source, which is never larger than [`super::MAX_FILE_BYTES`].
pub(super) fn span_of(start: usize, end: usize) -> Span {
    let place = |at| u32::try_from(at).unwrap_or(u32::MAX);
    Span { start: place(start), end: place(end) }
}

/// Where the line of `at` begins.
pub(super) fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// `at`, or behind the line end that is there.
fn after_line_end(text: &str, at: usize) -> usize {
    let rest = &text[at..];
    text.len() - rest.strip_prefix("\r\n").or(rest.strip_prefix('\n')).unwrap_or(rest).len()
}
