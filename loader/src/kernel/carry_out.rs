//! Carries out single steps, and takes them back.

mod device;

use std::io;

use thiserror::Error;
use underseal_abi::{
    ABI_VERSION, Config as RawConfig, Conn, Netns as RawNetns, State as ConnState,
};
use underseal_ktls::diag;

use super::bpf::attach::{self, Previous};
use super::bpf::object::{self, Iterators, LoadError, Loaded};
use super::bpf::{iterate, maps, named, policies};
use super::error::Error;
use super::key::PrivateKey;
use super::netns::Netns;
use super::switch::{self, Insistence};
use super::{link, sysctl, wireguard};
use crate::config::bytes::Bytes;
use crate::config::value::{AbsolutePath, Digest, InterfaceName};
use crate::controls::Controls;
use crate::execute::Edge;
use crate::op::{
    DatapathOp, DeviceChange, DeviceOp, NamespaceChange, NamespaceOp, NetnsEntry, Op, Switch,
};
use crate::report::Ends;
use crate::state::{Settings, State};

use self::device::Secrets;

/// The kernel of this node, as an edge of [`crate::execute`].
pub struct Kernel {
    /// The node before the steps: what one that is taken back goes back to.
    before: State,
    /// What it does not say, but has to be put back.
    secrets: Secrets,
    controls: Controls,
    loaded: Option<Loaded>,
    /// What became of connections that were open.
    interventions: Vec<Intervention>,
    insistence: Insistence,
    /// What was done although it may not be meant so.
    warnings: Vec<String>,
}

/// What a take-over, or its reverse, did to the connections of a namespace.
#[derive(Clone, Debug)]
pub struct Intervention {
    /// The namespace.
    pub netns: AbsolutePath,
    /// Connections that were reset.
    pub reset: Vec<Conn>,
    /// Connections that go on in plaintext although new ones like them would be sealed.
    pub kept: Vec<Conn>,
}

