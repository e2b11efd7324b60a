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

/// An error and its causes on one line. An answer of the API is told in the API's words alone, and a cause that the
/// text before it already ends with is not told again.
pub fn words(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain() {
        let boxed = || cause.downcast_ref::<Box<kube::Error>>().map(Box::as_ref);
        let (text, last) = match cause.downcast_ref::<kube::Error>().or_else(boxed) {
            Some(kube::Error::Api(status)) => (status.message.clone(), true),
            _ => (cause.to_string(), false),
        };
        if told.is_empty() {
            told = text;
        } else if !told.ends_with(&text) {
            told = format!("{told}: {text}");
        }
        if last {
            break;
        }
    }
    told
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

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn an_error_is_told_once_and_in_words() {
        let status = kube::core::Status::failure("pods \"a\" already exists", "AlreadyExists").with_code(409);
        let refused = || kube::Error::Api(Box::new(status.clone()));
        let direct = Err::<(), _>(refused()).context("Pod a in namespace b").unwrap_err();
        assert_eq!(words(&direct), "Pod a in namespace b: pods \"a\" already exists");
        let of_pod = carrick_pod::PodError::Api { doing: "create pod a".into(), source: Box::new(refused()) };
        assert_eq!(words(&of_pod.into()), "create pod a: pods \"a\" already exists");
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        let command = carrick_pod::PodError::Command { program: "x".into(), source: missing };
        assert_eq!(words(&command.into()), "x: entity not found");
        assert_eq!(words(&anyhow::anyhow!("c").context("b").context("a")), "a: b: c");
    }
}
