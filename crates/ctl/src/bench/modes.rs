//! What is measured: the ways of loading a pair, which pairs take part in each, and how a generator's report is read.
//!
//! Invariant: every pair of a mode gets the same load by the same generator. A request that fails ends the measurement: figures of
//! failures are worth nothing.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::pairs::{Pair, Subject, Variant};

/// A way of loading a pair.
#[derive(Debug)]
pub struct Mode {
    /// Its name in tables and files.
    pub name: &'static str,
    /// In words.
    pub about: &'static str,
    /// Which of the mesh's pods take part.
    pub variant: Variant,
    /// Who can do it.
    pub subjects: &'static [Subject],
    /// What a pod is asked on: 8080 is HTTP/1.1, 8081 gRPC, 8082 bytes, 8083 HTTP/1.1 that travels as HTTP/2.
    pub port: u16,
    generator: Generator,
}

#[derive(Debug, Clone, Copy)]
enum Generator {
    /// wrk: so many connections, each sends its next request when the last one is answered.
    Closed { connections: u32, path: &'static str, close: bool },
    /// `carrick-floor pace`: requests are due at a fixed rate; latency counts from when they were due.
    Open,
    /// h2load with unary gRPC calls.
    Grpc,
}

use Subject::{Bare, Envoy, Floor, FloorTokio, HaProxy, Native, Nginx};

const fn closed(connections: u32, path: &'static str, close: bool) -> Generator {
    Generator::Closed { connections, path, close }
}

const HTTP: &[Subject] = &[Native, Envoy, Bare, HaProxy, Nginx, Floor];
const BYTES: &[Subject] = &[Native, Envoy, Bare, HaProxy, Floor, FloorTokio];

/// All of them, in the order of the table.
pub const MODES: &[Mode] = &[
    Mode {
        name: "http1",
        about: "HTTP/1.1, 64 connections, saturated",
        variant: Variant::Usual,
        subjects: HTTP,
        port: 8080,
        generator: closed(64, "/", false),
    },
    Mode {
        name: "http1-log",
        about: "the same with access logs",
        variant: Variant::Logged,
        subjects: &[Native, Envoy],
        port: 8080,
        generator: closed(64, "/", false),
    },
    Mode {
        name: "http1-crowded",
        about: "the same with 100 routes and 60 policies, of which the last fit",
        variant: Variant::Crowded,
        subjects: &[Native, Envoy],
        port: 8080,
        generator: closed(64, "/", false),
    },
    Mode {
        name: "http1-one",
        about: "HTTP/1.1, one connection",
        variant: Variant::Usual,
        subjects: HTTP,
        port: 8080,
        generator: closed(1, "/", false),
    },
    Mode {
        name: "http1-fixed",
        about: "HTTP/1.1, open loop at a fixed rate",
        variant: Variant::Usual,
        subjects: HTTP,
        port: 8080,
        generator: Generator::Open,
    },
    Mode {
        name: "http1-h2",
        about: "HTTP/1.1 in, HTTP/2 between, 64 connections",
        variant: Variant::Usual,
        subjects: &[Native, Envoy, Bare, HaProxy],
        port: 8083,
        generator: closed(64, "/", false),
    },
    Mode {
        name: "grpc",
        about: "unary gRPC, 8 connections of 8 streams",
        variant: Variant::Usual,
        subjects: &[Native, Envoy, Bare, HaProxy, Nginx],
        port: 8081,
        generator: Generator::Grpc,
    },
    Mode {
        name: "tcp",
        about: "bytes, 64 connections, saturated",
        variant: Variant::Usual,
        subjects: BYTES,
        port: 8082,
        generator: closed(64, "/", false),
    },
    Mode {
        name: "handshake",
        about: "a new connection each, full mutual handshake",
        variant: Variant::Full,
        subjects: &[Native, Bare, HaProxy, Floor, FloorTokio],
        port: 8082,
        generator: closed(16, "/", true),
    },
    Mode {
        name: "resumed",
        about: "a new connection each, sessions as each engine resumes them",
        variant: Variant::Resuming,
        subjects: &[Native, Envoy, Bare],
        port: 8082,
        generator: closed(16, "/", true),
    },
    Mode {
        name: "body",
        about: "bodies of 1 MiB, HTTP/1.1, 8 connections",
        variant: Variant::Usual,
        subjects: HTTP,
        port: 8080,
        generator: closed(8, "/1m", false),
    },
    Mode {
        name: "tcp-body",
        about: "the same as bytes",
        variant: Variant::Usual,
        subjects: BYTES,
        port: 8082,
        generator: closed(8, "/1m", false),
    },
];

/// What one burst of load completed.
#[derive(Debug, Default)]
pub struct Burst {
    /// Requests answered.
    pub requests: f64,
    /// In this time.
    pub seconds: f64,
    /// Median latency, microseconds.
    pub p50_us: Option<f64>,
    /// 99th percentile.
    pub p99_us: Option<f64>,
}

impl Mode {
    /// What is run in the client's pod. `host` is the server's name or address, `call` a file with one message.
    ///
    /// # Errors
    /// The program is not there.
    pub fn command(&self, host: &str, seconds: u32, rate: u32, call: &str) -> Result<Vec<String>> {
        let url = |path: &str| format!("http://{host}:{}{path}", self.port);
        let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        Ok(match self.generator {
            Generator::Closed { connections, path, close } => {
                let mut argv = words(format!("wrk -t1 -c{connections} --latency -d {seconds}s"));
                if close {
                    argv.extend(["-H".to_owned(), "Connection: close".to_owned()]);
                }
                argv.push(url(path));
                argv
            }
            Generator::Open => {
                let program = Floor.program().context("carrick-floor is not there: `make bench` builds it")?;
                let more = format!("pace {host}:{} {rate} {seconds}", self.port);
                [program.display().to_string()].into_iter().chain(words(more)).collect()
            }
            Generator::Grpc => {
                let mut argv = words(format!("h2load -t1 -c8 -m8 -D {seconds} -d {call}"));
                for header in ["content-type: application/grpc", "te: trailers"] {
                    argv.extend(["-H".to_owned(), header.to_owned()]);
                }
                argv.push(url("/bench.Echo/Echo"));
                argv
            }
        })
    }

