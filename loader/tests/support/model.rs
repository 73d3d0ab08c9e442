//! A model of the kernel: a state that steps change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;

use super::edge::{Count, Fails};
use underseal::{
    config::value::{AbsolutePath, InterfaceName, PublicKey},
    op::{DatapathOp, DeviceChange, DeviceOp, NamespaceChange, NamespaceOp, NetnsEntry, Op},
    state::{Datapath, Endpoint, Key, Namespace, Route, State, Target, Wireguard},
};

/// The model. Refuses what the kernel would refuse.
pub(crate) struct Model {
    /// As it is now.
    pub(crate) state: State,
    /// What fails.
    pub(crate) fails: Fails,
    /// A step that has no effect.
    pub(crate) deaf: Option<Op>,
    /// Called with the state after every step, also after those that are taken back.
    pub(crate) watch: Box<dyn FnMut(&State)>,
    /// Public half of the key in the key file, also of one that a step makes.
    pub(crate) key: PublicKey,
    pub(super) before: State,
    /// The device before a renaming: switched off, and of no account to a state.
    silent: Option<Wireguard>,
    /// How often each has been done.
    pub(crate) count: Count,
}

/// Why a step failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

pub(super) fn refuse<T>(why: &str) -> Result<T, Refused> {
    Err(Refused(why.to_owned()))
}

impl Model {
    /// A kernel in this state.
    pub(crate) fn new(state: State) -> Self {
        Self {
            before: state.clone(),
            state,
            silent: None,
            fails: Fails::default(),
            deaf: None,
            watch: Box::new(|_| {}),
            key: PublicKey([7; 32]),
            count: Count::default(),
        }
    }

    /// Carries out a step.
    pub(crate) fn step(&mut self, op: &Op) -> Result<(), Refused> {
        if self.deaf.as_ref() == Some(op) {
            return Ok(());
        }
        match op {
            Op::Datapath(op) => self.datapath(op),
            Op::Device(op) => self.device(op),
            Op::Namespace(op) => self.namespace(op),
        }?;
        (self.watch)(&self.state);
        Ok(())
    }

    fn datapath(&mut self, op: &DatapathOp) -> Result<(), Refused> {
        if let DatapathOp::Load(_) = op {
            self.state.datapath.get_or_insert_with(Datapath::default);
            return Ok(());
        }
        let Some(datapath) = &mut self.state.datapath else {
            return refuse("no maps");
        };
        match op {
            DatapathOp::Load(_) => {}
            DatapathOp::Unload => {
                assert!(datapath.attachments.is_empty(), "unloaded while attached");
                self.state.datapath = None;
            }
            DatapathOp::Stamp(object) => datapath.object = *object,
            DatapathOp::Configure(settings) => {
                let mut devices = self.state.wireguard.iter().chain(&self.silent);
                if let Some(name) = &settings.wireguard
                    && !devices.any(|device| device.interface == *name)
                {
                    return refuse("no such device");
                }
                datapath.settings = settings.clone();
            }
            DatapathOp::SetEndpoint(net, it) => return self.set_endpoint(*net, it),
            DatapathOp::Attach(attachment) => {
                datapath
                    .attachments
                    .retain(|old| old.pin() != attachment.pin());
                datapath.attachments.insert(attachment.clone());
            }
            DatapathOp::Detach(attachment) => {
                if !datapath.attachments.remove(attachment) {
                    return refuse("not attached");
                }
            }
            DatapathOp::SetNetns(entry) => self.set_netns(entry),
            DatapathOp::DeleteNetns(cookie) => {
                if let Some(namespace) = self.state.namespaces.get_mut(cookie) {
                    namespace.entry = None;
                    namespace.workload = 0;
                }
                self.forget();
            }
            op => write(datapath, op),
        }
        Ok(())
    }

    /// A device is named by its index, so it has to be there.
    fn set_endpoint(&mut self, net: IpNet, it: &Endpoint) -> Result<(), Refused> {
        let devices: Vec<_> = self.state.devices().chain(&self.silent).collect();
        let mut named = it.device.iter().chain(&it.next);
        if !named.all(|name| devices.iter().any(|device| device.interface == *name)) {
            return refuse("no such device to lead to");
        }
        if let Some(datapath) = &mut self.state.datapath {
            datapath.ipcache.insert(net, it.clone());
        }
        Ok(())
    }

