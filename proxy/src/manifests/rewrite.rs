//! Brings the changes of a value into its text, and leaves the rest of the text as it is.
//!
//! The old and the new value are compared, and each difference is an edit at the place where the old one stands. Whether
//! the text then says the new value is looked at afterwards by who asked ([`super::files`]): an edit that cannot be
//! made here, as below an alias, is `None` and costs the comments of its document, never its meaning.

use std::ops::Range;

use serde_yaml::{Mapping, Value};

use super::places::{Kind, Node};

/// What to replace, and by what.
pub(super) type Edit = (Range<usize>, String);

/// The edits that make `new` of `old` in a text where it stands at `node`.
pub(super) fn edits(text: &str, node: &Node, old: &Value, new: &Value) -> Option<Vec<Edit>> {
    let style = Style::of(text, node);
    let mut rewriting = Rewriting { text, style, edits: Vec::new() };
    rewriting.value(node, old, new)?;
    Some(rewriting.edits)
}

/// A text with edits made; `None` where they are about the same bytes.
pub(super) fn apply(text: &str, mut edits: Vec<Edit>) -> Option<String> {
    // The sort is stable: what is added at the same place stays in order.
    edits.sort_by_key(|(place, _)| (place.start, place.end));
    let (mut out, mut done) = (String::with_capacity(text.len() + 4096), 0);
    for (place, replacement) in edits {
        out.push_str(text.get(done..place.start)?);
        out.push_str(&replacement);
        done = place.end;
    }
    out.push_str(text.get(done..)?);
    Some(out)
}

struct Rewriting<'t> {
    text: &'t str,
    style: Style,
    edits: Vec<Edit>,
}

