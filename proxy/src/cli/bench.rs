//! `overlane bench`.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use overlane_config::time::parse_duration;

use super::output::{CliError, Output};
use crate::bench::machine::Machine;
use crate::bench::mesh::{KEY_HEADER, Mesh, Path, Size, Upstreams};
use crate::bench::pace::Pace;
use crate::bench::series::{Case, Measured, Progress, Series, reference};
use crate::bench::target::{Header, Target, TargetUrl};
use crate::bench::{Control, Load};
use crate::bench::{report, summary};
use crate::plane::EngineChoice;

/// The rate at which the paths of the built-in mesh are compared: far from what it can carry.
const MESH_RATE: NonZeroU32 = NonZeroU32::new(2000).unwrap();

/// `overlane bench`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --url and --case it measures a mesh of its own: upstreams and a gateway in this process, along \
                  every path, at a constant rate and at saturation.\nLatencies count from the time at which a request was meant \
                  to leave, so that a target that stalls cannot hide it."
)]
pub struct Bench {
    /// What to measure instead of the built-in mesh, such as http://127.0.0.1:8080/path; repeatable
    #[arg(long, value_name = "URL")]
    url: Vec<TargetUrl>,
    /// A url with a name and, if need be, a header of its own: 'NAME=URL name: value'; repeatable
    #[arg(long, value_name = "CASE")]
    case: Vec<NamedUrl>,
    /// A header of every request, 'name: value'; repeatable
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    header: Vec<Header>,
    /// Requests per second, on a fixed schedule; without it as many as the connections carry (the mesh: 2000, and that)
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<NonZeroU32>,
    /// Connections, which stay open
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count)]
    connections: usize,
    /// How long each case is measured, all rounds together [default: 10s; the mesh: 3s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// How long each round loads before it measures [default: 1s; the mesh: 200ms]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    warmup: Option<Duration>,
    /// Rounds, in each of which all cases take their turn [default: 1; the mesh: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// The longest that a request may wait for its answer
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    timeout: Duration,
    /// Threads that send
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    threads: usize,
    /// Send a POST with a body of so many bytes instead of a GET
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(..=64 << 20))]
    body_size: Option<u32>,
    /// The mesh: how many overlays its table has
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,10000", value_parser = count, conflicts_with_all = ["url", "case"])]
    overlays: Vec<usize>,
    /// The mesh: how many overlays a lineage has
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,16", value_parser = depth, conflicts_with_all = ["url", "case"])]
    depth: Vec<usize>,
    /// The mesh: what carries requests
    #[arg(long, value_enum, conflicts_with_all = ["url", "case"])]
    engine: Option<EngineChoice>,
    /// Print one JSON object per measurement instead of tables
    #[arg(long)]
    json: bool,
    /// Write a page with the latency curves
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

fn rate(text: &str) -> Result<NonZeroU32, String> {
    match text.parse().map(NonZeroU32::new) {
        Ok(Some(rate)) => Ok(rate),
        Ok(None) => Err("nothing would be sent; leave `--rate` out to measure saturation".to_owned()),
        Err(_) => Err("write a whole number of requests per second".to_owned()),
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=100_000) => Ok(number),
        _ => Err("write a number between 1 and 100000".to_owned()),
    }
}

fn depth(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=overlane_config::lineage::MAX_DEPTH) => Ok(number),
        _ => Err(format!("write a number between 1 and {}", overlane_config::lineage::MAX_DEPTH)),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("write how long, such as `10s` or `500ms`".to_owned()),
        duration if duration > Duration::from_secs(86_400) => Err("at most a day".to_owned()),
        duration => Ok(duration),
    }
}

/// A url that has a name.
#[derive(Debug, Clone)]
struct NamedUrl {
    name: String,
    url: TargetUrl,
    header: Option<Header>,
}

impl FromStr for NamedUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or("write NAME=URL, or 'NAME=URL name: value'")?;
        let (url, header) = rest.split_once(' ').map_or((rest, None), |(url, header)| (url, Some(header)));
        let header = header.map(str::parse).transpose()?;
        Ok(Self { name: name.trim().to_owned(), url: url.parse()?, header })
    }
}

impl Bench {
    /// Whether the built-in mesh is measured.
    fn own_mesh(&self) -> bool {
        self.url.is_empty() && self.case.is_empty()
    }

