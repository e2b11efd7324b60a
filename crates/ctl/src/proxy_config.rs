//! `carrick proxy-config`: what a proxy really runs, in `istioctl`'s tables or as Envoy's own JSON.
//!
//! Invariant: everything shown comes from the proxy's admin interface; the same code reads the native engine
//! and Envoy, because both answer in Envoy's shapes. Getting the dump is `dump`'s part, the rest is pure.

pub mod clusters;
pub mod dump;
pub mod endpoints;
mod forward;
pub mod listeners;
pub mod routes;
pub mod secrets;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::output::{self, Format};

/// What to show.
#[derive(Debug, Clone)]
pub enum Section {
    /// Listeners and their filter chains.
    Listeners(listeners::Filter),
    /// Upstream clusters.
    Clusters(clusters::Filter),
    /// Route configurations.
    Routes(routes::Filter),
    /// Endpoints with their health.
    Endpoints(endpoints::Filter),
    /// Certificates and trust bundles.
    Secrets,
    /// The bootstrap configuration.
    Bootstrap,
    /// Everything, section after section.
    All,
}

/// Renders one section of a dump.
///
/// # Errors
/// When the dump is not in Envoy's shape, or holds a message that cannot be shown.
pub fn show(dump: &dump::Dump, section: &Section, format: Format) -> Result<String> {
    let rendered = match section {
        Section::Listeners(filter) => {
            let found = listeners::select(dump, filter);
            match output::machine(&renamed(&found)?, format)? {
                Some(text) => text,
                None => listeners::table(&found, filter).to_string(),
            }
        }
        Section::Clusters(filter) => {
            let found = clusters::select(dump, filter);
            match output::machine(&renamed(&found)?, format)? {
                Some(text) => text,
                None => clusters::table(&found).to_string(),
            }
        }
        Section::Routes(filter) => {
            let found = routes::select(dump, filter);
            match output::machine(&renamed(&found)?, format)? {
                Some(text) => text,
                None => routes::table(&found, filter.verbose).to_string(),
            }
        }
        Section::Endpoints(filter) => {
            let found = endpoints::select(dump, filter);
            match output::machine(&endpoints::json(&found), format)? {
                Some(text) => text,
                None => endpoints::table(&found).to_string(),
            }
        }
        Section::Secrets => match output::machine(&secrets::json(dump)?, format)? {
            Some(text) => text,
            None => secrets::table(dump, std::time::SystemTime::now())?.to_string(),
        },
        Section::Bootstrap => match format {
            Format::Yaml => serde_saphyr::to_string(&bootstrap(dump)?)?,
            _ => output::json(&bootstrap(dump)?),
        },
        Section::All => all(dump, format)?,
    };
    Ok(rendered)
}

fn bootstrap(dump: &dump::Dump) -> Result<Value> {
    let found = dump.config("BootstrapConfigDump").context("the proxy's dump has no bootstrap")?;
    Ok(found.get("bootstrap").cloned().unwrap_or_default())
}

fn all(dump: &dump::Dump, format: Format) -> Result<String> {
    if format != Format::Short {
        let value = serde_json::json!({
            "clusters": renamed(&clusters::select(dump, &clusters::Filter::default()))?,
            "listeners": renamed(&listeners::select(dump, &listeners::Filter::default()))?,
            "routes": renamed(&routes::select(dump, &routes::Filter::default()))?,
            "secrets": secrets::json(dump)?,
            "endpoints": endpoints::json(&endpoints::select(dump, &endpoints::Filter::default())),
        });
        return Ok(output::machine(&value, format)?.unwrap_or_default());
    }
    let sections = [
        Section::Clusters(clusters::Filter::default()),
        Section::Listeners(listeners::Filter { verbose: true, ..Default::default() }),
        Section::Routes(routes::Filter { verbose: true, ..Default::default() }),
        Section::Secrets,
        Section::Endpoints(endpoints::Filter::default()),
    ];
    let shown: Result<Vec<String>> = sections.iter().map(|section| show(dump, section, format)).collect();
    Ok(shown?.join("\n"))
}

/// Resources in protobuf's canonical JSON naming, without the outer `@type`, as `istioctl` prints them.
fn renamed(resources: &[&Value]) -> Result<Value> {
    let one = |resource: &&Value| -> Result<Value> {
        let mut shown = carrick_envoy_json::rename(resource, carrick_envoy_json::Names::Camel)
            .with_context(|| format!("cannot show {}", resource["name"]))?;
        if let Some(fields) = shown.as_object_mut() {
            fields.shift_remove("@type");
        }
        Ok(shown)
    };
    resources.iter().map(one).collect()
}
