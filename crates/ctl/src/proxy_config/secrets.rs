//! `proxy-config secrets`: the certificates a proxy holds and until when.
//!
//! Invariant: only public parts are read; private keys never leave the proxy (it redacts them itself).

use std::time::SystemTime;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{pem::Pem, prelude::X509Certificate};

use super::dump::{Dump, text};
use crate::table::Table;

const LISTS: [(&str, &str); 3] =
    [("dynamic_active_secrets", "ACTIVE"), ("static_secrets", "ACTIVE"), ("dynamic_warming_secrets", "WARMING")];

fn secrets(dump: &Dump) -> impl Iterator<Item = (&Value, &'static str)> {
    LISTS.iter().flat_map(|(list, status)| {
        dump.resources("SecretsConfigDump", &[list], &[]).into_iter().map(move |secret| (secret, *status))
    })
}

/// The secrets as the proxy shows them, in protobuf's canonical JSON naming.
///
/// # Errors
/// When one is no secret.
pub fn json(dump: &Dump) -> Result<Value> {
    const TYPE: &str = "type.googleapis.com/envoy.admin.v3.SecretsConfigDump.DynamicSecret";
    let typed = |(secret, _): (&Value, _)| {
        let mut secret = secret.clone();
        if let Some(fields) = secret.as_object_mut() {
            fields.insert("@type".to_owned(), TYPE.into());
        }
        secret
    };
    let found: Vec<Value> = secrets(dump).map(typed).collect();
    Ok(json!({"dynamicActiveSecrets": super::renamed(&found.iter().collect::<Vec<_>>())?}))
}

/// The table of certificates.
///
/// # Errors
/// When a secret's certificate cannot be read.
pub fn table(dump: &Dump, now: SystemTime) -> Result<Table> {
    let mut table =
        Table::new(5, ["RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"]);
    for (secret, status) in secrets(dump) {
        let name = text(secret, &["name"]);
        let (kind, inline) = match text(secret, &["secret", "tls_certificate", "certificate_chain", "inline_bytes"]) {
            "" => ("CA", text(secret, &["secret", "validation_context", "trusted_ca", "inline_bytes"])),
            chain => ("Cert Chain", chain),
        };
        if inline.is_empty() {
            table.row([name, "-", status, "false", "", "", ""]);
            continue;
        }
        for cert in certificates(inline, kind == "CA").with_context(|| format!("secret {name}"))? {
            let now = OffsetDateTime::from(now);
            let valid = cert.not_before <= now && now <= cert.not_after;
            table.row([
                name,
                kind,
                status,
                if valid { "true" } else { "false" },
                &cert.serial,
                &cert.not_after.format(&Rfc3339)?,
                &cert.not_before.format(&Rfc3339)?,
            ]);
        }
    }
    Ok(table)
}

struct Facts {
    serial: String,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// The leaf of a chain, or every certificate of a bundle.
fn certificates(inline: &str, all: bool) -> Result<Vec<Facts>> {
    use base64::Engine as _;
    let pem = base64::engine::general_purpose::STANDARD.decode(inline).context("not base64")?;
    let mut found = Vec::new();
    for block in Pem::iter_from_buffer(&pem) {
        let block = block.context("not PEM")?;
        let cert: X509Certificate<'_> = block.parse_x509().context("not a certificate")?;
        found.push(Facts {
            serial: cert.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
            not_before: cert.validity().not_before.to_datetime(),
            not_after: cert.validity().not_after.to_datetime(),
        });
        if !all {
            break;
        }
    }
    Ok(found)
}
