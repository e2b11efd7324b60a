//! `carrick-fuzz [--seconds N] [--seed N] [TARGET…]`: replays the corpus, then mutates it for some seconds.
//! `carrick-fuzz differential [--seed N] [--cases N] [--first N] [--batch N] [--shrink N]`: cases through simulator, native engine and Envoy.
//!
//! Invariant: needs no special toolchain; a run is repeated by its seed. An input that makes a target panic is
//! written to `fuzz/artifacts/<target>` before the process ends.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use carrick_fuzz::differential::{self, Options};
use carrick_fuzz::{TARGETS, Target, rehearsal, target};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// No input grows past this.
const MAX_LEN: usize = 64 << 10;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|first| first == "differential") {
        return differential();
    }
    if std::env::args().nth(1).is_some_and(|first| first == "rehearsal") {
        return rehearsal();
    }
    let mut seconds = 2_u64;
    let mut seed = 1_u64;
    let mut wanted: Vec<&'static Target> = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let parsed = match arg.as_str() {
            "--seconds" => args.next().and_then(|n| n.parse().ok()).map(|n| seconds = n),
            "--seed" => args.next().and_then(|n| n.parse().ok()).map(|n| seed = n),
            name => target(name).map(|found| wanted.push(found)),
        };
        if parsed.is_none() {
            let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
            eprintln!("usage: carrick-fuzz [--seconds N] [--seed N] [TARGET…]\ntargets: {}", names.join(" "));
            return ExitCode::from(64);
        }
    }
    if wanted.is_empty() {
        wanted = TARGETS.iter().collect();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for target in wanted {
        let corpus = corpus(&root.join("corpus").join(target.name));
        let start = Instant::now();
        let runs = fuzz(target, &corpus, Duration::from_secs(seconds), seed, &root.join("artifacts"));
        println!(
            "{:<14} {:>4} seeds {:>9} runs in {:.1} s",
            target.name,
            corpus.len(),
            runs,
            start.elapsed().as_secs_f32()
        );
    }
    ExitCode::SUCCESS
}

/// Lives the mesh's certificates through, without a fault and with each.
fn rehearsal() -> ExitCode {
    let (mut seed, mut years) = (1_u64, 10_u32);
    let mut args = std::env::args().skip(2);
    while let Some(arg) = args.next() {
        let parsed = match (arg.as_str(), args.next()) {
            ("--seed", Some(n)) => n.parse().ok().map(|n| seed = n),
            ("--years", Some(n)) => n.parse().ok().map(|n| years = n),
            _ => None,
        };
        if parsed.is_none() {
            eprintln!("usage: carrick-fuzz rehearsal [--seed N] [--years N]");
            return ExitCode::from(64);
        }
    }
    let report = rehearsal::live(seed, years, None);
    println!("{years} years, seed {seed}: {report:#?}");
    let mut good = report.failure.is_none();
    for fault in rehearsal::Fault::ALL {
        let found = rehearsal::live(seed, years, Some(fault)).failure;
        println!("{fault:?}: {}", found.as_deref().unwrap_or("not found"));
        good &= found.is_some();
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn differential() -> ExitCode {
    let mut options = Options::default();
    let mut args = std::env::args().skip(2);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next().and_then(|n| n.parse::<usize>().ok())) {
            ("--seed", Some(n)) => options.seed = u64::try_from(n).unwrap_or(u64::MAX),
            ("--cases", Some(n)) => options.cases = n,
            ("--first", Some(n)) => options.first = n,
            ("--batch", Some(n)) => options.batch = n,
            ("--shrink", Some(n)) => options.shrink = n,
            _ => {
                let options = "[--seed N] [--cases N] [--first N] [--batch N] [--shrink N]";
                eprintln!("usage: carrick-fuzz differential {options}");
                return ExitCode::from(64);
            }
        }
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(differential::run(&options)) {
        Ok(report) => {
            println!("seed {}, Envoy {}: {report:#?}", options.seed, differential::envoy_version());
            if report.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn corpus(folder: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files.iter().filter_map(|file| std::fs::read(file).ok()).collect()
}

fn fuzz(target: &Target, corpus: &[Vec<u8>], time: Duration, seed: u64, artifacts: &Path) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut runs = 0;
    for input in corpus {
        one(target, input, artifacts);
        runs += 1;
    }
    let start = Instant::now();
    while start.elapsed() < time {
        let mut input = match corpus.len() {
            0 => Vec::new(),
            n => corpus[rng.random_range(0..n)].clone(),
        };
        for _ in 0..rng.random_range(1..=8) {
            mutate(&mut input, corpus, &mut rng);
        }
        one(target, &input, artifacts);
        runs += 1;
    }
    runs
}

fn one(target: &Target, input: &[u8], artifacts: &Path) {
    let result = std::panic::catch_unwind(|| (target.run)(input));
    if let Err(panic) = result {
        let folder = artifacts.join(target.name);
        let file = folder.join(format!("crash-{}", input.len()));
        let kept = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, input));
        eprintln!("{}: panic on an input of {} bytes, {}: {kept:?}", target.name, input.len(), file.display());
        std::panic::resume_unwind(panic);
    }
}

/// One small change: flip, insert, remove, repeat, splice with another seed, or an interesting number.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut StdRng) {
    let at = |len: usize, rng: &mut StdRng| if len == 0 { 0 } else { rng.random_range(0..len) };
    let place = at(input.len(), rng);
    match rng.random_range(0..7) {
        0 if !input.is_empty() => input[place] ^= 1 << rng.random_range(0..8),
        1 => input.insert(place, rng.random()),
        2 if !input.is_empty() => {
            let end = (place + rng.random_range(1..16)).min(input.len());
            input.drain(place..end);
        }
        3 if !input.is_empty() => {
            let end = (place + rng.random_range(1..32)).min(input.len());
            let piece = input[place..end].to_vec();
            input.splice(place..place, piece);
        }
        4 if !corpus.is_empty() => {
            let other = &corpus[at(corpus.len(), rng)];
            let from = at(other.len(), rng);
            input.truncate(place);
            input.extend_from_slice(&other[from..]);
        }
        5 if !input.is_empty() => input[place] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
        _ => input.truncate(input.len().saturating_sub(rng.random_range(0..4))),
    }
    input.truncate(MAX_LEN);
}
