//! What holds wherever an apply fails, on a model of the kernel: all that it has done, in whatever round, is taken back,
//! nothing is more open than it was, and the message says what has become of its steps.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use support::{
    edge::Fails,
    model::{Model, Refused, closed},
    situation::{Situation, arrive, change, situation, stays_closed, watched},
};
use underseal::{
    execute::{self, Aftermath, Cause, Failure},
    op::{DatapathOp, DeviceChange, DeviceOp, Op},
    plan::plan,
    state::State,
};

mod support;

/// Where a private key is kept is nothing that a kernel shows.
fn without_files(state: &State) -> State {
    let mut state = state.clone();
    let devices = state.wireguard.iter_mut().chain(state.beside.values_mut());
    for device in devices {
        device.key.file = None;
    }
    state
}

/// What fails an apply, and how the node is after that.
fn failing(observed: &State, wanted: &State, fails: Fails) -> (Box<Failure<Refused>>, Model) {
    let mut model = Model::new(observed.clone());
    model.fails = fails;
    let failure = execute::apply(&mut model.towards(wanted), |_| {}).unwrap_err();
    (failure, model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whichever step of whichever round fails, or a look between two, or other nodes cannot be told.
    #[test]
    fn a_failure_leaves_everything_as_it_was(from in situation(), to in situation()) {
        let (observed, wanted, _) = change(&from, &to);
        let mut model = Model::new(observed.clone());
        let steps = arrive(&mut model, &wanted);
        let looks = model.count.looks;
        let must_stay = stays_closed(&observed, &model.state);
        let last = steps.iter().position(Op::is_last).unwrap_or(steps.len());
        prop_assert!(steps[last..].iter().all(Op::is_last), "{:?}", steps);
        let steps = (0..last).map(|step| Fails { step: Some(step), ..Fails::default() });
        // The look after the last steps comes too late.
        let looks = 0..looks - usize::from(model.count.steps > last);
        let looks = looks.map(|look| Fails { look: Some(look), ..Fails::default() });
        let speak = Fails { speak: true, ..Fails::default() };
        for fails in steps.chain(looks).chain([speak]) {
            let mut model = watched(observed.clone(), must_stay.clone());
            model.fails = fails;
            let failure = execute::apply(&mut model.towards(&wanted), |_| {}).unwrap_err();
            let told = match &failure.aftermath {
                Aftermath::Untouched => model.count.undone == 0,
                Aftermath::TakenBack { .. } => model.count.undone > 0,
                Aftermath::Partly { .. } | Aftermath::InForce => false,
            };
            prop_assert!(told, "{fails:?}: {failure}");
            prop_assert_eq!(without_files(&model.state), without_files(&observed), "{:?}: {}", fails, failure);
        }
    }

    /// What cannot be taken back is done when all else is in force, and then nothing else is given up for it.
    #[test]
    fn a_last_step_that_fails_is_the_only_one(from in situation(), to in situation()) {
        let (observed, wanted, _) = change(&from, &to);
        let steps = arrive(&mut Model::new(observed.clone()), &wanted);
        for (number, op) in steps.iter().enumerate().filter(|(_, op)| op.is_last()) {
            let (failure, model) = failing(&observed, &wanted, Fails { step: Some(number), ..Fails::default() });
            prop_assert!(matches!(failure.aftermath, Aftermath::InForce), "{failure}");
            let Cause::Remains(failed) = &failure.cause else { panic!("{failure}") };
            prop_assert!(failed.iter().map(|(op, _)| op).eq([op]), "{failure}");
            let left = plan(&wanted, &model.state);
            prop_assert!(left.iter().all(|left| left == op), "{:?} left after {}", left, failure);
        }
    }

    /// Then what is closed stays closed, rules and settings are those from before, and what has become of each step is told.
    #[test]
    fn a_step_that_cannot_be_taken_back_opens_nothing(from in situation(), to in situation(), step: prop::sample::Index, undo: prop::sample::Index) {
        let (observed, wanted, _) = change(&from, &to);
        let steps = arrive(&mut Model::new(observed.clone()), &wanted);
        let last = steps.iter().position(Op::is_last).unwrap_or(steps.len());
        if last < 2 {
            return Ok(());
        }
        let step = 1 + step.index(last - 1);
        let undo = undo.index(step);
        let (failure, model) = failing(&observed, &wanted, Fails { step: Some(step), undo: Some(undo), ..Fails::default() });
        let Aftermath::Partly { failed, stay } = &failure.aftermath else { panic!("{failure}") };
        let told: Vec<&Op> = failed.iter().map(|(op, _)| op).chain(stay).collect();
        // The steps that were tried are those that are not said to stay.
        prop_assert_eq!(model.count.undone, step - stay.len(), "{}", failure);
        prop_assert!(told.iter().all(|op| steps[..step].contains(op)), "{failure}");
        prop_assert!(stay.iter().all(Op::closes), "{failure}");
        // One that closed again what had been opened, if it is just that which failed.
        let closed_now: BTreeSet<String> = closed(&model.state).into_iter().collect();
        let reopened: Vec<String> = closed(&observed).into_iter().filter(|it| !closed_now.contains(it)).collect();
        prop_assert!(reopened.is_empty() || !failed[0].0.closes(), "opened: {reopened:?}: {failure}");
        prop_assert!(reopened.len() <= failed.len(), "opened: {reopened:?}: {failure}");
        if let (Some(before), Some(now)) = (&observed.datapath, &model.state.datapath) {
            let is_told = |what: fn(&DatapathOp) -> bool| told.iter().any(|op| matches!(op, Op::Datapath(op) if what(op)));
            prop_assert!(before.settings == now.settings || is_told(|op| matches!(op, DatapathOp::Configure(_))), "{failure}");
            prop_assert!(before.policies == now.policies || is_told(|op| matches!(op, DatapathOp::SetPolicies(_))), "{failure}");
        }
    }
}

/// A device that loses its last IPv4 address, and a workload that comes.
fn without_address() -> (State, State) {
    let from = Situation {
        device: true,
        renamed: false,
        addressed: true,
        peers: [1, 2].into(),
        own: (0, false),
        theirs: [0; 5],
        endpoint: 1,
        workloads: vec![(1, 1)],
        mode: "never",
        dns: "",
        keep: false,
        uplink_mtu: 1500,
        object: 1,
    };
    let to = Situation {
        addressed: false,
        workloads: vec![(1, 1), (2, 1)],
        mode: "same-node",
        ..from.clone()
    };
    let (observed, wanted, _) = change(&from, &to);
    (observed, wanted)
}

#[test]
fn both_rounds_are_taken_back() {
    let (observed, wanted) = without_address();
    let steps = arrive(&mut Model::new(observed.clone()), &wanted);
    let first = plan(&wanted, &observed).len();
    assert_eq!(steps.len(), first + 2, "two routes were lost: {steps:#?}");
    for (step, op) in steps.iter().enumerate() {
        let fails = Fails {
            step: Some(step),
            ..Fails::default()
        };
        let (failure, model) = failing(&observed, &wanted, fails);
        let end = if step == 0 {
            "nothing was changed"
        } else {
            "all steps before it were taken back"
        };
        assert_eq!(
            failure.to_string(),
            format!("as told\n  step: {op}\n  {end}")
        );
        assert_eq!(model.count.undone, step);
        assert_eq!(
            without_files(&model.state),
            without_files(&observed),
            "{failure}"
        );
    }
}

/// Control: a round that is forgotten is seen.
#[test]
fn a_forgotten_round_is_not_taken_back() {
    let (observed, wanted) = without_address();
    let mut model = Model::new(observed.clone());
    let forgotten = plan(&wanted, &observed);
    forgotten.iter().for_each(|op| model.step(op).unwrap());
    model.fails.step = Some(1);
    let failure = execute::apply(&mut model.towards(&wanted), |_| {}).unwrap_err();
    assert!(
        matches!(failure.aftermath, Aftermath::TakenBack { .. }),
        "{failure}"
    );
    assert_ne!(without_files(&model.state), without_files(&observed));
}

/// Something on the node undoes a step at once, whenever it is done.
#[test]
fn what_does_not_last_is_taken_back_with_all_else() {
    let (observed, wanted) = without_address();
    let mut model = Model::new(observed.clone());
    let route = |op: &&Op| {
        matches!(
            op,
            Op::Device(DeviceOp {
                change: DeviceChange::AddRoute(_),
                ..
            })
        )
    };
    let steps = arrive(&mut Model::new(observed.clone()), &wanted);
    model.deaf = steps.iter().find(route).cloned();
    let failure = execute::apply(&mut model.towards(&wanted), |_| {}).unwrap_err();
    let op = model.deaf.as_ref().unwrap();
    assert_eq!(
        failure.to_string(),
        format!(
            "the kernel does not show what was set; still to do:\n    {op}\n  all steps were taken back"
        )
    );
    // Before the steps, after the first round, after the second.
    assert_eq!(model.count.looks, 3);
}

#[test]
fn says_which_steps_stay() {
    let (observed, wanted) = without_address();
    let steps = arrive(&mut Model::new(observed.clone()), &wanted);
    let hold = "tcp_notsent_lowat=0";
    let at = steps
        .iter()
        .position(|op| op.to_string().contains(hold))
        .unwrap();
    // The hold cannot be taken back after the step behind it has failed.
    let fails = Fails {
        step: Some(at + 1),
        undo: Some(0),
        ..Fails::default()
    };
    let (failure, model) = failing(&observed, &wanted, fails);
    let stay: Vec<&Op> = steps[..at].iter().rev().filter(|op| op.closes()).collect();
    let stay: String = stay.iter().map(|op| format!("\n    {op}")).collect();
    assert_eq!(
        failure.to_string(),
        format!(
            "as told\n  step: {}\n  these steps could not be taken back:\n    {}\n      as told\n  \
             these stay, so that the node is not more open than it was before:{stay}\n  \
             all other steps before it were taken back; apply again when the cause is gone",
            steps[at + 1],
            steps[at],
        )
    );
    let datapath = |state: &State| state.datapath.clone().unwrap();
    assert_eq!(
        datapath(&model.state).settings,
        datapath(&observed).settings
    );
    assert!(closed(&model.state).len() > closed(&observed).len());
}
