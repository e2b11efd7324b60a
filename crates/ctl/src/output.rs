//! The forms in which a command prints: a table for people, JSON or YAML for programs.
//!
//! Invariant: JSON and YAML hold the same value; only the syntax differs.

use serde_json::Value;

/// What `-o` takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table (the default).
    #[default]
    #[value(alias = "table")]
    Short,
    /// JSON, indented by four spaces as `istioctl` does.
    Json,
    /// YAML.
    Yaml,
}

/// JSON with an indent of four spaces and a final newline.
pub fn json(value: &Value) -> String {
    use serde::Serialize;
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // Writing a JSON value into memory cannot fail.
    let _ = value.serialize(&mut serializer);
    out.push(b'\n');
    String::from_utf8_lossy(&out).into_owned()
}

/// The value in the format asked for; `None` for a table, which only the caller can make.
///
/// # Errors
/// When the value cannot be written as YAML.
pub fn machine(value: &Value, format: Format) -> anyhow::Result<Option<String>> {
    Ok(match format {
        Format::Short => None,
        Format::Json => Some(json(value)),
        Format::Yaml => Some(serde_saphyr::to_string(value)?),
    })
}
