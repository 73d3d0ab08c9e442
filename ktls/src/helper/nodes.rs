//! Where the nodes' helpers are, as `underseal apply` has written it down.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use underseal_abi::{Node, THIS_NODE};

use super::names::text;

/// All nodes that say where their helper is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Nodes {
    own: Vec<SocketAddr>,
    others: HashMap<u32, Other>,
}

#[derive(Debug, PartialEq, Eq)]
struct Other {
    name: String,
    address: SocketAddr,
}

impl Nodes {
    /// From the entries of `NODES`.
    pub(super) fn new(entries: impl IntoIterator<Item = (u32, Node)>) -> Self {
        let mut nodes = Self::default();
        for (number, node) in entries {
            let port = u16::try_from(node.port).unwrap_or(0);
            let given = [node.v4, node.v6].into_iter().filter(|ip| *ip != [0; 16]);
            let mut addresses =
                given.map(|ip| SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port));
            if number == THIS_NODE {
                nodes.own = addresses.collect();
            } else if let Some(address) = addresses.next() {
                let name = text(&node.name).to_owned();
                nodes.others.insert(number, Other { name, address });
            }
        }
        nodes
    }

    /// Where this node's helper is to be reached.
    pub(super) fn own(&self) -> &[SocketAddr] {
        &self.own
    }

    /// The node whose helper has this address.
    pub(super) fn at(&self, address: IpAddr) -> Option<u32> {
        let mut others = self.others.iter();
        let (number, _) = others.find(|(_, other)| other.address.ip() == address)?;
        Some(*number)
    }

    /// From which address to which the helper of a node is reached.
    pub(super) fn way_to(&self, number: u32) -> Option<(IpAddr, SocketAddr)> {
        let to = self.others.get(&number)?.address;
        let from = self.own.iter().find(|own| own.is_ipv6() == to.is_ipv6())?;
        Some((from.ip(), to))
    }

    /// The node as people know it.
    pub(super) fn name(&self, number: u32) -> String {
        match self.others.get(&number) {
            Some(other) => format!("{} ({})", other.name, other.address),
            None => format!("node number {number}"),
        }
    }
}
