//! The protocol as it is: no run of it breaks a rule, and from every state some way leads to an end.
#![allow(clippy::print_stdout, reason = "a test tells what it has seen")]

use underseal_model::{Defences, Faults, Rekey, Rule, Setting, Talk};

mod support;

const NONE: Faults = Faults {
    kills: 0,
    full_map: false,
    stubborn_task: false,
    endings: false,
    lowat: false,
};
/// What goes wrong, with at least one kill, at any step.
const FAULTS: [Faults; 4] = [
    Faults {
        kills: 2,
        stubborn_task: true,
        ..NONE
    },
    Faults {
        kills: 1,
        endings: true,
        ..NONE
    },
    Faults {
        kills: 1,
        full_map: true,
        ..NONE
    },
    Faults {
        kills: 1,
        lowat: true,
        ..NONE
    },
];
const ONE_WAY: [Talk; 3] = [Talk::ClientSpeaks, Talk::ServerSpeaks, Talk::Splice];

fn every_fault(defences: Defences, talks: &[Talk]) {
    for talk in talks {
        for faults in FAULTS {
            support::holds(setting(defences, faults, *talk), &Rule::ALL);
        }
    }
}

fn setting(defences: Defences, faults: Faults, talk: Talk) -> Setting {
    Setting {
        defences,
        faults,
        talk,
        rekey: Rekey::Accepted,
        mutation: None,
    }
}

#[test]
fn with_every_defence() {
    every_fault(Defences::All, &ONE_WAY);
}

#[test]
fn hold_and_restart_need_no_guard() {
    every_fault(Defences::NoGuard, &ONE_WAY[..2]);
}

#[test]
fn guard_and_restart_need_no_hold() {
    every_fault(Defences::NoHold, &ONE_WAY[..1]);
}

/// Nobody is held and nobody is restarted: programs are harmed, but nothing readable gets out or in.
#[test]
fn the_guard_alone_keeps_plaintext_off_the_wire() {
    let rules = [Rule::NoPlaintextOnTheWire, Rule::NoPlaintextRead];
    for talk in [Talk::ClientSpeaks, Talk::ServerSpeaks] {
        support::never_breaks(setting(Defences::GuardAlone, FAULTS[2], talk), &rules);
    }
}

/// Four tasks: on either end one asleep in send and one in receive.
#[test]
fn both_ways_at_once() {
    let calm = Faults {
        lowat: true,
        ..NONE
    };
    support::holds(setting(Defences::All, calm, Talk::BothWays), &Rule::ALL);
    let killed = Faults { kills: 1, ..NONE };
    support::never_breaks(
        setting(Defences::NoGuard, killed, Talk::BothWays),
        &Rule::ALL,
    );
}

/// A kernel that does not replace keys.
#[test]
fn without_rekeying() {
    for talk in ONE_WAY {
        let setting = setting(Defences::All, FAULTS[0], talk);
        let old = Setting {
            rekey: Rekey::Refused,
            ..setting
        };
        support::holds(old, &Rule::ALL);
    }
}
