//! Network interfaces of the calling thread's network namespace: read, create a WireGuard device,
//! switch up and down, MTU, delete.
//!
//! Changes name the interface by its index, so an interface that was replaced under the same name
//! in the meantime is not touched.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use super::error::Error;
use super::netlink;

/// A network interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index in its namespace.
    pub index: u32,
    /// Name, such as "eth0".
    pub name: String,
    /// Kind of a virtual interface ("veth", "wireguard"); a hardware interface has none.
    pub kind: Option<String>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// `IFLA_LINK`: for a veth the index of the other end, in the namespace that `peer_netns` names.
    pub peer: Option<u32>,
    /// `IFLA_LINK_NETNSID`: id of the namespace of the other end, if it is not this one.
    pub peer_netns: Option<i32>,
}

impl Link {
    /// Switches the interface up.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_up(&self) -> Result<(), Error> {
        self.set("set up", |message| message.header.flags = LinkFlags::Up)
    }

    /// Switches the interface down.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_down(&self) -> Result<(), Error> {
        self.set("set down", |message| {
            message.header.flags = LinkFlags::empty()
        })
    }

    /// Sets the MTU in bytes.
    ///
    /// # Errors
    /// The kernel's refusal, for example "mtu less than device minimum".
    pub fn set_mtu(&self, mtu: u32) -> Result<(), Error> {
        let message = self.message(vec![LinkAttribute::Mtu(mtu)]);
        netlink::request(RouteNetlinkMessage::SetLink(message), 0)
            .map(drop)
            .map_err(|refused| refused.on("set the MTU of", format!("{} to {mtu}", self.name)))
    }

    /// Deletes the interface.
    ///
    /// # Errors
    /// The kernel's refusal; a hardware interface cannot be deleted.
    pub fn delete(&self) -> Result<(), Error> {
        netlink::request(RouteNetlinkMessage::DelLink(self.message(Vec::new())), 0)
            .map(drop)
            .map_err(|refused| refused.on("delete", &self.name))
    }

    fn set(&self, op: &'static str, change: impl FnOnce(&mut LinkMessage)) -> Result<(), Error> {
        let mut message = self.message(Vec::new());
        message.header.change_mask = LinkFlags::Up;
        change(&mut message);
        netlink::request(RouteNetlinkMessage::SetLink(message), 0)
            .map(drop)
            .map_err(|refused| refused.on(op, &self.name))
    }

    fn message(&self, attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.attributes = attributes;
        message
    }
}

/// All interfaces.
///
/// # Errors
/// The kernel's refusal.
pub fn list() -> Result<Vec<Link>, Error> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    let answer = netlink::dump(&RouteNetlinkMessage::GetLink(message))
        .map_err(|refused| refused.on("list", "network interfaces"))?;
    Ok(answer.into_iter().filter_map(link).collect())
}

/// The interface of this name, if there is one.
///
/// # Errors
/// The kernel's refusal.
pub fn find(name: &str) -> Result<Option<Link>, Error> {
    get(vec![LinkAttribute::IfName(name.to_owned())], 0)
        .map_err(|refused| refused.on("read interface", name))
}

/// The interface of this index, if there is one.
///
/// # Errors
/// The kernel's refusal.
pub fn at(index: u32) -> Result<Option<Link>, Error> {
    get(Vec::new(), index)
        .map_err(|refused| refused.on("read interface", format!("number {index}")))
}

/// The interface of this name.
///
/// # Errors
/// The kernel's refusal, `ENODEV` if there is none.
pub fn named(name: &str) -> Result<Link, Error> {
    find(name)?.ok_or_else(|| Error::new("find interface", name, Errno::ENODEV))
}

/// Creates a WireGuard device; the kernel loads the module.
///
/// # Errors
/// `EEXIST` if there is an interface of this name, `EOPNOTSUPP` "Unknown device type" if the kernel has no WireGuard.
pub fn create_wireguard(name: &str) -> Result<Link, Error> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
    ];
    netlink::request(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .map_err(|refused| refused.on("create the WireGuard device", name))?;
    named(name)
}

fn get(mut attributes: Vec<LinkAttribute>, index: u32) -> Result<Option<Link>, netlink::Refused> {
    attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    match netlink::request(RouteNetlinkMessage::GetLink(message), 0) {
        Ok(answer) => Ok(answer.into_iter().find_map(link)),
        Err(refused) if refused.is(Errno::ENODEV) => Ok(None),
        Err(refused) => Err(refused),
    }
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        peer: None,
        peer_netns: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(peer) => link.peer = Some(peer),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(id),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{new_netns, veth};

    #[test]
    fn interfaces_are_listed_and_found() {
        let netns = new_netns();
        netns
            .run(|| {
                let link = veth("veth0", "veth1");
                let names: Vec<_> = list().unwrap().into_iter().map(|link| link.name).collect();
                assert!(
                    ["lo", "veth0", "veth1"]
                        .iter()
                        .all(|name| names.iter().any(|n| n == name)),
                    "{names:?}"
                );
                assert_eq!(find("veth0").unwrap().as_ref(), Some(&link));
                assert_eq!(at(link.index).unwrap().as_ref(), Some(&link));
                assert_eq!(link.kind.as_deref(), Some("veth"));
                assert_eq!(link.peer, find("veth1").unwrap().map(|other| other.index));
                assert_eq!(link.peer_netns, None);
                assert_eq!((find("absent").unwrap(), at(4711).unwrap()), (None, None));
                let error = named("absent").unwrap_err();
                assert_eq!(
                    error.to_string(),
                    "cannot find interface absent: No such device"
                );
            })
            .unwrap();
    }

    #[test]
    fn interface_is_changed_and_deleted() {
        let netns = new_netns();
        netns
            .run(|| {
                let link = veth("veth0", "veth1");
                assert!(!link.up);
                link.set_up().unwrap();
                link.set_mtu(1405).unwrap();
                let changed = named("veth0").unwrap();
                assert_eq!((changed.up, changed.mtu), (true, 1405));
                link.set_down().unwrap();
                assert!(!named("veth0").unwrap().up);
                link.delete().unwrap();
                assert_eq!(find("veth1").unwrap(), None);
                assert_eq!(link.delete().unwrap_err().errno(), Some(Errno::ENODEV));
            })
            .unwrap();
    }

    #[test]
    fn refusal_carries_the_kernels_own_words() {
        let netns = new_netns();
        let error = netns
            .run(|| veth("veth0", "veth1").set_mtu(1).unwrap_err())
            .unwrap();
        assert_eq!(
            error.to_string(),
            "cannot set the MTU of veth0 to 1: Invalid argument (mtu less than device minimum)"
        );
    }
}
