//! Documents as most people and machines write them, read without the YAML reader: stores are large, and it
//! takes ten times as long.
//!
//! What is read here is the part of YAML in which one look at each character says what it means: block
//! mappings and lists, scalars on one line, flow collections on one line or as a whole document, comments.
//! At anything else [`trees`] gives up, and the YAML reader reads the whole file: only it knows what is
//! wrong. What both read, they read alike: a property below holds the one against the other.

use std::borrow::Cow;

use super::node::{Key, Kind, Node, Tree, distinct, span_of};
use super::{MAX_NESTING, MAX_NODES};

/// The longest key that is read here; YAML has a limit too.
const MAX_KEY: usize = 256;

/// The documents of a text, up to a `None`, where the YAML reader is to read it all.
pub(super) fn trees(text: &str) -> impl Iterator<Item = Option<Tree<'_>>> {
    let mut from = Some(0);
    std::iter::from_fn(move || {
        let tree = document(text, from?);
        from = tree.as_ref().map(|tree| tree.span.end as usize).filter(|end| *end < text.len());
        Some(tree)
    })
}

/// The document that begins at `start`, with what stands before it or with the marker between two.
fn document(text: &str, start: usize) -> Option<Tree<'_>> {
    let mut reader = Reader { text, at: start, indent: None, nodes: 0 };
    reader.next_line()?;
    let mut begin = start;
    if reader.indent.is_none() && reader.rest().starts_with(MARKER) {
        reader.at += MARKER.len();
        begin = if start == 0 { 0 } else { reader.at };
        reader.next_line()?;
    }
    let root = match reader.byte() {
        b'{' | b'[' => {
            let root = reader.flow(0, true)?;
            reader.line_end()?;
            root
        }
        _ => reader.block(reader.indent?, 0)?,
    };
    // Something is left that belongs to nothing.
    if reader.indent.is_some() {
        return None;
    }
    // As the YAML reader has it: it knows at the bracket that a flow collection is over.
    let end = match text.as_bytes()[root.span.start as usize] {
        b'{' | b'[' if reader.at < text.len() => root.span.end as usize,
        _ => reader.at,
    };
    Some(Tree { root, span: span_of(begin, end), duplicates: Vec::new() })
}

/// What stands between two documents.
const MARKER: &[u8] = b"---\n";

struct Reader<'s> {
    text: &'s str,
    at: usize,
    /// How far the line is indented whose content begins at `at`; `None` where the document ends.
    indent: Option<usize>,
    nodes: usize,
}

