//! The command line of Istio's agent, as injected pods type it, in our own words.
//!
//! Invariant: an argument is translated or refused; those that say how something is logged that we do not have are the only ones
//! left out. Our own command line never looks like it: `proxy`, `wait` and `request` are words of Istio's alone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Tool, duration};

/// What a line of Istio's means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meant {
    /// Our own line.
    Proxy(Vec<String>),
    Tool(Tool),
}

/// Flags, with what they are here; an empty word is left out.
const FLAGS: &[(&str, &str)] = &[
    ("domain", "cluster-domain"),
    ("proxyLogLevel", "envoy-log-level"),
    ("proxyComponentLogLevel", ""),
    ("log_output_level", "log-level"),
    ("concurrency", "concurrency"),
    ("outlierLogPath", ""),
    ("stsPort", ""),
];

/// Translates; `None` for a line of our own.
pub(super) fn translate(arguments: &[String], env: &BTreeMap<String, String>) -> Option<Result<Meant, Vec<String>>> {
    let (command, rest) = arguments.split_first()?;
    match command.as_str() {
        "proxy" => Some(proxy(rest, env)),
        "wait" => Some(wait(rest).map_err(|error| vec![error])),
        "request" => Some(request(rest).map_err(|error| vec![error])),
        _ => None,
    }
}

/// Flags with their values.
type Flags = Vec<(String, String)>;

/// Flags, where one without a value is `true`; words that are no flags follow.
fn flags(arguments: &[String], bare: &[&str]) -> Result<(Flags, Vec<String>), String> {
    let (mut flags, mut words) = (Vec::new(), Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--") else {
            words.push(argument.clone());
            continue;
        };
        match flag.split_once('=') {
            Some((flag, value)) => flags.push((flag.to_owned(), value.to_owned())),
            None if bare.contains(&flag) => flags.push((flag.to_owned(), "true".to_owned())),
            None => {
                let value = arguments.next().ok_or_else(|| format!("--{flag} needs a value"))?;
                flags.push((flag.to_owned(), value.clone()));
            }
        }
    }
    Ok((flags, words))
}

fn proxy(arguments: &[String], env: &BTreeMap<String, String>) -> Result<Meant, Vec<String>> {
    let (given, words) = flags(arguments, &["log_as_json"]).map_err(|error| vec![error])?;
    let mut errors = Vec::new();
    let role = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["sidecar"] => "sidecar",
        ["router"] => "gateway",
        other => {
            errors.push(format!("proxy {}: expected sidecar or router", other.join(" ")));
            "sidecar"
        }
    };
    let mut line = vec![role.to_owned()];
    let mut say = |flag: &str, value: String| line.extend([format!("--{flag}"), value]);
    for (flag, value) in given {
        match FLAGS.iter().find(|(theirs, _)| *theirs == flag) {
            Some((_, "")) => {}
            Some((_, "cluster-domain")) => {
                // `NAMESPACE.svc.cluster.local`, of which the end is the cluster's.
                let namespace = env.get("POD_NAMESPACE").map(|name| format!("{name}.svc.")).unwrap_or_default();
                say("cluster-domain", value.strip_prefix(&namespace).unwrap_or(&value).to_owned());
            }
            Some((_, "log-level")) => say("log-level", level(&value)),
            Some((_, ours)) => say(ours, value),
            None if flag == "log_as_json" => say("log-json", value),
            None => errors.push(format!("unknown argument --{flag}")),
        }
    }
    if errors.is_empty() { Ok(Meant::Proxy(line)) } else { Err(errors) }
}

/// `default:info,ads:debug`: the level of what is not named. Scopes are Istio's own.
fn level(text: &str) -> String {
    let scopes: Vec<(&str, &str)> =
        text.split(',').map(|part| part.split_once(':').unwrap_or(("default", part))).collect();
    let named = |scope: &str| scopes.iter().find(|(name, _)| *name == scope).map(|(_, level)| *level);
    match named("default").or_else(|| named("all")).unwrap_or("info") {
        "none" | "fatal" => "error".to_owned(),
        level => level.to_owned(),
    }
}