    fn series(&self, cases: Vec<Case>) -> Series {
        let (duration, warmup, rounds) = match self.own_mesh() {
            true => (Duration::from_secs(3), Duration::from_millis(200), 3),
            false => (Duration::from_secs(10), Duration::from_secs(1), 1),
        };
        let load = |pace| Load {
            pace,
            connections: self.connections,
            threads: self.threads,
            warmup: self.warmup.unwrap_or(warmup),
            duration: self.duration.unwrap_or(duration),
            timeout: self.timeout,
        };
        let paces = match (self.own_mesh(), self.rate) {
            (true, rate) => vec![Pace::Rate(rate.unwrap_or(MESH_RATE)), Pace::Saturation],
            (false, Some(rate)) => vec![Pace::Rate(rate)],
            (false, None) => vec![Pace::Saturation],
        };
        let loads = paces.into_iter().map(load).collect();
        Series { cases, loads, rounds: self.rounds.unwrap_or(rounds) }
    }

    fn case(&self, name: String, url: &TargetUrl, own: Option<&Header>) -> Result<Case, CliError> {
        let headers: Vec<_> = self.header.iter().chain(own).cloned().collect();
        let body = self.body_size.map(|size| size as usize);
        let target = Target::new(url, &headers, body).map_err(CliError::failure)?;
        Ok(Case { name, url: url.to_string(), target, path: None, size: None, engine: None })
    }
}

/// Measures.
///
/// # Errors
/// A target cannot be reached or answers nothing.
pub fn run(args: &Bench, out: &mut Output<'_>) -> Result<(), CliError> {
    if args.threads > args.connections {
        return Err(CliError::usage(format!(
            "{} threads for {} connections",
            args.threads, args.connections
        ))
        .hint("each thread needs a connection of its own"));
    }
    let machine = Machine::look();
    let control = Arc::new(Control::default());
    stop_on_interrupt(control.clone())?;
    let measured = match args.own_mesh() {
        true => measure_mesh(args, &control)?,
        false => measure_urls(args, &control)?,
    };
    if control.stopped() {
        out.note("interrupted: this is what was measured until then");
    }
    if args.json {
        let machine = machine.to_json();
        for one in &measured {
            out.line(one.to_json(reference(&measured, one), &machine))?;
        }
    } else {
        tables(&measured, &machine, out)?;
    }
    for doubt in summary::doubts(&measured) {
        out.note(format_args!("warning: {doubt}"));
    }
    if !machine.optimised {
        out.note("warning: this build is not optimised; measure one of `cargo build --release`");
    }
    if let Some(file) = &args.report {
        std::fs::write(file, report::page(&measured, &machine))
            .map_err(|error| CliError::failure(format!("cannot write {}: {error}", file.display())))?;
        out.note(format_args!("the report is in {}", file.display()));
    }
    match measured.iter().all(|one| one.whole.requests() == 0) {
        true => Err(CliError::failure("no request was answered")),
        false => Ok(()),
    }
}

fn measure_urls(args: &Bench, control: &Arc<Control>) -> Result<Vec<Measured>, CliError> {
    let unnamed = args.url.iter().map(|url| args.case(url.to_string(), url, None));
    let named = args.case.iter().map(|case| args.case(case.name.clone(), &case.url, case.header.as_ref()));
    let series = args.series(unnamed.chain(named).collect::<Result<_, _>>()?);
    let line = ProgressLine::new();
    series.run(control, |_| Ok(()), |progress| line.show(progress)).map_err(|(case, error)| {
        CliError::failure(format!("cannot measure {}: {error}", case.url))
            .hint(format!("is it listening at {}?", case.target.address))
    })
}

/// The sizes that there are: a lineage needs as many overlays as it is deep.
fn sizes(args: &Bench) -> Result<Vec<Size>, CliError> {
    let all = args
        .overlays
        .iter()
        .flat_map(|&overlays| args.depth.iter().map(move |&depth| Size { overlays, depth }));
    let mut sizes = Vec::new();
    for size in all.filter(|size| size.depth <= size.overlays) {
        if !sizes.contains(&size) {
            sizes.push(size);
        }
    }
    match sizes.is_empty() {
        true => Err(CliError::usage("no table has as many overlays as its lineages are deep")
            .hint("raise `--overlays`, or lower `--depth`")),
        false => Ok(sizes),
    }
}

