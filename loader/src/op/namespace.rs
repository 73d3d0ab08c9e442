//! Steps inside a workload's network namespace.

use std::fmt;

use serde::Serialize;
use underseal_abi::names::{ITER_LET_GO, ITER_TAKE_OVER, PIN_ROOT, PROGS};

use super::{DatapathOp, Op};
use crate::{
    config::value::{AbsolutePath, InterfaceName},
    state::State,
};

/// A step inside a namespace.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamespaceOp {
    /// Path of the namespace.
    pub netns: AbsolutePath,
    /// What is done in it.
    pub change: NamespaceChange,
}

/// What is done inside a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamespaceChange {
    /// An interface gets an MTU, bytes.
    SetMtu(InterfaceName, u32),
    /// `net.ipv4.tcp_notsent_lowat` is set, bytes. 0 holds every TCP socket that nobody releases.
    SetLowat(u32),
    /// The connections that are open are taken over: those that need no mTLS are released, the
    /// others are reset, or kept if so configured.
    TakeOver,
    /// They are given back: those that are held are reset, all others are released.
    LetGo,
}

impl NamespaceOp {
    /// See [`super::Op::inverse`].
    pub(super) fn inverse(&self, before: &State) -> Vec<Op> {
        use NamespaceChange as C;
        let found = before.namespaces.iter().find_map(|(cookie, namespace)| {
            let live = namespace
                .live
                .as_ref()
                .filter(|live| live.path == self.netns)?;
            Some((*cookie, namespace, live))
        });
        let Some((cookie, namespace, live)) = found else {
            return Vec::new();
        };
        let same = |change| {
            Op::Namespace(Self {
                netns: self.netns.clone(),
                change,
            })
        };
        match &self.change {
            C::SetMtu(name, _) => {
                let old = live
                    .veth
                    .as_ref()
                    .map(|veth| same(C::SetMtu(name.clone(), veth.mtu)));
                old.into_iter().collect()
            }
            // As in `down`: what was established meanwhile is woken.
            C::SetLowat(0) if live.lowat != 0 => {
                vec![same(C::SetLowat(live.lowat)), same(C::LetGo)]
            }
            C::SetLowat(_) => vec![same(C::SetLowat(live.lowat))],
            // Without its entry no new connection of the namespace is held.
            C::TakeOver if namespace.entry.is_none() => {
                vec![DatapathOp::DeleteNetns(cookie).into(), same(C::LetGo)]
            }
            C::TakeOver | C::LetGo => Vec::new(),
        }
    }

    /// See [`super::Op::closes`].
    pub(super) const fn closes(&self) -> bool {
        use NamespaceChange as C;
        match &self.change {
            // Packets have to fit into the tunnel, if that stays.
            C::SetMtu(..) | C::SetLowat(0) | C::TakeOver => true,
            C::SetLowat(_) | C::LetGo => false,
        }
    }
}

impl fmt::Display for NamespaceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use NamespaceChange as C;
        write!(f, "nsenter --net={} ", self.netns)?;
        match &self.change {
            C::SetMtu(name, mtu) => write!(f, "ip link set dev {name} mtu {mtu}"),
            C::SetLowat(bytes) => write!(f, "sysctl -w net.ipv4.tcp_notsent_lowat={bytes}"),
            C::TakeOver => write!(f, "bpftool iter run {PIN_ROOT}/{PROGS}/{ITER_TAKE_OVER}"),
            C::LetGo => write!(f, "bpftool iter run {PIN_ROOT}/{PROGS}/{ITER_LET_GO}"),
        }
    }
}
