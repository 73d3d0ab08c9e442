//! Programs, and what they are attached to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::value::{AbsolutePath, InterfaceName};

/// A program and what it is attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The program.
    pub program: Program,
    /// What it is attached to.
    pub target: Target,
}

impl Attachment {
    /// Name of the link's pin below [`underseal_abi::names::LINKS`].
    #[must_use]
    pub fn pin(&self) -> String {
        match &self.target {
            Target::Interface(interface) | Target::Gone(interface) => {
                format!("{}@{interface}", self.program)
            }
            Target::Cgroup(_) | Target::Kernel => self.program.to_string(),
        }
    }
}

/// What a program is attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A cgroup2 folder.
    Cgroup(AbsolutePath),
    /// An LSM hook or a kernel function, which the program itself names.
    Kernel,
    /// A network interface; the direction follows from the program.
    Interface(InterfaceName),
    /// An interface that is gone, or was replaced under its name; only the pin is left. Occurs in
    /// what was observed alone.
    Gone(InterfaceName),
}

/// Where a kind of program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A cgroup, by this `bpftool cgroup` attach type.
    Cgroup(&'static str),
    /// A kernel function or LSM hook.
    Kernel,
    /// Packets that an interface receives.
    Ingress,
    /// Packets that an interface sends.
    Egress,
}

macro_rules! programs {
    ($($(#[$doc:meta])* $variant:ident = $name:literal at $hook:expr,)*) => {
        /// Every program that is attached, in the order in which this is done: what drops and
        /// records comes before what lets through, and the workloads' own way out is last.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Program { $($(#[$doc])* $variant,)* }

        impl Program {
            /// All of them with their function name in the object and their hook.
            pub const ALL: &[(Self, &str, Hook)] = &[$((Self::$variant, $name, $hook),)*];
        }
    };
}

programs! {
    /// The guard: drops payload of sockets that are not sealed.
    Egress = "egress" at Hook::Cgroup("cgroup_inet_egress"),
    /// The guard's other direction.
    Ingress = "ingress" at Hook::Cgroup("cgroup_inet_ingress"),
    /// The strict check: no workload packet leaves outside WireGuard.
    UplinkEgress = "uplink_egress" at Hook::Egress,
    /// The strict check's other direction.
    UplinkIngress = "uplink_ingress" at Hook::Ingress,
    /// Records tasks inside send.
    SocketSendmsg = "socket_sendmsg" at Hook::Kernel,
    /// Records tasks inside receive.
    SocketRecvmsg = "socket_recvmsg" at Hook::Kernel,
    /// Records which process accepted a connection.
    SockGraft = "sock_graft" at Hook::Kernel,
    /// Records tasks that splice from a socket.
    SpliceRead = "splice_read" at Hook::Kernel,
    /// Records tasks that splice into a socket, on kernels that have this path.
    Sendpage = "sendpage" at Hook::Kernel,
    /// Sees what a program leaves unsent when it closes a sealed socket.
    SockRelease = "sock_release" at Hook::Cgroup("cgroup_inet_sock_release"),
    /// Refuses sockets that cannot be sealed.
    SockCreate = "sock_create" at Hook::Cgroup("cgroup_inet_sock_create"),
    /// Keeps an application from ending its own hold.
    Setsockopt = "setsockopt" at Hook::Cgroup("cgroup_setsockopt"),
    /// Policy at connect, IPv4.
    Connect4 = "connect4" at Hook::Cgroup("cgroup_inet4_connect"),
    /// Policy at connect, IPv6.
    Connect6 = "connect6" at Hook::Cgroup("cgroup_inet6_connect"),
    /// Holds or releases each connection when it is established.
    SocketOps = "socket_ops" at Hook::Cgroup("cgroup_sock_ops"),
    /// Checks what reaches a workload.
    ToWorkload = "to_workload" at Hook::Egress,
    /// Hands packets from other nodes to the workload they are for.
    FromWireguard = "from_wireguard" at Hook::Ingress,
    /// Leads the host's own packets to the device of the pair of keys that is in use.
    ToWireguard = "to_wireguard" at Hook::Egress,
    /// Sends a workload's packets on their way.
    FromWorkload = "from_workload" at Hook::Ingress,
}

impl Program {
    /// Where it is attached.
    #[must_use]
    pub const fn hook(self) -> Hook {
        Self::ALL[self as usize].2
    }

    /// The program called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let (program, _, _) = Self::ALL.iter().find(|(_, n, _)| *n == name)?;
        Some(*program)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL[*self as usize].1)
    }
}
