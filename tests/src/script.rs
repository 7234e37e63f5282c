//! A case as a script: what the clients and the upstream do, in order, and what each must see.

use overlane::correlation::CorrelationSettings;
use overlane::plane::Limits;
use overlane::plane::trust::Trust;
use overlane_config::carrier::Carriers;
use overlane_config::route::Role;

use crate::message::{Framing, Kind};
use crate::scene::{End, Side};

/// What is done, or must be seen, next.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Client(usize),
    Send(Vec<u8>),
    Drip(Vec<u8>),
    HalfClose(Side),
    Close(Side, End),
    Answered(Kind, String),
    AnswerSoFar(String),
    AnswerCut(String),
    Interims,
    Ended,
    Arrives(String),
    ArrivesSoFar(String),
    Reply(Vec<u8>),
    UpstreamEnded,
    Gets(Side, Vec<u8>),
    Has(String),
    Lacks(String),
    Names(String),
    Trailer(String),
    Framed(Framing),
    Untouched,
    NeverArrives(String),
    Connections(usize),
    Metric(String),
    Message(String),
    Remove,
}

/// The listener that a script's clients call.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Gateway,
    Own(Box<(Role, Trust, Limits)>),
    /// A listener of its own that reads and writes other carriers.
    Carrying(Box<(Role, Trust, Carriers)>),
    /// A sidecar: inbound for even clients, outbound for odd ones.
    Sidecar(Box<(Option<String>, CorrelationSettings)>),
}

/// What happens, in order, and what must be seen.
#[derive(Debug, Clone)]
pub struct Script {
    pub(crate) place: Place,
    pub(crate) steps: Vec<Step>,
}

impl Default for Script {
    fn default() -> Self {
        Self::new()
    }
}

impl Script {
    /// An empty script; its clients call a gateway with one service behind it, `web`, that the baseline `base` and
    /// the overlay `alice` own.
    #[must_use]
    pub fn new() -> Self {
        Self { place: Place::Gateway, steps: Vec::new() }
    }

    /// An empty script at a listener of its own: of another role, or with other trust. The upstream is the application
    /// where the role is inbound.
    #[must_use]
    pub fn at(role: Role, trust: Trust) -> Self {
        Self { place: Place::Own(Box::new((role, trust, Limits::default()))), steps: Vec::new() }
    }

    /// An empty script at a listener of its own, which reads and writes other carriers.
    #[must_use]
    pub fn carrying(role: Role, trust: Trust, carriers: Carriers) -> Self {
        Self { place: Place::Carrying(Box::new((role, trust, carriers))), steps: Vec::new() }
    }

    /// An empty script at a gateway of its own, with other deadlines and limits.
    #[must_use]
    pub fn within(limits: Limits) -> Self {
        Self { place: Place::Own(Box::new((Role::Gateway, Trust::Any, limits))), steps: Vec::new() }
    }

    /// An empty script at a sidecar of the service `web` in `environment`: clients 0, 2, … call its inbound listener,
    /// clients 1, 3, … its outbound listener, and the upstream is both the application and all services.
    #[must_use]
    pub fn sidecar(environment: Option<&str>) -> Self {
        Self::sidecar_with(environment, CorrelationSettings::default())
    }

