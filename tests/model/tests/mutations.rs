//! Mistakes in the protocol: the model finds each, and tells the shortest way to the harm.
#![allow(clippy::print_stdout, reason = "the ways are what one wants to read")]

use underseal_model::{Defences, Faults, Mutation, Rekey, Rule, Setting, Talk};

mod support;

const CALM: Faults = Faults {
    kills: 0,
    full_map: false,
    stubborn_task: false,
    endings: false,
    lowat: false,
};
const ONE_KILL: Faults = Faults { kills: 1, ..CALM };

/// Hold and restart without the guard, which would hide the mistake from the wire.
fn mistake(mutation: Mutation, faults: Faults, talk: Talk) -> Setting {
    Setting {
        defences: Defences::NoGuard,
        faults,
        talk,
        rekey: Rekey::Accepted,
        mutation: Some(mutation),
    }
}

/// The sender that goes on in plaintext, and the reader that is handed records.
fn harms_both_ends(mutation: Mutation, faults: Faults) {
    let setting = mistake(mutation, faults, Talk::ClientSpeaks);
    support::breaks(setting, Rule::NoPlaintextOnTheWire);
    support::breaks(setting, Rule::NoCiphertextRead);
}

#[test]
fn no_restart() {
    harms_both_ends(Mutation::NoRestart, CALM);
}

#[test]
fn record_seen_too_late() {
    harms_both_ends(Mutation::RecordLate, CALM);
}

/// No harm: a task that reads `sk_prot` after its record is written is either seen or finds the keys. Looking again only
/// spares the helper a record of a task that has found them.
#[test]
fn no_second_look() {
    let setting = mistake(Mutation::NoSecondLook, ONE_KILL, Talk::ClientSpeaks);
    support::holds(setting, &Rule::ALL);
}

#[test]
fn keyed_before_the_keys_are_in() {
    harms_both_ends(Mutation::KeyedBeforeKeys, CALM);
}

#[test]
fn records_read_before_keyed() {
    let setting = mistake(Mutation::RecordsReadBeforeKeyed, CALM, Talk::ClientSpeaks);
    support::breaks(setting, Rule::NoPlaintextOnTheWire);
}

/// Needs a kill in between: the next helper lets go of what it finds sealed.
#[test]
fn sealed_before_the_restart() {
    harms_both_ends(Mutation::SealedBeforeRestart, ONE_KILL);
}

#[test]
fn keyed_taken_for_held_after_a_kill() {
    let setting = mistake(Mutation::KeyedIsHeld, ONE_KILL, Talk::ClientSpeaks);
    support::gets_stuck(setting);
}

/// Only where the hold failed too is there something sealed with the first keys.
#[test]
fn keys_of_an_earlier_helper_replaced() {
    let held = mistake(Mutation::KeysReplaced, ONE_KILL, Talk::ClientSpeaks);
    let setting = Setting {
        defences: Defences::NoHold,
        ..held
    };
    support::breaks(setting, Rule::NothingRefused);
    support::holds(held, &Rule::ALL);
}

#[test]
fn unrecorded_tasks_ignored() {
    let full = Faults {
        full_map: true,
        ..CALM
    };
    harms_both_ends(Mutation::UnrecordedIgnored, full);
    let spliced = mistake(Mutation::SpliceUntraced, full, Talk::Splice);
    support::breaks(spliced, Rule::NoPlaintextOnTheWire);
    support::breaks(spliced, Rule::NoCiphertextRead);
}

#[test]
fn splice_before_the_connection_is_made() {
    let setting = mistake(Mutation::SpliceUnseenWhileNew, CALM, Talk::Splice);
    support::breaks(setting, Rule::NoPlaintextOnTheWire);
}

#[test]
fn a_guard_that_trusts_the_state() {
    let setting = mistake(Mutation::GuardTrustsState, CALM, Talk::ClientSpeaks);
    let guarded = Setting {
        defences: Defences::NoHold,
        ..setting
    };
    support::breaks(guarded, Rule::NoPlaintextOnTheWire);
}

/// A program may set its own limit between the two states `Sealed`, and so send a moment early.
#[test]
fn a_segment_that_comes_early_is_fatal() {
    let asks = Faults {
        lowat: true,
        ..CALM
    };
    let setting = mistake(Mutation::EarlyIsFatal, asks, Talk::ClientSpeaks);
    let guarded = Setting {
        defences: Defences::All,
        ..setting
    };
    support::breaks(guarded, Rule::NoNeedlessReset);
}
