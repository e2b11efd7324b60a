//! The quarantine as people keep it: a ConfigMap whose key [`KEY`] holds a JSON list.
//!
//! Invariant: a list is read whole or refused; writing and reading are inverse. What follows from an entry is decided by
//! the control plane.

use serde::{Deserialize, Serialize};

use crate::record::Target;

/// The ConfigMap's name, in the mesh's root namespace.
pub const CONFIG_MAP: &str = "carrick-quarantine";
/// Its key.
pub const KEY: &str = "entries";

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Whom or what.
    pub target: Target,
    /// Why; for people.
    pub reason: String,
    /// Who said so.
    pub by: String,
    /// Since when, RFC 3339; for people.
    pub since: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    by: String,
    #[serde(default)]
    since: String,
}

/// Reads a list; the order does not matter, and of two entries for one target the first stays.
///
/// # Errors
/// What is wrong, and at which entry.
pub fn read(text: &str) -> Result<Vec<Listed>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let lines: Vec<Line> = serde_json::from_str(text).map_err(|e| format!("not a list of entries: {e}"))?;
    let mut all: Vec<Listed> = Vec::with_capacity(lines.len());
    for (at, line) in lines.into_iter().enumerate() {
        let target = match (&line.identity, &line.serial) {
            (Some(identity), None) => Target::identity(identity),
            (None, Some(serial)) => Target::serial(serial),
            _ => return Err(format!("entry {at}: either identity or serial is wanted")),
        };
        let target = target.map_err(|e| format!("entry {at}: {e}"))?;
        if !all.iter().any(|known| known.target == target) {
            all.push(Listed { target, reason: line.reason, by: line.by, since: line.since });
        }
    }
    Ok(all)
}

/// Writes a list.
pub fn write(all: &[Listed]) -> String {
    let line = |listed: &Listed| {
        let (identity, serial) = match &listed.target {
            Target::Identity(id) => (Some(id.clone()), None),
            Target::Serial(serial) => (None, Some(serial.clone())),
        };
        let Listed { reason, by, since, .. } = listed.clone();
        Line { identity, serial, reason, by, since }
    };
    let lines: Vec<Line> = all.iter().map(line).collect();
    let mut text = serde_json::to_string_pretty(&lines).unwrap_or_else(|_| "[]".to_owned());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_whole_or_not_at_all() {
        let text =
            r#"[{"identity": "spiffe://td/ns/a/sa/b", "reason": "stolen"}, {"serial": "4A:0B"}, {"serial": "4a0b"}]"#;
        let all = read(text).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].target, Target::Serial("4a0b".to_owned()));
        assert_eq!(read(&write(&all)).unwrap(), all);
        assert_eq!(read(" \n"), Ok(Vec::new()));
        for broken in [
            "{}",
            "[{}]",
            r#"[{"identity": "web"}]"#,
            r#"[{"serial": "4g"}]"#,
            r#"[{"serial": "4a"}, {"identity": "spiffe://td/a", "serial": "4a"}]"#,
            r#"[{"serial": "4a", "until": "never"}]"#,
            "[",
        ] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }
}