impl Rewriting<'_> {
    fn value(&mut self, node: &Node, old: &Value, new: &Value) -> Option<()> {
        if old == new {
            return Some(());
        }
        match (&node.kind, old, new) {
            // What was empty gets lines of its own, where it is not in braces itself.
            (Kind::Mapping { entries, .. }, ..) if entries.is_empty() => None,
            (Kind::List { items, .. }, ..) if items.is_empty() => None,
            (Kind::Mapping { flow, entries }, Value::Mapping(old), Value::Mapping(new))
                if !new.is_empty() =>
            {
                // A key that is there twice, or merged in, is in the text and not in the value.
                (entries.len() == old.len()).then_some(())?;
                self.mapping(node, *flow, entries, old, new)
            }
            (Kind::List { flow, items }, Value::Sequence(old), Value::Sequence(new)) if !new.is_empty() => {
                (items.len() == old.len()).then_some(())?;
                self.list(node, *flow, items, old, new)
            }
            // What is not written at all has no place: its entry is written anew.
            (Kind::Scalar, _, new) if !is_nested(new) && !node.span.is_empty() => {
                self.edits.push((node.span.clone(), self.style.single(new)));
                Some(())
            }
            _ => None,
        }
    }

    fn mapping(
        &mut self,
        node: &Node,
        flow: bool,
        entries: &[(Range<usize>, Node)],
        old: &Mapping,
        new: &Mapping,
    ) -> Option<()> {
        let places: Vec<_> =
            entries.iter().map(|(key, value)| key.start..value.span.end.max(key.end)).collect();
        for (at, ((key, before), (place, value))) in old.iter().zip(entries).enumerate() {
            let Some(after) = new.get(key) else {
                (!flow || new.len() < old.len()).then_some(())?;
                self.remove(flow, &places, at, node)?;
                continue;
            };
            let made = self.edits.len();
            if self.value(value, before, after).is_none() {
                self.edits.truncate(made);
                self.replace(flow, place, &places[at], key, after)?;
            }
        }
        let kept: Vec<_> = old.keys().enumerate().filter(|(_, key)| new.contains_key(*key)).collect();
        for (position, (key, value)) in new.iter().enumerate().filter(|(_, (key, _))| !old.contains_key(*key))
        {
            let behind = |wanted: &&Value| new.keys().skip(position).any(|key| key == *wanted);
            let next = kept.iter().find(|(_, key)| behind(key)).map(|(at, _)| *at);
            // Before the first of an item of a list there is its dash.
            let next = next.filter(|at| flow || self.begins_line(places[*at].start));
            self.add(flow, &places, next, &New::Entry(key, value))?;
        }
        Some(())
    }

    fn list(&mut self, node: &Node, flow: bool, items: &[Node], old: &[Value], new: &[Value]) -> Option<()> {
        let mut places: Vec<_> = items.iter().map(|item| item.span.clone()).collect();
        if !flow {
            for place in &mut places {
                place.start = dash(self.text, place.start)?;
            }
        }
        let pairs = pairs(old, new);
        for (at, item) in items.iter().enumerate() {
            match pairs.iter().position(|pair| *pair == Some(at)) {
                Some(now) => self.value(item, &old[at], &new[now])?,
                // What is added between brackets leans on what is there.
                None if flow && pairs.contains(&None) => return None,
                None => self.remove(flow, &places, at, node)?,
            }
        }
        for (now, value) in new.iter().enumerate().filter(|(now, _)| pairs[*now].is_none()) {
            let next = pairs[now..].iter().flatten().next().copied();
            self.add(flow, &places, next, &New::Item(value))?;
        }
        Some(())
    }

    /// Adds something before what stands at `next`, or behind everything.
    fn add(&mut self, flow: bool, places: &[Range<usize>], next: Option<usize>, new: &New<'_>) -> Option<()> {
        if flow {
            let written = self.style.inline(new);
            let (at, written) = match next {
                Some(next) => (places[next].start, format!("{written}, ")),
                None => (places.last()?.end, format!(", {written}")),
            };
            self.edits.push((at..at, written));
            return Some(());
        }
        let indent = self.column(places.first()?.start);
        let lines = self.style.block(new, indent);
        let at = match next {
            Some(next) => self.above(self.begins_line(places[next].start).then_some(places[next].start)?),
            None => self.line_end(places.last()?.end),
        };
        let lines = match at == self.text.len() && !self.text.ends_with('\n') {
            true => format!("{}{}", self.style.newline, lines.trim_end()),
            false => lines,
        };
        self.edits.push((at..at, lines));
        Some(())
    }

    /// Takes out what stands at `at`. A comment above it stays.
    fn remove(&mut self, flow: bool, places: &[Range<usize>], at: usize, node: &Node) -> Option<()> {
        let place = match (flow, places.get(at + 1), at.checked_sub(1)) {
            (false, ..) => {
                self.begins_line(places[at].start).then_some(())?;
                self.line_start(places[at].start)..self.line_end(places[at].end)
            }
            (true, Some(next), _) => places[at].start..next.start,
            (true, None, Some(before)) => places[before].end..places[at].end,
            (true, None, None) => node.span.start + 1..node.span.end - 1,
        };
        self.edits.push((place, String::new()));
        Some(())
    }

    /// Writes an entry of a mapping anew, key and value.
    fn replace(
        &mut self,
        flow: bool,
        key_at: &Range<usize>,
        place: &Range<usize>,
        key: &Value,
        value: &Value,
    ) -> Option<()> {
        let new = New::Entry(key, value);
        if flow {
            self.edits.push((place.clone(), self.style.inline(&new)));
            return Some(());
        }
        self.begins_line(place.start).then_some(())?;
        let lines = self.style.block(&new, self.column(place.start));
        // Where nothing is written behind the colon, the colon still is.
        let colon = key_at.end + self.text[key_at.end..].find(':')? + 1;
        self.edits.push((place.start..place.end.max(colon), lines.trim().to_owned()));
        Some(())
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// Behind the line end of the line of `at`.
    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline + 1)
    }

    fn begins_line(&self, at: usize) -> bool {
        self.text[self.line_start(at)..at].bytes().all(|byte| byte == b' ')
    }

    fn column(&self, at: usize) -> usize {
        at - self.line_start(at)
    }

    /// Where the line of `at` begins, and the comments right above it that belong to it.
    fn above(&self, at: usize) -> usize {
        let mut start = self.line_start(at);
        while start > 0 {
            let before = self.line_start(start - 1);
            if !self.text[before..start].trim_start().starts_with('#') {
                break;
            }
            start = before;
        }
        start
    }
}

/// Which old item each new one was, if any: by its name, or by being the same; else by its place, where none has moved.
fn pairs(old: &[Value], new: &[Value]) -> Vec<Option<usize>> {
    let name = |value: &Value| value.get("name").cloned();
    let mut from = 0;
    let mut pair = |new: &Value| {
        let same = |old: &Value| if name(new).is_some() { name(old) == name(new) } else { old == new };
        let at = from + old[from..].iter().position(same)?;
        from = at + 1;
        Some(at)
    };
    let pairs: Vec<_> = new.iter().map(&mut pair).collect();
    let in_place =
        old.len() == new.len() && pairs.iter().enumerate().all(|(at, pair)| pair.is_none_or(|old| old == at));
    if in_place { (0..new.len()).map(Some).collect() } else { pairs }
}

