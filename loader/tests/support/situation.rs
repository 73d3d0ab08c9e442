//! Configurations and machines to go from one to another, on the model of the kernel.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use proptest::prelude::*;
use underseal::{
    config::{
        Config, Format, Source,
        value::{Digest, InterfaceName, PublicKey, WorkloadName},
    },
    desired::{DEFAULT_LOWAT, desired},
    execute,
    op::{DeviceChange, Op},
    plan::plan,
    state::{Attachment, Facts, Found, Link, Live, Namespace, State, Target, Veth},
};

use super::model::{Model, closed, key_in};

/// What a configuration and its machine are made of; small, so that two of them meet.
#[derive(Clone, Debug)]
pub(crate) struct Situation {
    pub(crate) device: bool,
    pub(crate) renamed: bool,
    /// Whether its device has an IPv4 address, where it need not.
    pub(crate) addressed: bool,
    pub(crate) peers: BTreeSet<u8>,
    /// Generation of this node's key, and whether it has a next one.
    pub(crate) own: (u32, bool),
    /// Generation of each peer's key.
    pub(crate) theirs: [u32; 5],
    pub(crate) endpoint: u8,
    /// Configured workloads, each with the number of its namespace's incarnation, 0: absent.
    pub(crate) workloads: Vec<(u8, u8)>,
    pub(crate) mode: &'static str,
    /// DNS name in a rule; empty: there are no policies.
    pub(crate) dns: &'static str,
    pub(crate) keep: bool,
    pub(crate) uplink_mtu: u32,
    pub(crate) object: u8,
}

pub(crate) fn situation() -> impl Strategy<Value = Situation> {
    (
        any::<bool>(),
        (prop::bool::weighted(0.2), any::<bool>()),
        prop::collection::btree_set(1u8..5, 0..4),
        (
            (0u32..3, any::<bool>()),
            prop::array::uniform5(0u32..3),
            1u8..3,
        ),
        prop::collection::btree_map(1u8..5, 0u8..3, 0..4),
        (
            prop::sample::select(vec!["same-node", "never", "always", "cross-node"]),
            prop::sample::select(vec!["", "w1", "w2", "*.default.svc.cluster.local"]),
        ),
        any::<bool>(),
        prop::sample::select(vec![1400u32, 1500, 9000]),
        1u8..3,
    )
        .prop_map(
            |(
                device,
                (renamed, addressed),
                peers,
                (own, theirs, endpoint),
                workloads,
                (mode, dns),
                keep,
                uplink_mtu,
                object,
            )| {
                Situation {
                    device,
                    renamed,
                    addressed,
                    peers,
                    own,
                    theirs,
                    endpoint,
                    workloads: workloads.into_iter().collect(),
                    mode,
                    dns,
                    keep,
                    uplink_mtu,
                    object,
                }
            },
        )
}

impl Situation {
    pub(crate) fn config(&self) -> Config {
        let mut text = "[node]\nname = \"node-a\"\nnetworks = [\"10.1.0.0/24\"]\n\
            uplinks = [\"eth0\"]\ntrust_domain = \"example.org\"\n"
            .to_owned();
        // A mode that seals between nodes needs addresses of helpers.
        if self.device || !self.peers.is_empty() {
            let name = if self.renamed { "wg-a" } else { "underseal0" };
            text += &format!("[wireguard]\ninterface = \"{name}\"\n");
            if self.has_addresses() {
                text += "addresses = [\"10.1.0.1/32\"]\n";
            }
            let (generation, next) = self.own;
            if generation > 0 {
                let file = own_file(generation);
                text += &format!("generation = {generation}\nprivate_key_file = \"{file}\"\n");
            }
            if next {
                let file = own_file(generation + 1);
                text += &format!("[wireguard.next]\nprivate_key_file = \"{file}\"\n");
            }
        }
        for peer in &self.peers {
            let generation = self.theirs[usize::from(*peer)];
            let key = peer_key(*peer, generation);
            text += &format!(
                "[[peer]]\nname = \"node-{peer}\"\npublic_key = \"{key}\"\n\
                 generation = {generation}\nendpoint = \"192.0.2.{}:51871\"\nnetworks = [\"10.2.{peer}.0/24\"]\n",
                self.endpoint
            );
            if self.has_addresses() {
                text += &format!("address = \"10.2.{peer}.1\"\n");
            }
        }
        for (workload, _) in &self.workloads {
            text += &format!(
                "[[workload]]\nname = \"w{workload}\"\nnetns = \"/run/netns/w{workload}\"\n\
                 addresses = [\"10.1.0.1{workload}\"]\n"
            );
        }
        if !self.dns.is_empty() {
            text += &format!(
                "[[network_policy]]\nname = \"p\"\n[[network_policy.egress]]\npeers = [{{ dns = \"{}\" }}]\n",
                self.dns
            );
        }
        let mode = self.mode;
        let existing = if self.keep { "keep" } else { "reset" };
        text += &format!("[seal]\nmode = \"{mode}\"\nexisting = \"{existing}\"\n");
        let source = Source {
            name: "generated".to_owned(),
            text,
            format: Format::Toml,
        };
        Config::parse(&source).unwrap_or_else(|e| panic!("{e}"))
    }

