//! What holds for every change from one configuration to another, on a model of the kernel: the
//! plan reaches its goal, a second plan is empty, and wherever a step fails, or the loader is
//! killed, nothing is more open than it was.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use ipnet::IpNet;
use proptest::prelude::*;
use support::model::{Model, closed, key_in};
use underseal::{
    config::{
        Config, Format, Source,
        value::{Digest, InterfaceName, PublicKey, WorkloadName},
    },
    desired::{DEFAULT_LOWAT, desired},
    execute::{self, Undone},
    op::{DeviceChange, Op},
    plan::plan,
    state::{Attachment, Facts, Found, Link, Live, Namespace, State, Target, Veth},
};

mod support;

/// What a configuration and its machine are made of; small, so that two of them meet.
#[derive(Clone, Debug)]
struct Situation {
    device: bool,
    renamed: bool,
    peers: BTreeSet<u8>,
    /// Generation of this node's key, and whether it has a next one.
    own: (u32, bool),
    /// Generation of each peer's key.
    theirs: [u32; 5],
    endpoint: u8,
    /// Configured workloads, each with the number of its namespace's incarnation, 0: absent.
    workloads: Vec<(u8, u8)>,
    mode: &'static str,
    /// DNS name in a rule; empty: there are no policies.
    dns: &'static str,
    keep: bool,
    uplink_mtu: u32,
    object: u8,
}