    /// The same that restores keys by other means.
    #[must_use]
    pub fn sidecar_with(environment: Option<&str>, correlation: CorrelationSettings) -> Self {
        let place = Place::Sidecar(Box::new((environment.map(str::to_owned), correlation)));
        Self { place, steps: Vec::new() }
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// The client that acts and sees from here on; 0 at first. Each has one connection.
    #[must_use]
    pub fn client(self, number: usize) -> Self {
        self.then(Step::Client(number))
    }

    /// The client sends bytes.
    #[must_use]
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Send(bytes.as_ref().to_vec()))
    }

    /// The client sends bytes one by one.
    #[must_use]
    pub fn drip(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Drip(bytes.as_ref().to_vec()))
    }

    /// The client sends no more, and still reads.
    #[must_use]
    pub fn half_close(self) -> Self {
        self.then(Step::HalfClose(Side::Client))
    }

    /// The client closes its connection.
    #[must_use]
    pub fn close(self) -> Self {
        self.then(Step::Close(Side::Client, End::Closed))
    }

    /// The client resets its connection.
    #[must_use]
    pub fn reset(self) -> Self {
        self.then(Step::Close(Side::Client, End::Reset))
    }

    /// The client gets a whole response: `200 body`. Responses of status 1xx are responses of their own.
    #[must_use]
    pub fn answered(self, expected: impl Into<String>) -> Self {
        self.then(Step::Answered(Kind::Response, expected.into()))
    }

    /// The same for the response to HEAD.
    #[must_use]
    pub fn answered_to_head(self, expected: impl Into<String>) -> Self {
        self.then(Step::Answered(Kind::ResponseToHead, expected.into()))
    }

    /// The client has got the head of a response and so much of its body, and waits for more.
    #[must_use]
    pub fn answered_so_far(self, expected: impl Into<String>) -> Self {
        self.then(Step::AnswerSoFar(expected.into()))
    }

    /// The client gets interim responses, however many, and something else after them.
    #[must_use]
    pub fn interim_responses(self) -> Self {
        self.then(Step::Interims)
    }

    /// The client's connection ends before the response does; what came of the body is a part of the expected one.
    #[must_use]
    pub fn cut(self, expected: impl Into<String>) -> Self {
        self.then(Step::AnswerCut(expected.into()))
    }

    /// The client's connection is ended by the proxy, and nothing came before that.
    #[must_use]
    pub fn ended(self) -> Self {
        self.then(Step::Ended)
    }

    /// The proxy answers itself, says so and why, and closes.
    #[must_use]
    pub fn refused(self, status: u16) -> Self {
        self.answered(format!("{status} overlane")).has("connection: close").ended()
    }

    /// A whole request arrives at the upstream: `POST /target body`.
    #[must_use]
    pub fn arrives(self, expected: impl Into<String>) -> Self {
        self.then(Step::Arrives(expected.into()))
    }

    /// The head of a request and so much of its body have arrived at the upstream, and not all.
    #[must_use]
    pub fn arrives_so_far(self, expected: impl Into<String>) -> Self {
        self.then(Step::ArrivesSoFar(expected.into()))
    }

    /// The upstream sends bytes on the connection on which a request arrived last.
    #[must_use]
    pub fn reply(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Reply(bytes.as_ref().to_vec()))
    }

    /// The same, byte by byte.
    #[must_use]
    pub fn reply_dripping(self, bytes: impl AsRef<[u8]>) -> Self {
        bytes.as_ref().iter().fold(self, |script, byte| script.then(Step::Reply(vec![*byte])))
    }

    /// The upstream sends no more on that connection, and still reads.
    #[must_use]
    pub fn upstream_half_closes(self) -> Self {
        self.then(Step::HalfClose(Side::Upstream))
    }

    /// The upstream closes that connection.
    #[must_use]
    pub fn upstream_closes(self) -> Self {
        self.then(Step::Close(Side::Upstream, End::Closed))
    }

    /// The upstream resets that connection.
    #[must_use]
    pub fn upstream_resets(self) -> Self {
        self.then(Step::Close(Side::Upstream, End::Reset))
    }

    /// The proxy ends that connection.
    #[must_use]
    pub fn upstream_ended(self) -> Self {
        self.then(Step::UpstreamEnded)
    }

    /// The client gets exactly these bytes next.
    #[must_use]
    pub fn client_gets(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Gets(Side::Client, bytes.as_ref().to_vec()))
    }

    /// The upstream gets exactly these bytes next.
    #[must_use]
    pub fn upstream_gets(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Gets(Side::Upstream, bytes.as_ref().to_vec()))
    }

    /// The message that was seen last has exactly this field: `name: value`.
    #[must_use]
    pub fn has(self, field: impl Into<String>) -> Self {
        self.then(Step::Has(field.into()))
    }

    /// The message that was seen last has no field of this name.
    #[must_use]
    pub fn lacks(self, name: impl Into<String>) -> Self {
        self.then(Step::Lacks(name.into()))
    }

    /// The message that was seen last has a field of this name.
    #[must_use]
    pub fn has_some(self, name: impl Into<String>) -> Self {
        self.then(Step::Names(name.into()))
    }

    /// The message that was seen last has exactly this trailer.
    #[must_use]
    pub fn has_trailer(self, field: impl Into<String>) -> Self {
        self.then(Step::Trailer(field.into()))
    }

    /// The message that was seen last is delimited so.
    #[must_use]
    pub fn framed(self, framing: Framing) -> Self {
        self.then(Step::Framed(framing))
    }

    /// Nothing more has arrived at the upstream.
    #[must_use]
    pub fn nothing_more_arrives(self) -> Self {
        self.then(Step::Untouched)
    }

    /// No request that begins so is in what arrived at the upstream: `GET /smuggled`.
    #[must_use]
    pub fn never_arrives(self, request: impl Into<String>) -> Self {
        self.then(Step::NeverArrives(request.into()))
    }

    /// The overlay `alice` is removed from the blueprints.
    #[must_use]
    pub fn alice_goes(self) -> Self {
        self.then(Step::Remove)
    }

    /// The proxy's metrics have this line; only for a proxy of the script's own.
    #[must_use]
    pub fn counts(self, line: impl Into<String>) -> Self {
        self.then(Step::Metric(line.into()))
    }

    /// The application asks its sidecar whose a message with these headers is, an object of JSON; only for a proxy of the
    /// script's own.
    #[must_use]
    pub fn consumes(self, headers: impl Into<String>) -> Self {
        self.then(Step::Message(headers.into()))
    }

    /// So many connections were made to the upstream by now.
    #[must_use]
    pub fn upstream_connections(self, number: usize) -> Self {
        self.then(Step::Connections(number))
    }
}