    fn has_addresses(&self) -> bool {
        self.addressed || ["always", "cross-node"].contains(&self.mode)
    }

    /// What is found on this machine if the kernel's part of it is `state`.
    pub(crate) fn observe(&self, mut state: State, model: &Model) -> (Facts, State) {
        let incarnations: BTreeSet<u64> = self
            .workloads
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|(w, n)| cookie(*w, *n))
            .collect();
        for (cookie, namespace) in &mut state.namespaces {
            if !incarnations.contains(cookie) {
                namespace.live = None;
            }
        }
        state
            .namespaces
            .retain(|_, n| n.entry.is_some() || n.live.is_some());
        let namespaces = self.namespaces(&mut state);
        mark_gone(&mut state);
        (self.facts(&state, model, namespaces), state)
    }

    /// Those of the workloads, in `state` too.
    fn namespaces(&self, state: &mut State) -> BTreeMap<WorkloadName, Found> {
        let mut namespaces = BTreeMap::new();
        for (workload, n) in self.workloads.iter().filter(|(_, n)| *n > 0) {
            let cookie = cookie(*workload, *n);
            let found = state.namespaces.entry(cookie).or_insert(Namespace {
                workload: 0,
                entry: None,
                live: None,
            });
            let live = found.live.get_or_insert(fresh(*workload, *n)).clone();
            let entry = found.entry;
            let name = format!("default/w{workload}").parse().unwrap();
            namespaces.insert(
                name,
                Found {
                    cookie,
                    entry,
                    live,
                },
            );
        }
        namespaces
    }

    fn facts(
        &self,
        state: &State,
        model: &Model,
        namespaces: BTreeMap<WorkloadName, Found>,
    ) -> Facts {
        let ids = state.datapath.iter().flat_map(|d| &d.workloads);
        let own = |generation: u32| {
            let file = own_file(generation).parse().unwrap();
            key_in(&file, model.key)
        };
        let (generation, next) = self.own;
        Facts {
            object: Digest([self.object; 16]),
            public_key: Some(own(generation)),
            next_public_key: next.then(|| own(generation + 1)),
            preshared_keys: BTreeMap::new(),
            next_preshared_keys: BTreeMap::new(),
            leading: leading(state),
            sessions: BTreeMap::new(),
            uplinks: [("eth0".parse().unwrap(), self.uplink_mtu)].into(),
            sendpage: false,
            ids: ids
                .map(|(id, workload)| (workload.name.clone(), *id))
                .collect(),
            cipher: None,
            namespaces,
        }
    }
}

/// Which device leads to each network of a peer.
fn leading(state: &State) -> BTreeMap<IpNet, InterfaceName> {
    let ipcache = state.datapath.iter().flat_map(|d| &d.ipcache);
    let leading = ipcache.filter(|(_, endpoint)| endpoint.node > 1);
    let leading = leading
        .filter_map(|(net, endpoint)| Some((*net, state.leading(endpoint)?.interface.clone())));
    leading.collect()
}

/// Where this node's key of a generation is.
fn own_file(generation: u32) -> String {
    match generation {
        0 => "/var/lib/underseal/wireguard.key".to_owned(),
        _ => format!("/keys/{}", 100 + generation),
    }
}

fn peer_key(peer: u8, generation: u32) -> PublicKey {
    PublicKey([peer + 10 * u8::try_from(generation).unwrap(); 32])
}