fn situation() -> impl Strategy<Value = Situation> {
    (
        any::<bool>(),
        prop::bool::weighted(0.2),
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
                renamed,
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
    fn config(&self) -> Config {
        let mut text = "[node]\nname = \"node-a\"\nnetworks = [\"10.1.0.0/24\"]\n\
            uplinks = [\"eth0\"]\ntrust_domain = \"example.org\"\n"
            .to_owned();
        // A mode that seals between nodes needs addresses of helpers.
        if self.device || !self.peers.is_empty() {
            let name = if self.renamed { "wg-a" } else { "underseal0" };
            text +=
                &format!("[wireguard]\ninterface = \"{name}\"\naddresses = [\"10.1.0.1/32\"]\n");
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
                 generation = {generation}\nendpoint = \"192.0.2.{}:51871\"\nnetworks = [\"10.2.{peer}.0/24\"]\naddress = \"10.2.{peer}.1\"\n",
                self.endpoint
            );
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

    /// What is found on this machine if the kernel's part of it is `state`.
    fn observe(&self, mut state: State, model: &Model) -> (Facts, State) {
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

/// As a namespace was before anything was applied.
fn fresh_again(live: &Live) -> Live {
    let mut live = live.clone();
    live.lowat = DEFAULT_LOWAT;
    if let Some(veth) = &mut live.veth {
        (veth.mtu, veth.host_mtu) = (1500, 1500);
    }
    live
}

/// The states before and after `to` is applied where `from` was, and the steps between.
fn change(from: &Situation, to: &Situation) -> (State, State, Vec<Op>) {
    let mut model = Model::new(State::default());
    for situation in [from, to] {
        let (facts, observed) = situation.observe(model.state.clone(), &model);
        let wanted = desired(&situation.config(), &facts);
        let ops = plan(&wanted, &observed);
        if std::ptr::eq(situation, to) {
            return (observed, wanted, ops);
        }
        model = Model::new(observed);
        execute::apply(&mut model, &ops, |_| {}).unwrap_or_else(|e| panic!("{e}"));
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

fn without_keys(state: &State) -> State {
    let mut state = state.clone();
    let devices = state.wireguard.iter_mut().chain(state.beside.values_mut());
    for device in devices {
        device.key.file = None;
        device.key.public = device.key.public.map(|_| PublicKey([1; 32]));
    }
    state
}

/// Networks of peers that a packet would get to.
fn reached(state: &State) -> BTreeSet<IpNet> {
    let all = state.datapath.iter().flat_map(|d| &d.ipcache);
    let others = all.filter(|(_, endpoint)| endpoint.node > 1);
    let reached = others.filter(|(net, endpoint)| {
        let device = state.leading(endpoint).filter(|device| device.up);
        device.is_some_and(|device| {
            let mut peers = device.peers.values();
            device.key.public.is_some() && peers.any(|peer| peer.networks.contains(*net))
        })
    });
    reached.map(|(net, _)| *net).collect()
}

fn watched(state: State, must_stay: BTreeSet<String>) -> Model {
    let mut model = Model::new(state);
    model.watch = Box::new(move |state| assert_safe(state, &must_stay));
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_reaches_its_goal_and_never_opens_what_stays_closed(from in situation(), to in situation()) {
        let (observed, wanted, ops) = change(&from, &to);
        let after = Rc::new(RefCell::new(BTreeSet::new()));
        {
            let mut model = Model::new(observed.clone());
            execute::apply(&mut model, &ops, |_| {}).unwrap_or_else(|e| panic!("{e}"));
            prop_assert_eq!(plan(&wanted, &model.state), vec![], "a second apply has work to do");
            after.borrow_mut().extend(closed(&model.state));
        }
        let before: BTreeSet<String> = closed(&observed).into_iter().collect();
        let must_stay = before.intersection(&after.borrow()).cloned().collect();
        let mut model = watched(observed, must_stay);
        execute::apply(&mut model, &ops, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    }

    #[test]
    fn a_failing_step_leaves_everything_as_it_was(from in situation(), to in situation()) {
        let (observed, _, ops) = change(&from, &to);
        let before: BTreeSet<String> = closed(&observed).into_iter().collect();
        // What cannot be taken back comes last.
        let is_last = |op: &Op| {
            let Op::Device(op) = op else { return false };
            matches!(op.change, DeviceChange::Delete | DeviceChange::ClearPrivateKey)
        };
        let last = ops.iter().position(is_last).unwrap_or(ops.len());
        prop_assert!(ops[last..].iter().all(is_last), "{:?}", ops);
        for fails_at in 0..ops.len().min(last + 1) {
            let mut model = Model::new(observed.clone());
            model.fails_at = Some(fails_at);
            let failure = execute::apply(&mut model, &ops, |_| {}).unwrap_err();
            prop_assert!(matches!(failure.undone, Undone::All), "step {fails_at}: {failure}");
            // A key that was replaced is not known any more.
            prop_assert_eq!(without_keys(&model.state), without_keys(&observed), "step {}: {}", fails_at, failure);
            assert_safe(&model.state, &before);
        }
    }

    /// The next apply finishes what a killed one began.
    #[test]
    fn an_interrupted_apply_is_finished_by_the_next(from in situation(), to in situation(), cut: prop::sample::Index) {
        let (observed, _, ops) = change(&from, &to);
        if ops.is_empty() {
            return Ok(());
        }
        let mut model = Model::new(observed);
        for op in &ops[..cut.index(ops.len())] {
            model.step(op).unwrap_or_else(|e| panic!("{op}: {e}"));
        }
        let (facts, observed) = to.observe(model.state.clone(), &model);
        let wanted = desired(&to.config(), &facts);
        let mut model = Model::new(observed.clone());
        execute::apply(&mut model, &plan(&wanted, &observed), |_| {}).unwrap_or_else(|e| panic!("{e}"));
        prop_assert_eq!(plan(&wanted, &model.state), vec![]);
        for namespace in model.state.namespaces.values() {
            let entry = namespace.entry.unwrap();
            prop_assert_eq!(entry.lowat, DEFAULT_LOWAT, "what down puts back was forgotten");
            prop_assert!(entry.taken_over);
        }
    }

    /// Networks that are reached before and after are reached in between, at every step: the device that leads to one is up
    /// and has a peer for it.
    #[test]
    fn no_way_is_ever_missing(from in situation(), to in situation()) {
        let to = Situation { renamed: from.renamed, ..to };
        let (observed, wanted, ops) = change(&from, &to);
        let both: BTreeSet<IpNet> = reached(&observed).intersection(&reached(&wanted)).copied().collect();
        let mut model = Model::new(observed);
        model.watch = Box::new(move |state| {
            let missing: Vec<_> = both.difference(&reached(state)).copied().collect();
            assert!(missing.is_empty(), "not reached: {missing:?}");
        });
        execute::apply(&mut model, &ops, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    }

    #[test]
    fn down_leaves_nothing(from in situation(), to in situation()) {
        let (observed, _, ops) = change(&from, &to);
        let mut model = Model::new(observed);
        execute::apply(&mut model, &ops, |_| {}).unwrap_or_else(|e| panic!("{e}"));
        let mut model = Model::new(model.state);
        let ops = plan(&State::default(), &model.state);
        let failed = execute::remove(&mut model, &ops, |_| {});
        prop_assert!(failed.is_empty(), "{:?}", failed);
        prop_assert_eq!(&model.state.wireguard, &None);
        prop_assert!(model.state.beside.is_empty());
        prop_assert_eq!(&model.state.datapath, &None);
        prop_assert!(model.state.routes.is_empty());
        for namespace in model.state.namespaces.values() {
            let live = namespace.live.as_ref().unwrap();
            prop_assert_eq!(live, &fresh_again(live), "not put back");
            prop_assert_eq!(namespace.entry, None);
        }
        prop_assert_eq!(plan(&State::default(), &model.state), vec![]);
    }
}
