//! Which carriers are read, in order, and which are written.

use std::fmt;
use std::sync::Arc;

use super::header::is_encoded;
use super::preset::{PRESETS, Preset};
use super::{Arrived, FieldLines, Form, Hosts, InvalidKey, Keys, baggage, cookie, header, trace, tracestate};
use crate::diagnostic::did_you_mean;
use crate::name::{HeaderName, printable};

/// The most carriers of a list, presets counted by what they stand for.
const MAX_CARRIERS: usize = 64;

/// Where in a request's head a key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The baseline's own header: what is no id there is refused.
    Own,
    /// A foreign header.
    Header(HeaderName),
    /// A member of `baggage`.
    Baggage(Box<str>),
    /// A member of `tracestate`.
    Tracestate(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
}

/// Where a key travels, and how it is spelled there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    name: Arc<str>,
    place: Place,
    form: Form,
    /// Whether a foreign header's value is percent-encoded.
    encoded: bool,
}

/// The carriers of a process: those that are read, in order, and those that are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carriers {
    read: Box<[Carrier]>,
    write: Box<[Carrier]>,
    /// The numbers of the written foreign headers.
    headers: Box<[usize]>,
    writes_own: bool,
    writes_baggage: bool,
    /// The names of the headers besides the baseline's own that an answer depends on, each after a comma.
    vary: Box<str>,
    /// Hosts outside of the lineages that get the key as our own services do.
    pub keep_for: Hosts,
}

