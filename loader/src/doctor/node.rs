//! Checks of what an apply has made, and of the helper.

use super::{Check, ok, or_ok, problem, warning};
use crate::report::counted;

pub(super) const APPLIED: Check = Check {
    name: "apply",
    why: "without it nothing is encrypted",
    look: |facts| {
        const FIX: &str = "`underseal apply`, or `systemctl start underseal`";
        if let Some(why) = &facts.unreadable {
            let abi = facts
                .observed
                .applied_abi
                .filter(|abi| *abi != facts.observed.abi);
            let fix = if abi.is_some() {
                "run `underseal down` of the version that applied it, then `underseal apply`"
            } else {
                "see the reason"
            };
            return vec![problem(why, fix)];
        }
        match &facts.observed.node {
            None => vec![problem("nothing is applied", FIX)],
            Some(node) if !node.whole => {
                vec![problem("an apply is under way, or was interrupted", FIX)]
            }
            Some(node) => vec![ok(format!(
                "applied, mode {}, layouts of version {}",
                node.mode, facts.observed.abi
            ))],
        }
    },
};

/// How many differences are told one by one.
const MOST: usize = 5;

pub(super) const DRIFT: Check = Check {
    name: "as configured",
    why: "what differs from the file is not as it was meant to be, or somebody has changed it",
    look: |facts| {
        if let Some(why) = facts
            .incomparable
            .as_ref()
            .filter(|_| facts.unreadable.is_none())
        {
            return vec![warning(
                format!("cannot be compared: {why}"),
                "mend that first",
            )];
        }
        let Some(lines) = facts
            .differences
            .as_ref()
            .filter(|_| facts.observed.node.is_some())
        else {
            return Vec::new();
        };
        if lines.is_empty() {
            return vec![ok("an apply would change nothing")];
        }
        let mut seen = format!("an apply would make {}:", counted(lines.len(), "change"));
        for line in lines.iter().take(MOST) {
            seen.push_str("\n  ");
            seen.push_str(line);
        }
        if lines.len() > MOST {
            seen.push_str("\n  and more");
        }
        vec![warning(
            seen,
            "`underseal plan` shows all of them, `underseal apply` makes them",
        )]
    },
};

pub(super) const PROGRAMS: Check = Check {
    name: "programs",
    why: "a program that is attached nowhere neither holds, nor guards, nor forwards",
    look: |facts| {
        if facts.observed.node.is_none() {
            return Vec::new();
        }
        let detached = facts.detached.iter();
        let findings = detached.map(|it| {
            problem(
                format!("{it} is not attached"),
                "`underseal apply` attaches it again",
            )
        });
        or_ok(findings.collect(), || "all of them are attached".to_owned())
    },
};

pub(super) const ORDER: Check = Check {
    name: "programs of others",
    why: "one that runs before ours on an interface may hand packets on past it",
    look: |facts| {
        if facts.observed.node.is_none() {
            return Vec::new();
        }
        let findings = facts.hooks.iter().filter_map(|(hook, programs)| {
            let before: Vec<&str> = programs.iter().take_while(|it| !it.ours).map(|it| it.name.as_str()).collect();
            let has_ours = before.len() < programs.len();
            (has_ours && !before.is_empty()).then(|| {
                problem(
                    format!("{hook}: {} before ours", before.join(", ")),
                    "attach it behind ours, or stop what attaches it; `underseal apply` does not move programs of others",
                )
            })
        });
        or_ok(findings.collect(), || {
            "ours run first on every interface".to_owned()
        })
    },
};

pub(super) const HELPER: Check = Check {
    name: "helper",
    why: "new connections between workloads wait until it runs",
    look: |facts| match facts.observed.helper {
        None => vec![problem(
            "underseal-handshake does not run",
            "`systemctl start underseal-handshake`; `journalctl -u underseal-handshake` says why it ended",
        )],
        Some(_) if facts.helper_is_old => vec![warning(
            "the program was replaced since the helper was started: it is of an older version",
            "`systemctl restart underseal-handshake`; open connections do not notice",
        )],
        Some(since) => {
            let minutes = facts.observed.at.saturating_sub(since) / 60;
            vec![ok(format!(
                "it has run for {}",
                counted(usize::try_from(minutes).unwrap_or(usize::MAX), "minute")
            ))]
        }
    },
};

pub(super) const UNITS: Check = Check {
    name: "systemd units",
    why: "what is not enabled does not come back after a boot, and then nothing is encrypted",
    look: |facts| {
        let Some(units) = &facts.units else {
            return vec![ok(
                "systemd does not run here: whoever boots this machine runs apply and the helper",
            )];
        };
        let off = units.iter().filter(|(_, enabled)| !**enabled);
        let findings = off.map(|(unit, _)| {
            warning(
                format!("{unit} is not enabled"),
                format!("`systemctl enable {unit}`"),
            )
        });
        or_ok(findings.collect(), || {
            format!(
                "{} enabled",
                units.keys().cloned().collect::<Vec<_>>().join(" and ")
            )
        })
    },
};

pub(super) const WORKLOADS: Check = Check {
    name: "workloads",
    why: "one without its namespace stays closed until the apply that follows it; one whose certificate lacks a name is refused",
    look: |facts| {
        let Some(node) = &facts.observed.node else {
            return Vec::new();
        };
        let findings = facts.warnings.iter();
        let findings = findings
            .map(|it| warning(it, "mend what it says, then `underseal apply`"))
            .collect();
        or_ok(findings, || {
            let covered = node.workloads.values().filter(|it| it.covered).count();
            format!(
                "{} of {} covered",
                covered,
                counted(node.workloads.len(), "workload")
            )
        })
    },
};

pub(super) const ROOM: Check = Check {
    name: "maps",
    why: "what has no room is refused: connections are reset, an apply fails",
    look: |facts| {
        let Some(node) = &facts.observed.node else {
            return Vec::new();
        };
        let findings = node.maps.iter().filter(|(_, it)| it.used * 5 > it.room * 4).map(|(name, it)| {
            warning(
                format!("{name} has {} of {} entries", it.used, it.room),
                "have fewer connections, workloads or rules on this node; docs/metrics.md says what each map holds",
            )
        });
        or_ok(findings.collect(), || {
            "none is more than four fifths full".to_owned()
        })
    },
};
