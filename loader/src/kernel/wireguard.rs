//! The WireGuard device's key, port and peers, by wireguard-control's kernel backend.
//!
//! Everything is incremental: only the peer that is named changes, and sessions live through it.
//! `replace_peers` is never used: it ends every session, even if nothing changed. The device itself
//! is a [`super::link::Link`].
//!
//! Any change makes a device that is not there, down and empty: the crate always sends that request
//! first. [`super::link::create_wireguard`] is still the way to make one, for it says why it cannot be.
//!
//! The crate's own types print keys, secret ones too, in `Debug` and in one error; none of them
//! leaves this file. Copies of a secret inside the crate and the kernel's message are not wiped: they
//! live as long as one call in a process that exits.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::SystemTime;

use ipnet::IpNet;
use nix::errno::Errno;
use wireguard_control::{
    AllowedIp, Backend, Device as RawDevice, DeviceUpdate, Key, PeerConfigBuilder, PeerInfo,
};

use super::error::Error;
use super::key::{self, PresharedKey, PrivateKey};
use crate::config::value::{Digest, InterfaceName, PublicKey};

/// A WireGuard device as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Public half of its key; `None` if it has no key yet.
    pub public_key: Option<PublicKey>,
    /// UDP port it listens on.
    pub port: u16,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// A peer as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it was last heard from, or else where it was configured to be.
    pub endpoint: Option<SocketAddr>,
    /// Allowed IPs.
    pub networks: BTreeSet<IpNet>,
    /// Interval of keepalives, seconds; 0 for none.
    pub persistent_keepalive: u16,
    /// Digest of the preshared key; see [`PresharedKey::digest`].
    pub preshared_key: Option<Digest>,
    /// When the last handshake was completed.
    pub last_handshake: Option<SystemTime>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

impl Peer {
    /// Seconds since the last handshake; `None` if there was none.
    #[must_use]
    pub fn handshake_age(&self, now: SystemTime) -> Option<u64> {
        let at = self.last_handshake?;
        // The clock may have been set back meanwhile.
        Some(now.duration_since(at).map_or(0, |age| age.as_secs()))
    }
}

/// What to change about a peer; what is `None` stays as it is.
#[derive(Clone, Copy, Default)]
pub struct PeerChange<'a> {
    /// Where to reach it.
    pub endpoint: Option<SocketAddr>,
    /// All its allowed IPs. One that another peer has is taken from that peer.
    pub networks: Option<&'a BTreeSet<IpNet>>,
    /// Interval of keepalives, seconds; 0 for none.
    pub persistent_keepalive: Option<u16>,
    /// The preshared key.
    pub preshared_key: Option<Preshared<'a>>,
}

/// A change of a preshared key.
#[derive(Clone, Copy)]
pub enum Preshared<'a> {
    /// The peer gets this one.
    Set(&'a PresharedKey),
    /// The peer has none any more.
    Unset,
}

/// Reads a device.
///
/// # Errors
/// `ENODEV` if there is no such interface, `EOPNOTSUPP` if it is no WireGuard device, `ENOENT` if the
/// kernel has no WireGuard.
pub fn read(interface: &InterfaceName) -> Result<Device, Error> {
    let raw = raw(interface)?;
    Ok(Device {
        public_key: raw
            .public_key
            .map(|key| PublicKey(key.0))
            .filter(|key| key.0 != [0; 32]),
        port: raw.listen_port.unwrap_or(0),
        peers: peers(raw.peers),
    })
}

/// A device's private key; `None` if it has none. For whoever gives it another one and may have to put this one back.
///
/// # Errors
/// Those of [`read`].
pub fn private_key(interface: &InterfaceName) -> Result<Option<PrivateKey>, Error> {
    let key = raw(interface)?.private_key.filter(|key| key.0 != [0; 32]);
    Ok(key.map(|key| PrivateKey::dangerous_from(key.0)))
}

/// The preshared keys of a device's peers, likewise.
///
/// # Errors
/// Those of [`read`].
pub fn preshared_keys(
    interface: &InterfaceName,
) -> Result<BTreeMap<PublicKey, PresharedKey>, Error> {
    let key = |peer: PeerInfo| {
        let secret = peer.config.preshared_key.filter(|key| key.0 != [0; 32])?;
        let secret = PresharedKey::dangerous_from(secret.0);
        Some((PublicKey(peer.config.public_key.0), secret))
    };
    Ok(raw(interface)?.peers.into_iter().filter_map(key).collect())
}

