//! The hub: what a process knows of its store, served to others over HTTP/2 or HTTP/1.1. Whoever follows gets it from
//! memory, so that the store has one reader however many proxies there are; whatever is written goes to the store, and
//! is checked before. The hub keeps no truth of its own: it can be away, and several can stand side by side.

mod entries;
pub mod fleet;
mod listen;
pub mod questions;
pub mod tokens;
pub mod tunnels;
pub mod wire;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{get, post};

use fleet::Fleet;
use futures_util::StreamExt;
pub(crate) use listen::{STREAM_WINDOW, STREAMS, serve};
use tokens::{HubTokens, Right};
use tunnels::Tunnels;

use crate::admin::{self, Admin, as_problem, bearer, foreign, problem, require_json};
use crate::api::Api;
use crate::plane::drain::Drain;
use crate::status::INSTANCES;
use crate::store::behind::Behind;
use crate::tunnel;

/// The largest body of a request, in bytes.
const BODY_BYTES: usize = 16 << 20;

/// What a hub serves.
#[derive(Clone)]
pub struct Hub {
    /// The store.
    pub behind: Behind,
    /// Who may do what.
    pub tokens: Arc<HubTokens>,
    /// Machines that nothing else can reach.
    pub tunnels: Arc<Tunnels>,
    /// The end of the process.
    pub drain: Drain,
    /// What it says of itself.
    pub admin: Admin,
    /// Who reports to it.
    pub fleet: Fleet,
}

impl Hub {
    /// Everything.
    pub fn router(self) -> Router {
        let [reading, asking, writing] =
            Api { admin: self.admin.clone(), fleet: Some(self.fleet.clone()), open: self.tokens.open() }
                .routers();
        let reports = Router::new()
            .route(INSTANCES, post(fleet::hear).delete(fleet::leave))
            .route(
                questions::ANSWERS,
                post(questions::hear).layer(DefaultBodyLimit::max(questions::ANSWER_BYTES)),
            )
            .route(wire::AROUND, post(entries::around).layer(DefaultBodyLimit::max(admin::BODY_BYTES)))
            .layer(from_fn(require_json))
            .merge(asking.layer(DefaultBodyLimit::max(admin::BODY_BYTES)).with_state(()));
        let reading = Router::new()
            .route(wire::ENTRIES, get(entries::list_or_follow))
            .route(questions::QUESTIONS, get(questions::listen))
            .merge(reports)
            .merge(reading.with_state(()))
            .layer(from_fn_with_state(self.clone(), may_read));
        let writing = Router::new()
            .route(wire::COMMIT, post(entries::commit))
            .layer(DefaultBodyLimit::max(BODY_BYTES))
            .layer(from_fn(require_json))
            .merge(writing.layer(DefaultBodyLimit::max(admin::BODY_BYTES)).with_state(()))
            .layer(from_fn_with_state(self.clone(), may_write));
        let tunnelling = Router::new()
            .route(tunnel::TUNNELS, post(tunnels::open))
            .route(tunnel::CONNECTIONS, post(tunnels::wait))
            .route(tunnel::DIAL, post(tunnels::dial))
            .layer(from_fn_with_state(self.clone(), may_write))
            .with_state(self.tunnels.clone());
        Router::new()
            .merge(reading)
            .merge(writing)
            .merge(tunnelling)
            .merge(admin::page::router())
            .route("/healthz", get(async || "ok\n"))
            .fallback(async || problem(StatusCode::NOT_FOUND, "there is no such page at a hub; try /ui/"))
            .layer(from_fn_with_state(self.clone(), at_home))
            .layer(map_response(as_problem))
            .with_state(self)
    }
}

/// Where nobody needs a token, a page of another site must not be able to ask either.
async fn at_home(State(hub): State<Hub>, request: Request, next: Next) -> Response {
    let open = hub.tokens.open() != Right::None;
    // Elsewhere than on loopback any name may lead here, one of a page's own too: our page asks at an address.
    let only_here = open && (hub.tokens.is_local() || request.headers().contains_key(header::ORIGIN));
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    match foreign(request.headers(), authority.as_deref(), only_here) {
        Some(why) => problem(StatusCode::FORBIDDEN, why),
        None => next.run(request).await,
    }
}

async fn may_read(State(hub): State<Hub>, request: Request, next: Next) -> Response {
    with_right(&hub, Right::Read, request, next).await
}

async fn may_write(State(hub): State<Hub>, request: Request, next: Next) -> Response {
    with_right(&hub, Right::Write, request, next).await
}

/// Goes on where the request's token gives a right.
async fn with_right(hub: &Hub, wanted: Right, request: Request, next: Next) -> Response {
    let right = hub.tokens.right(bearer(request.headers()));
    match right {
        right if right >= wanted => {
            let (tokens, shown) = (hub.tokens.clone(), bearer(request.headers()).to_vec());
            let withdrawn = async move { tokens.withdrawn(&shown, wanted).await };
            // Whoever follows, or tunnels, does so no longer than their token is good.
            let whole = |body: Body| Body::from_stream(body.into_data_stream().take_until(withdrawn));
            next.run(request).await.map(whole)
        }
        // Who showed nothing may have something to show.
        right if right == Right::None || bearer(request.headers()).is_empty() => {
            problem(StatusCode::UNAUTHORIZED, "send Authorization: Bearer with a token of this hub")
        }
        _ => problem(StatusCode::FORBIDDEN, "this token may read, and not write"),
    }
}
