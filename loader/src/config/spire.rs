//! The section `[spire]`: where the node's SPIRE agent listens. Which workloads and which trust bundles come from it is
//! said where they stand (`spire = true`).

use std::{fmt, str::FromStr};

use serde::Deserialize;

use super::{
    Config, bundle,
    check::Checker,
    value::{AbsolutePath, Invalid},
};

/// The SPIRE agent, or another one that speaks the SPIFFE Workload API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spire {
    /// Its socket.
    pub socket: AgentSocket,
}

/// What serde reads.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    socket: String,
}

/// Path of a unix socket. As text it may have the form that `SPIFFE_ENDPOINT_SOCKET` has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSocket(AbsolutePath);

impl AgentSocket {
    /// Its path.
    #[must_use]
    pub fn as_path(&self) -> &std::path::Path {
        self.0.as_path()
    }
}

impl FromStr for AgentSocket {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        /// `sun_path` of `linux/un.h` without the final zero.
        const LONGEST: usize = 107;
        if text.starts_with("tcp:") {
            let why =
                "the agent must be reached by a unix socket: it knows callers by their process";
            return Err(Invalid(why.to_owned()));
        }
        let path = text.strip_prefix("unix:").unwrap_or(text);
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.len() > LONGEST {
            return Err(Invalid(format!(
                "the path of a socket has at most {LONGEST} bytes"
            )));
        }
        path.parse().map(Self)
    }
}

impl fmt::Display for AgentSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Checker {
    pub(super) fn spire(&mut self, raw: &Raw) -> Option<Spire> {
        let socket = self.value("spire.socket", &raw.socket)?;
        Some(Spire { socket })
    }

    /// Where a bundle is: `underseal-spire` has a place for those that it writes.
    pub(super) fn bundle_file(&mut self, at: &str, raw: &bundle::Raw) -> Option<AbsolutePath> {
        match &raw.file {
            Some(file) => self.value(format!("{at}.file"), file),
            // A name with a fault is reported where it stands; one without has no `/`.
            None if raw.spire => format!("/var/lib/underseal/bundles/{}.pem", raw.trust_domain)
                .parse()
                .ok(),
            None => {
                self.fault(
                    at,
                    "`file` is missing: name the certificates of this domain's CAs, or say `spire = true`",
                );
                None
            }
        }
    }

    /// What comes from the agent needs one, and a folder of its own.
    pub(super) fn agent(&mut self, config: &Config) {
        let workloads = config.workloads.iter().enumerate();
        let workloads = workloads.filter(|(_, workload)| workload.spire);
        let mut users: Vec<String> = workloads
            .clone()
            .map(|(i, _)| format!("workload.{i}.spire"))
            .collect();
        let bundles = config.bundles.iter().enumerate();
        let bundles = bundles.filter(|(_, bundle)| bundle.spire);
        users.extend(bundles.map(|(i, _)| format!("trust_bundle.{i}.spire")));
        if config.spire.is_none() {
            for at in users {
                self.fault(
                    at,
                    "there is no section `[spire]`, which says where the agent listens",
                );
            }
        }
        for (i, workload) in workloads {
            let other = config.workloads.iter().find(|other| {
                other.identity == workload.identity && other.spiffe_id != workload.spiffe_id
            });
            if let Some(other) = other {
                self.fault(
                    format!("workload.{i}"),
                    format!(
                        "has the same folder as `{}`, which has another SPIFFE ID",
                        other.name
                    ),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets() {
        let path = |text: &str| {
            let socket: Result<AgentSocket, Invalid> = text.parse();
            socket.map(|socket| socket.to_string()).ok()
        };
        for text in [
            "unix:///run/agent.sock",
            "unix:/run/agent.sock",
            "/run/agent.sock",
        ] {
            assert_eq!(path(text).as_deref(), Some("/run/agent.sock"), "{text}");
        }
        for text in [
            "unix://run/agent.sock",
            "run/agent.sock",
            "tcp:127.0.0.1:1",
            "",
        ] {
            assert_eq!(path(text), None, "{text}");
        }
        assert_eq!(path(&format!("/{}", "x".repeat(107))), None);
    }
}