impl<'s> Reader<'s> {
    fn rest(&self) -> &'s [u8] {
        &self.text.as_bytes()[self.at..]
    }

    /// The next byte; a line end at the end of the text.
    fn byte(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or(b'\n')
    }

    fn skip(&mut self, skipped: u8) {
        self.at += self.rest().iter().take_while(|byte| **byte == skipped).count();
    }

    /// Goes to the content of the line that begins here, or of the first one after it that has any.
    fn next_line(&mut self) -> Option<()> {
        loop {
            let start = self.at;
            self.skip(b' ');
            match self.rest().first() {
                None => self.indent = None,
                Some(b'\n') => {
                    self.at += 1;
                    continue;
                }
                Some(b'#') => {
                    self.comment()?;
                    continue;
                }
                Some(_) if self.at == start && self.rest().starts_with(MARKER) => self.indent = None,
                Some(_) => self.indent = Some(self.at - start),
            }
            return Some(());
        }
    }

    /// Goes over a comment, and the end of its line.
    fn comment(&mut self) -> Option<()> {
        self.at += self.rest().iter().take_while(|byte| matches!(byte, b' '..=b'~')).count();
        (self.byte() == b'\n').then(|| self.at = self.text.len().min(self.at + 1))
    }

    /// Goes over what may stand behind a value, and on to the next content.
    fn line_end(&mut self) -> Option<()> {
        let value = self.at;
        self.skip(b' ');
        match self.byte() {
            b'\n' => self.at = self.text.len().min(self.at + 1),
            b'#' if self.at > value => self.comment()?,
            _ => return None,
        }
        self.next_line()
    }

    fn node(&mut self, start: usize, kind: Kind<'s>) -> Option<Node<'s>> {
        self.nodes += 1;
        (self.nodes <= MAX_NODES).then(|| Node { span: span_of(start, self.at), kind })
    }

    /// The mapping or list whose content begins here, in this column.
    fn block(&mut self, column: usize, depth: usize) -> Option<Node<'s>> {
        match self.is_item() {
            true => self.list(column, depth),
            false => self.mapping(column, depth),
        }
    }

    fn mapping(&mut self, column: usize, depth: usize) -> Option<Node<'s>> {
        let (start, depth) = (self.at, not_too_deep(depth)?);
        let mut entries = Vec::with_capacity(4);
        loop {
            let end = self.key_end()?;
            let key = self.key(self.at, end)?;
            self.at = end + 1;
            self.skip(b' ');
            let value = if matches!(self.byte(), b'\n' | b'#') {
                self.line_end()?;
                match self.indent? {
                    indent if indent > column => self.block(indent, depth)?,
                    indent if indent == column && self.is_item() => self.list(column, depth)?,
                    _ => return None,
                }
            } else {
                self.value(depth)?
            };
            entries.push((key, value));
            match self.indent {
                Some(indent) if indent == column => {}
                Some(indent) if indent > column => return None,
                _ => break,
            }
        }
        let kind = Kind::Mapping(all_distinct(entries)?);
        self.node(start, kind)
    }

    fn list(&mut self, column: usize, depth: usize) -> Option<Node<'s>> {
        let (start, depth) = (self.at, not_too_deep(depth)?);
        let mut items = Vec::with_capacity(4);
        loop {
            let dash = self.at;
            self.at += 1;
            self.skip(b' ');
            items.push(match self.key_end() {
                Some(_) => self.mapping(column + self.at - dash, depth)?,
                None => self.value(depth)?,
            });
            match self.indent {
                Some(indent) if indent == column && self.is_item() => {}
                Some(indent) if indent > column => return None,
                _ => break,
            }
        }
        self.node(start, Kind::List(items))
    }

    /// A value on the rest of a line.
    fn value(&mut self, depth: usize) -> Option<Node<'s>> {
        let value = match self.byte() {
            b'{' | b'[' => self.flow(depth, false)?,
            _ => self.scalar(false)?,
        };
        self.line_end()?;
        Some(value)
    }

    /// Whether a list's item begins here.
    fn is_item(&self) -> bool {
        self.rest().starts_with(b"- ")
    }

    /// Where the key ends that begins here, if one does.
    fn key_end(&self) -> Option<usize> {
        let fine = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(**byte, b'_' | b'-' | b'.' | b'/');
        let length = self.rest().iter().take_while(fine).count();
        let first = self.byte();
        let ends = matches!(self.rest().get(length..)?, [b':'] | [b':', b' ' | b'\n', ..]);
        (ends && (first.is_ascii_alphanumeric() || first == b'_')).then_some(self.at + length)
    }

    fn key(&mut self, start: usize, end: usize) -> Option<Key<'s>> {
        self.nodes += 1;
        let text = Cow::Borrowed(&self.text[start..end]);
        (text.len() <= MAX_KEY).then(|| Key { span: span_of(start, end), text })
    }

    /// A scalar that ends on this line.
    fn scalar(&mut self, in_flow: bool) -> Option<Node<'s>> {
        let start = self.at;
        let quote = self.byte();
        if !matches!(quote, b'"' | b'\'') {
            self.at += plain_length(self.rest(), in_flow)?;
            let text = Cow::Borrowed(&self.text[start..self.at]);
            return self.node(start, Kind::Scalar { text, plain: true });
        }
        let inside = |byte: &&u8| matches!(**byte, b' '..=b'~') && **byte != quote && **byte != b'\\';
        let end = start + 1 + self.rest()[1..].iter().take_while(inside).count();
        self.at = end;
        if self.byte() != quote || self.rest().get(1) == Some(&quote) {
            return None;
        }
        self.at += 1;
        self.node(start, Kind::Scalar { text: Cow::Borrowed(&self.text[start + 1..end]), plain: false })
    }

    /// A flow collection: on this line, or over several lines where it is the whole document.
    fn flow(&mut self, depth: usize, whole: bool) -> Option<Node<'s>> {
        let (start, depth) = (self.at, not_too_deep(depth)?);
        let in_mapping = self.byte() == b'{';
        let closing = if in_mapping { b'}' } else { b']' };
        let (mut entries, mut items) = (Vec::new(), Vec::new());
        self.at += 1;
        self.skip_space(whole);
        while self.byte() != closing {
            let key = if in_mapping { Some(self.flow_key(whole)?) } else { None };
            let value = match self.byte() {
                b'{' | b'[' => self.flow(depth, whole)?,
                _ => self.scalar(true)?,
            };
            match key {
                Some(key) => entries.push((key, value)),
                None => items.push(value),
            }
            self.skip_space(whole);
            match self.byte() {
                b',' => {
                    self.at += 1;
                    self.skip_space(whole);
                    if self.byte() == closing {
                        return None;
                    }
                }
                byte if byte == closing => {}
                _ => return None,
            }
        }
        self.at += 1;
        let kind = if in_mapping { Kind::Mapping(all_distinct(entries)?) } else { Kind::List(items) };
        self.node(start, kind)
    }

    fn flow_key(&mut self, whole: bool) -> Option<Key<'s>> {
        let Node { span, kind: Kind::Scalar { text, .. } } = self.scalar(true)? else { return None };
        if self.byte() != b':' || text.len() > MAX_KEY {
            return None;
        }
        self.at += 1;
        self.skip_space(whole);
        Some(Key { span, text })
    }

    fn skip_space(&mut self, with_line_ends: bool) {
        let space = |byte: &&u8| **byte == b' ' || (with_line_ends && **byte == b'\n');
        self.at += self.rest().iter().take_while(space).count();
    }
}