fn measure_mesh(args: &Bench, control: &Arc<Control>) -> Result<Vec<Measured>, CliError> {
    let sizes = sizes(args)?;
    let upstreams = Upstreams::start()?;
    let engine = args.engine.unwrap_or_default();
    let start = |size: &Size| Mesh::start(*size, engine, &upstreams);
    let mut meshes = sizes.iter().map(start).collect::<io::Result<Vec<_>>>()?;
    let series = args.series(mesh_cases(args, &meshes, &upstreams)?);
    let line = ProgressLine::new();
    let lead = |case: &Case| {
        let Some(path) = case.path else { return Ok(()) };
        let mesh = meshes.iter_mut().find(|mesh| Some(mesh.size()) == case.size);
        let key = mesh.as_ref().map_or_else(String::new, |mesh| mesh.key());
        if let Some(mesh) = mesh {
            mesh.lead(path);
        }
        // No figure of a path that was not taken.
        upstreams.check(case.target.address, path, &key).map_err(io::Error::other)
    };
    line.announce(&series);
    let measured = series
        .run(control, lead, |progress| line.show(progress))
        .map_err(|(case, error)| CliError::failure(format!("cannot measure `{}`: {error}", case.name)));
    meshes.into_iter().for_each(Mesh::stop);
    upstreams.stop();
    measured
}

fn mesh_cases(args: &Bench, meshes: &[Mesh], upstreams: &Upstreams) -> Result<Vec<Case>, CliError> {
    let case = |path: Path, address: std::net::SocketAddr, mesh: Option<&Mesh>| {
        let url: TargetUrl = format!("http://{address}/").parse().map_err(CliError::failure)?;
        let key = mesh.filter(|_| path.keyed()).map(|mesh| format!("{KEY_HEADER}: {}", mesh.key()).parse());
        let key = key.transpose().map_err(CliError::failure)?;
        let size = mesh.map(Mesh::size);
        let case = args.case(case_name(path, size), &url, key.as_ref())?;
        let engine = mesh.map(|_| args.engine.unwrap_or_default());
        Ok::<_, CliError>(Case { path: Some(path), size, engine, ..case })
    };
    let mut cases = vec![case(Path::Direct, upstreams.baseline(), None)?];
    for mesh in meshes {
        for path in Path::ALL.into_iter().skip(1) {
            if path != Path::Ancestor || mesh.size().depth > 1 {
                cases.push(case(path, mesh.gateway(), Some(mesh))?);
            }
        }
    }
    Ok(cases)
}

fn case_name(path: Path, size: Option<Size>) -> String {
    match size {
        None => path.name().to_owned(),
        Some(size) => format!("{} ({})", path.name(), summary::size(size)),
    }
}

/// One line on a terminal that says how far a series is.
struct ProgressLine {
    terminal: bool,
}

impl ProgressLine {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal() }
    }

    fn announce(&self, series: &Series) {
        if self.terminal {
            let (cases, seconds) = (series.cases.len(), series.length().as_secs_f64().ceil());
            let _ = writeln!(
                io::stderr(),
                "{cases} cases, about {seconds:.0} s; Ctrl-C ends it with what was measured by then"
            );
        }
    }

    fn show(&self, progress: &Progress<'_>) {
        if self.terminal {
            let Progress { case, load, number, of, elapsed, answers } = progress;
            let pace = summary::heading(load.pace).to_lowercase();
            let seconds = elapsed.as_secs_f64();
            let _ = write!(
                io::stderr(),
                "\r\x1b[K[{number}/{of}] {} {pace}: {seconds:.1} s, {answers} answers",
                case.name
            );
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn tables(all: &[Measured], machine: &Machine, out: &mut Output<'_>) -> Result<(), CliError> {
    out.line(summary::machine(machine))?;
    out.line(summary::settings(all))?;
    for pace in summary::paces(all) {
        out.line(format_args!("\n{}", summary::heading(pace)))?;
        let (header, rows) = summary::rows(all, pace);
        out.table(&header, &rows)?;
    }
    if let Some(lag) = summary::lag(all) {
        out.line(format_args!("\n{lag}"))?;
    }
    Ok(())
}

/// Ctrl-C ends the measurement; what was measured until then is told.
fn stop_on_interrupt(control: Arc<Control>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let interrupt =
        runtime.block_on(async { tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()) });
    let mut interrupt = interrupt?;
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        runtime.block_on(async {
            while interrupt.recv().await.is_some() {
                control.stop();
            }
        });
    })?;
    Ok(())
}
