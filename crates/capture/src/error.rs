//! What can go wrong between a rule and the kernel.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// An annotation holds something that is not what it should be.
    #[error("annotation {annotation}: {value:?} {reason}")]
    Annotation {
        /// The annotation's key.
        annotation: &'static str,
        /// The offending part of its value.
        value: String,
        /// What it should have been.
        reason: &'static str,
    },
    /// `nft` is not on this machine.
    #[error("nft is not installed (Debian: apt-get install nftables)")]
    NoNft,
    /// `nft` refused the rules; nothing was changed.
    #[error("nft refused the rules of {table}: {stderr}")]
    Refused {
        /// Family and name of the table.
        table: String,
        /// What it said.
        stderr: String,
    },
    /// The rules were accepted but are not there.
    #[error("the rules of {table} are not in place after nft accepted them")]
    NotInPlace {
        /// Family and name of the table.
        table: String,
    },
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl CaptureError {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> CaptureError {
        let doing = doing.into();
        move |source| CaptureError::Io { doing, source }
    }

    pub(crate) fn sys(doing: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> CaptureError {
        let doing = doing.into();
        move |errno| CaptureError::Io { doing, source: errno.into() }
    }
}
