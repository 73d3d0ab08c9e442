//! The routes that Underseal owns: those of protocol [`ROUTE_PROTOCOL`] in the main table, each
//! straight into an interface. Routes of anybody else are neither listed, nor replaced, nor deleted.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::error::Error;
use super::link::Link;
use super::netlink;
use crate::state::ROUTE_PROTOCOL;

/// A route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination network.
    pub destination: IpNet,
    /// Index of the interface it leads into.
    pub device: u32,
}

/// All routes of ours, sorted.
///
/// # Errors
/// The kernel's refusal. A kernel without IPv6 simply has no IPv6 routes.
pub fn list() -> Result<Vec<Route>, Error> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        let answer = netlink::dump(&RouteNetlinkMessage::GetRoute(message))
            .map_err(|refused| refused.on("list", "routes"))?;
        // A kernel without this family answers with the routes of all families it has.
        routes.extend(
            answer
                .into_iter()
                .filter_map(|message| ours(message, family)),
        );
    }
    routes.sort_unstable();
    Ok(routes)
}

/// Adds a route to `destination` into `link`. A route of ours to the same destination is replaced
/// in one step; a route of anybody else is an error.
///
/// # Errors
/// The kernel's refusal; `EEXIST` with an explanation if the destination has somebody else's route.
pub fn add(destination: IpNet, link: &Link) -> Result<(), Error> {
    let op = "add the route to";
    let object = || format!("{destination} by {}", link.name);
    let message = RouteNetlinkMessage::NewRoute(message(destination, Some(link.index)));
    let Err(refused) = netlink::request(message.clone(), NLM_F_CREATE | NLM_F_EXCL) else {
        return Ok(());
    };
    if !refused.is(Errno::EEXIST) {
        return Err(refused.on(op, object()));
    }
    if !list()?
        .iter()
        .any(|route| route.destination == destination.trunc())
    {
        return Err(refused
            .on(op, object())
            .explained("there is a route of somebody else to it"));
    }
    netlink::request(message, NLM_F_CREATE | NLM_F_REPLACE)
        .map(drop)
        .map_err(|refused| refused.on(op, object()))
}

/// Deletes a route of ours; one that is not there is fine.
///
/// # Errors
/// The kernel's refusal.
pub fn delete(route: Route) -> Result<(), Error> {
    let message = RouteNetlinkMessage::DelRoute(message(route.destination, Some(route.device)));
    match netlink::request(message, 0) {
        Ok(_) => Ok(()),
        Err(refused) if refused.is(Errno::ESRCH) => Ok(()),
        Err(refused) => Err(refused.on("delete the route to", route.destination.to_string())),
    }
}

/// Index of the interface by which packets of this node itself leave for an address; `None` if none leads there.
///
/// # Errors
/// The kernel's refusal.
pub fn way(address: IpAddr) -> Result<Option<u32>, Error> {
    let mut message = RouteMessage::default();
    (
        message.header.address_family,
        message.header.destination_prefix_length,
    ) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::from(address))];
    let answer = match netlink::request(RouteNetlinkMessage::GetRoute(message), 0) {
        Err(refused) if refused.is(Errno::ENETUNREACH) || refused.is(Errno::EHOSTUNREACH) => {
            return Ok(None);
        }
        other => other.map_err(|refused| refused.on("look for a route to", address.to_string()))?,
    };
    let attributes = answer.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(message) => Some(message.attributes),
        _ => None,
    });
    Ok(attributes.flatten().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(index),
        _ => None,
    }))
}

fn message(destination: IpNet, device: Option<u32>) -> RouteMessage {
    let destination = destination.trunc();
    let mut message = RouteMessage::default();
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    (message.header.address_family, message.header.scope) = match destination {
        IpNet::V4(_) => (AddressFamily::Inet, RouteScope::Link),
        IpNet::V6(_) => (AddressFamily::Inet6, RouteScope::Universe),
    };
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::from(
            destination.network(),
        )));
    message.attributes.extend(device.map(RouteAttribute::Oif));
    message
}

fn ours(message: RouteNetlinkMessage, family: AddressFamily) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let header = &message.header;
    if header.address_family != family
        || header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL)
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let mut address = None;
    let mut device = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => address = Some((*ip).into()),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => address = Some((*ip).into()),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    // A default route carries no destination.
    let unspecified = match family {
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv4Addr::UNSPECIFIED.into(),
    };
    let destination = IpNet::new(
        address.unwrap_or(unspecified),
        header.destination_prefix_length,
    )
    .ok()?;
    Some(Route {
        destination,
        device: device?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{new_netns, veth};

    fn up(name: &str, peer: &str) -> Link {
        let link = veth(name, peer);
        link.set_up().unwrap();
        crate::kernel::link::named(peer).unwrap().set_up().unwrap();
        link
    }

    #[test]
    fn routes_are_added_moved_and_deleted() {
        let netns = new_netns();
        netns
            .run(|| {
                let (first, second) = (up("veth0", "veth1"), up("veth2", "veth3"));
                let destinations: [IpNet; 4] =
                    ["0.0.0.0/0", "10.2.0.0/24", "fd00:2::/64", "fd00:3::1/128"]
                        .map(|text| text.parse().unwrap());
                for destination in destinations {
                    add(destination, &first).unwrap();
                    add(destination, &first).unwrap();
                }
                let by = |link: &Link| {
                    destinations.map(|destination| Route {
                        destination,
                        device: link.index,
                    })
                };
                assert_eq!(list().unwrap(), by(&first));
                for destination in destinations {
                    add(destination, &second).unwrap();
                }
                assert_eq!(list().unwrap(), by(&second));
                for route in by(&second) {
                    delete(route).unwrap();
                    delete(route).unwrap();
                }
                assert!(list().unwrap().is_empty());
            })
            .unwrap();
    }

    #[test]
    fn routes_of_others_are_not_touched() {
        let netns = new_netns();
        netns
            .run(|| {
                let (theirs, ours) = (up("veth0", "veth1"), up("veth2", "veth3"));
                for destination in ["10.2.0.0/24", "fd00:2::/64"] {
                    let destination: IpNet = destination.parse().unwrap();
                    let mut other = message(destination, Some(theirs.index));
                    other.header.protocol = RouteProtocol::Static;
                    netlink::request(RouteNetlinkMessage::NewRoute(other), NLM_F_CREATE | NLM_F_EXCL).unwrap();
                    assert!(list().unwrap().is_empty());
                    let error = add(destination, &ours).unwrap_err().to_string();
                    assert_eq!(
                        error,
                        format!("cannot add the route to {destination} by veth2: File exists (there is a route of somebody else to it)")
                    );
                    delete(Route { destination, device: theirs.index }).unwrap();
                    let kept = add(destination, &ours);
                    assert!(kept.is_err(), "somebody else's route to {destination} was deleted");
                }
            })
            .unwrap();
    }

    #[test]
    fn destination_is_cut_to_its_network() {
        let netns = new_netns();
        netns
            .run(|| {
                let link = up("veth0", "veth1");
                add("10.2.0.7/24".parse().unwrap(), &link).unwrap();
                let only = Route {
                    destination: "10.2.0.0/24".parse().unwrap(),
                    device: link.index,
                };
                assert_eq!(list().unwrap(), [only]);
            })
            .unwrap();
    }
}
