//! Rules of `WasmPlugin` and `TrafficExtension` (spec §28).
//!
//! Invariant: a module is named by a URL that can be fetched or read; what is in it is not known here.

use std::collections::BTreeSet;

use super::{Findings, Node, attachment};

pub(super) fn wasm_plugin(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    attachment::policy(&spec, findings);
    module(&spec, findings);
    selectors(&spec.field("match"), findings);
}

pub(super) fn traffic_extension(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    attachment::policy(&spec, findings);
    let ways = spec.set_among(&["wasm", "lua"]);
    if ways.len() != 1 {
        findings.error(&spec.path, "exactly one of wasm or lua must be set");
    }
    if ways.contains(&"lua") {
        let code = spec.field("lua").field("inlineCode");
        if code.text().is_empty() {
            findings.error(&code.path, "lua.inlineCode cannot be empty");
        } else if code.text().len() > 64 << 10 {
            findings.error(&code.path, "lua.inlineCode exceeds maximum size of 64KB");
        }
    }
    if ways.contains(&"wasm") {
        module(&spec.field("wasm"), findings);
    }
    selectors(&spec.field("match"), findings);
}

fn module(module: &Node<'_>, findings: &mut Findings) {
    url(&module.field("url"), findings);
    let hash = module.field("sha256");
    let text = hash.text();
    if !text.is_empty() && text.len() != 64 {
        findings.error(&hash.path, "sha256 field must be 64 characters long");
    } else if !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        findings.error(&hash.path, "sha256 field must match [a-f0-9]{64} pattern");
    }
    for (field, most) in [("imagePullSecret", 253), ("pluginName", 256)] {
        let name = module.field(field);
        if name.text().len() > most {
            findings.error(&name.path, format!("{field} field must be less than {most} characters long"));
        }
        if name.is_set() && name.text().is_empty() {
            findings.error(&name.path, format!("{field} must not be empty when it is given"));
        }
    }
    environment(&module.field("vmConfig").field("env"), findings);
}

fn url(url: &Node<'_>, findings: &mut Findings) {
    let text = url.text();
    if text.is_empty() {
        findings.error(&url.path, "url field needs to be set");
        return;
    }
    let escapes = text.split('%').skip(1).all(|after| after.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2);
    if text.bytes().any(|b| b <= b' ' || b == 0x7f) || !escapes {
        findings.error(&url.path, format!("failed to parse url {text:?}"));
        return;
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        // An image's name without a scheme; what comes before a colon may be a host with its port.
        if text.starts_with(':') {
            findings.error(&url.path, format!("failed to parse url {text:?}"));
        }
        return;
    };
    if !matches!(scheme.to_ascii_lowercase().as_str(), "file" | "http" | "https" | "oci") {
        findings.error(&url.path, format!("url contains unsupported scheme: {scheme}"));
    } else if rest.is_empty() {
        findings.error(&url.path, format!("failed to parse url {text:?}"));
    }
}

fn environment(list: &Node<'_>, findings: &mut Findings) {
    if list.len() > 256 {
        findings.error(&list.path, format!("must have at most 256 items, not {}", list.len()));
    }
    let mut seen = BTreeSet::new();
    for variable in list.items() {
        let (name, value) = (variable.field("name"), variable.field("value"));
        if name.text().is_empty() {
            findings.error(&name.path, "name of an environment variable must not be empty");
        } else if name.text().len() > 256 {
            findings.error(&name.path, "env.name field must be less than 255 characters long");
        } else if !seen.insert(name.text()) {
            findings.error(&name.path, format!("duplicate env {}", name.text()));
        }
        let inline = variable.field("valueFrom").choice(&["INLINE", "HOST"]) == "INLINE";
        if !inline && !value.text().is_empty() {
            findings.error(&value.path, "value may only be set when valueFrom is INLINE");
        }
        if value.text().len() > 2048 {
            findings.error(&value.path, "value may not be longer than 2048 bytes");
        }
    }
}

fn selectors(list: &Node<'_>, findings: &mut Findings) {
    for selector in list.items() {
        for port in selector.field("ports").items() {
            findings.port_number(&port.field("number"));
        }
    }
}
