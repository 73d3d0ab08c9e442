//! Steps of interfaces. WireGuard's keys are no part of a state: what a device had before is kept here, in memory, for
//! as long as its steps may be taken back.

use std::collections::BTreeMap;
use std::io;

use ipnet::IpNet;

use crate::config::value::{InterfaceName, PublicKey};
use crate::kernel::error::Error;
use crate::kernel::key::{PresharedKey, PrivateKey};
use crate::kernel::switch::{self, Insistence};
use crate::kernel::wireguard::{self, PeerChange, Preshared};
use crate::kernel::{address, link, route};
use crate::op::{DeviceChange, DeviceOp};
use crate::state::{Peer, State};

/// Preshared keys that peers had before, by device.
pub(super) struct Secrets(BTreeMap<InterfaceName, BTreeMap<PublicKey, PresharedKey>>);

impl Secrets {
    /// Nothing has been changed yet.
    pub(super) const fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// Carries out a step. Returns the private key that the device had before, if it gets another one.
    pub(super) fn carry_out(
        &mut self,
        op: &DeviceOp,
        before: &State,
    ) -> Result<Option<PrivateKey>, Error> {
        use DeviceChange as C;
        let (private, preshared) = match &op.change {
            C::SetPrivateKey(_) => (wireguard::private_key(&op.interface)?, None),
            C::SetPeer(peer, _) | C::DeletePeer(peer) => (None, self.of(op, peer, before)?),
            _ => (None, None),
        };
        device(op, preshared)?;
        Ok(private)
    }

    /// The preshared key that a peer had before. Those of a device are noted before the first of its peers changes.
    fn of(
        &mut self,
        op: &DeviceOp,
        peer: &PublicKey,
        before: &State,
    ) -> Result<Option<&PresharedKey>, Error> {
        let device = before.device(&op.interface);
        let mut peers = device.into_iter().flat_map(|device| device.peers.values());
        let has_some = peers.any(|peer| peer.preshared_key.is_some());
        if has_some && !self.0.contains_key(&op.interface) {
            let keys = wireguard::preshared_keys(&op.interface)?;
            self.0.insert(op.interface.clone(), keys);
        }
        Ok(self.0.get(&op.interface).and_then(|keys| keys.get(peer)))
    }
}

fn device(op: &DeviceOp, before: Option<&PresharedKey>) -> Result<(), Error> {
    use DeviceChange as C;
    let interface = &op.interface;
    let link = || link::named(interface.as_str());
    match &op.change {
        C::GenerateKey(file) => PrivateKey::generate(file.as_path()).map(drop),
        C::Add => link::create_wireguard(interface.as_str()).map(drop),
        C::Delete => link::find(interface.as_str())?.map_or(Ok(()), |link| link.delete()),
        C::SetPrivateKey(file) => {
            let missing = || {
                Error::new(
                    "read the private key",
                    file.as_str(),
                    io::ErrorKind::NotFound,
                )
            };
            let key = PrivateKey::read(file.as_path())?.ok_or_else(missing)?;
            wireguard::set_private_key(interface, &key)
        }
        C::ClearPrivateKey => wireguard::clear_private_key(interface),
        C::SetPort(port) => wireguard::set_port(interface, *port),
        C::SetMtu(mtu) => link()?.set_mtu(*mtu),
        C::AddAddress(net) => address::add(&link()?, *net),
        C::DeleteAddress(net) => address::delete(&link()?, *net),
        C::SetPeer(key, peer) => set_peer(interface, *key, peer, before),
        C::DeletePeer(key) => wireguard::remove_peer(interface, *key),
        C::Up => link()?.set_up(),
        C::Down => link()?.set_down(),
        C::AddRoute(net) => route::add(*net, &link()?),
        C::DeleteRoute(net) => delete_route(interface, *net),
        C::Switch(it) => switch::switch(interface, it, Insistence::Nothing).map(drop),
        C::Drain(peers) => switch::drain(interface, peers),
    }
}

fn delete_route(interface: &InterfaceName, destination: IpNet) -> Result<(), Error> {
    // The kernel forgets the routes of an interface that is gone.
    let Some(device) = link::find(interface.as_str())? else {
        return Ok(());
    };
    route::delete(route::Route {
        destination,
        device: device.index,
    })
}

/// `before` is the preshared key that the peer had before: a step that is taken back names no file.
fn set_peer(
    interface: &InterfaceName,
    key: PublicKey,
    peer: &Peer,
    before: Option<&PresharedKey>,
) -> Result<(), Error> {
    let secret = match peer
        .preshared_key
        .as_ref()
        .and_then(|preshared| preshared.file.as_ref())
    {
        Some(file) => Some(PresharedKey::read(file.as_path())?),
        None => None,
    };
    let change = PeerChange {
        endpoint: peer.endpoint,
        networks: Some(&peer.networks),
        persistent_keepalive: Some(peer.persistent_keepalive),
        preshared_key: match &peer.preshared_key {
            None => Some(Preshared::Unset),
            Some(_) => secret.as_ref().or(before).map(Preshared::Set),
        },
    };
    wireguard::set_peer(interface, key, change)
}
