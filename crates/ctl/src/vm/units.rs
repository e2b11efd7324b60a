//! systemd's unit of a machine: the sidecar from the start of the machine on, and its rules gone when it stops.
//!
//! Invariant: the text is a function of paths alone; a unit that is there is replaced as a whole.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use carrick_pod::machine::Folder;
use clap::Args;

use super::{Around, Place};

/// The unit's name.
pub const UNIT: &str = "carrick-vm.service";
const FOLDER: &str = "/etc/systemd/system";

/// `vm install`.
#[derive(Debug, Args)]
pub struct Options {
    /// Folder that the unit is written to.
    #[arg(long, default_value = FOLDER, value_name = "DIR")]
    unit_dir: PathBuf,
    #[command(flatten)]
    place: Place,
}

impl Options {
    pub(super) fn of(place: Place) -> Self {
        Self { unit_dir: FOLDER.into(), place }
    }
}

pub(super) fn install(options: &Options, around: &Around) -> Result<()> {
    let folder = options.place.folder(&around.data_dir);
    Folder::open(&folder)?;
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let folder = std::fs::canonicalize(&folder).with_context(|| folder.display().to_string())?;
    let mut arguments = vec!["--proxy-binary".to_owned(), shown(&options.place.program()?)];
    if let Some(envoy) = &options.place.envoy_binary {
        arguments.extend(["--envoy-binary".to_owned(), shown(envoy)]);
    }
    let text = unit(&own, &folder, &arguments);
    let path = options.unit_dir.join(UNIT);
    std::fs::create_dir_all(&options.unit_dir).with_context(|| options.unit_dir.display().to_string())?;
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    println!("{} is written; start it with: systemctl daemon-reload && systemctl enable --now {UNIT}", path.display());
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// One word of a command line of systemd.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{escaped}\"")
}

/// The unit's text.
pub fn unit(program: &Path, folder: &Path, arguments: &[String]) -> String {
    let program = word(&shown(program));
    let arguments: String = arguments.iter().map(|argument| format!(" {}", word(argument))).collect();
    let folder = word(&shown(folder));
    format!(
        "# Written by `carrick vm install`; changes are lost when it is written again.\n\
         [Unit]\n\
         Description=Carrick sidecar of this machine\n\
         Wants=network-online.target\n\
         After=network-online.target nss-lookup.target\n\
         \n\
         [Service]\n\
         Type=exec\n\
         ExecStart={program} vm run --state-dir {folder}{arguments}\n\
         # However it ended: what was captured must not stay captured by nobody once it was told to stop.\n\
         ExecStopPost={program} vm clean\n\
         Restart=always\n\
         RestartSec=1\n\
         # The sidecar is ended by its runner, which lets open connections finish.\n\
         KillMode=mixed\n\
         TimeoutStopSec=30\n\
         LimitNOFILE=1048576\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_takes_the_unit() {
        let dir = std::env::temp_dir().join(format!("carrick-units-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join(UNIT);
        // Programs must be there for systemd to be content.
        let text = unit(
            Path::new("/bin/true"),
            Path::new("/var/lib/odd folder/100%"),
            &["--proxy-binary".into(), "/bin/true".into()],
        );
        assert!(text.contains("--state-dir \"/var/lib/odd folder/100%%\" --proxy-binary /bin/true\n"), "{text}");
        std::fs::write(&path, text).unwrap();
        let output = std::process::Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&path).output();
        let output = output.expect("systemd-analyze (Debian package systemd) judges the unit");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !told.contains(UNIT), "{told}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