/// Why a step failed.
#[derive(Debug, Error)]
pub enum StepError {
    /// A system operation failed.
    #[error(transparent)]
    System(#[from] Error),
    /// The BPF object was not loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// How to take a step back.
pub enum Undo {
    /// By these steps.
    Steps(Vec<Op>),
    /// By attaching what was attached before.
    Program(Previous),
    /// By pinning the iterators that were pinned before.
    Iterators(Iterators),
    /// By the private key that the device had before.
    Key(InterfaceName, PrivateKey),
}

impl Kernel {
    /// The kernel, which is now in the state `before`.
    #[must_use]
    pub const fn new(before: State, controls: Controls) -> Self {
        Self {
            before,
            secrets: Secrets::none(),
            controls,
            loaded: None,
            interventions: Vec::new(),
            insistence: Insistence::Sessions,
            warnings: Vec::new(),
        }
    }

    /// It has been looked at again: what follows is taken back to this.
    pub fn found(&mut self, now: State) {
        self.before = now;
    }

    /// The same, with what a peer that does not answer is worth.
    #[must_use]
    pub fn insisting(self, insistence: Insistence) -> Self {
        Self { insistence, ..self }
    }

    /// What was done although it may not be meant so.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What became of connections that were open.
    #[must_use]
    pub fn interventions(&self) -> &[Intervention] {
        &self.interventions
    }

    fn step(&mut self, op: &Op) -> Result<Undo, StepError> {
        self.controls.begins();
        match op {
            // Without maps there were no iterators; with them, they are all that a load replaces.
            Op::Datapath(DatapathOp::Load(_)) if self.before.datapath.is_some() => {
                let before = Iterators::pinned()?;
                if let Err(error) = self.load() {
                    before.restore()?;
                    return Err(error);
                }
                return Ok(Undo::Iterators(before));
            }
            Op::Datapath(op) => {
                if let Some(previous) = self.datapath(op)? {
                    return Ok(Undo::Program(previous));
                }
            }
            Op::Device(DeviceOp {
                interface,
                change: DeviceChange::Switch(it),
            }) => self.switch(interface, it)?,
            Op::Device(op) => {
                if let Some(key) = self.secrets.carry_out(op, &self.before)? {
                    return Ok(Undo::Key(op.interface.clone(), key));
                }
            }
            Op::Namespace(op) => self.namespace(op)?,
        }
        Ok(Undo::Steps(op.inverse(&self.before)))
    }

    fn switch(&mut self, interface: &InterfaceName, it: &Switch) -> Result<(), Error> {
        let answered = switch::switch(interface, it, self.insistence)?;
        if !answered && it.before.is_some() {
            self.warnings.push(format!(
                "peer {} does not answer through {interface}; there was nothing to lose, so its key was exchanged",
                it.peer
            ));
        }
        Ok(())
    }

    /// Returns what was attached before, if the step is about that.
    fn datapath(&mut self, op: &DatapathOp) -> Result<Option<Previous>, StepError> {
        match op {
            DatapathOp::Load(_) => self.load()?,
            DatapathOp::Attach(attachment) => {
                return Ok(Some(attach::attach(self.loaded()?, attachment)?));
            }
            DatapathOp::Detach(attachment) => return Ok(Some(attach::detach(attachment)?)),
            DatapathOp::Unload => object::unload()?,
            DatapathOp::Stamp(digest) => stamp(*digest)?,
            DatapathOp::Configure(settings) => configure(settings)?,
            DatapathOp::SetWorkload(id, workload) => maps::set_workload(*id, workload)?,
            DatapathOp::DeleteWorkload(id) => maps::delete_workload(*id)?,
            DatapathOp::SetNode(id, node) => maps::set_node(*id, node)?,
            DatapathOp::DeleteNode(id) => maps::delete_node(*id)?,
            DatapathOp::SetBundle(id, bundle) => maps::set_bundle(*id, bundle)?,
            DatapathOp::DeleteBundle(id) => maps::delete_bundle(*id)?,
            DatapathOp::SetPeerWorkload(ip, workload) => maps::set_peer_workload(*ip, workload)?,
            DatapathOp::DeletePeerWorkload(ip) => maps::delete_peer_workload(*ip)?,
            DatapathOp::SetDnsNames(whose, wanted) => named::set(*whose, wanted)?,
            DatapathOp::SetPolicies(wanted) => {
                let left = policies::replace(wanted.as_ref())?;
                self.warnings
                    .extend(left.map(|error| format!("{error}\n  ignoring")));
            }
            DatapathOp::SetEndpoint(net, endpoint) => maps::set_endpoint(*net, endpoint)?,
            DatapathOp::DeleteEndpoint(net) => maps::delete_endpoint(*net)?,
            DatapathOp::SetNetns(entry) => set_netns(entry)?,
            DatapathOp::DeleteNetns(cookie) => maps::delete_namespace(*cookie)?,
        }
        Ok(None)
    }

    fn load(&mut self) -> Result<(), StepError> {
        match Loaded::load(self.controls) {
            Ok(loaded) => self.loaded = Some(loaded),
            Err(error) => {
                // Maps that were made on the way go too, unless there were maps before.
                if self.before.datapath.is_none() {
                    object::unload()?;
                }
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// The programs; loaded now if the plan only attaches more of those that are attached already.
    fn loaded(&mut self) -> Result<&Loaded, LoadError> {
        if self.loaded.is_none() {
            self.loaded = Some(Loaded::load(self.controls)?);
        }
        let missing = || {
            Error::new(
                "load",
                "the BPF object",
                io::Error::from(io::ErrorKind::NotFound),
            )
        };
        Ok(self.loaded.as_ref().ok_or_else(missing)?)
    }

    fn namespace(&mut self, op: &NamespaceOp) -> Result<(), Error> {
        let path = &op.netns;
        let netns = Netns::open(path.as_path())?.ok_or_else(|| {
            Error::new(
                "open network namespace",
                path.as_str(),
                io::ErrorKind::NotFound,
            )
        })?;
        match &op.change {
            NamespaceChange::SetMtu(interface, mtu) => {
                netns.run(|| link::named(interface.as_str())?.set_mtu(*mtu))?
            }
            NamespaceChange::SetLowat(bytes) => netns.run(|| sysctl::set_notsent_lowat(*bytes))?,
            NamespaceChange::TakeOver => self.intervene(path, &netns, iterate::take_over(&netns)?),
            NamespaceChange::LetGo => self.intervene(path, &netns, iterate::let_go(&netns)?),
        }
    }

    /// Resets the connections that an iterator has listed, but for those it says it has let go.
    fn intervene(
        &mut self,
        path: &AbsolutePath,
        netns: &Netns,
        listed: Vec<Conn>,
    ) -> Result<(), Error> {
        let is_kept = |conn: &Conn| conn.state == ConnState::Released as u32;
        let (kept, reset): (Vec<_>, Vec<_>) = listed.into_iter().partition(is_kept);
        let (reset, failure) = netns.run(|| each(reset, destroy))?;
        self.interventions.push(Intervention {
            netns: path.clone(),
            reset,
            kept,
        });
        failure.map_or(Ok(()), Err)
    }
}

impl Edge for Kernel {
    type Undo = Undo;
    type Error = StepError;

    fn apply(&mut self, op: &Op) -> Result<Undo, StepError> {
        self.step(op)
    }

    fn undo(&mut self, undo: Undo) -> Result<(), StepError> {
        match undo {
            Undo::Program(previous) => Ok(previous.restore()?),
            Undo::Iterators(before) => Ok(before.restore()?),
            Undo::Key(interface, key) => Ok(wireguard::set_private_key(&interface, &key)?),
            Undo::Steps(ops) => ops.iter().try_for_each(|op| self.step(op).map(drop)),
        }
    }
}

/// Does something with all of them, whichever of them fails. Returns those it was done with, and the first failure.
fn each<T, E>(all: Vec<T>, what: impl Fn(&T) -> Result<(), E>) -> (Vec<T>, Option<E>) {
    let mut failure = None;
    let done = all.into_iter().filter(|one| match what(one) {
        Ok(()) => true,
        Err(error) => {
            failure.get_or_insert(error);
            false
        }
    });
    (done.collect(), failure)
}

/// Ends a connection of the calling thread's namespace. One that has ended meanwhile is fine.
fn destroy(conn: &Conn) -> Result<(), Error> {
    let ends = Ends::of(&conn.tuple);
    let tuple = diag::Tuple {
        local: ends.local,
        remote: ends.remote,
    };
    diag::destroy(tuple, conn.cookie)
        .map(drop)
        .map_err(|source| Error::new("reset connection", ends.to_string(), source))
}

fn stamp(digest: Option<Digest>) -> Result<(), Error> {
    let old = maps::config()?.unwrap_or_default();
    let object = digest.map_or([0; 16], |digest| digest.0);
    maps::set_config(&RawConfig { object, ..old })
}

fn set_netns(entry: &NetnsEntry) -> Result<(), Error> {
    let raw = RawNetns {
        workload: entry.workload,
        saved_lowat: entry.saved.lowat,
        saved_mtu: entry.saved.mtu,
        taken_over: u32::from(entry.saved.taken_over),
    };
    maps::set_namespace(entry.cookie, &raw)
}

fn configure(settings: &Settings) -> Result<(), Error> {
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let old = maps::config()?.unwrap_or_default();
    maps::set_config(&RawConfig {
        abi: ABI_VERSION,
        mode: settings.mode.raw() as u32,
        wireguard: match &settings.wireguard {
            Some(name) => link::named(name.as_str())?.index,
            None => 0,
        },
        flags: flag(settings.allow_outside, RawConfig::ALLOW_OUTSIDE)
            | flag(settings.allow_non_tcp, RawConfig::ALLOW_NON_TCP)
            | flag(settings.keep_existing, RawConfig::KEEP_EXISTING)
            | flag(settings.keep_revoked, RawConfig::KEEP_REVOKED)
            | flag(settings.rotating, RawConfig::ROTATING),
        object: old.object,
        rekey_after: settings.rekey_after.map_or(0, Bytes::number),
        recheck: settings.recheck,
        policy: old.policy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_cannot_be_reset_stops_none() {
        let odd = |number: &u32| {
            if number % 2 == 1 {
                Ok(())
            } else {
                Err(*number)
            }
        };
        assert_eq!(each(vec![1, 2, 3, 4, 5], odd), (vec![1, 3, 5], Some(2)));
        assert_eq!(each(vec![1, 3], odd), (vec![1, 3], None));
    }
}