/// What is to be written.
enum New<'v> {
    Entry(&'v Value, &'v Value),
    Item(&'v Value),
}

/// How a document is written.
struct Style {
    newline: &'static str,
    /// How much deeper a list in a mapping is than its key.
    lists: usize,
    /// Whether it is JSON, where everything is quoted.
    json: bool,
}

impl Style {
    fn of(text: &str, root: &Node) -> Self {
        let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
        let json = text[root.span.clone()].starts_with('{');
        Self { newline, lists: lists(text, root).unwrap_or(2), json }
    }

    /// On lines of its own, the first one indented as well.
    fn block(&self, new: &New<'_>, indent: usize) -> String {
        let mut lines = Vec::new();
        match new {
            New::Entry(key, value) => self.entry(key, value, indent, &mut lines),
            New::Item(value) => self.item(value, indent, &mut lines),
        }
        lines.iter().map(|line| format!("{line}{}", self.newline)).collect()
    }

    fn entry(&self, key: &Value, value: &Value, indent: usize, lines: &mut Vec<String>) {
        let key = format!("{:indent$}{}:", "", self.single(key));
        match value {
            Value::Mapping(entries) if !entries.is_empty() => {
                lines.push(key);
                entries.iter().for_each(|(key, value)| self.entry(key, value, indent + 2, lines));
            }
            Value::Sequence(items) if !items.is_empty() => {
                lines.push(key);
                items.iter().for_each(|item| self.item(item, indent + self.lists, lines));
            }
            single => lines.push(format!("{key} {}", self.single(single))),
        }
    }

    fn item(&self, value: &Value, indent: usize, lines: &mut Vec<String>) {
        match value {
            Value::Mapping(entries) if !entries.is_empty() => {
                let first = lines.len();
                entries.iter().for_each(|(key, value)| self.entry(key, value, indent + 2, lines));
                lines[first].replace_range(indent..indent + 1, "-");
            }
            single => lines.push(format!("{:indent$}- {}", "", self.single(single))),
        }
    }

    /// Inside brackets or braces.
    fn inline(&self, new: &New<'_>) -> String {
        match new {
            New::Entry(key, value) => format!("{}: {}", self.flow(key), self.flow(value)),
            New::Item(value) => self.flow(value),
        }
    }

    fn flow(&self, value: &Value) -> String {
        match value {
            Value::Mapping(entries) => {
                let entries: Vec<_> =
                    entries.iter().map(|(key, value)| self.inline(&New::Entry(key, value))).collect();
                format!("{{{}}}", entries.join(", "))
            }
            Value::Sequence(items) => {
                format!("[{}]", items.iter().map(|item| self.flow(item)).collect::<Vec<_>>().join(", "))
            }
            single => {
                let written = self.single(single);
                if written.contains([',', '[', ']', '{', '}', ':']) { json(single) } else { written }
            }
        }
    }

    /// A single value, and what is nested deeper than anything that we write.
    fn single(&self, value: &Value) -> String {
        if self.json || is_nested(value) {
            return json(value);
        }
        match serde_yaml::to_string(value) {
            Ok(written) if !written.trim_end().contains('\n') => written.trim_end().to_owned(),
            _ => json(value),
        }
    }
}

/// JSON, which is YAML as well.
fn json(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn is_nested(value: &Value) -> bool {
    matches!(value, Value::Mapping(entries) if !entries.is_empty())
        || matches!(value, Value::Sequence(items) if !items.is_empty())
}

/// The dash before an item on lines of its own.
fn dash(text: &str, item: usize) -> Option<usize> {
    let before = text[..item].trim_end_matches(' ');
    before.ends_with('-').then(|| before.len() - 1)
}

/// How much deeper the first list on lines of its own is than its key.
fn lists(text: &str, node: &Node) -> Option<usize> {
    let column = |at: usize| at - text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    match &node.kind {
        Kind::Mapping { flow: false, entries } => entries.iter().find_map(|(key, value)| match &value.kind {
            Kind::List { flow: false, items } => {
                let first = dash(text, items.first()?.span.start)?;
                Some(column(first).saturating_sub(column(key.start)))
            }
            _ => lists(text, value),
        }),
        Kind::List { flow: false, items } => items.iter().find_map(|item| lists(text, item)),
        _ => None,
    }
}