/// Whether the kernel has WireGuard, as built in or as a module, which this loads as `wg show` would.
///
/// # Errors
/// The question could not be put.
pub fn is_available() -> Result<bool, Error> {
    // Every namespace has a loopback interface, which is no WireGuard device: the kernel says
    // EOPNOTSUPP if it got as far as that, and ENOENT if nobody answers to "wireguard".
    let answer = "lo"
        .parse()
        .map_err(io::Error::from)
        .and_then(|name| RawDevice::get(&name, Backend::Kernel));
    match answer.map_err(without_secrets) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => Ok(false),
            // EPERM: the family is there, and reading it is for CAP_NET_ADMIN.
            Some(Errno::EOPNOTSUPP | Errno::EPERM) => Ok(true),
            _ => Err(Error::new("look for", "WireGuard", error)),
        },
    }
}

/// Sets the private key. The same key again changes nothing.
///
/// # Errors
/// The kernel's refusal.
pub fn set_private_key(interface: &InterfaceName, key: &PrivateKey) -> Result<(), Error> {
    let update = DeviceUpdate::new().set_private_key(Key(*key.dangerous_bytes()));
    apply(interface, update)
        .map_err(|source| Error::new("set the private key of", interface.as_str(), source))
}

/// Takes the private key away.
///
/// # Errors
/// The kernel's refusal.
pub fn clear_private_key(interface: &InterfaceName) -> Result<(), Error> {
    apply(interface, DeviceUpdate::new().unset_private_key())
        .map_err(|source| Error::new("take the private key from", interface.as_str(), source))
}

/// Sets the UDP port to listen on.
///
/// # Errors
/// `EADDRINUSE` if somebody else has the port and the device is up.
pub fn set_port(interface: &InterfaceName, port: u16) -> Result<(), Error> {
    apply(interface, DeviceUpdate::new().set_listen_port(port))
        .map_err(|source| Error::new("set the port of", format!("{interface} to {port}"), source))
}

/// Adds a peer, or changes one. If it loses an allowed IP, the kernel takes all of them away first, and for a moment
/// packets are dropped; many need several messages, and the moment is longer.
///
/// # Errors
/// The device cannot be read, or the kernel's refusal.
pub fn set_peer(
    interface: &InterfaceName,
    peer: PublicKey,
    change: PeerChange<'_>,
) -> Result<(), Error> {
    let present = read(interface)?.peers.remove(&peer);
    let present = present.map(|peer| peer.networks).unwrap_or_default();
    for part in parts(peer, change, &present) {
        apply(interface, DeviceUpdate::new().add_peer(part))
            .map_err(|source| Error::new("set peer", format!("{peer} of {interface}"), source))?;
    }
    Ok(())
}

/// Removes a peer; one that is not there is fine.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_peer(interface: &InterfaceName, peer: PublicKey) -> Result<(), Error> {
    apply(
        interface,
        DeviceUpdate::new().remove_peer_by_key(&Key(peer.0)),
    )
    .map_err(|source| Error::new("remove peer", format!("{peer} of {interface}"), source))
}

fn raw(interface: &InterfaceName) -> Result<RawDevice, Error> {
    name(interface)
        .and_then(|name| RawDevice::get(&name, Backend::Kernel))
        .map_err(|source| {
            Error::new(
                "read the WireGuard device",
                interface.as_str(),
                without_secrets(source),
            )
        })
}

fn apply(interface: &InterfaceName, update: DeviceUpdate) -> io::Result<()> {
    update
        .apply(&name(interface)?, Backend::Kernel)
        .map_err(without_secrets)
}

fn name(interface: &InterfaceName) -> io::Result<wireguard_control::InterfaceName> {
    interface.as_str().parse().map_err(io::Error::from)
}

/// Of an error that is not the kernel's, only the kind: the text could quote a message with a key.
fn without_secrets(error: io::Error) -> io::Error {
    if error.raw_os_error().is_some() {
        error
    } else {
        error.kind().into()
    }
}

/// The messages that make one change: wireguard-control does not split a peer, and 8 KiB is its
/// limit for a message. Allowed IPs that are `present` and stay are not spoken of: packets come and go meanwhile.
fn parts(
    peer: PublicKey,
    change: PeerChange<'_>,
    present: &BTreeSet<IpNet>,
) -> Vec<PeerConfigBuilder> {
    let key = Key(peer.0);
    let mut first = PeerConfigBuilder::new(&key);
    if let Some(endpoint) = change.endpoint {
        first = first.set_endpoint(endpoint);
    }
    if let Some(interval) = change.persistent_keepalive {
        first = first.set_persistent_keepalive_interval(interval);
    }
    match change.preshared_key {
        Some(Preshared::Set(secret)) => {
            first = first.set_preshared_key(Key(*secret.dangerous_bytes()))
        }
        Some(Preshared::Unset) => first = first.unset_preshared_key(),
        None => {}
    }
    let Some(networks) = change.networks else {
        return vec![first];
    };
    let loses = !present.is_subset(networks);
    let new = |network: &&IpNet| loses || !present.contains(network);
    let allowed: Vec<AllowedIp> = networks
        .iter()
        .filter(new)
        .map(|network| AllowedIp {
            address: network.network(),
            cidr: network.prefix_len(),
        })
        .collect();
    let mut chunks = allowed.chunks(NETWORKS_IN_A_MESSAGE);
    if loses {
        first = first.replace_allowed_ips();
    }
    let mut parts = vec![first.add_allowed_ips(chunks.next().unwrap_or_default())];
    parts.extend(chunks.map(|chunk| PeerConfigBuilder::new(&key).add_allowed_ips(chunk)));
    parts
}

