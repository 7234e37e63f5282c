//! Several cases under several loads, in rounds: what disturbs the machine for a while then disturbs
//! all of them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::mesh::{Path, Size};
use super::pace::Pace;
use super::tally::{Tally, round_off};
use super::target::Target;
use super::{Control, Load, machine, measure};
use crate::plane::EngineChoice;

/// The threads of the built-in mesh's gateway.
const WORKERS: &str = "worker-";

/// Something to measure.
#[derive(Debug, Clone)]
pub struct Case {
    /// What people call it.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// The requests and where they go.
    pub target: Target,
    /// The path through the built-in mesh.
    pub path: Option<Path>,
    /// The size of the built-in mesh's table, where one is involved.
    pub size: Option<Size>,
    /// What carries requests in the built-in mesh, where one is involved.
    pub engine: Option<EngineChoice>,
}

impl Case {
    /// The engine's name, as it is written on the command line.
    #[must_use]
    pub fn engine_name(&self) -> Option<String> {
        use clap::ValueEnum;
        Some(self.engine?.to_possible_value()?.get_name().to_owned())
    }
}

/// One case under one load.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The case.
    pub case: Case,
    /// The load.
    pub load: Load,
    /// Each round.
    pub rounds: Vec<Round>,
    /// All rounds together.
    pub whole: Tally,
}

/// One round of a case.
#[derive(Debug, Clone)]
pub struct Round {
    /// What was measured.
    pub tally: Tally,
    /// What the gateway's thread computed meanwhile, where one was involved.
    pub cpu: Option<Duration>,
}

impl Round {
    /// What the gateway computed for each answer, in microseconds.
    fn cpu_per_answer(&self) -> Option<f64> {
        let answers = Some(self.tally.answers).filter(|answers| *answers > 0)?;
        Some(self.cpu?.as_secs_f64() * 1e6 / answers as f64)
    }
}

/// How far a series is.
#[derive(Debug)]
pub struct Progress<'s> {
    /// What is measured.
    pub case: &'s Case,
    /// Under what load.
    pub load: &'s Load,
    /// Which measurement this is, from 1.
    pub number: usize,
    /// Of how many.
    pub of: usize,
    /// How long this one runs.
    pub elapsed: Duration,
    /// Answers so far.
    pub answers: u64,
}

/// What is measured, and how often.
#[derive(Debug)]
pub struct Series {
    /// The cases; the first is what others are compared with.
    pub cases: Vec<Case>,
    /// The loads; their durations are those of all rounds together.
    pub loads: Vec<Load>,
    /// Rounds.
    pub rounds: u32,
}

impl Series {
    /// How long it takes.
    #[must_use]
    pub fn length(&self) -> Duration {
        let each = |load: &Load| load.warmup * self.rounds + load.duration;
        self.loads.iter().map(each).sum::<Duration>() * u32::try_from(self.cases.len()).unwrap_or(u32::MAX)
    }

    /// Measures; `prepare` is asked before each measurement and `progress` hears how far it is. When
    /// it is stopped, what was measured by then is returned.
    ///
    /// # Errors
    /// A case that cannot be prepared or reached, with the case.
    pub fn run(
        &self,
        control: &Arc<Control>,
        mut prepare: impl FnMut(&Case) -> io::Result<()>,
        mut progress: impl FnMut(&Progress<'_>),
    ) -> Result<Vec<Measured>, (&Case, io::Error)> {
        let mut all = Vec::new();
        let of = self.cases.len() * self.loads.len() * self.rounds as usize;
        let mut number = 0;
        for load in &self.loads {
            let start = |case: &Case| Measured::new(case, load);
            let mut measured: Vec<_> = self.cases.iter().map(start).collect();
            let load = Load { duration: load.duration / self.rounds, ..load.clone() };
            for _ in 0..self.rounds {
                for (case, measured) in self.cases.iter().zip(&mut measured) {
                    number += 1;
                    if control.stopped() {
                        continue;
                    }
                    prepare(case).map_err(|error| (case, error))?;
                    let before = machine::cpu(WORKERS);
                    let tally = measure(&case.target, &load, control, |elapsed, answers| {
                        progress(&Progress { case, load: &load, number, of, elapsed, answers });
                    })
                    .map_err(|error| (case, error))?;
                    let spent =
                        machine::cpu(WORKERS).zip(before).map(|(after, before)| after.saturating_sub(before));
                    measured.take(tally, spent.filter(|_| case.size.is_some()));
                }
            }
            all.extend(measured.into_iter().filter(|measured| !measured.rounds.is_empty()));
        }
        Ok(all)
    }
}

impl Measured {
    fn new(case: &Case, load: &Load) -> Self {
        Self { case: case.clone(), load: load.clone(), rounds: Vec::new(), whole: Tally::new() }
    }

