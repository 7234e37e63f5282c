//! What a proxy answers when its hub asks: from what it keeps, on the control side. Requests know nothing of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use http::{Method, StatusCode};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::admin::Admin;
use crate::api::{Allowance, aside};
use crate::decisions::Filter;
use crate::hub::questions::{ANSWERS, Answer, Ask, QUESTIONS, Question, Told};
use crate::metrics;
use crate::plane::drain::Stage;
use crate::store::hub::{HubStore, Refused};

/// The shortest and the longest pause before it is listened again.
const AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// How often a tap tells what is new.
const TELL: Duration = Duration::from_millis(200);
/// The most decisions that are told at once.
const MOST: usize = 2000;
/// The most questions that are worked on at once.
const AT_ONCE: usize = 16;

/// Listens to a hub's questions, and answers them, until the process ends.
pub(crate) async fn answer(hub: Arc<HubStore>, admin: Admin) {
    let id: String = form_urlencoded::byte_serialize(admin.instance.as_bytes()).collect();
    let path = format!("{QUESTIONS}?id={id}");
    let mut pause = AGAIN[0];
    loop {
        let listened = Instant::now();
        tokio::select! {
            () = admin.drain.reached(Stage::Draining) => return,
            () = listen(&hub, &admin, &path) => {}
        }
        // A hub that is away, or of an earlier version, is tried again; ever later, where it answers nothing.
        pause = if listened.elapsed() > AGAIN[1] { AGAIN[0] } else { (pause * 2).min(AGAIN[1]) };
        tokio::select! {
            () = admin.drain.reached(Stage::Draining) => return,
            () = sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
        }
    }
}

/// One stream of questions, to its end. What is still worked on ends with it.
async fn listen(hub: &Arc<HubStore>, admin: &Admin, path: &str) {
    let Ok(mut lines) = hub.lines(path).await else { return };
    let (mut work, mut tapping) = (JoinSet::new(), JoinSet::new());
    let mut taps: HashMap<u64, AbortHandle, RandomState> = HashMap::default();
    while let Ok(line) = lines.line().await {
        while work.try_join_next().is_some() || tapping.try_join_next().is_some() {}
        taps.retain(|_, tap| !tap.is_finished());
        // A later version may ask what is not known here: then it is told by silence.
        let Ok(Question { number, ask: Some(ask) }) = serde_json::from_slice(&line) else { continue };
        let asked = Asked { hub: hub.clone(), admin: admin.clone(), number };
        match ask {
            Ask::Over => {
                taps.remove(&number).inspect(AbortHandle::abort);
            }
            // There is room for as many as look on.
            Ask::Tap { filter, most } => {
                taps.insert(number, tapping.spawn(async move { asked.tap(&filter, most).await }));
            }
            _ if work.len() >= AT_ONCE => {}
            ask => {
                work.spawn(async move { asked.once(ask).await });
            }
        }
    }
}

/// A question, and where it is answered.
struct Asked {
    hub: Arc<HubStore>,
    admin: Admin,
    number: u64,
}

impl Asked {
    /// Sends what was found; false where nobody waits for it any more.
    async fn tell(&self, told: Told) -> bool {
        let answer = Answer { id: self.admin.instance.to_string(), number: self.number, told };
        let Ok(body) = serde_json::to_vec(&answer) else { return false };
        let told = self.hub.ask_small(Method::POST, ANSWERS, Some("application/json"), body).await;
        // Answers that come too fast are dropped at the hub, which counts them.
        matches!(told, Ok(_) | Err(Refused::Status(StatusCode::TOO_MANY_REQUESTS, _)))
    }

    async fn once(&self, ask: Ask) {
        let decisions = self.admin.decisions.clone();
        let told = match ask {
            Ask::Flows => Told::Flows(metrics::gather(&self.admin.doors).await.counted()),
            _ if !decisions.are_kept() => Told::Nothing,
            Ask::Decisions { filter, limit } => {
                Told::Decisions(aside(move || decisions.newest(&filter, limit.min(MOST))).await)
            }
            Ask::Of(ids) => Told::Of(aside(move || decisions.of(&ids)).await),
            Ask::Tap { .. } | Ask::Over => return,
        };
        self.tell(told).await;
    }

    /// Tells what is decided from now on, no more of it than is wanted.
    async fn tap(&self, filter: &Filter, most: u32) {
        let decisions = &self.admin.decisions;
        let (true, Ok(_seat)) = (decisions.are_kept(), self.admin.taps.try_acquire()) else { return };
        let (mut cursor, mut allowance) = (decisions.end(), Allowance::of(most, Instant::now()));
        loop {
            sleep(TELL).await;
            let followed = decisions.follow(&mut cursor, filter, allowance.now(Instant::now()).min(MOST));
            allowance.take(followed.decisions.len());
            if followed.is_empty() {
                continue;
            }
            let told =
                Told::Tap { decisions: followed.decisions, over: followed.over, overrun: followed.overrun };
            if !self.tell(told).await {
                return;
            }
        }
    }
}