    fn set_netns(&mut self, entry: &NetnsEntry) {
        let namespace = self
            .state
            .namespaces
            .entry(entry.cookie)
            .or_insert(Namespace {
                workload: 0,
                entry: None,
                live: None,
            });
        namespace.workload = entry.workload;
        namespace.entry = Some(entry.saved);
    }

    /// What has neither an entry nor a namespace is nowhere.
    fn forget(&mut self) {
        self.state
            .namespaces
            .retain(|_, n| n.entry.is_some() || n.live.is_some());
    }

    fn device(&mut self, op: &DeviceOp) -> Result<(), Refused> {
        use DeviceChange as C;
        let DeviceOp { interface, change } = op;
        let is_silent = |w: &Wireguard| w.interface == *interface;
        match change {
            C::GenerateKey(_) => {}
            C::Add => return self.add_device(interface),
            C::Delete if self.silent.as_ref().is_some_and(is_silent) => self.silent = None,
            C::Delete if self.state.beside.contains_key(interface) => {
                self.state.beside.remove(interface);
            }
            C::Delete => self.state.wireguard = self.silent.take(),
            _ => {
                let beside = self.state.beside.values_mut();
                let mut devices = self.state.wireguard.iter_mut().chain(beside);
                match devices.find(|device| device.interface == *interface) {
                    Some(device) => {
                        return change_device(device, &mut self.state.routes, self.key, change);
                    }
                    None => self.change_host_side(interface, change),
                }
            }
        }
        Ok(())
    }

    fn add_device(&mut self, interface: &InterfaceName) -> Result<(), Refused> {
        let new = Wireguard {
            interface: interface.clone(),
            up: false,
            mtu: 1420,
            port: 0,
            key: Key {
                public: None,
                file: None,
            },
            addresses: BTreeSet::new(),
            peers: BTreeMap::new(),
        };
        if is_beside(interface) {
            self.state.beside.insert(interface.clone(), new);
            return Ok(());
        }
        self.silent = self.state.wireguard.take();
        if self.silent.as_ref().is_some_and(|w| w.up) {
            return refuse("the port is taken");
        }
        self.state.wireguard = Some(new);
        Ok(())
    }

    /// A workload's interface.
    fn change_host_side(&mut self, interface: &InterfaceName, change: &DeviceChange) {
        let DeviceChange::SetMtu(mtu) = change else {
            return;
        };
        let namespaces = self.state.namespaces.values_mut();
        let veths = namespaces.filter_map(|n| n.live.as_mut()?.veth.as_mut());
        for veth in veths.filter(|veth| veth.host.name == *interface) {
            veth.host_mtu = *mtu;
        }
    }

    fn namespace(&mut self, op: &NamespaceOp) -> Result<(), Refused> {
        let iterators = self.state.datapath.is_some();
        let mut live = self
            .state
            .namespaces
            .values_mut()
            .filter_map(|n| n.live.as_mut());
        let Some(live) = live.find(|live| live.path == op.netns) else {
            return refuse("no such namespace");
        };
        match &op.change {
            NamespaceChange::SetMtu(_, mtu) => match &mut live.veth {
                Some(veth) => veth.mtu = *mtu,
                None => return refuse("no such interface"),
            },
            NamespaceChange::SetLowat(bytes) => live.lowat = *bytes,
            NamespaceChange::TakeOver | NamespaceChange::LetGo if !iterators => {
                return refuse("no iterator");
            }
            NamespaceChange::TakeOver | NamespaceChange::LetGo => {}
        }
        Ok(())
    }
}

