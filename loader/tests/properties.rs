//! What holds for every change from one configuration to another, on a model of the kernel: the
//! plan reaches its goal, a second plan is empty, and wherever the loader is killed, nothing is more open than it was.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use ipnet::IpNet;
use proptest::prelude::*;
use support::{
    model::Model,
    situation::{Situation, arrive, change, situation, stays_closed, watched},
};
use underseal::{
    desired::{DEFAULT_LOWAT, desired},
    execute,
    plan::plan,
    state::{Live, State},
};

mod support;

/// As a namespace was before anything was applied.
fn fresh_again(live: &Live) -> Live {
    let mut live = live.clone();
    live.lowat = DEFAULT_LOWAT;
    if let Some(veth) = &mut live.veth {
        (veth.mtu, veth.host_mtu) = (1500, 1500);
    }
    live
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_reaches_its_goal_and_never_opens_what_stays_closed(from in situation(), to in situation()) {
        let (observed, wanted, _) = change(&from, &to);
        let mut model = Model::new(observed.clone());
        arrive(&mut model, &wanted);
        prop_assert_eq!(plan(&wanted, &model.state), vec![], "a second apply has work to do");
        let mut model = watched(observed.clone(), stays_closed(&observed, &model.state));
        arrive(&mut model, &wanted);
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
        arrive(&mut model, &wanted);
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
        let (observed, wanted, _) = change(&from, &to);
        let both: BTreeSet<IpNet> = reached(&observed).intersection(&reached(&wanted)).copied().collect();
        let mut model = Model::new(observed);
        model.watch = Box::new(move |state| {
            let missing: Vec<_> = both.difference(&reached(state)).copied().collect();
            assert!(missing.is_empty(), "not reached: {missing:?}");
        });
        arrive(&mut model, &wanted);
    }

    #[test]
    fn down_leaves_nothing(from in situation(), to in situation()) {
        let (observed, wanted, _) = change(&from, &to);
        let mut model = Model::new(observed);
        arrive(&mut model, &wanted);
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
