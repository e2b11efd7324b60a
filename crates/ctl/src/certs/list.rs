//! `carrick certs list` and `expiring`.
//!
//! Invariant: both show the same rows of the same table; they differ in which.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use carrick_api::timestamp::{Timestamp, human_duration};
use clap::Args;
use serde_json::Value;

use super::Place;
use super::known::{self, Row};
use crate::output::{self, Format};
use crate::table::Table;

/// Which certificates.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Those that were replaced by newer ones, too.
    #[arg(long)]
    all: bool,
    /// Only those with this text in a name, a holder or the serial.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    /// Debug port of the control plane on this machine.
    #[arg(long, default_value_t = 15014, value_name = "PORT")]
    debug_port: u16,
}

/// Which of them end soon.
#[derive(Debug, Clone, Args)]
pub struct Expiring {
    /// Ends within this time.
    #[arg(long, default_value = "24h", value_parser = crate::duration::parse, value_name = "DURATION")]
    within: Duration,
    /// Or has used at least this share of its life, in percent.
    #[arg(long, value_name = "PERCENT")]
    used: Option<u64>,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    /// Debug port of the control plane on this machine.
    #[arg(long, default_value_t = 15014, value_name = "PORT")]
    debug_port: u16,
}

/// Exit code when certificates end soon.
const SOON: u8 = 2;

pub(super) async fn list(options: &Options, place: &Place) -> Result<u8> {
    let known = known::ask(place, options.debug_port).await;
    let wanted = |row: &&Row| {
        let has = |text: &String| row.names.iter().chain(&row.held_by).chain([&row.serial]).any(|t| t.contains(text));
        (options.all || !row.replaced) && options.filter.as_ref().is_none_or(has)
    };
    let rows: Vec<&Row> = known.rows.iter().filter(wanted).collect();
    print!("{}", shown(&rows, SystemTime::now(), options.output)?);
    missing(&known.missing);
    Ok(u8::from(rows.is_empty() && !known.missing.is_empty()))
}

pub(super) async fn expiring(options: &Expiring, place: &Place) -> Result<u8> {
    let known = known::ask(place, options.debug_port).await;
    let now = SystemTime::now();
    let rows: Vec<&Row> = known.rows.iter().filter(|row| ends_soon(row, now, options.within, options.used)).collect();
    print!("{}", shown(&rows, now, options.output)?);
    missing(&known.missing);
    Ok(match (rows.is_empty(), known.missing.is_empty()) {
        (false, _) => SOON,
        (true, false) => 1,
        (true, true) => 0,
    })
}

fn ends_soon(row: &Row, now: SystemTime, within: Duration, used: Option<u64>) -> bool {
    let by_time = row.not_after.duration_since(now).unwrap_or_default() <= within;
    row.in_use() && (by_time || used.is_some_and(|share| row.used(now) >= share))
}

fn missing(all: &[String]) {
    for one in all {
        eprintln!("not asked: {one}");
    }
}

fn shown(rows: &[&Row], now: SystemTime, format: Format) -> Result<String> {
    if let Some(text) = output::machine(&Value::from_iter(rows.iter().map(|row| row.json(now))), format)? {
        return Ok(text);
    }
    let mut table = Table::new(3, ["SERIAL", "NAMES", "STATUS", "USED", "ENDS IN", "NOT AFTER", "HELD BY"]);
    for row in rows {
        let left = row.not_after.duration_since(now).map(|left| i64::try_from(left.as_secs()).unwrap_or(i64::MAX));
        let held: Vec<&str> = row.held_by.iter().map(String::as_str).collect();
        let held = match held.len() {
            0 if row.asked_by == "control plane" => "control plane".to_owned(),
            0 => "-".to_owned(),
            _ => held.join(", "),
        };
        let more = match row.names.len() {
            0 | 1 => String::new(),
            n => format!(" (+{})", n.saturating_sub(1)),
        };
        table.row([
            row.serial.clone(),
            format!("{}{more}", row.names.first().map_or("", String::as_str)),
            row.status(now).to_owned(),
            format!("{}%", row.used(now)),
            left.map_or_else(|_| "ended".to_owned(), human_duration),
            Timestamp::from_system(row.not_after).to_string(),
            held,
        ]);
    }
    Ok(table.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::known::tests::known;
    use super::*;

    #[test]
    fn only_what_is_in_use_ends_soon() {
        let known = known();
        let now = known.rows[0].not_after - Duration::from_secs(60);
        let soon = |within: u64, used: Option<u64>| -> Vec<&str> {
            let rows = known.rows.iter().filter(|row| ends_soon(row, now, Duration::from_secs(within), used));
            rows.map(|row| row.serial.as_str()).collect()
        };
        assert_eq!(soon(3600, None), ["99"], "41 was replaced");
        assert_eq!(soon(60, Some(49)), ["99", "42", "43"]);
        let text = shown(&known.rows.iter().collect::<Vec<_>>(), now, Format::Short).unwrap();
        let words: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        let web = words.iter().find(|line| line[0] == "42").unwrap();
        assert_eq!(web[1..5], ["spiffe://td/ns/shop/sa/web", "valid", "49%", "12h"]);
    }
}