    fn take(&mut self, tally: Tally, cpu: Option<Duration>) {
        self.whole.append(&tally);
        self.rounds.push(Round { tally, cpu });
    }

    /// By how much the rounds differ in a percentile, in microseconds.
    #[must_use]
    pub fn spread(&self, percentile: f64) -> Option<f64> {
        spread(self.rounds.iter().filter_map(|round| round.tally.percentile(percentile)))
    }

    /// What the gateway computed for each answer, in microseconds, and by how much the rounds differ.
    #[must_use]
    pub fn cpu_per_answer(&self) -> Option<(f64, f64)> {
        let answers = Some(self.whole.answers).filter(|answers| *answers > 0)?;
        let cpu: Option<Duration> = self.rounds.iter().map(|round| round.cpu).sum();
        let spread = spread(self.rounds.iter().filter_map(Round::cpu_per_answer))?;
        Some((cpu?.as_secs_f64() * 1e6 / answers as f64, spread))
    }

    /// How much more a percentile is than in the measurement that this is compared with, in
    /// microseconds. At saturation latencies cannot be compared: each case sets its own rate.
    #[must_use]
    pub fn added(&self, reference: &Self, percentile: f64) -> Option<f64> {
        let same = matches!(self.load.pace, Pace::Rate(_)) && self.load.pace == reference.load.pace;
        Some(self.whole.percentile(percentile)? - reference.whole.percentile(percentile)?).filter(|_| same)
    }

    /// It as JSON, compared with `reference`.
    #[must_use]
    pub fn to_json(&self, reference: Option<&Self>, machine: &Value) -> Value {
        let (mode, rate) = match self.load.pace {
            Pace::Rate(rate) => ("rate", Some(rate.get())),
            Pace::Saturation => ("saturation", None),
        };
        let mut map = self.whole.to_json();
        let mut insert = |name: &str, value: Value| map.insert(name.to_owned(), value);
        insert("name", json!(self.case.name));
        insert("url", json!(self.case.url));
        insert("mode", json!(mode));
        insert("rate", json!(rate));
        insert("connections", json!(self.load.connections));
        insert("threads", json!(self.load.threads));
        insert("machine", machine.clone());
        let rounds = self.rounds.iter().map(|round| {
            let tally = &round.tally;
            json!({
                "rps": round_off(tally.rps()),
                "p50": tally.percentile(50.0),
                "p99": tally.percentile(99.0),
                "cpu_us": round.cpu_per_answer().map(round_off),
            })
        });
        insert("rounds", rounds.collect());
        if let Some(path) = self.case.path {
            insert("path", json!(path));
            insert("overlays", json!(self.case.size.map(|size| size.overlays)));
            insert("depth", json!(self.case.size.map(|size| size.depth)));
            insert("engine", json!(self.case.engine_name()));
            insert("cpu_us", json!(self.cpu_per_answer().map(|(cpu, _)| round_off(cpu))));
        }
        if let Some(reference) = reference {
            let added = |percentile| self.added(reference, percentile).map(round_off);
            insert("added_us", json!({"p50": added(50.0), "p99": added(99.0)}));
        }
        map.into()
    }
}

fn spread(values: impl Iterator<Item = f64> + Clone) -> Option<f64> {
    Some(values.clone().reduce(f64::max)? - values.reduce(f64::min)?)
}

/// The measurement that each is compared with: the first case under the same load, where there are
/// others.
#[must_use]
pub fn reference<'m>(all: &'m [Measured], measured: &Measured) -> Option<&'m Measured> {
    let first = all.iter().find(|other| other.load.pace == measured.load.pace)?;
    let alone = all.iter().filter(|other| other.load.pace == measured.load.pace).count() == 1;
    Some(first).filter(|_| !alone)
}
