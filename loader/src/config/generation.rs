//! Generations of WireGuard keys: what the file says of them, checked. [`crate::generation`] says what they are for.

use super::{
    Config,
    check::Checker,
    raw,
    value::{AbsolutePath, InterfaceName},
};
use crate::generation::Number;

/// This node's next key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// Where its private key is kept; generated if missing. May be the present one: then preshared keys alone change.
    pub private_key_file: AbsolutePath,
}

impl Config {
    /// Whether any key has been replaced, or is being replaced. If not, there is one device and one port.
    #[must_use]
    pub fn has_generations(&self) -> bool {
        let own = self.wireguard.as_ref();
        own.is_some_and(|own| own.generation != 0 || own.next.is_some())
            || self.peers.iter().any(|peer| peer.generation != 0)
    }
}

impl Checker {
    pub(super) fn next(&mut self, raw: Option<&raw::Next>) -> Option<Option<Next>> {
        let Some(raw) = raw else {
            return Some(None);
        };
        let file = self.value("wireguard.next.private_key_file", &raw.private_key_file);
        Some(Some(Next {
            private_key_file: file?,
        }))
    }

    /// What generations need. Without them nothing is asked for that was not before.
    pub(super) fn generations(&mut self, config: &Config) {
        let Some(own) = &config.wireguard else {
            return;
        };
        for (i, peer) in config.peers.iter().enumerate() {
            if peer.next_preshared_key_file.is_some() && own.next.is_none() {
                self.fault(
                    format!("peer.{i}.next_preshared_key_file"),
                    "is for this node's next key, and there is no [wireguard.next]; the present one is `preshared_key_file`",
                );
            }
            if peer.generation == u32::MAX {
                self.fault(format!("peer.{i}.generation"), "is too large");
            }
        }
        if own.generation == u32::MAX {
            self.fault("wireguard.generation", "is too large");
        }
        if !config.has_generations() {
            return;
        }
        self.devices_of_generations(config, &own.interface);
        let last = u16::MAX - Number::LAST;
        if own.port > last {
            self.fault("wireguard.port", format!("must be {last} at most, because generations of keys use this port and the three after it"));
        }
        for (i, peer) in config.peers.iter().enumerate() {
            if peer.endpoint.0.port() > last {
                self.fault(format!("peer.{i}.endpoint"), format!("its port must be {last} at most, because generations of keys use this port and the three after it"));
            }
        }
    }

    fn devices_of_generations(&mut self, config: &Config, face: &InterfaceName) {
        for number in Number::OTHERS {
            match number.interface(face) {
                None => {
                    self.fault(
                        "wireguard.interface",
                        "must have 13 bytes at most, because generations of keys have devices with `-1`, `-2` and `-3` behind this name",
                    );
                    return;
                }
                Some(name) if config.node.uplinks.contains(&name) => self.fault(
                    "wireguard.interface",
                    format!("`{name}` is an uplink, and the name of a device for another generation of keys"),
                ),
                Some(_) => {}
            }
        }
    }
}
