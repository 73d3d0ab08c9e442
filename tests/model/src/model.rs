//! The model as the checker wants it: where it begins, what can happen, what must never be.

use stateright::{Model, Property};
use underseal_abi::State;

use crate::action::{Action, SIDES, Side};
use crate::connection::{At, Connection, End, Harm, Life, Stream, Task, Unit};
use crate::handover::{Step, steps};
use crate::helper::{Helper, Is};
use crate::setting::{Setting, Talk};
use crate::task;

/// A setting, explored.
#[derive(Clone, Debug)]
pub struct Protocol {
    setting: Setting,
    steps: Vec<Step>,
}

/// What must be so in every state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nothing readable leaves a socket.
    NoPlaintextOnTheWire,
    /// No program is handed TLS records.
    NoCiphertextRead,
    /// No program is handed what its peer's socket has not sealed.
    NoPlaintextRead,
    /// Whatever arrives at a sealed socket can be decrypted: nothing is lost, nothing comes twice.
    NothingRefused,
    /// While nothing goes wrong nothing is reset.
    NoNeedlessReset,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NoPlaintextOnTheWire,
        Self::NoCiphertextRead,
        Self::NoPlaintextRead,
        Self::NothingRefused,
        Self::NoNeedlessReset,
    ];

    /// As the checker knows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoPlaintextOnTheWire => "no plaintext on the wire",
            Self::NoCiphertextRead => "no ciphertext to a program",
            Self::NoPlaintextRead => "no plaintext accepted as data",
            Self::NothingRefused => "every record is taken by its receiver",
            Self::NoNeedlessReset => "no reset while nothing goes wrong",
        }
    }

    fn holds(self, setting: &Setting, state: &Connection) -> bool {
        match self {
            Self::NoPlaintextOnTheWire => !state.streams.iter().any(Stream::has_leaked),
            Self::NoCiphertextRead => state.harm != Some(Harm::CiphertextRead),
            Self::NoPlaintextRead => state.harm != Some(Harm::PlaintextRead),
            Self::NothingRefused => state.harm != Some(Harm::RecordRefused),
            Self::NoNeedlessReset => !state.reset || setting.can_fail(),
        }
    }
}

impl Model for Protocol {
    type State = Connection;
    type Action = Action;

    fn init_states(&self) -> Vec<Connection> {
        let tasks = match self.setting.talk {
            Talk::BothWays => [Task::READY; 4],
            Talk::ClientSpeaks | Talk::Splice => [Task::READY, Task::GONE, Task::GONE, Task::READY],
            Talk::ServerSpeaks => [Task::GONE, Task::READY, Task::READY, Task::GONE],
        };
        vec![Connection {
            ends: [End::NEW; 2],
            tasks,
            streams: [Stream::default(); 2],
            helper: Helper {
                kills: self.setting.faults.kills,
                ..Helper::AWAY
            },
            established: false,
            accepted: false,
            reset: false,
            harm: None,
        }]
    }

    fn actions(&self, state: &Connection, actions: &mut Vec<Action>) {
        if state.reset || state.harm.is_some() {
            return;
        }
        if !state.established {
            actions.push(Action::Establish);
        } else if !state.accepted {
            actions.push(Action::Accept);
        }
        self.tasks(state, actions);
        self.programs(state, actions);
        self.segments(state, actions);
        self.helper(state, actions);
    }

    fn next_state(&self, last: &Connection, action: Action) -> Option<Connection> {
        let mut next = *last;
        let setting = &self.setting;
        match action {
            Action::Establish => next.establish(setting),
            Action::Accept => next.accepted = true,
            Action::Task(task) => next.go_on(setting, task.into()),
            Action::RecordLands(task) => next.record_lands(task.into()),
            Action::TaskUnrecorded(task) => next.go_on_unrecorded(setting, task.into()),
            Action::TaskReturns(task) => next.tasks[usize::from(task)].at = At::Program,
            Action::Leave(side) => next.leave(setting, side),
            Action::Arrive(side) => next.arrive(setting, side),
            Action::Shut(side) => next.close(side, Life::Shut),
            Action::Exit(side) => next.close(side, Life::Left),
            Action::SetLowat(side) => next.set_lowat(side),
            Action::HelperStarts => next.helper_starts(),
            Action::HelperKilled => next.helper_killed(),
            Action::Look(side) => next.look(setting, side),
            Action::HearDrop(_) => next.hear_drop(),
            Action::HandOver(_) => {
                let step = last.next_step(&self.steps)?;
                next.hand_over(setting, &self.steps, step);
            }
            Action::RestartFails => next.end(),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! always {
            ($($rule:ident)*) => {
                vec![$(Property::always(Rule::$rule.name(), |model: &Self, state| {
                    Rule::$rule.holds(&model.setting, state)
                })),*]
            };
        }
        always!(NoPlaintextOnTheWire NoCiphertextRead NoPlaintextRead NothingRefused NoNeedlessReset)
    }
}

impl Protocol {
    /// The protocol in this setting.
    #[must_use]
    pub fn new(setting: Setting) -> Self {
        let steps = steps(&setting);
        Self { setting, steps }
    }