/// What a carrier holds.
#[derive(Debug)]
pub enum Seen<'k> {
    /// The key that counts.
    Key(&'k Keys),
    /// The same key again.
    Same,
    /// Another key, which does not count.
    Contradicts(&'k Keys),
    /// Something that names no overlay: it does not count, and travels on.
    Invalid(&'k InvalidKey),
}

/// A carrier that cannot be, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarrierError {
    /// Where: `read[2]`.
    pub place: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Default for Carriers {
    /// The baseline's own header and the member `overlay-id` of `baggage`.
    fn default() -> Self {
        let both = || {
            [
                Carrier::new(Place::Own, Form::List),
                Carrier::new(Place::Baggage(baggage::MEMBER.into()), Form::List),
            ]
        };
        Self::new(both().into(), both().into())
    }
}

impl Carriers {
    fn new(read: Box<[Carrier]>, write: Box<[Carrier]>) -> Self {
        let is_header = |number: &usize| matches!(write[*number].place, Place::Header(_));
        Self {
            headers: (0..write.len()).filter(is_header).collect(),
            writes_own: write.iter().any(Carrier::is_own),
            writes_baggage: write.iter().any(|carrier| matches!(carrier.place, Place::Baggage(_))),
            vary: vary(&read),
            read,
            write,
            keep_for: Hosts::default(),
        }
    }

    /// The carriers of two lists as people write them, where they are given: `header`, `header:NAME`,
    /// `baggage`, `baggage:MEMBER`, `tracestate:MEMBER`, `cookie:NAME`, or the name of a preset.
    ///
    /// # Errors
    /// The first entry that cannot be.
    pub fn parse(read: Option<&[String]>, write: Option<&[String]>) -> Result<Self, CarrierError> {
        let Self { read: default_read, write: default_write, .. } = Self::default();
        Ok(Self::new(
            read.map_or(Ok(default_read), |list| parse_list("read", list, false))?,
            write.map_or(Ok(default_write), |list| parse_list("write", list, true))?,
        ))
    }

    /// The carriers that are read, in order.
    #[must_use]
    pub fn read_list(&self) -> &[Carrier] {
        &self.read
    }

    /// The carriers that are written.
    #[must_use]
    pub fn written(&self) -> &[Carrier] {
        &self.write
    }

    /// Whether a foreign header is written.
    #[must_use]
    pub fn writes_headers(&self) -> bool {
        !self.headers.is_empty()
    }

    /// The numbers and names of the foreign headers among those that are written.
    pub fn written_headers(&self) -> impl Iterator<Item = (usize, &HeaderName)> {
        self.headers.iter().filter_map(|number| match &self.write[*number].place {
            Place::Header(name) => Some((*number, name)),
            _ => None,
        })
    }

    /// The names of the headers, besides the baseline's own, that the answer of a gateway depends on, as they follow
    /// it in `Vary`: with those of browsers.
    #[must_use]
    pub fn vary(&self) -> &[u8] {
        self.vary.as_bytes()
    }

    /// Whether the baseline's own header is written.
    #[must_use]
    pub fn writes_own(&self) -> bool {
        self.writes_own
    }

    /// Whether a member of `baggage` is written.
    #[must_use]
    pub fn writes_baggage(&self) -> bool {
        self.writes_baggage
    }

    /// Reads the key: that of the first carrier in order that holds one counts. `own` is the baseline's
    /// own header; `see` is told what each carrier holds.
    ///
    /// # Errors
    /// The baseline's own header holds what is no id.
    pub fn read(
        &self,
        own: &str,
        fields: &(impl FieldLines + ?Sized),
        mut see: impl FnMut(&Carrier, Seen<'_>),
    ) -> Result<Arrived, InvalidKey> {
        let mut arrived = Arrived::default();
        for carrier in &self.read {
            match carrier.read(own, fields) {
                Ok(None) => {}
                Ok(Some(keys)) => match &arrived.keys {
                    None => see(carrier, Seen::Key(arrived.keys.insert(keys))),
                    Some(first) if *first == keys => see(carrier, Seen::Same),
                    Some(_) => {
                        see(carrier, Seen::Contradicts(&keys));
                        arrived.contradicted = true;
                    }
                },
                Err(error) if carrier.is_own() => return Err(error),
                Err(error) => see(carrier, Seen::Invalid(&error)),
            }
        }
        Ok(arrived)
    }

    /// Whether a request has anything of what is read or written, valid or not.
    #[must_use]
    pub fn any(&self, own: &str, fields: &(impl FieldLines + ?Sized)) -> bool {
        fields.lines(own).next().is_some() || self.all().any(|carrier| carrier.is_in(own, fields))
    }

    /// What is read and what is written.
    pub fn all(&self) -> impl Iterator<Item = &Carrier> {
        self.read.iter().chain(&self.write)
    }
}

impl Carrier {
    fn new(place: Place, form: Form) -> Self {
        let name = match &place {
            Place::Own => "header".to_owned(),
            Place::Header(name) => format!("header:{name}"),
            Place::Baggage(member) if **member == *baggage::MEMBER => "baggage".to_owned(),
            Place::Baggage(member) => format!("baggage:{member}"),
            Place::Tracestate(member) => format!("tracestate:{member}"),
            Place::Cookie(name) => format!("cookie:{name}"),
        };
        let encoded = matches!(&place, Place::Header(name) if is_encoded(name.as_str()));
        Self { name: name.into(), place, form, encoded }
    }

    /// As people write it.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    fn is_own(&self) -> bool {
        self.place == Place::Own
    }

    /// Whether it may be written: what belongs to others is only read.
    fn is_writable(&self) -> bool {
        !matches!(self.place, Place::Tracestate(_) | Place::Cookie(_))
    }

    /// The keys that it holds in these fields.
    ///
    /// # Errors
    /// It holds something that names no overlay.
    pub fn read(&self, own: &str, fields: &(impl FieldLines + ?Sized)) -> Result<Option<Keys>, InvalidKey> {
        match &self.place {
            Place::Own => header::read(fields.lines(own)),
            Place::Baggage(member) => baggage::read(fields.lines("baggage"), member, self.form),
            Place::Header(name) => header::read_foreign(fields.lines(name.as_str()), self.encoded, self.form),
            Place::Tracestate(member) => {
                tracestate::read(fields.lines("traceparent"), fields.lines("tracestate"), member, self.form)
            }
            Place::Cookie(name) => cookie::read(fields.lines("cookie"), name, self.form),
        }
    }

    fn is_in(&self, own: &str, fields: &(impl FieldLines + ?Sized)) -> bool {
        match &self.place {
            Place::Own => fields.lines(own).next().is_some(),
            Place::Header(name) => fields.lines(name.as_str()).next().is_some(),
            Place::Baggage(member) => baggage::any(fields.lines("baggage"), |key| key == member.as_bytes()),
            Place::Tracestate(member) => tracestate::has(fields.lines("tracestate"), member),
            Place::Cookie(name) => cookie::any(fields.lines("cookie"), |key| key == name.as_bytes()),
        }
    }

    /// Appends the value of a header, or the member of `baggage`, that this key has in it.
    pub fn write(&self, keys: &Keys, out: &mut Vec<u8>) {
        match &self.place {
            Place::Baggage(member) => baggage::write(member, self.form, keys, out),
            _ => {
                let comma = if self.encoded { "%2C" } else { ", " };
                self.form.write(keys, comma, |part| out.extend_from_slice(part.as_bytes()));
            }
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// See [`Carriers::vary`].
fn vary(read: &[Carrier]) -> Box<str> {
    let names = read.iter().filter_map(|carrier| match &carrier.place {
        Place::Header(name) => Some(name.as_str()),
        Place::Baggage(_) => Some("baggage"),
        Place::Tracestate(_) => Some("tracestate"),
        Place::Own | Place::Cookie(_) => None,
    });
    let mut all: Vec<&str> = Vec::new();
    for name in names.chain(["cookie", "origin", "referer"]) {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all.iter().map(|name| [", ", *name].concat()).collect::<String>().into()
}

fn parse_list(list: &str, entries: &[String], written: bool) -> Result<Box<[Carrier]>, CarrierError> {
    let mut carriers: Vec<Carrier> = Vec::new();
    let wrong = |place: String, message: String, hint: String| CarrierError { place, message, hint };
    for (number, entry) in entries.iter().enumerate() {
        let parsed = parse_entry(entry, written)
            .map_err(|(message, hint)| wrong(format!("{list}[{number}]"), message, hint))?;
        for carrier in parsed {
            if carriers.iter().all(|known| known.place != carrier.place) {
                carriers.push(carrier);
            }
        }
    }
    match carriers.len() {
        0 => Err(wrong(
            list.to_owned(),
            "names no carrier: the key would be lost".to_owned(),
            "leave it out: `header` and `baggage` are the default".to_owned(),
        )),
        1..=MAX_CARRIERS => Ok(carriers.into()),
        many => Err(wrong(
            list.to_owned(),
            format!("stands for {many} carriers"),
            format!("name those that are in use, at most {MAX_CARRIERS}"),
        )),
    }
}

/// What is wrong, and what to do.
type Wrong = (String, String);

fn parse_entry(entry: &str, written: bool) -> Result<Vec<Carrier>, Wrong> {
    if let Some(Preset { carriers, form, .. }) = PRESETS.iter().find(|preset| preset.name == entry) {
        let places = carriers.iter().map(|carrier| parse_place(carrier));
        let carriers = places.map(|place| place.map(|place| Carrier::new(place, *form)));
        let mut carriers: Vec<_> = carriers.collect::<Result<_, _>>()?;
        carriers.retain(|carrier| !written || carrier.is_writable());
        return Ok(carriers);
    }
    let carrier = Carrier::new(parse_place(entry)?, Form::List);
    if written && !carrier.is_writable() {
        return Err((
            format!(
                "`{carrier}` is only read: it belongs to {}",
                match carrier.place {
                    Place::Cookie(_) => "a browser and its server",
                    _ => "tracing systems, and must not change while `traceparent` stays",
                }
            ),
            "leave it out of `write`".to_owned(),
        ));
    }
    Ok(vec![carrier])
}

fn parse_place(entry: &str) -> Result<Place, Wrong> {
    let (kind, name) = entry.split_once(':').map_or((entry, None), |(kind, name)| (kind, Some(name)));
    match (kind, name) {
        ("header", None) => Ok(Place::Own),
        ("header", Some(name)) => parse_header(name).map(Place::Header),
        ("baggage", None) => Ok(Place::Baggage(baggage::MEMBER.into())),
        ("baggage", Some(name)) if is_token(name) => Ok(Place::Baggage(name.into())),
        ("cookie", Some(name)) if is_token(name) => Ok(Place::Cookie(name.into())),
        ("tracestate", Some(name)) if tracestate::is_key(name) => Ok(Place::Tracestate(name.into())),
        ("baggage" | "cookie" | "tracestate", _) => Err((
            format!("`{}` names no member", printable(entry, 80)),
            format!("write `{kind}:NAME`, with a name as {kind} has it"),
        )),
        _ => Err(unknown(entry)),
    }
}

fn unknown(entry: &str) -> Wrong {
    let names = PRESETS.iter().map(|preset| preset.name);
    let known = "`header`, `header:NAME`, `baggage`, `baggage:MEMBER`, `tracestate:MEMBER`, `cookie:NAME`";
    let hint = match did_you_mean(entry, names.clone().chain(["header", "baggage", "tracestate", "cookie"])) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("write {known}, or a preset: {}", names.collect::<Vec<_>>().join(", ")),
    };
    (format!("`{}` is no carrier", printable(entry, 80)), hint)
}

fn parse_header(text: &str) -> Result<HeaderName, Wrong> {
    let lower = text.to_ascii_lowercase();
    let hint = match &*lower {
        "baggage" => "name its member: `baggage:MEMBER`",
        "tracestate" => "name its member: `tracestate:MEMBER`",
        "cookie" | "set-cookie" => "name the cookie: `cookie:NAME`",
        _ => "name a header that carries nothing but the key",
    };
    let forwarded = lower == "forwarded" || lower.starts_with("x-forwarded-");
    let traces = trace::HEADERS.contains(&&*lower) || trace::COMPANIONS.contains(&&*lower);
    if forwarded || traces || lower == trace::REQUEST_ID {
        return Err((
            format!("`{lower}` has a meaning of its own and cannot carry the key"),
            hint.to_owned(),
        ));
    }
    text.parse().map_err(|why| (why, hint.to_owned()))
}

/// A token (RFC 9110, section 5.6.2), as members of `baggage` and cookies are named.
fn is_token(text: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.len() <= 256 && text.bytes().all(token)
}