    /// Reads what the generator printed.
    ///
    /// # Errors
    /// It is not understood, or tells of failures.
    pub fn read(&self, text: &str, seconds: u32) -> Result<Burst> {
        match self.generator {
            Generator::Closed { .. } => read_wrk(text),
            Generator::Open => read_own(text),
            Generator::Grpc => read_h2load(text, f64::from(seconds)),
        }
    }

    /// The pods of a subject that are loaded.
    pub fn pair(&self, subject: Subject) -> Pair {
        let variant = match (subject, self.variant) {
            // Envoy's sidecars have no switch for sessions; ours resume them by themselves.
            (Envoy, Variant::Full) | (Native | Envoy, Variant::Resuming) => Variant::Usual,
            (Native | Envoy, variant) => variant,
            (Bare, Variant::Resuming) => Variant::Resuming,
            _ => Variant::Usual,
        };
        Pair { subject, variant }
    }
}

fn read_own(text: &str) -> Result<Burst> {
    let line: Value = serde_json::from_str(text.trim())?;
    let number = |field: &str| line.get(field).and_then(Value::as_f64).unwrap_or(0.0);
    ensure!(number("failed") == 0.0, "{} requests failed", number("failed"));
    Ok(Burst {
        requests: number("requests"),
        seconds: number("seconds"),
        p50_us: Some(number("p50_us")),
        p99_us: Some(number("p99_us")),
    })
}

fn read_wrk(text: &str) -> Result<Burst> {
    ensure!(!text.contains("Non-2xx"), "some answers were not 2xx");
    // Errors of connections that the deadline cut are wrk's own; reads and writes that fail are not.
    let mut found = Burst::default();
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [n, "requests", "in", time, ..] => {
                found.requests = n.parse()?;
                found.seconds = micros(time.trim_end_matches(','))? / 1e6;
            }
            ["50%", time] => found.p50_us = Some(micros(time)?),
            ["99%", time] => found.p99_us = Some(micros(time)?),
            _ => {}
        }
    }
    Ok(found)
}

fn read_h2load(text: &str, seconds: f64) -> Result<Burst> {
    let line = text.lines().find(|l| l.starts_with("requests:")).context("no line \"requests:\"")?;
    let count = |what: &str| -> f64 {
        let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
        words.windows(2).find(|w| w[1] == what).and_then(|w| w[0].parse().ok()).unwrap_or(0.0)
    };
    ensure!(count("failed") + count("errored") == 0.0, "requests failed: {line}");
    Ok(Burst { requests: count("succeeded"), seconds, p50_us: None, p99_us: None })
}

/// wrk's times: `830.00us`, `1.20ms`, `4.00s`, `1.01m`.
fn micros(text: &str) -> Result<f64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).context("a time without a unit")?;
    let (value, unit) = text.split_at(at);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 6e7,
        other => bail!("unknown unit {other:?}"),
    };
    Ok(value.parse::<f64>()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_the_generators_are_read() {
        let wrk =
            "  Latency Distribution\n     50%    1.20ms\n     99%  830.00us\n  40211 requests in 4.01s, 9.00MB read\n";
        let burst = read_wrk(wrk).unwrap();
        assert_eq!((burst.requests, burst.p50_us, burst.p99_us), (40211.0, Some(1200.0), Some(830.0)));
        assert!(read_wrk("  Non-2xx or 3xx responses: 4\n").is_err());
        let h2 = "requests: 9000 total, 9064 started, 9000 done, 9000 succeeded, 0 failed, 0 errored, 0 timeout\n";
        assert_eq!(read_h2load(h2, 3.0).unwrap().requests, 9000.0);
        let failed = "requests: 9 total, 9 started, 9 done, 8 succeeded, 1 failed, 0 errored, 0 timeout\n";
        assert!(read_h2load(failed, 3.0).is_err());
    }

    #[test]
    fn modes_have_names_of_their_own_and_envoy_to_compare_with() {
        let mut names: Vec<_> = MODES.iter().map(|mode| mode.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MODES.len());
        for mode in MODES {
            assert!(mode.subjects.contains(&Native), "{}", mode.name);
            assert!(mode.subjects.contains(&Bare) || mode.subjects.contains(&Envoy), "{}", mode.name);
            assert!((8080..=8083).contains(&mode.port), "{}", mode.name);
            for subject in mode.subjects {
                assert!(Pair::all().contains(&mode.pair(*subject)), "{} with {}", mode.name, subject.name());
            }
        }
    }
}