    fn tasks(&self, state: &Connection, actions: &mut Vec<Action>) {
        for (number, task) in (0..).zip(&state.tasks) {
            if state.can_go_on(&self.setting, number.into()) {
                actions.push(Action::Task(number));
            }
            if task.is_late {
                actions.push(Action::RecordLands(number));
            }
            match task.at {
                At::Noticed if self.setting.faults.full_map => {
                    actions.push(Action::TaskUnrecorded(number));
                }
                At::Inside(_) => actions.push(Action::TaskReturns(number)),
                _ => {}
            }
        }
    }

    fn programs(&self, state: &Connection, actions: &mut Vec<Action>) {
        for side in SIDES {
            let end = &state.ends[side.index()];
            let has_socket = state.accepted || (side == Side::Client && state.established);
            if self.setting.faults.endings && has_socket {
                if end.life == Life::Open {
                    actions.push(Action::Shut(side));
                }
                if end.life != Life::Left {
                    actions.push(Action::Exit(side));
                }
            }
            if self.setting.faults.lowat && has_socket && !end.asked {
                actions.push(Action::SetLowat(side));
            }
        }
    }

    fn segments(&self, state: &Connection, actions: &mut Vec<Action>) {
        for side in SIDES {
            if state.can_leave(&self.setting, side) {
                actions.push(Action::Leave(side));
            }
            if state.can_arrive(&self.setting, side) {
                actions.push(Action::Arrive(side));
            }
        }
    }

    fn helper(&self, state: &Connection, actions: &mut Vec<Action>) {
        let helper = &state.helper;
        match helper.is {
            Is::Away => return actions.push(Action::HelperStarts),
            Is::Searching => {
                for side in SIDES {
                    let number = side.index();
                    let has_owner = side == Side::Client || state.accepted;
                    if helper.known[number] && !helper.found[number] && has_owner {
                        actions.push(Action::Look(side));
                    }
                    if state.ends[number].told {
                        actions.push(Action::HearDrop(side));
                    }
                }
            }
            Is::Sealing(_) => {
                let step = state.next_step(&self.steps);
                actions.extend(step.map(|step| Action::HandOver(step.name())));
                if self.setting.faults.stubborn_task
                    && state.restarting().is_some()
                    && step.is_none_or(|step| step == Step::Restart)
                {
                    actions.push(Action::RestartFails);
                }
            }
        }
        if helper.kills > 0 {
            actions.push(Action::HelperKilled);
        }
    }
}

impl Connection {
    fn establish(&mut self, setting: &Setting) {
        self.established = true;
        for end in &mut self.ends {
            end.state = State::Held;
            end.shown = State::Held;
            end.open = !setting.has_hold();
        }
        if self.helper.is != Is::Away {
            self.helper.known = [true; 2];
        }
    }

    fn close(&mut self, side: Side, life: Life) {
        let number = side.index();
        let stream = &mut self.streams[number];
        let has_fin = self.ends[number].life != Life::Open;
        self.ends[number].life = life;
        if !has_fin {
            stream.push(Unit::Fin);
        }
        if life == Life::Left {
            for (task, it) in self.tasks.iter_mut().enumerate() {
                if task::end_of(task) == number {
                    it.at = At::Gone;
                }
            }
        }
    }

    /// `bpf/src/hold.rs`, `setsockopt`.
    fn set_lowat(&mut self, side: Side) {
        let end = &mut self.ends[side.index()];
        end.asked = true;
        // On any other the value is kept until the hand-over.
        end.open |= matches!(end.state, State::Released | State::Sealed);
    }

    /// Whether nothing is left to be done: sealed and everything delivered, or reset.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let sealed = |end: &End| end.state == State::Sealed && end.open;
        let delivered = |(number, stream): (usize, &Stream)| {
            let reader = self.tasks[2 * (1 - number) + 1].at;
            usize::from(stream.left) == stream.len()
                && stream.arrived == stream.left
                && (stream.read == stream.arrived || reader == At::Gone)
        };
        let has_sent = |task: &Task| task.at == At::Gone;
        self.reset
            || (self.ends.iter().all(sealed)
                && self.streams.iter().enumerate().all(delivered)
                && self.tasks.iter().step_by(2).all(has_sent))
    }
}
