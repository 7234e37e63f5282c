//! 100,000 overlays in a directory: the time from the start of a process to its published table, from one
//! file and from a file each; then from a finished write until requests see it, through the real watcher.
//!
//! Run with `cargo bench -p overlane-benches --bench store`. The files are in the page cache.
#![allow(missing_docs, clippy::print_stdout)]

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use overlane::process::{Prepared, Running};
use overlane::settings::Settings;
use overlane::snapshot::Published;
use overlane::store::StoreAddress;
use overlane_benches::{baseline_text, id, overlay_text, service};
use overlane_config::table::Environment;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const OVERLAYS: usize = 100_000;
/// How often each store is loaded.
const LOADS: usize = 5;
/// Changed files, each way of writing them.
const CHANGES: usize = 500;
/// Changes that the whole store has a part in.
const LARGE_CHANGES: usize = 5;
/// Between two changes, so that they meet whatever else the store is looked at for.
const PAUSE: Duration = Duration::from_millis(5);
/// The file of all overlays, where there is one.
const ALL: &str = "overlays.yaml";

/// The text of a file with all overlays, of which `changed` has its services on ports from `port`.
fn all_overlays(owned: usize, changed: usize, port: usize) -> String {
    let mut text = String::new();
    for number in 0..OVERLAYS {
        let port = if number == changed { port } else { 20_000 };
        let _ = write!(text, "---\n{}", overlay_text(number, "staging", owned, port));
    }
    text
}

/// Puts a file in place as tools do that care: whole or not at all.
fn replace(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let beside = folder.join(".next");
    std::fs::write(&beside, text)?;
    std::fs::rename(beside, folder.join(name))
}

fn write_store(folder: &Path, one_file: bool, owned: usize) -> io::Result<()> {
    std::fs::write(folder.join("staging.yaml"), baseline_text(10_000))?;
    if one_file {
        return std::fs::write(folder.join(ALL), all_overlays(owned, 0, 20_000));
    }
    for number in 0..OVERLAYS {
        let text = overlay_text(number, "staging", owned, 20_000);
        std::fs::write(folder.join(format!("{}.yaml", id(number))), text)?;
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    // A process for each store: only a new one is cold.
    if let [mode, folder, one_file, owned] = &arguments[..] {
        let owned = owned.parse().map_err(io::Error::other)?;
        return serve(mode == "load-and-change", &PathBuf::from(folder), one_file == "true", owned);
    }
    for (one_file, owned) in [(true, 1), (true, 3), (false, 1), (false, 3)] {
        let folder = tempfile::tempdir()?;
        write_store(folder.path(), one_file, owned)?;
        let layout = if one_file { "one file" } else { "a file each" };
        println!("{OVERLAYS} overlays of {owned} services, {layout}:");
        let mut loads = Vec::new();
        for load in 1..=LOADS {
            let mode = if load == LOADS { "load-and-change" } else { "load" };
            let mut process = Command::new(std::env::current_exe()?);
            process.arg(mode).arg(folder.path()).args([one_file.to_string(), owned.to_string()]);
            loads.push(cold_load(&mut process)?);
        }
        loads.sort_by(f64::total_cmp);
        println!(
            "  cold load, from the start of the process: {:.0} ms (median of {LOADS}), {:.0} to {:.0} ms",
            loads[LOADS / 2],
            loads[0],
            loads[LOADS - 1]
        );
    }
    Ok(())
}

/// Starts a process, and returns how many milliseconds it took until it said the first line; tells the others.
fn cold_load(process: &mut Command) -> io::Result<f64> {
    let start = Instant::now();
    let mut process = process.stdout(Stdio::piped()).spawn()?;
    let output = process.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
    let mut lines = BufReader::new(output).lines();
    lines.next().transpose()?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    for line in lines {
        println!("  {}", line?);
    }
    if !process.wait()?.success() {
        return Err(io::Error::other("the store was not loaded, or a change was not seen"));
    }
    Ok(took)
}

/// What the system says about this process's memory, in MiB.
fn memory(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or_default() / 1024
}

/// What this process has worked so far, on all cores, in milliseconds.
fn worked() -> usize {
    // Fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms; the second field ends at the last bracket.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<usize>().ok()).sum::<usize>() * 10
}

fn serve(with_changes: bool, folder: &Path, one_file: bool, owned: usize) -> io::Result<()> {
    let prepared = Prepared::bind(Settings::in_process(Vec::new()))?;
    let running = prepared.with_store(StoreAddress::directory(folder)).start(Vec::new())?;
    let known = running.control().published().load().table.len();
    if known != OVERLAYS + 1 {
        return Err(io::Error::other(format!("{known} environments")));
    }
    println!("published");
    if !with_changes {
        return Ok(());
    }
    println!(
        "{} ms of work on all cores together until then; {} MiB resident, {} MiB at most",
        worked(),
        memory("VmRSS:"),
        memory("VmHWM:")
    );
    if one_file {
        changes(&running, "one document of the file, by rename", (LARGE_CHANGES, 30_000), |number, port| {
            replace(folder, ALL, &all_overlays(owned, number, port))
        })?;
    } else {
        let write =
            |number, port| (format!("{}.yaml", id(number)), overlay_text(number, "staging", owned, port));
        changes(&running, "one file, by rename", (CHANGES, 30_000), |number, port| {
            let (name, text) = write(number, port);
            replace(folder, &name, &text)
        })?;
        changes(&running, "one file, written in place", (CHANGES, 40_000), |number, port| {
            let (name, text) = write(number, port);
            std::fs::write(folder.join(name), text)
        })?;
    }
    running.stop();
    Ok(())
}

/// Changes overlays with `write`, one after the other, and tells how long requests did not see it.
fn changes(
    running: &Running,
    what: &str,
    (count, ports): (usize, usize),
    write: impl Fn(usize, usize) -> io::Result<()>,
) -> io::Result<()> {
    let published = running.control().published();
    let mut took = Vec::with_capacity(count);
    for change in 0..count {
        let (number, port) = ((change + 1) * 7919 % OVERLAYS, ports + change);
        std::thread::sleep(PAUSE);
        write(number, port)?;
        let written = Instant::now();
        while port_of(published, number) != Some(port) {
            if written.elapsed() > Duration::from_secs(30) {
                return Err(io::Error::other(format!("{what}: change {change} was not seen")));
            }
            std::thread::yield_now();
        }
        took.push(written.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    println!(
        "{what}: seen {:.2} ms after the finished write (median of {count}), {:.2} ms at most",
        took[count / 2],
        took[count - 1]
    );
    Ok(())
}

/// Where requests with this key go now.
fn port_of(published: &Published, number: usize) -> Option<usize> {
    let snapshot = published.load();
    match snapshot.table.environment(&id(number))? {
        Environment::Overlay(overlay) => {
            let owned = overlay.owners(&service(number, 0)).first()?;
            owned.route.urls.first().map(|url| usize::from(url.port))
        }
        _ => None,
    }
}