fn not_too_deep(depth: usize) -> Option<usize> {
    (depth < MAX_NESTING / 4).then_some(depth + 1)
}

/// The entries, if each has its own key.
fn all_distinct<'s>(entries: Vec<(Key<'s>, Node<'s>)>) -> Option<Vec<(Key<'s>, Node<'s>)>> {
    let mut repeated = false;
    let entries = distinct(entries, |(key, _): &(Key<'_>, _)| &key.text, |_, _| repeated = true);
    (!repeated).then_some(entries)
}

/// How long the plain scalar is with which `bytes` begin. Only characters that mean nothing but themselves
/// are read: a `:` before another of them, and, outside of flow collections, spaces between them.
fn plain_length(bytes: &[u8], in_flow: bool) -> Option<usize> {
    let inner = |byte: u8| {
        byte.is_ascii_alphanumeric() || b"_-./@+=".contains(&byte) || (!in_flow && b"{}".contains(&byte))
    };
    let is_inner = |at: usize| bytes.get(at).is_some_and(|byte| inner(*byte));
    if !bytes.first().is_some_and(|first| first.is_ascii_alphanumeric() || b"_/".contains(first)) {
        return None;
    }
    let mut at = 1;
    loop {
        match bytes.get(at) {
            Some(byte) if inner(*byte) => at += 1,
            Some(b':') if is_inner(at + 1) => at += 1,
            Some(b' ') if !in_flow => {
                let spaces = bytes[at..].iter().take_while(|byte| **byte == b' ').count();
                if !is_inner(at + spaces) {
                    return Some(at);
                }
                at += spaces;
            }
            _ => return Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::node::Documents;
    use crate::diagnostic::Source;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// All that a blueprint takes from a node: texts, whether they are quoted, and their places.
    fn shown(node: &Node<'_>) -> String {
        match &node.kind {
            Kind::Scalar { text, plain } => format!("{text:?} {plain} {:?}", node.span),
            Kind::List(items) => format!("{:?}", items.iter().map(shown).collect::<Vec<_>>()),
            Kind::Mapping(entries) => {
                let entry = |(key, value): &(Key<'_>, Node<'_>)| {
                    format!("{:?} {:?} {}", key.text, key.span, shown(value))
                };
                format!("{:#?}", entries.iter().map(entry).collect::<Vec<_>>())
            }
        }
    }

    fn document((root, span): (&Node<'_>, crate::diagnostic::Span)) -> String {
        format!("{span:?} {}", shown(root))
    }

    /// What is read here, where it is; held against what the YAML reader reads.
    fn read(text: &str) -> Option<Vec<String>> {
        let trees: Option<Vec<_>> = trees(text).collect();
        let read: Vec<_> = trees?.iter().map(|tree| document((&tree.root, tree.span))).collect();
        let source = Arc::new(Source::new("f".into(), text.to_owned(), None));
        let expected: Result<Vec<_>, _> = Documents::new(&source).collect();
        let expected =
            expected.unwrap_or_else(|problem| panic!("{text:?} was read, and is wrong: {problem}"));
        assert!(expected.iter().all(|tree| tree.duplicates.is_empty()), "{text:?}");
        let expected: Vec<_> = expected.iter().map(|tree| document((&tree.root, tree.span))).collect();
        assert_eq!(read, expected, "{text:?}");
        Some(read)
    }

    #[test]
    fn what_is_usual_is_read() {
        for text in [
            "name: a\nrouting:\n  mode: overlay\n  baselineId: b\nservices:\n  - name: s\n    url: http://127.0.0.1:80\n",
            "# why\nname: a # because\n\nrouting: {mode: overlay, baselineId: b}\nservices:\n- {name: s, url: 'http://a:80'}\n- name: t\n  hosts: [a.example, \"b.example\"]",
            "---\na: b\n---\n# the next\nc: the value of c   \n---\nd: {}\n",
            "{\n  \"name\": \"a\",\n  \"services\": [{\"name\":\"s\"}, []]\n}\n",
            "{a: b}  # c\n\n# d\n---\n  [e, f]\n---\n{g: h}",
            "  a: b\n  c:\n    - d\n    - e: f\n      g: h\n",
            include_str!("../../tests/blueprints/staging.yaml"),
            include_str!("../../tests/blueprints/alice-payments.yaml"),
        ] {
            assert!(read(text).is_some(), "{text}");
        }
    }

    #[test]
    fn what_could_mean_something_else_is_left_to_the_yaml_reader() {
        for text in [
            "",
            "\n",
            "a",
            "a:\n",
            "a: &b c\n",
            "a: *b\n",
            "a: |\n  b\n",
            "a: b\n  c\n",
            "a: b\n c: d\n",
            "a: \"\\n\"\n",
            "a: 'it''s'\n",
            "a:\tb\n",
            "a: b\r\n",
            "a: é\n",
            "? a\n",
            "a: b\na: c\n",
            "- - a\n",
            "a: [b,\n c]\n",
            "a: b: c\n",
            "a: b#c\n---\n",
            "--- a\n",
            "%YAML 1.2\n---\na: b\n",
            "a: b\n...\n",
            "a: [b, ]\n",
            "a: {b}\n",
            "a: 'b'c\n",
            "a: b, c\n",
            "a: ~\n",
        ] {
            assert!(trees(text).any(|tree| tree.is_none()) || read(text).is_none(), "{text:?}");
        }
    }

    /// Pieces from which texts are made that are near to what is read here, and often beside it.
    fn piece() -> impl Strategy<Value = String> {
        const PIECES: &[&str] = &[
            "a",
            "name",
            "b-c",
            "http://x:80",
            "x/y.z",
            "1",
            "_",
            ".",
            "/",
            "-",
            "'",
            "\"",
            "'q r'",
            "\"s\"",
            "\\",
            "~",
            "null",
            ":",
            ": ",
            ":\n",
            " ",
            "  ",
            "\n",
            "\n  ",
            "\n    ",
            "\n- ",
            "\n  - ",
            "- ",
            "#",
            " # c",
            "\n# c",
            "{",
            "}",
            "[",
            "]",
            ", ",
            ",",
            "---\n",
            "\n---\n",
            "...",
            "&a",
            "*a",
            "|",
            ">",
            "?",
            "!",
            "%",
            "@",
            "=",
            "+",
            "\t",
            "\r\n",
            "é",
        ];
        proptest::sample::select(PIECES).prop_map(str::to_owned)
    }

    /// Lines as they are usual, at indents that may not fit.
    fn line() -> impl Strategy<Value = String> {
        let content = proptest::sample::select(
            &[
                "a: b",
                "c:",
                "- d",
                "- e: f",
                "- g:",
                "h: {i: j, k: [l]}",
                "m: 'n'",
                "o: p q",
                "- {r: s}",
                "# t",
                "u: v # w",
                "",
                "---",
                "x:  # y",
                "-   z: 1",
                "\"k\": v",
                "- \"l\"",
                "[m, n]",
                "{\"o\": 1,",
                "\"p\":2}",
                "q: r:s",
                "-",
                "a: http://b:1",
                "s: http://{t}.u:1",
            ][..],
        );
        (0_usize..7, content).prop_map(|(indent, content)| format!("{}{content}\n", " ".repeat(indent)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn what_both_read_they_read_alike(pieces in proptest::collection::vec(piece(), 0..14)) {
            read(&pieces.concat());
        }

        #[test]
        fn what_both_read_they_read_alike_line_by_line(lines in proptest::collection::vec(line(), 0..9)) {
            read(&lines.concat());
        }
    }
}
