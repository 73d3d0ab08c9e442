//! What a test can ask of the helper: to leave a step out, or to stop at one so that it can be killed there.

use std::{cell::Cell, str::FromStr};

use nix::sys::signal::{Signal, raise};

/// What is left out, and where to stop. `underseal-handshake` leaves out nothing and never stops, and there is no way
/// to tell it to.
#[derive(Debug, Clone, Default)]
pub struct Controls {
    /// Tasks that sleep inside send and recv are left asleep.
    pub no_restart: bool,
    /// A connection over which an earlier helper was killed goes on as if that one had finished.
    pub no_interrupted: bool,
    /// Send buffers stay as small as they are.
    pub no_send_buffer: bool,
    /// Keys are never replaced.
    pub no_rekey: bool,
    /// No certificate is asked for DNS names.
    pub no_dns_names: bool,
    /// Where to stop.
    pub stop: Option<Stop>,
}

impl Controls {
    /// A step is done. The process stops here (SIGSTOP) if it was told to.
    pub(super) fn reached(&self, step: Step) {
        if let Some(stop) = &self.stop
            && stop.step == step
        {
            let left = stop.left.get();
            stop.left.set(left.saturating_sub(1));
            if left == 1 {
                // It cannot fail: the signal exists, and the process is this one.
                let _ = raise(Signal::SIGSTOP);
            }
        }
    }
}

/// The `left`-th time that `step` is done.
#[derive(Debug, Clone)]
pub struct Stop {
    step: Step,
    left: Cell<u32>,
}

/// Steps between the event and the hand-over. Each is done for one end, but for [`Step::Handshake`] and the two about
/// a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// BPF has told of an end.
    Event,
    /// A duplicate of its socket is here.
    Descriptor,
    /// `TCP_ULP` is in it.
    Protocol,
    /// The handshake is over.
    Handshake,
    /// One of the four keys is in.
    Key,
    /// State `Keyed`.
    Keyed,
    /// A task is about to be restarted.
    Restart,
    /// It has been.
    Restarted,
    /// State `Sealed`.
    Sealed,
    /// Leave to send.
    Released,
    /// A sealed end is held for a new key.
    Pausing,
    /// The receiver has the new key, the sender the old one.
    Half,
    /// Both have the new one, and the sender is held.
    Replaced,
}

const STEPS: [(&str, Step); 13] = [
    ("event", Step::Event),
    ("descriptor", Step::Descriptor),
    ("protocol", Step::Protocol),
    ("handshake", Step::Handshake),
    ("key", Step::Key),
    ("keyed", Step::Keyed),
    ("restart", Step::Restart),
    ("restarted", Step::Restarted),
    ("sealed", Step::Sealed),
    ("released", Step::Released),
    ("pausing", Step::Pausing),
    ("half", Step::Half),
    ("replaced", Step::Replaced),
];

impl FromStr for Stop {
    type Err = String;

    /// `key:3`: when the third key is in.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        let step = STEPS.iter().find(|(known, _)| *known == name);
        let count = count.parse().ok().filter(|count| *count > 0);
        match (step, count) {
            (Some((_, step)), Some(count)) => Ok(Self {
                step: *step,
                left: Cell::new(count),
            }),
            _ => Err(format!("no such stop point: {text}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_point_is_a_step_and_a_count() {
        let stop: Stop = "key:3".parse().unwrap();
        assert_eq!((stop.step, stop.left.get()), (Step::Key, 3));
        let stop: Stop = "sealed".parse().unwrap();
        assert_eq!((stop.step, stop.left.get()), (Step::Sealed, 1));
        for wrong in ["", "sealed:0", "sealed:x", "nowhere:1"] {
            assert!(wrong.parse::<Stop>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn other_steps_do_not_stop() {
        let controls = Controls {
            stop: "key:2".parse().ok(),
            ..Controls::default()
        };
        for (_, step) in STEPS {
            controls.reached(step);
        }
        assert_eq!(controls.stop.unwrap().left.get(), 1);
        Controls::default().reached(Step::Key);
    }
}
