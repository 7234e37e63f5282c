//! The hops of a request as a tree, and how it is drawn.

use std::collections::HashMap;

use overlane_config::route::receipt::Item;

/// The hops in the order in which they are drawn: a call under its caller.
#[derive(Debug)]
pub(super) struct Tree<'h, 'v> {
    hops: &'h [Item<'v>],
    roots: Vec<usize>,
    calls: Vec<Vec<usize>>,
}

impl<'h, 'v> Tree<'h, 'v> {
    /// The tree of these hops. A hop whose caller is not among them stands at the top.
    pub(super) fn of(hops: &'h [Item<'v>]) -> Self {
        let names = hops.iter().enumerate().filter_map(|(at, hop)| Some((hop.hop?, at)));
        let named: HashMap<&str, usize> = names.collect();
        let mut tree = Self { hops, roots: Vec::new(), calls: vec![Vec::new(); hops.len()] };
        for (at, hop) in hops.iter().enumerate() {
            match hop.parent.and_then(|parent| named.get(parent)) {
                // Nobody calls himself, nor the one by whom he was called: that is somebody's mistake.
                Some(caller) if !tree.is_below(*caller, at) => tree.calls[*caller].push(at),
                _ => tree.roots.push(at),
            }
        }
        tree
    }

    /// Whether `hop` is `top`, or a call of it, however deep.
    fn is_below(&self, hop: usize, top: usize) -> bool {
        let mut open = vec![top];
        while let Some(at) = open.pop() {
            if at == hop {
                return true;
            }
            open.extend(&self.calls[at]);
        }
        false
    }

    /// The hops as they are drawn: a caller before its calls.
    pub(super) fn hops(&self) -> impl Iterator<Item = &'h Item<'v>> {
        self.rows().into_iter().map(|(_, hop)| hop)
    }

    /// One line per hop: service, environment, via and reason, marks.
    pub(super) fn lines(&self) -> Vec<String> {
        let rows = self.rows();
        let width = |column: fn(&(String, &Item<'_>)) -> usize| rows.iter().map(column).max().unwrap_or(0);
        let services = width(|(service, _)| service.chars().count());
        let environments = width(|(_, hop)| hop.environment.len());
        let line = |(service, hop): &(String, &Item<'_>)| {
            let served = format!("{} ({})", hop.via.as_str(), hop.reason);
            let marks = hop.marks.names().collect::<Vec<_>>().join(", ");
            let line =
                format!("{service:<services$}   {:<environments$}   {served:<22}   {marks}", hop.environment);
            line.trim_end().to_owned()
        };
        rows.iter().map(line).collect()
    }

    fn rows(&self) -> Vec<(String, &'h Item<'v>)> {
        let mut rows = Vec::with_capacity(self.hops.len());
        for root in &self.roots {
            self.add_rows(*root, "", "", &mut rows);
        }
        rows
    }

    fn add_rows(&self, at: usize, branch: &str, below: &str, rows: &mut Vec<(String, &'h Item<'v>)>) {
        rows.push((format!("{branch}{}", self.hops[at].service), &self.hops[at]));
        let calls = &self.calls[at];
        for (number, call) in calls.iter().enumerate() {
            let (branch, next) =
                if number + 1 == calls.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            self.add_rows(*call, &format!("{below}{branch}"), &format!("{below}{next}"), rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use overlane_config::route::receipt::parse;

    use super::*;

    fn drawn(list: &str) -> String {
        let list = list
            .split_whitespace()
            .map(|word| word.replacen(';', ";env=e;via=overlay;reason=owned;", 1))
            .collect::<Vec<_>>()
            .join(",");
        let hops = parse(list.as_bytes()).unwrap();
        let lines = Tree::of(&hops).lines();
        let service = |line: &String| line.split("   e   ").next().unwrap_or_default().trim_end().to_owned();
        lines.iter().map(service).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn calls_stand_under_their_caller_in_their_order() {
        assert_eq!(
            drawn("d;hop=h4;parent=h2 b;hop=h2;parent=h1 e;hop=h5;parent=h3 c;hop=h3;parent=h1 a;hop=h1"),
            "a\n├─ b\n│  └─ d\n└─ c\n   └─ e"
        );
    }

    #[test]
    fn a_hop_without_a_known_caller_stands_at_the_top_and_every_hop_is_drawn_once() {
        assert_eq!(drawn("b;hop=h2;parent=h9 c;hop=h3;parent=h2 a;hop=h1"), "b\n└─ c\na");
        assert_eq!(drawn("a;hop=h1;parent=h1"), "a");
        assert_eq!(drawn("a;hop=h1;parent=h2 b;hop=h2;parent=h1").lines().count(), 2);
        assert_eq!(drawn("a;partial b;restored"), "a\nb");
    }
}
