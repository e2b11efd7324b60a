//! docs/performance.md and its plot, of what was measured.
//!
//! Invariant: only what lies between a section's two marks is written; the words around it are people's. What is shown is in the JSON file
//! beside the page.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::{modes::MODES, pairs::Subject, summary::REFERENCES};

/// Writes a section's figures into `dir`: performance-SECTION.json, performance.md between its marks, performance.svg.
///
/// # Errors
/// The page has no such marks, or a file cannot be written.
pub fn write(dir: &Path, section: &str, value: &Value) -> Result<()> {
    let file = dir.join("performance.md");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let table = match section {
        "sidecars" => sidecars(value),
        _ => control(value),
    };
    std::fs::write(&file, replaced(&text, section, &table)?)?;
    std::fs::write(dir.join(format!("performance-{section}.json")), crate::output::json(value))?;
    if section == "sidecars" {
        std::fs::write(dir.join("performance.svg"), plot(value))?;
    }
    println!("written: {}", file.display());
    Ok(())
}

fn replaced(text: &str, section: &str, table: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- begin {section} -->\n"), format!("<!-- end {section} -->"));
    let (before, rest) = text.split_once(&begin).with_context(|| format!("the page has no mark {begin:?}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("the page has no mark {end:?}"))?;
    Ok(format!("{before}{begin}{table}{end}{after}"))
}

fn number(value: Option<&Value>, digits: usize) -> String {
    match value.and_then(Value::as_f64) {
        Some(n) if n >= 1000.0 => format!("{n:.0}"),
        Some(n) => format!("{n:.digits$}"),
        None => "–".to_owned(),
    }
}

fn sidecars(value: &Value) -> String {
    let at = |path: String| value.pointer(&path);
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut out = format!("{}; {} rounds of {} s each.", text("machine"), value["rounds"], value["seconds"]);
    let _ = writeln!(out, " {}\n", text("versions"));
    let subjects: Vec<Subject> = Subject::ALL.to_vec();
    let _ = write!(out, "CPU of both proxies together, µs for each request (median):\n\n| what |");
    subjects.iter().for_each(|s| {
        let _ = write!(out, " {} |", s.name());
    });
    REFERENCES.iter().for_each(|(_, shown)| {
        let _ = write!(out, " native {shown} (spread) |");
    });
    let _ = writeln!(out, "\n|---|{}", "---:|".repeat(subjects.len() + REFERENCES.len()));
    for mode in MODES.iter().filter(|mode| at(format!("/modes/{}", mode.name)).is_some()) {
        let _ = write!(out, "| {} |", mode.about);
        for subject in &subjects {
            let median = at(format!("/modes/{}/{}/cpu_us/median", mode.name, subject.name()));
            let _ = write!(out, " {} |", number(median, 1));
        }
        for (reference, _) in REFERENCES {
            let of = |what: &str| at(format!("/modes/{}/native/cpu_us/to_{reference}/{what}", mode.name));
            match of("median") {
                Some(_) => {
                    let _ = write!(
                        out,
                        " **{}** ({}–{}) |",
                        number(of("median"), 2),
                        number(of("min"), 2),
                        number(of("max"), 2)
                    );
                }
                None => out.push_str(" – |"),
            }
        }
        out.push('\n');
    }
    let _ = write!(
        out,
        "\nLatency by the open loop at {} a second, µs (median of rounds):\n\n| who | p50 | p99 |\n|---|---:|---:|\n",
        value["rate"]
    );
    for subject in &subjects {
        let of = |what: &str| at(format!("/modes/http1-fixed/{}/{what}/median", subject.name()));
        if of("p50_us").is_some() {
            let _ = writeln!(out, "| {} | {} | {} |", subject.name(), number(of("p50_us"), 0), number(of("p99_us"), 0));
        }
    }
    out += &counted(value, "syscalls", "System calls of both proxies together for each request", &subjects);
    out += &counted(value, "allocations", "Allocations (calls of libc's allocator) of both, likewise", &subjects);
    out.push_str("\nMemory of one proxy, its agent included (MB; of a waiting HTTP/1.1 connection KB):\n\n| what |");
    subjects.iter().for_each(|s| {
        let _ = write!(out, " {} |", s.name());
    });
    let _ = writeln!(out, "\n|---|{}", "---:|".repeat(subjects.len()));
    for (what, all) in value.get("memory").and_then(Value::as_object).into_iter().flatten() {
        let unit = if what.starts_with("bytes") { 1e3 } else { 1e6 };
        let _ = write!(out, "| {} |", what.trim_start_matches("bytes_per_").replace('_', " "));
        for subject in &subjects {
            let bytes = all.get(subject.name()).and_then(Value::as_f64);
            let _ = write!(out, " {} |", bytes.map_or("–".to_owned(), |b| format!("{:.1}", b / unit)));
        }
        out.push('\n');
    }
    out + "\n![CPU of both proxies](performance.svg)\n"
}

/// A table of a figure that is counted for each mode.
fn counted(value: &Value, figure: &str, title: &str, subjects: &[Subject]) -> String {
    let at =
        |mode: &str, subject: &Subject| value.pointer(&format!("/modes/{mode}/{}/{figure}/median", subject.name()));
    let subjects: Vec<&Subject> =
        subjects.iter().filter(|subject| MODES.iter().any(|mode| at(mode.name, subject).is_some())).collect();
    if subjects.is_empty() {
        return String::new();
    }
    let mut out = format!("\n{title}:\n\n| what |");
    subjects.iter().for_each(|s| {
        let _ = write!(out, " {} |", s.name());
    });
    let _ = writeln!(out, "\n|---|{}", "---:|".repeat(subjects.len()));
    for mode in MODES.iter().filter(|mode| subjects.iter().any(|s| at(mode.name, s).is_some())) {
        let _ = write!(out, "| {} |", mode.about);
        for subject in &subjects {
            let _ = write!(out, " {} |", number(at(mode.name, subject), 1));
        }
        out.push('\n');
    }
    out
}

fn control(value: &Value) -> String {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut out = format!("`{}`, {}:\n\n| what | value |\n|---|---:|\n", text("command"), text("machine"));
    let rows: Map<String, Value> = value.get("figures").and_then(Value::as_object).cloned().unwrap_or_default();
    for (what, n) in &rows {
        let _ = writeln!(out, "| {} | {} |", what.replace('_', " "), number(Some(n), 2));
    }
    out
}

/// Bars of CPU against bare Envoy's, mode by mode.
fn plot(value: &Value) -> String {
    const COLOURS: [&str; 7] = ["#c8102e", "#8c8c8c", "#b5b5b5", "#3b7dd8", "#3aa35a", "#222222", "#555555"];
    const BAR: u32 = 9;
    const LEFT: u32 = 330;
    const WIDE: f64 = 420.0;
    let (mut bars, mut y) = (String::new(), 40_u32);
    for mode in MODES {
        let of =
            |name: &str| value.pointer(&format!("/modes/{}/{name}/cpu_us/median", mode.name)).and_then(Value::as_f64);
        let Some(whole) = of("bare-envoy").or_else(|| of("envoy")) else { continue };
        let _ = writeln!(bars, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", LEFT - 8, y + 14, mode.about);
        for (subject, colour) in Subject::ALL.iter().zip(COLOURS) {
            let Some(cost) = of(subject.name()) else { continue };
            let length = (cost / whole * WIDE / 1.6).min(WIDE);
            let _ = writeln!(
                bars,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" font-size=\"8\">{} {cost:.0}</text>",
                BAR - 1,
                f64::from(LEFT) + length + 4.0,
                y + BAR - 2,
                subject.name()
            );
            y += BAR;
        }
        y += 12;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"900\" height=\"{}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"13\">CPU of both proxies per request, µs; bars of one group are to scale</text>\n{bars}</svg>\n",
        y + 10
    )
}

/// The machine in one line.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("an unknown processor");
    let model = model.trim_start_matches([' ', '\t', ':']).to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores of {model}, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

/// What was compared with, in one line.
pub fn versions() -> String {
    let told = |subject: Subject, flag: &str| {
        let output = std::process::Command::new(subject.program()?).arg(flag).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        // The first word that looks like a version: 1.40.0, nginx/1.22.1, …/1.40.0/Clean/….
        let is_version = |word: &&str| word.split('.').count() >= 3 && word.starts_with(|c: char| c.is_ascii_digit());
        let version = text.split([' ', '/', '\n']).find(is_version)?;
        Some(format!("{} {version}", subject.name()))
    };
    let all = [(Subject::Bare, "--version"), (Subject::HaProxy, "-v"), (Subject::Nginx, "-v")];
    all.into_iter().filter_map(|(subject, flag)| told(subject, flag)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_section_is_replaced() {
        let page = "words\n<!-- begin sidecars -->\nold\n<!-- end sidecars -->\nmore\n";
        let new = replaced(page, "sidecars", "| new |\n").unwrap();
        assert_eq!(new, "words\n<!-- begin sidecars -->\n| new |\n<!-- end sidecars -->\nmore\n");
        assert!(replaced(page, "control", "").is_err());
    }

    #[test]
    fn figures_reach_table_and_plot() {
        let ratio = json!({"median": 0.31, "min": 0.3, "max": 0.4});
        let value = json!({"machine": "m", "versions": "v", "rounds": 5, "seconds": 4, "rate": 2000, "memory": {
            "resident_idle": {"native": 9_500_000, "envoy": 70_000_000}, "bytes_per_waiting_connection": {"native": 18_500},
        }, "modes": {"http1": {
            "native": {"cpu_us": {"median": 80.5, "to_bare-envoy": ratio}, "syscalls": {"median": 12.04}, "allocations": {"median": 29.0}},
            "bare-envoy": {"cpu_us": {"median": 260.0}, "syscalls": {"median": 16.5}},
        }}});
        let table = sidecars(&value);
        assert!(table.contains("| HTTP/1.1, 64 connections, saturated | 80.5 | – | 260.0 |"), "{table}");
        assert!(table.contains("**0.31** (0.30–0.40)"), "{table}");
        assert!(
            table.contains(
                "| native | bare-envoy |\n|---|---:|---:|\n| HTTP/1.1, 64 connections, saturated | 12.0 | 16.5 |"
            ),
            "{table}"
        );
        assert!(table.contains("| native |\n|---|---:|\n| HTTP/1.1, 64 connections, saturated | 29.0 |"), "{table}");
        assert!(table.contains("| resident idle | 9.5 | 70.0 |"), "{table}");
        assert!(table.contains("| waiting connection | 18.5 |"), "{table}");
        let plot = plot(&value);
        assert!(plot.contains("native 80") && plot.ends_with("</svg>\n"), "{plot}");
    }
}