/// The kernel splits a peer with many allowed IPs over several messages, of which only the first
/// has anything else.
fn peers(raw: Vec<PeerInfo>) -> BTreeMap<PublicKey, Peer> {
    let mut peers = BTreeMap::<PublicKey, Peer>::new();
    for PeerInfo { config, stats } in raw {
        let networks = config
            .allowed_ips
            .iter()
            .filter_map(|ip| IpNet::new(ip.address, ip.cidr).ok());
        if let Some(peer) = peers.get_mut(&PublicKey(config.public_key.0)) {
            peer.networks.extend(networks);
            continue;
        }
        let peer = Peer {
            endpoint: config.endpoint,
            networks: networks.collect(),
            persistent_keepalive: config.persistent_keepalive_interval.unwrap_or(0),
            preshared_key: config
                .preshared_key
                .filter(|key| key.0 != [0; 32])
                .map(|key| key::digest(&key.0)),
            last_handshake: stats.last_handshake_time,
            received: stats.rx_bytes,
            sent: stats.tx_bytes,
        };
        peers.insert(PublicKey(config.public_key.0), peer);
    }
    peers
}

/// An IPv6 network takes 40 bytes of a message, so this is 5 KiB of the 8.
const NETWORKS_IN_A_MESSAGE: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::link;
    use crate::kernel::testing::new_netns;

    const PEER: PublicKey = PublicKey([7; 32]);

    fn networks(count: u16) -> BTreeSet<IpNet> {
        (0..count)
            .map(|i| format!("fd00:{i:x}::/64").parse().unwrap())
            .collect()
    }

    fn allowed(part: &PeerConfigBuilder) -> usize {
        part.clone().into_peer_config().allowed_ips.len()
    }

    #[test]
    fn many_networks_are_split_and_only_the_first_part_replaces() {
        let networks = networks(300);
        let change = PeerChange {
            networks: Some(&networks),
            persistent_keepalive: Some(25),
            ..Default::default()
        };
        let gone = BTreeSet::from(["10.9.0.0/24".parse().unwrap()]);
        let parts = parts(PEER, change, &gone);
        assert_eq!(
            parts.iter().map(allowed).collect::<Vec<_>>(),
            [128, 128, 44]
        );
        let plain =
            |chunk: &[AllowedIp]| PeerConfigBuilder::new(&Key(PEER.0)).add_allowed_ips(chunk);
        for (number, part) in parts.iter().enumerate() {
            let config = part.clone().into_peer_config();
            // Equal to a part without the flag and the interval exactly if it is not the first.
            assert_eq!(*part == plain(&config.allowed_ips), number > 0);
            assert_eq!(config.persistent_keepalive_interval.is_some(), number == 0);
        }
    }

    #[test]
    fn networks_are_left_alone_replaced_or_emptied() {
        let (none, some) = (BTreeSet::new(), networks(2));
        let untouched = parts(PEER, PeerChange::default(), &some);
        let emptied = parts(
            PEER,
            PeerChange {
                networks: Some(&none),
                ..Default::default()
            },
            &some,
        );
        assert!(untouched == [PeerConfigBuilder::new(&Key(PEER.0))]);
        assert!(emptied == [PeerConfigBuilder::new(&Key(PEER.0)).replace_allowed_ips()]);
    }

    #[test]
    fn networks_that_stay_are_not_taken_away_for_a_moment() {
        let (before, after) = (networks(2), networks(3));
        let parts = |networks| {
            let change = PeerChange {
                networks: Some(networks),
                ..Default::default()
            };
            parts(PEER, change, &before)
        };
        let new: AllowedIp = "fd00:2::/64".parse().unwrap();
        let plain = PeerConfigBuilder::new(&Key(PEER.0));
        assert!(parts(&before) == [plain.clone()]);
        assert!(parts(&after) == [plain.add_allowed_ip(new.address, new.cidr)]);
    }

    #[test]
    fn parts_of_a_peer_are_joined() {
        let part = |network: &str, port: Option<u16>| {
            let mut info = PeerInfo::from_public_key(Key(PEER.0));
            info.config.allowed_ips = vec![network.parse().unwrap()];
            info.config.endpoint = port.map(|port| ([192, 0, 2, 1], port).into());
            info
        };
        let peers = peers(vec![
            part("10.2.0.0/24", Some(51871)),
            part("fd00:2::/64", None),
        ]);
        let peer = &peers[&PEER];
        assert_eq!(peer.networks.len(), 2);
        assert_eq!(peer.endpoint, Some(([192, 0, 2, 1], 51871).into()));
        assert_eq!(peer.preshared_key, None);
    }

    #[test]
    fn an_error_with_text_loses_it() {
        let error = io::Error::new(
            io::ErrorKind::InvalidInput,
            "too large: PresharedKey([1, 2, 3])",
        );
        assert!(!without_secrets(error).to_string().contains('1'));
    }

    /// On a kernel with WireGuard the whole life of a device; on one without, the refusals.
    #[test]
    fn device_lives_or_its_absence_is_explained() {
        let netns = new_netns();
        netns
            .run(|| {
                let interface: InterfaceName = "underseal0".parse().unwrap();
                let created = link::create_wireguard(interface.as_str());
                assert_eq!(created.is_ok(), is_available().unwrap());
                match created {
                    Ok(link) => live(&interface, &link),
                    Err(error) => {
                        assert_eq!(error.errno(), Some(Errno::EOPNOTSUPP));
                        assert_eq!(error.detail.as_deref(), Some("Unknown device type"));
                        assert_eq!(read(&interface).unwrap_err().errno(), Some(Errno::ENOENT));
                    }
                }
            })
            .unwrap();
    }

    fn live(interface: &InterfaceName, link: &link::Link) {
        let folder = tempfile::tempdir().unwrap();
        let private = PrivateKey::generate(&folder.path().join("private")).unwrap();
        assert_eq!(read(interface).unwrap().public_key, None);
        set_private_key(interface, &private).unwrap();
        let kept = private_key(interface).unwrap().unwrap();
        assert_eq!(kept.public(), private.public());
        set_port(interface, 51871).unwrap();
        link.set_up().unwrap();
        let other = PublicKey([9; 32]);
        let wide = networks(1000);
        let endpoint = "[fd00::2]:51871".parse().unwrap();
        let change = PeerChange {
            endpoint: Some(endpoint),
            networks: Some(&wide),
            ..Default::default()
        };
        set_peer(interface, PEER, change).unwrap();
        let interval = PeerChange {
            persistent_keepalive: Some(25),
            ..Default::default()
        };
        set_peer(interface, other, interval).unwrap();
        let device = read(interface).unwrap();
        assert_eq!(
            (device.public_key, device.port),
            (Some(private.public()), 51871)
        );
        assert_eq!(device.peers[&PEER].networks, wide);
        assert_eq!(device.peers[&PEER].endpoint, Some(endpoint));
        assert_eq!(device.peers[&other].persistent_keepalive, 25);

        // A private key's file has the form of a preshared key's.
        let secret = PresharedKey::read(&folder.path().join("private")).unwrap();
        changes_one_peer(interface, &secret);

        remove_peer(interface, PEER).unwrap();
        remove_peer(interface, PEER).unwrap();
        assert_eq!(
            read(interface)
                .unwrap()
                .peers
                .into_keys()
                .collect::<Vec<_>>(),
            [other]
        );
        link.delete().unwrap();
        assert_eq!(read(interface).unwrap_err().errno(), Some(Errno::ENODEV));
    }

    fn changes_one_peer(interface: &InterfaceName, secret: &PresharedKey) {
        let endpoint = read(interface).unwrap().peers[&PEER].endpoint;
        let narrow = networks(3);
        let preshared_key = Some(Preshared::Set(secret));
        set_peer(
            interface,
            PEER,
            PeerChange {
                networks: Some(&narrow),
                preshared_key,
                ..Default::default()
            },
        )
        .unwrap();
        let peer = read(interface).unwrap().peers.remove(&PEER).unwrap();
        assert_eq!((peer.networks, peer.endpoint), (narrow, endpoint));
        assert_eq!(peer.preshared_key, Some(secret.digest()));
        let kept = preshared_keys(interface).unwrap();
        let digests: Vec<_> = kept
            .iter()
            .map(|(peer, key)| (*peer, key.digest()))
            .collect();
        assert_eq!(digests, [(PEER, secret.digest())]);
        let unset = PeerChange {
            preshared_key: Some(Preshared::Unset),
            ..Default::default()
        };
        set_peer(interface, PEER, unset).unwrap();
        assert_eq!(read(interface).unwrap().peers[&PEER].preshared_key, None);
    }
}
