//! The one error of everything that talks to the kernel: what was attempted, on which object, and
//! the kernel's reason in its own words where it gives any.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// A system operation that failed.
///
/// The message is one complete sentence, so `source()` is empty: a printer that walks the chain
/// must not say the reason twice.
#[derive(Debug)]
pub struct Error {
    /// What was attempted, as a verb with its article: "set the MTU of".
    pub op: &'static str,
    /// The object it was attempted on: "underseal0", "/run/netns/cart".
    pub object: String,
    /// The reason.
    pub source: io::Error,
    /// The kernel's own explanation (netlink extended ACK), or ours where the error number alone
    /// would mislead.
    pub detail: Option<String>,
}

impl Error {
    /// An error without a further explanation.
    pub fn new(op: &'static str, object: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            op,
            object: object.into(),
            source: source.into(),
            detail: None,
        }
    }

    /// The same error with an explanation.
    #[must_use]
    pub fn explained(self, detail: impl Into<String>) -> Self {
        Self {
            detail: Some(detail.into()),
            ..self
        }
    }

    /// The error number, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        self.source.raw_os_error().map(Errno::from_raw)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: ", self.op, self.object)?;
        // io::Error appends "(os error 22)", which says nothing to the reader.
        let reason = self.source.to_string();
        f.write_str(
            reason
                .split_once(" (os error ")
                .map_or(reason.as_str(), |(reason, _)| reason),
        )?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_a_sentence() {
        let error = Error::new("set the MTU of", "eth0", Errno::EINVAL)
            .explained("mtu less than device minimum");
        assert_eq!(
            error.to_string(),
            "cannot set the MTU of eth0: Invalid argument (mtu less than device minimum)"
        );
        let plain = Error::new("read", "key", io::Error::other("not a key"));
        assert_eq!(plain.to_string(), "cannot read key: not a key");
    }
}
