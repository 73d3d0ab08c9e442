//! Addresses on an interface of the calling thread's network namespace.

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::error::Error;
use super::link::Link;
use super::netlink;

/// The addresses of an interface, with their prefix lengths, sorted. IPv6 link-local addresses are
/// left out: the kernel makes and removes them itself.
///
/// # Errors
/// The kernel's refusal.
pub fn list(link: &Link) -> Result<Vec<IpNet>, Error> {
    let mut message = AddressMessage::default();
    message.header.index = link.index;
    let answer = netlink::dump(&RouteNetlinkMessage::GetAddress(message))
        .map_err(|refused| refused.on("list the addresses of", &link.name))?;
    let mut addresses: Vec<IpNet> = answer
        .into_iter()
        .filter_map(|message| address(message, link.index))
        .collect();
    addresses.sort_unstable();
    Ok(addresses)
}

/// Adds an address; one that is there already is left as it is.
///
/// An IPv6 address gets no duplicate address detection: a WireGuard device has no neighbours to
/// ask, and the address would stay unusable for a second.
///
/// # Errors
/// The kernel's refusal, for example "IPv6 is disabled on this device".
pub fn add(link: &Link, address: IpNet) -> Result<(), Error> {
    let message = RouteNetlinkMessage::NewAddress(message(link, address));
    match netlink::request(message, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => Ok(()),
        Err(refused) if refused.is(Errno::EEXIST) => Ok(()),
        Err(refused) => Err(refused.on("add address", format!("{address} to {}", link.name))),
    }
}

/// Deletes an address; one that is not there is fine.
///
/// # Errors
/// The kernel's refusal.
pub fn delete(link: &Link, address: IpNet) -> Result<(), Error> {
    match netlink::request(RouteNetlinkMessage::DelAddress(message(link, address)), 0) {
        Ok(_) => Ok(()),
        Err(refused) if refused.is(Errno::EADDRNOTAVAIL) => Ok(()),
        Err(refused) => Err(refused.on("delete address", format!("{address} of {}", link.name))),
    }
}

fn message(link: &Link, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = link.index;
    message.header.prefix_len = address.prefix_len();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    // IFA_LOCAL is our end; IFA_ADDRESS would be the other end of a point-to-point address, and is
    // the same where there is none.
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
    ];
    if address.addr().is_ipv6() {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn address(message: RouteNetlinkMessage, index: u32) -> Option<IpNet> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let link_local =
        message.header.family == AddressFamily::Inet6 && message.header.scope == AddressScope::Link;
    // Kernels before strict checks answer with the addresses of all interfaces.
    if message.header.index != index || link_local {
        return None;
    }
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{new_netns, veth};

    #[test]
    fn addresses_are_added_listed_and_deleted() {
        let netns = new_netns();
        netns
            .run(|| {
                let (link, other) = (
                    veth("veth0", "veth1"),
                    crate::kernel::link::named("veth1").unwrap(),
                );
                let addresses: [IpNet; 3] = ["10.1.0.1/24", "10.1.0.2/32", "fd00:1::1/64"]
                    .map(|text| text.parse().unwrap());
                for address in addresses {
                    add(&link, address).unwrap();
                    add(&link, address).unwrap();
                }
                link.set_up().unwrap();
                other.set_up().unwrap();
                assert_eq!(list(&link).unwrap(), addresses);
                assert!(
                    list(&other).unwrap().is_empty(),
                    "link-local addresses are not ours"
                );
                for address in addresses {
                    delete(&link, address).unwrap();
                    delete(&link, address).unwrap();
                }
                assert!(list(&link).unwrap().is_empty());
            })
            .unwrap();
    }

    #[test]
    fn ipv6_address_can_be_used_at_once() {
        let netns = new_netns();
        netns
            .run(|| {
                let link = veth("veth0", "veth1");
                crate::kernel::link::named("veth1")
                    .unwrap()
                    .set_up()
                    .unwrap();
                link.set_up().unwrap();
                add(&link, "fd00:1::1/128".parse().unwrap()).unwrap();
                // EADDRNOTAVAIL while duplicate address detection runs.
                std::net::UdpSocket::bind("[fd00:1::1]:0").unwrap();
            })
            .unwrap();
    }

    #[test]
    fn refusal_names_address_and_interface() {
        let netns = new_netns();
        let error = netns
            .run(|| {
                let link = veth("veth0", "veth1");
                link.delete().unwrap();
                add(&link, "10.1.0.1/24".parse().unwrap()).unwrap_err()
            })
            .unwrap();
        assert_eq!(error.errno(), Some(Errno::ENODEV));
        assert!(
            error
                .to_string()
                .starts_with("cannot add address 10.1.0.1/24 to veth0: No such device"),
            "{error}"
        );
    }
}
