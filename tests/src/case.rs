//! Cases: a script, run on each engine, and what they did compared.

use std::time::Duration;

use overlane::plane::EngineChoice;

use crate::play::run;
use crate::script::Script;
use crate::stage::EXPRESS;

/// How long a wait lasts before it is a failure.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where a failure is what is expected.
const LITTLE_PATIENCE: Duration = Duration::from_millis(100);

/// A difference between the engines, and its reason.
#[derive(Debug, Clone, Copy)]
pub struct Difference(pub &'static str);

/// What happens instead of a script, and why.
#[derive(Debug, Clone)]
struct Known {
    difference: Difference,
    instead: Script,
    at: Where,
}

/// On what engine something else happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Pingora,
    /// On Pingora now and then.
    PingoraByChance,
    Everywhere,
}

/// A script, and what is known to be different about it.
#[derive(Debug, Clone)]
pub struct Case {
    script: Script,
    known: Option<Known>,
}

impl Known {
    fn holds_on(&self, engine: EngineChoice) -> bool {
        self.at == Where::Everywhere || engine == EngineChoice::Pingora || !EXPRESS
    }
}

impl From<Script> for Case {
    fn from(script: Script) -> Self {
        Self { script, known: None }
    }
}

impl Case {
    fn on(&self, engine: EngineChoice) -> &Script {
        match &self.known {
            Some(known) if known.holds_on(engine) => &known.instead,
            _ => &self.script,
        }
    }
}

impl Script {
    /// The same case where Pingora differs on purpose or cannot be mended: what happens on it instead.
    #[must_use]
    pub fn but_on_pingora(self, difference: Difference, instead: Self) -> Case {
        Case { script: self, known: Some(Known { difference, instead, at: Where::Pingora }) }
    }

    /// The same case where Pingora does one thing or the other, by chance: what holds on it in any case.
    #[must_use]
    pub fn but_on_pingora_by_chance(self, difference: Difference, instead: Self) -> Case {
        Case { script: self, known: Some(Known { difference, instead, at: Where::PingoraByChance }) }
    }

    /// The same case where the product does not do yet what it must: what happens on both engines instead.
    #[must_use]
    pub fn but_today(self, difference: Difference, instead: Self) -> Case {
        Case { script: self, known: Some(Known { difference, instead, at: Where::Everywhere }) }
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
    let alike =
        case.known.as_ref().is_none_or(|known| ENGINES.map(|engine| known.holds_on(engine)) == [true; 2]);
    if alike && pingora.transcript != auto.transcript {
        problems.push(format!("the engines differ{}", differing(&pingora.transcript, &auto.transcript)));
    }
    // What happens by chance cannot be seen to be gone.
    if let Some(known) = case.known.as_ref().filter(|known| known.at != Where::PingoraByChance) {
        for engine in ENGINES.into_iter().filter(|engine| known.holds_on(*engine)) {
            if run(engine, &case.script, LITTLE_PATIENCE).failure.is_none() {
                problems.push(format!("no difference any more on {engine:?}: {}", known.difference.0));
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
