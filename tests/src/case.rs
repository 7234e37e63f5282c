//! Cases: a script, run on each engine, and what they did compared.

use std::time::Duration;

use overlane::plane::EngineChoice;

use crate::play::run;
use crate::script::Script;

/// How long a wait lasts before it is a failure: a machine that does much else may take seconds to start a proxy.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long what has to happen before something else may take: a machine that does many things at once is slow. The longest is
/// waited for.
const TIMES: [Duration; 3] = [Duration::from_millis(150), Duration::from_secs(1), Duration::from_secs(4)];
/// The same where a failure is what is expected.
const LITTLE_PATIENCE: Duration = Duration::from_millis(100);

/// A difference between the engines, and its reason.
#[derive(Debug, Clone, Copy)]
pub struct Difference(pub &'static str);

/// What happens on Pingora instead of a script, and why.
#[derive(Debug, Clone)]
struct Known {
    difference: Difference,
    instead: Script,
    /// Whether the script itself happens there as well, now and then.
    by_chance: bool,
}

/// A script, and what is known to be different about it.
#[derive(Debug, Clone)]
pub struct Case {
    script: Script,
    known: Option<Known>,
}

impl From<Script> for Case {
    fn from(script: Script) -> Self {
        Self { script, known: None }
    }
}

impl Case {
    fn on(&self, engine: EngineChoice) -> &Script {
        match &self.known {
            Some(known) if engine == EngineChoice::Pingora => &known.instead,
            _ => &self.script,
        }
    }
}

impl Script {
    /// The same case where Pingora differs on purpose or cannot be mended: what happens on it instead.
    #[must_use]
    pub fn but_on_pingora(self, difference: Difference, instead: Self) -> Case {
        Case { script: self, known: Some(Known { difference, instead, by_chance: false }) }
    }

    /// The same case where Pingora does one thing or the other, by chance: what holds on it in any case.
    #[must_use]
    pub fn but_on_pingora_by_chance(self, difference: Difference, instead: Self) -> Case {
        Case { script: self, known: Some(Known { difference, instead, by_chance: true }) }
    }
}

/// Runs a case on both engines.
///
/// # Panics
/// Where one of them fails it, where they differ and no difference is known, or where one is known and is gone.
pub fn holds(case: impl Into<Case>) {
    let problems = problems(&case.into());
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

/// Runs a case on both engines in which something has to happen before a time of the proxy's is over, and what comes of that
/// time is seen. Where the machine was too slow, which `late` in what arrived says, there is more of it.
///
/// # Panics
/// As [`holds`] does.
pub fn holds_before<C: Into<Case>>(late: &str, case: impl Fn(Duration) -> C) {
    let mut times = TIMES.into_iter().peekable();
    while let Some(time) = times.next() {
        let problems = problems(&case(time).into());
        if problems.is_empty() {
            return;
        }
        let too_slow = problems.iter().all(|problem| problem.contains(late));
        assert!(too_slow && times.peek().is_some(), "{time:?}: {}", problems.join("\n\n"));
    }
}

/// Runs a family of cases on both engines; all that fail are told.
///
/// # Panics
/// As [`holds`] does.
pub fn each_holds<C: Into<Case>>(cases: impl IntoIterator<Item = (impl Into<String>, C)>) {
    let mut all = Vec::new();
    for (name, case) in cases {
        let name = name.into();
        all.extend(problems(&case.into()).into_iter().map(|problem| format!("{name:?}: {problem}")));
    }
    assert!(all.is_empty(), "{} problems\n{}", all.len(), all.join("\n\n"));
}

fn problems(case: &Case) -> Vec<String> {
    const ENGINES: [EngineChoice; 2] = [EngineChoice::Pingora, EngineChoice::Auto];
    let [pingora, auto] = ENGINES.map(|engine| run(engine, case.on(engine), PATIENCE));
    let mut problems = Vec::new();
    for (engine, outcome) in ENGINES.iter().zip([&pingora, &auto]) {
        problems.extend(outcome.failure.as_ref().map(|why| format!("on {engine:?}: {why}")));
    }
    if !problems.is_empty() {
        return problems;
    }
    match &case.known {
        None if pingora.transcript == auto.transcript => {}
        None => {
            problems.push(format!("the engines differ{}", differing(&pingora.transcript, &auto.transcript)));
        }
        // What happens by chance cannot be seen to be gone.
        Some(known) if known.by_chance => {}
        Some(known) => {
            let still = run(EngineChoice::Pingora, &case.script, LITTLE_PATIENCE);
            if still.failure.is_none() {
                problems.push(format!("no difference any more: {}", known.difference.0));
            }
        }
    }
    problems
}

/// The lines in which two transcripts differ.
#[must_use]
pub fn differing(pingora: &[String], auto: &[String]) -> String {
    let mut told = String::new();
    for number in 0..pingora.len().max(auto.len()) {
        let of =
            |transcript: &[String]| transcript.get(number).cloned().unwrap_or_else(|| "(nothing)".to_owned());
        let (pingora, auto) = (of(pingora), of(auto));
        if pingora != auto {
            told.push_str(&format!("\n  Pingora: {pingora}\n  Auto:    {auto}"));
        }
    }
    told
}