/// Entries of maps that nothing else depends on.
fn write(datapath: &mut Datapath, op: &DatapathOp) {
    match op {
        DatapathOp::SetWorkload(id, workload) => {
            datapath.workloads.insert(*id, workload.clone());
        }
        DatapathOp::DeleteWorkload(id) => drop(datapath.workloads.remove(id)),
        DatapathOp::SetNode(id, node) => drop(datapath.nodes.insert(*id, node.clone())),
        DatapathOp::DeleteNode(id) => drop(datapath.nodes.remove(id)),
        DatapathOp::SetBundle(id, bundle) => drop(datapath.bundles.insert(*id, bundle.clone())),
        DatapathOp::DeleteBundle(id) => drop(datapath.bundles.remove(id)),
        DatapathOp::SetPeerWorkload(ip, it) => {
            drop(datapath.peer_workloads.insert(*ip, it.clone()))
        }
        DatapathOp::DeletePeerWorkload(ip) => drop(datapath.peer_workloads.remove(ip)),
        DatapathOp::SetDnsNames(whose, names) if names.is_empty() => {
            drop(datapath.dns_names.remove(whose))
        }
        DatapathOp::SetDnsNames(whose, names) => {
            drop(datapath.dns_names.insert(*whose, names.clone()))
        }
        DatapathOp::SetPolicies(policies) => datapath.policies.clone_from(policies),
        DatapathOp::DeleteEndpoint(net) => drop(datapath.ipcache.remove(net)),
        other => unreachable!("{other} is no entry of a map"),
    }
}

/// Whether a device is for another generation of keys, by its name.
fn is_beside(interface: &InterfaceName) -> bool {
    ["-1", "-2", "-3"]
        .iter()
        .any(|end| interface.as_str().ends_with(end))
}

/// The public half of the key in a file; the usual one has `usual`.
pub(crate) fn key_in(file: &AbsolutePath, usual: PublicKey) -> PublicKey {
    match file.as_str().strip_prefix("/keys/") {
        Some(number) => PublicKey([number.parse().unwrap(); 32]),
        None => usual,
    }
}

fn change_device(
    device: &mut Wireguard,
    routes: &mut BTreeSet<Route>,
    key: PublicKey,
    change: &DeviceChange,
) -> Result<(), Refused> {
    use DeviceChange as C;
    let route = |net: &IpNet| Route {
        destination: *net,
        interface: device.interface.clone(),
    };
    match change {
        C::GenerateKey(_) | C::Add | C::Delete => {}
        C::SetPrivateKey(file) => {
            device.key = Key {
                public: Some(key_in(file, key)),
                file: Some(file.clone()),
            }
        }
        C::ClearPrivateKey => {
            device.key = Key {
                public: None,
                file: None,
            }
        }
        C::Switch(_) if !device.up => return refuse("Network is down"),
        C::Switch(it) if !device.peers.contains_key(&it.peer) => return refuse("no such peer"),
        C::Switch(_) | C::Drain(_) => {}
        C::SetPort(port) => device.port = *port,
        C::SetMtu(mtu) => device.mtu = *mtu,
        C::AddAddress(net) => {
            device.addresses.insert(*net);
        }
        C::DeleteAddress(net) => {
            device.addresses.remove(net);
            if !device.addresses.iter().any(|other| other.addr().is_ipv4()) {
                let is_lost = |route: &Route| {
                    route.interface == device.interface && route.destination.addr().is_ipv4()
                };
                routes.retain(|route| !is_lost(route));
            }
        }
        C::SetPeer(key, peer) => {
            // An allowed IP has one owner.
            for other in device.peers.values_mut() {
                other.networks.retain(|net| !peer.networks.contains(net));
            }
            device.peers.insert(*key, peer.clone());
        }
        C::DeletePeer(key) => {
            device.peers.remove(key);
        }
        C::Up => device.up = true,
        C::Down => {
            device.up = false;
            routes.retain(|route| route.interface != device.interface);
        }
        C::AddRoute(_) if !device.up => return refuse("Network is down"),
        C::AddRoute(net) if !routes.insert(route(net)) => return refuse("File exists"),
        C::DeleteRoute(net) if !routes.remove(&route(net)) => return refuse("No such process"),
        C::AddRoute(_) | C::DeleteRoute(_) => {}
    }
    Ok(())
}

/// Ways that are closed to plaintext, as names: guards, strict checks, namespaces that hold.
pub(crate) fn closed(state: &State) -> Vec<String> {
    let attachments = state.datapath.iter().flat_map(|d| &d.attachments);
    let attached = attachments
        .filter(|a| !matches!(a.target, Target::Gone(_)))
        .map(|attachment| attachment.pin());
    let holding = state.namespaces.iter().filter_map(|(cookie, namespace)| {
        let live = namespace.live.as_ref()?;
        (live.lowat == 0 && namespace.entry.is_some() && namespace.workload != 0)
            .then(|| format!("hold {cookie}"))
    });
    attached.chain(holding).collect()
}
