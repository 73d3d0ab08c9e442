//! Whose DNS names: a key of the `DNS_NAMES` map.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::value::{Invalid, by_text};

by_text! { Named }

/// A workload, as the map `DNS_NAMES` knows it; see [`underseal_abi::Named`]. As text: its id, or its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Named {
    /// Of this node, by its id.
    Own(u32),
    /// Of another node, by one of its addresses.
    Other(IpAddr),
}

impl FromStr for Named {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let id = text.parse().map(Self::Own);
        id.or_else(|_| text.parse().map(Self::Other))
            .map_err(|_| Invalid("neither the id of a workload nor an address".to_owned()))
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(id) => id.fmt(f),
            Self::Other(address) => address.fmt(f),
        }
    }
}