/// Attachments to veth pairs of namespaces that are gone are only pins.
fn mark_gone(state: &mut State) {
    let Some(datapath) = &mut state.datapath else {
        return;
    };
    let lives = state
        .namespaces
        .values()
        .filter_map(|n| n.live.as_ref()?.veth.as_ref());
    let hosts: BTreeSet<_> = lives.map(|veth| &veth.host.name).collect();
    let mark = |mut attachment: Attachment| {
        if let Target::Interface(name) = &attachment.target
            && name.as_str().starts_with("veth")
            && !hosts.contains(name)
        {
            attachment.target = Target::Gone(name.clone());
        }
        attachment
    };
    datapath.attachments = std::mem::take(&mut datapath.attachments)
        .into_iter()
        .map(mark)
        .collect();
}

fn cookie(workload: u8, incarnation: u8) -> u64 {
    u64::from(workload) * 100 + u64::from(incarnation)
}

fn fresh(workload: u8, incarnation: u8) -> Live {
    Live {
        path: format!("/run/netns/w{workload}").parse().unwrap(),
        lowat: DEFAULT_LOWAT,
        veth: Some(Veth {
            interface: "eth0".parse().unwrap(),
            mtu: 1500,
            host: Link {
                name: format!("veth{workload}-{incarnation}").parse().unwrap(),
                index: u32::try_from(cookie(workload, incarnation)).unwrap(),
            },
            host_mtu: 1500,
        }),
    }
}

/// The states before and after `to` is applied where `from` was, and the steps between.
pub(crate) fn change(from: &Situation, to: &Situation) -> (State, State, Vec<Op>) {
    let mut model = Model::new(State::default());
    for situation in [from, to] {
        let (facts, observed) = situation.observe(model.state.clone(), &model);
        let wanted = desired(&situation.config(), &facts);
        let ops = plan(&wanted, &observed);
        if std::ptr::eq(situation, to) {
            return (observed, wanted, ops);
        }
        model = Model::new(observed);
        arrive(&mut model, &wanted);
    }
    unreachable!("the loop returns at its second turn")
}

/// What may never be seen, whatever the steps have come to.
fn assert_safe(state: &State, must_stay: &BTreeSet<String>) {
    let closed: BTreeSet<String> = closed(state).into_iter().collect();
    let opened: Vec<_> = must_stay.difference(&closed).collect();
    assert!(opened.is_empty(), "opened: {opened:?}");
    if !state.routes.is_empty() {
        assert!(
            closed.contains("uplink_egress@eth0"),
            "a route, but no strict check"
        );
        assert!(
            closed.contains("uplink_ingress@eth0"),
            "a route, but no strict check"
        );
    }
    let holds = state.namespaces.values().any(|n| n.entry.is_some());
    if holds {
        for guard in [
            "egress",
            "ingress",
            "socket_ops",
            "socket_sendmsg",
            "socket_recvmsg",
        ] {
            assert!(
                closed.contains(guard),
                "a namespace is held, but {guard} is not attached"
            );
        }
    }
}

/// Gets there; by one plan, but for the routes that go with a device's last IPv4 address. Returns the steps.
pub(crate) fn arrive(model: &mut Model, wanted: &State) -> Vec<Op> {
    let first = model.count.steps + plan(wanted, &model.state).len();
    let steps = execute::apply(&mut model.towards(wanted), |_| {});
    let steps = steps.unwrap_or_else(|e| panic!("{e}"));
    let is_route =
        |op: &Op| matches!(op, Op::Device(op) if matches!(op.change, DeviceChange::AddRoute(_)));
    let again = steps.iter().filter(|op| !op.is_last()).skip(first);
    assert!(again.into_iter().all(is_route), "{steps:#?}");
    steps
}

/// What is closed before and after an apply, and so has to be in between.
pub(crate) fn stays_closed(before: &State, after: &State) -> BTreeSet<String> {
    let after: BTreeSet<String> = closed(after).into_iter().collect();
    let before = closed(before).into_iter();
    before.filter(|way| after.contains(way)).collect()
}

pub(crate) fn watched(state: State, must_stay: BTreeSet<String>) -> Model {
    let mut model = Model::new(state);
    model.watch = Box::new(move |state| assert_safe(state, &must_stay));
    model
}
