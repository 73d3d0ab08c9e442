//! Builds in a guest what a container runtime would: a network namespace a workload, joined by a veth pair.
//!
//! ```text
//!   netns NAME                    node
//!   eth0 10.N.0.x/32  ─── veth ───  h-NAME  10.N.0.1/32, fe80::1      eth0 192.0.2.N/24
//!        fd00:N::x/128              route to the workload's addresses      2001:db8::N/64
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::site::Helpers;
use crate::vm::Vm;

/// A node of the test network; its number is part of all its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(pub u8);

/// A workload to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Name; also of its network namespace. At most 13 bytes, for the interface's name.
    pub name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Node {
    /// Address on the wire.
    pub fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.0)
    }

    /// Address on the wire.
    pub fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, self.0.into())
    }

    /// Networks of its workloads, with the lengths of their prefixes.
    pub fn networks(self) -> [(IpAddr, u8); 2] {
        let v6 = Ipv6Addr::new(0xfd00, self.0.into(), 0, 0, 0, 0, 0, 0);
        [
            (Ipv4Addr::new(10, self.0, 0, 0).into(), 24),
            (v6.into(), 64),
        ]
    }

    /// Address of its helper inside of the tunnel, with the length of its prefix.
    pub fn helper(self, family: Helpers) -> (IpAddr, u8) {
        match family {
            Helpers::V4 => (Ipv4Addr::new(10, self.0, 0, 254).into(), 32),
            Helpers::V6 => (
                Ipv6Addr::new(0xfd00, self.0.into(), 0, 0, 0, 0, 0, 0xfe).into(),
                128,
            ),
        }
    }

    /// The workload of this node with a name and a number from 2 to 253, which its addresses end with.
    pub fn workload(self, name: &str, number: u8) -> Workload {
        let v6 = Ipv6Addr::new(0xfd00, self.0.into(), 0, 0, 0, 0, 0, number.into());
        Workload {
            name: name.to_owned(),
            v4: Ipv4Addr::new(10, self.0, 0, number),
            v6,
        }
    }

    /// Sets up the interface to the other nodes, `eth0`.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn uplink(self, vm: &Vm) -> Result<()> {
        let (v4, v6) = (self.v4(), self.v6());
        vm.sh(&format!(
            "ip link set eth0 up; ip addr add {v4}/24 dev eth0; ip addr add {v6}/64 dev eth0 nodad"
        ))
        .map(drop)
    }

    /// Makes network namespace, veth pair, addresses and routes of workloads.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn add(self, vm: &Vm, workloads: &[Workload]) -> Result<()> {
        for workload in workloads {
            vm.sh(&self.script(workload))?;
        }
        Ok(())
    }

    /// Lets the node forward packets from any interface to any other, as container runtimes do.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn forward(self, vm: &Vm) -> Result<()> {
        vm.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
            .map(drop)
    }

    /// The shell script that makes one of them, for whoever wants to run it at another time.
    ///
    /// The gateway is an address that every host side has; the prefix of a workload is its address alone.
    pub fn script(self, Workload { name, v4, v6 }: &Workload) -> String {
        let gateway = Ipv4Addr::new(10, self.0, 0, 1);
        format!(
            "set -e
            ip netns add {name}
            ip link add h-{name} type veth peer name eth0 netns {name}
            ip addr add {gateway}/32 dev h-{name}
            ip addr add fe80::1/64 dev h-{name} nodad
            ip link set h-{name} up
            ip -n {name} link set lo up
            ip -n {name} addr add {v4}/32 dev eth0
            ip -n {name} addr add {v6}/128 dev eth0 nodad
            ip -n {name} link set eth0 up
            ip -n {name} route add default via {gateway} dev eth0 onlink
            ip -n {name} -6 route add default via fe80::1 dev eth0
            ip route add {v4}/32 dev h-{name}
            ip -6 route add {v6}/128 dev h-{name}"
        )
    }
}

impl Workload {
    /// Removes network namespace and veth pair.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn remove(&self, vm: &Vm) -> Result<()> {
        // The namespace lives on while a process in it does, so the pair is removed by hand.
        vm.sh(&format!("ip link del h-{0} && ip netns del {0}", self.name))
            .map(drop)
    }

    /// Name of the host side of its veth pair.
    pub fn host_interface(&self) -> String {
        format!("h-{}", self.name)
    }

    /// Waits until something listens on a TCP port in it.
    ///
    /// # Errors
    /// When nothing does for half a minute.
    pub fn wait_for_port(&self, vm: &Vm, port: u16) -> Result<()> {
        let condition = format!("ss -Hltn 'sport = :{port}' | grep -q .");
        let what = format!("a listener on port {port}");
        vm.inside(&self.name)
            .wait_until(&condition, std::time::Duration::from_secs(30), &what)
    }
}
