//! What the gateway itself shows to people.

use std::collections::BTreeSet;

use overlane_config::browser::{self, Cookie, PARAMETER, Ticket};
use overlane_config::carrier::Keys;
use overlane_config::name::{EnvironmentId, printable};

use super::{Arrival, OWN_PAGE, label_of};
use crate::plane::answer::{Answer, Link, More};

/// So many environments are listed.
const LISTED: usize = 100;

impl Arrival<'_> {
    /// The answer to who may not know whether there is anything.
    pub(super) fn nothing_here(&self) -> Box<Answer> {
        let message = "there is nothing here, or it is not for you";
        let answer = Answer::plain(404, "destination_not_found", "untrusted", message);
        let hint = "whoever sent you here can share it: `overlane overlay share ID` makes a link".to_owned();
        let links = if self.has_choice() { vec![self.leave()] } else { Vec::new() };
        Answer { hint: Some(hint), ..answer }.with(More { links, ..More::default() }).into()
    }

    /// The answer at a host that could be a preview's and is none.
    pub(super) fn no_preview(&self) -> Box<Answer> {
        if !self.right.is_any() {
            return self.nothing_here();
        }
        let answer =
            Answer::plain(404, "destination_not_found", "no-route", "this host stands for no preview");
        let domain = self.baseline.previews.domain();
        let hint = format!("previews are at SERVICE--OVERLAY.{domain} and OVERLAY.{domain}");
        self.with_links(Answer { hint: Some(hint), ..answer }).into()
    }

    /// The answer to who may know that there is no such overlay.
    pub(super) fn no_overlay(&self, id: &str) -> Box<Answer> {
        if !self.right.is_any() {
            return self.nothing_here();
        }
        let message = format!("`{}` has no overlay `{}`", self.baseline.id, printable(id, 80));
        self.with_links(Answer::plain(404, "destination_not_found", "unknown", message)).into()
    }

    /// The answer to a browser that was sent to another overlay than it is in.
    pub(super) fn enter_another(&self, current: Ticket<'_>, text: &str) -> Box<Answer> {
        let message =
            format!("you are in the overlay `{}`, and this link leads into another", current.environment);
        self.choice(message, vec![self.way_in("go there", text), self.stay()])
    }

    /// The answer to a browser that another site sends out of its overlay.
    pub(super) fn ask_to_leave(&self, current: &str) -> Box<Answer> {
        let message = format!("you are in the overlay `{current}`, and another site's link leads out of it");
        self.choice(message, vec![self.leave(), self.stay()])
    }

    /// The answer to a browser that entered without TLS.
    pub(super) fn enter_again(&self, id: &str) -> Box<Answer> {
        let message = format!("you entered the overlay `{id}` without TLS, which does not count with it");
        self.choice(message, vec![self.way_in("enter it here", id), self.leave()])
    }

    /// The answer to a browser that takes no cookies.
    pub(super) fn no_cookies(&self) -> Box<Answer> {
        let message = "your browser did not take the cookie by which it would stay in the overlay";
        let answer = Answer::plain(400, "http_request_error", "no-cookies", message);
        let hint =
            "use the overlay's preview host, which needs none where you may choose overlays".to_owned();
        self.with_links(Answer { hint: Some(hint), ..answer }).into()
    }

    fn choice(&self, message: String, links: Vec<Link>) -> Box<Answer> {
        let answer = Answer::plain(409, "http_request_error", "ambiguous", message);
        answer.with(More { links, ..More::default() }).into()
    }

    fn way_in(&self, text: &str, ticket: &str) -> Link {
        Link { text: text.to_owned(), to: self.with_parameter(&format!("{PARAMETER}={ticket}")) }
    }

    fn leave(&self) -> Link {
        let to = self.with_parameter(&format!("{PARAMETER}="));
        Link { text: "leave: go on without an overlay".to_owned(), to }
    }

    fn stay(&self) -> Link {
        Link { text: "stay".to_owned(), to: self.cleaned() }
    }

    /// This address, with a parameter of ours.
    fn with_parameter(&self, parameter: &str) -> String {
        let address = if self.head.path == OWN_PAGE { "/".to_owned() } else { self.cleaned() };
        let joint = if address.contains('?') { '&' } else { '?' };
        format!("{address}{joint}{parameter}")
    }

    /// Whether the browser has a cookie that chooses.
    fn has_choice(&self) -> bool {
        Cookie::Choice.values(&self.head.fields, self.secure).next().is_some()
    }

    /// The answer with links to the overlays that its reader may choose, and out of the one that it is in.
    pub(super) fn with_links(&self, answer: Answer) -> Answer {
        let mut links: Vec<_> = if self.has_choice() { vec![self.leave()] } else { Vec::new() };
        links.extend(self.links());
        answer.with(More { links, ..More::default() })
    }

    /// Says which overlay this host's requests are for, and where others are.
    pub(super) fn own_page(&self, keys: Option<&Keys>) -> Box<Answer> {
        let chosen = browser::choose(self.baseline, self.head.authority, &self.head.fields, self.secure)
            .filter(|choice| self.may(&choice.environment, choice.secret).is_some());
        let message = match (&chosen, keys) {
            (_, Some(keys)) => {
                format!("your requests to this host are for `{}`, as a header says", keys.as_str())
            }
            (Some(choice), None) => {
                let id = &*choice.environment;
                let gone = if self.is_live(id) { "" } else { ", which is not there (any more)" };
                format!("your requests to this host are for `{id}`, as {} says{gone}", choice.by.as_str())
            }
            (None, None) => "your requests to this host are for no overlay".to_owned(),
        };
        self.with_links(Answer::plain(200, "", "page", message)).into()
    }

    /// Where the overlays are that the reader may choose: the first of them.
    fn links(&self) -> Vec<Link> {
        let mut ids = BTreeSet::new();
        let all = self.table.environments().map(|(id, _)| id);
        for id in all.filter(|id| self.right.may_choose(id.as_str()) && **id != self.baseline.id) {
            if self.is_live(id.as_str()) {
                ids.insert(id);
            }
            if ids.len() > LISTED {
                ids.pop_last();
            }
        }
        let host = self.head.authority.split(':').next().unwrap_or_default();
        // Where this host's names lead to us, so do those below it.
        let by_host = !self.baseline.previews.is_local() || host.ends_with(self.baseline.previews.domain());
        let link = |id: &EnvironmentId| {
            let preview = label_of(None, id.as_str()).filter(|_| by_host);
            let by_parameter = || format!("/?{PARAMETER}={id}");
            let to = preview.map_or_else(by_parameter, |label| self.preview_origin(&label) + "/");
            Link { text: id.to_string(), to }
        };
        ids.into_iter().map(link).collect()
    }
}

/// A page of HTML, which loads nothing.
pub(in crate::plane) fn html(status: u16, phrase: &str, answer: &Answer) -> String {
    let mut list = String::new();
    for Link { text, to } in answer.links() {
        list.push_str(&format!("<li><a href=\"{}\">{}</a>", escaped(to), escaped(text)));
    }
    let list = if list.is_empty() { list } else { format!("<ul>{list}</ul>") };
    let part = |label: &str, text: Option<&str>| {
        text.map_or_else(String::new, |text| format!("<p>{label}{}", escaped(text)))
    };
    let title = if status < 400 { "Overlane".to_owned() } else { format!("{status} {phrase}") };
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><main><h1>{title}</h1><p>{}{}{}{list}<footer>Overlane · {}</footer></main></html>\n",
        escaped(&answer.message),
        part("", answer.hint.as_deref()),
        part("blueprint: ", answer.declared.as_deref()),
        escaped(answer.reason),
    )
}

const STYLE: &str = ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;margin:0}\
main{max-width:42rem;margin:10vh auto;padding:0 1rem}h1{font-size:1.5rem}footer{margin-top:3rem;font-size:.85rem;opacity:.75}";

/// Text that is nothing but text, between tags and in quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
