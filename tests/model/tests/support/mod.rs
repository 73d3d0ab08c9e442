//! Runs the checker.
#![allow(dead_code, reason = "each test file uses its part")]

use stateright::{Checker as _, HasDiscoveries, Model as _};
use underseal_model::{Action, Protocol, Rule, Setting, stuck};

/// Fails unless all of `rules` hold in every state, and, of every state, some way leads to an end.
pub(crate) fn holds(setting: Setting, rules: &[Rule]) {
    never_breaks(setting, rules);
    if let Some(stuck) = stuck(setting).1 {
        panic!("{setting:?}: no way out:\n{stuck}");
    }
}

/// The first half of [`holds`].
pub(crate) fn never_breaks(setting: Setting, rules: &[Rule]) {
    let checker = Protocol::new(setting).checker().spawn_bfs().join();
    for rule in rules {
        if let Some(path) = checker.discovery(rule.name()) {
            let way = told(&path.into_actions());
            panic!("{setting:?}: {} is broken:\n{way}", rule.name());
        }
    }
    println!("{} states: {setting:?}", checker.unique_state_count());
}

/// Fails unless there is a state from which nothing leads to an end; prints the shortest way to one.
pub(crate) fn gets_stuck(setting: Setting) {
    let stuck = stuck(setting).1;
    let way = stuck.unwrap_or_else(|| panic!("{setting:?}: there is always a way out"));
    println!("{:?} ends nowhere:\n{way}", setting.mutation);
}

/// Fails unless there is a run that breaks `rule`; prints the shortest.
pub(crate) fn breaks(setting: Setting, rule: Rule) {
    let checker = Protocol::new(setting)
        .checker()
        .finish_when(HasDiscoveries::AnyOf([rule.name()].into()))
        .spawn_bfs()
        .join();
    let path = checker
        .discovery(rule.name())
        .unwrap_or_else(|| panic!("{setting:?}: nothing breaks \"{}\"", rule.name()));
    println!(
        "{:?} breaks \"{}\":\n{}",
        setting.mutation,
        rule.name(),
        told(&path.into_actions())
    );
}

fn told(actions: &[Action]) -> String {
    let line = |action: &Action| format!("  {action}\n");
    actions.iter().map(line).collect()
}