fn wait(arguments: &[String]) -> Result<Meant, String> {
    let (given, words) = flags(arguments, &[])?;
    if let Some(word) = words.first() {
        return Err(format!("wait: unknown argument {word:?}"));
    }
    let (mut port, mut path, mut limit) = (15021_u16, "/healthz/ready".to_owned(), Duration::from_secs(60));
    for (flag, value) in given {
        match flag.as_str() {
            "url" => {
                let place = value.strip_prefix("http://localhost:").or_else(|| value.strip_prefix("http://127.0.0.1:"));
                let (number, rest) = place
                    .and_then(|p| p.split_once('/'))
                    .ok_or_else(|| format!("--url: {value:?} is not of this pod"))?;
                port = number.parse().map_err(|_| format!("--url: {number:?} is no port"))?;
                path = format!("/{rest}");
            }
            "timeoutSeconds" => limit = duration(&format!("{value}s"))?,
            "requestTimeoutMillis" | "periodMillis" => {}
            other => return Err(format!("unknown argument --{other}")),
        }
    }
    Ok(Meant::Tool(Tool::Wait { port, path, limit }))
}

fn request(arguments: &[String]) -> Result<Meant, String> {
    let (given, words) = flags(arguments, &[])?;
    let mut port = 15000;
    for (flag, value) in given {
        match flag.as_str() {
            "debug-port" => port = value.parse().map_err(|_| format!("--debug-port: {value:?} is no port"))?,
            other => return Err(format!("unknown argument --{other}")),
        }
    }
    match words.as_slice() {
        [method, path] => {
            let path = format!("/{}", path.trim_start_matches('/'));
            Ok(Meant::Tool(Tool::Ask { port, method: method.to_uppercase(), path }))
        }
        _ => Err("request needs a method and a path".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Option<Result<Meant, Vec<String>>> {
        let arguments: Vec<String> = text.split(' ').map(str::to_owned).collect();
        translate(&arguments, &BTreeMap::from([("POD_NAMESPACE".to_owned(), "shop".to_owned())]))
    }

    #[test]
    fn an_injected_proxy_is_a_sidecar_of_ours() {
        let text = "proxy sidecar --domain shop.svc.cluster.local --proxyLogLevel=warning --proxyComponentLogLevel=misc:error --log_output_level=default:info --log_as_json";
        let Some(Ok(Meant::Proxy(ours))) = line(text) else { panic!("not a proxy") };
        assert_eq!(
            ours.join(" "),
            "sidecar --cluster-domain cluster.local --envoy-log-level warning --log-level info --log-json true"
        );
        assert!(matches!(line("proxy router"), Some(Ok(Meant::Proxy(ours))) if ours == ["gateway"]));
        assert_eq!(line("proxy sidecar --what=1"), Some(Err(vec!["unknown argument --what".to_owned()])));
        assert!(matches!(line("proxy ztunnel"), Some(Err(_))));
        assert_eq!(line("sidecar"), None);
    }

    #[test]
    fn small_things() {
        let wait = |port, path: &str, seconds| {
            Some(Ok(Meant::Tool(Tool::Wait { port, path: path.to_owned(), limit: Duration::from_secs(seconds) })))
        };
        assert_eq!(line("wait"), wait(15021, "/healthz/ready", 60));
        assert_eq!(line("wait --url=http://localhost:15020/x --timeoutSeconds 5"), wait(15020, "/x", 5));
        assert!(matches!(line("wait --url=http://elsewhere/x"), Some(Err(_))));
        let ask = Tool::Ask { port: 15020, method: "POST".to_owned(), path: "/drain".to_owned() };
        assert_eq!(line("request --debug-port=15020 POST drain"), Some(Ok(Meant::Tool(ask))));
        assert!(matches!(line("request POST"), Some(Err(_))));
    }
}
