//! What the gateway itself shows to people.

use overlane_config::browser::{self, PARAMETER};
use overlane_config::carrier::Keys;
use overlane_config::table::Environment;

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
        Answer { hint: Some(hint), ..answer }.into()
    }

    /// The answer to who may know that there is no such environment.
    pub(super) fn not_found(&self, id: &str) -> Box<Answer> {
        let (status, what) = match self.table.environment(id) {
            Some(Environment::Overlay(overlay)) if overlay.baseline == self.baseline.id => {
                (410, format!("the overlay `{id}` has expired"))
            }
            Some(Environment::Refused(_)) => (404, format!("the blueprint of `{id}` was never right")),
            _ => (404, format!("`{}` has no overlay `{id}`", self.baseline.id)),
        };
        let reason = if status == 410 { "expired" } else { "unknown" };
        let answer = Answer::plain(status, "destination_not_found", reason, what);
        answer.with(More { links: self.links(), ..More::default() }).into()
    }

    /// The answer to a browser whose overlay went while it was in it: what it sees next would be the baseline.
    pub(super) fn gone(&self, id: &str) -> Box<Answer> {
        let answer = self.not_found(id);
        let links = [&[self.leave()], answer.links()].concat();
        let message = format!("you were in the overlay `{id}`, which is not there any more");
        Answer { message, ..*answer }.with(More { links, ..More::default() }).into()
    }

    fn leave(&self) -> Link {
        Link { text: format!("leave: go on in `{}`", self.baseline.id), to: format!("/?{PARAMETER}=") }
    }

    /// Says which overlay this host's requests are for, and where others are.
    pub(super) fn own_page(&self, keys: Option<&Keys>) -> Box<Answer> {
        let chosen = browser::choose(self.baseline, &self.head.fields, self.secure)
            .filter(|choice| self.may(&choice.environment, choice.secret));
        let message = match (&chosen, keys) {
            (_, Some(keys)) => {
                format!("your requests to this host are for `{}`, as a header says", keys.as_str())
            }
            (Some(choice), None) => {
                format!(
                    "your requests to this host are for `{}`, as {} says",
                    choice.environment,
                    choice.by.as_str()
                )
            }
            (None, None) => format!("your requests to this host are for `{}`", self.baseline.id),
        };
        let mut links: Vec<_> = chosen.iter().map(|_| self.leave()).collect();
        if self.right.is_any() {
            links.extend(self.links());
        }
        Answer::plain(200, "", "page", message).with(More { links, ..More::default() }).into()
    }

    /// Where the baseline's overlays are.
    fn links(&self) -> Vec<Link> {
        let ids = self.table.environments().map(|(id, _)| id);
        let live = ids.filter(|id| **id != self.baseline.id && self.is_live(id.as_str()));
        let mut ids: Vec<_> = live.take(LISTED).collect();
        ids.sort_unstable();
        let by_host = self.baseline.preview(&format!("a.{}", host_of(self.head.authority))).is_some()
            || self.baseline.preview(self.head.authority).is_some();
        let link = |id: &overlane_config::name::EnvironmentId| {
            let preview = label_of(None, id.as_str()).and_then(|label| self.preview_origin(&label));
            let by_parameter = || format!("/?{PARAMETER}={id}");
            let to = preview.filter(|_| by_host).map_or_else(by_parameter, |origin| origin + "/");
            Link { text: id.to_string(), to }
        };
        ids.into_iter().map(link).collect()
    }
}

fn host_of(authority: &str) -> &str {
    authority.split(':').next().unwrap_or_default()
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
         <title>{title}</title><style>{STYLE}</style><main><h1>{title}</h1><p>{}{}{}{list}<footer>Overlane · {} · \
         <a href=\"{OWN_PAGE}\">where am I?</a></footer></main></html>\n",
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
