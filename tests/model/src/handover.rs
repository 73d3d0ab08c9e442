//! The hand-over as a list of steps, in the order of `ktls/src/helper/handover.rs`; and the mistakes in it.

use underseal_abi::State;

use crate::action::Side;
use crate::setting::{Mutation, Setting};

/// What the helper does to two sockets it has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Both must be `Held`; then the handshake in memory.
    CheckHeld,
    Receive(Side),
    Send(Side),
    Set(Side, State),
    /// Barrier; which tasks are recorded.
    ReadRecords,
    /// Each of them leaves its call; its record is deleted.
    Restart,
    /// Was there a task that could not be recorded?
    CheckUnrecorded,
    /// `TCP_NOTSENT_LOWAT`.
    Open(Side),
    /// The table of connections says `Sealed`.
    Show(Side),
}

use Side::{Client, Server};
use State::{Keyed, Sealed};

const AS_BUILT: [Step; 16] = [
    Step::CheckHeld,
    Step::Receive(Client),
    Step::Receive(Server),
    Step::Send(Client),
    Step::Send(Server),
    Step::Set(Client, Keyed),
    Step::Set(Server, Keyed),
    Step::ReadRecords,
    Step::Restart,
    Step::CheckUnrecorded,
    Step::Set(Client, Sealed),
    Step::Set(Server, Sealed),
    Step::Open(Client),
    Step::Show(Client),
    Step::Open(Server),
    Step::Show(Server),
];

/// The steps of the hand-over in this setting.
pub(crate) fn steps(setting: &Setting) -> Vec<Step> {
    let mut steps = AS_BUILT.to_vec();
    match setting.mutation {
        Some(Mutation::NoRestart) => steps.retain(|step| *step != Step::Restart),
        _ if setting.leaves_sleepers() => steps.retain(|step| *step != Step::Restart),
        Some(Mutation::KeyedBeforeKeys) => steps[1..7].rotate_right(2),
        Some(Mutation::RecordsReadBeforeKeyed) => steps[3..8].rotate_right(1),
        Some(Mutation::SealedBeforeRestart) => steps[8..12].rotate_right(2),
        Some(Mutation::UnrecordedIgnored) => {
            steps.retain(|step| *step != Step::CheckUnrecorded);
        }
        _ => {}
    }
    steps
}

impl Step {
    /// As people read it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::CheckHeld => "both are held: handshake in memory",
            Self::Receive(Client) => "keys for receiving into the client's socket",
            Self::Receive(Server) => "keys for receiving into the server's socket",
            Self::Send(Client) => "keys for sending into the client's socket",
            Self::Send(Server) => "keys for sending into the server's socket",
            Self::Set(Client, Keyed) => "the client is keyed",
            Self::Set(Server, Keyed) => "the server is keyed",
            Self::Set(Client, _) => "the client is sealed",
            Self::Set(Server, _) => "the server is sealed",
            Self::ReadRecords => "reads the records of sleeping tasks",
            Self::Restart => "a task has restarted, or none is left to restart",
            Self::CheckUnrecorded => "was a task not recorded?",
            Self::Open(Client) => "the client may send",
            Self::Open(Server) => "the server may send",
            Self::Show(Client) => "the table shows the client as sealed",
            Self::Show(Server) => "the table shows the server as sealed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::{Defences, Faults, Rekey, Talk};

    fn order(mutation: Mutation) -> Vec<Step> {
        steps(&Setting {
            defences: Defences::All,
            faults: Faults::default(),
            talk: Talk::BothWays,
            rekey: Rekey::Refused,
            mutation: Some(mutation),
        })
    }

    fn place(steps: &[Step], step: Step) -> usize {
        steps.iter().position(|s| *s == step).unwrap()
    }

    #[test]
    fn mutations_move_what_they_say() {
        let keyed = order(Mutation::KeyedBeforeKeys);
        assert_eq!(place(&keyed, Step::Set(Client, Keyed)), 1);
        assert_eq!(place(&keyed, Step::Send(Server)), 6);
        let records = order(Mutation::RecordsReadBeforeKeyed);
        assert_eq!(place(&records, Step::ReadRecords), 3);
        assert_eq!(place(&records, Step::Restart), 8);
        let sealed = order(Mutation::SealedBeforeRestart);
        assert_eq!(place(&sealed, Step::Set(Client, Sealed)), 8);
        assert_eq!(place(&sealed, Step::Restart), 10);
        for mutated in [keyed, records, sealed] {
            assert_eq!(mutated.len(), AS_BUILT.len());
        }
    }
}
