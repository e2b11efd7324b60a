//! What the programs are made of: Cargo.lock as a CycloneDX 1.5 bill of materials.
//!
//! Invariant: every package of the lock file is in it once, with the hash that Cargo checked.

use anyhow::{Result, ensure};

struct Package<'a> {
    name: &'a str,
    version: &'a str,
    checksum: Option<&'a str>,
}

/// The bill as JSON.
pub(super) fn bill(lock: &str, version: &str) -> Result<String> {
    let mut components = Vec::new();
    for block in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \"")?.strip_suffix('"'))
        };
        let package = Package {
            name: field("name").unwrap_or_default(),
            version: field("version").unwrap_or_default(),
            checksum: field("checksum"),
        };
        ensure!(
            !package.name.is_empty() && !package.version.is_empty(),
            "a package of Cargo.lock has no name or version"
        );
        components.push(component(&package));
    }
    ensure!(!components.is_empty(), "Cargo.lock has no packages");
    Ok(format!(
        "{{\"bomFormat\":\"CycloneDX\",\"specVersion\":\"1.5\",\"version\":1,\"metadata\":{{\"component\":{{\"type\":\"application\",\"name\":\"carrick\",\"version\":\"{version}\"}}}},\"components\":[\n{}\n]}}\n",
        components.join(",\n")
    ))
}

fn component(Package { name, version, checksum }: &Package<'_>) -> String {
    let hashes = match checksum {
        Some(sum) => format!(r#","hashes":[{{"alg":"SHA-256","content":"{sum}"}}]"#),
        None => String::new(),
    };
    format!(r#"{{"type":"library","name":"{name}","version":"{version}","purl":"pkg:cargo/{name}@{version}"{hashes}}}"#)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_package_is_listed_with_its_hash() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"00ff\"\n\n[[package]]\nname = \"b\"\nversion = \"2\"\n";
        let bill = super::bill(lock, "9").unwrap();
        assert!(bill.contains(r#""purl":"pkg:cargo/a@1.0.0","hashes":[{"alg":"SHA-256","content":"00ff"}]"#), "{bill}");
        assert!(bill.contains(r#""purl":"pkg:cargo/b@2"}"#), "{bill}");
        assert!(super::bill("", "9").is_err());
    }
}
