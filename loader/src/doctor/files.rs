//! Checks of files: configuration, keys, identities; and of the clock, which certificates depend on.

use super::facts::Identity;
use super::{Check, Finding, ok, or_ok, problem, warning};
use crate::pki::certificate::date_text;

pub(super) const CONFIGURATION: Check = Check {
    name: "configuration",
    why: "the next apply, at boot too, fails on a mistake",
    look: |facts| match (&facts.mistakes, facts.observed.valid) {
        (Some(mistakes), _) => vec![problem(
            mistakes,
            "correct it; `underseal check` reads it again",
        )],
        (None, Some(_)) => vec![ok(format!("{} is in order", facts.file))],
        (None, None) => vec![problem(
            format!("there is no {}", facts.file),
            "write one, beginning with examples/underseal.toml, or name another file with -c",
        )],
    },
};

/// 2025-01-01: this program is younger.
const YOUNGEST: u64 = 1_735_689_600;

pub(super) const CLOCK: Check = Check {
    name: "clock",
    why: "whether a certificate is valid, and how old a handshake is, goes by it",
    look: |facts| {
        let now = facts.observed.at;
        let text = date_text(i64::try_from(now).unwrap_or(i64::MAX));
        let fix = "set it, and let a time service keep it";
        if now < YOUNGEST {
            return vec![problem(
                format!("it shows {text}, before this program was written"),
                fix,
            )];
        }
        let future = facts.identities.iter().filter(|(_, it)| {
            it.not_before
                .is_some_and(|begin| u64::try_from(begin).is_ok_and(|begin| begin > now))
        });
        let findings = future.map(|(name, it)| {
            let begin = date_text(it.not_before.unwrap_or(0));
            warning(
                format!("it shows {text}, and the certificate of {name} begins at {begin}: one of the two is wrong"),
                fix,
            )
        });
        or_ok(findings.collect(), || {
            format!("{text}, which no certificate contradicts")
        })
    },
};

pub(super) const KEYS: Check = Check {
    name: "keys",
    why: "whoever reads a secret key can read the traffic or take the place of its owner; a WireGuard key or a CA's that others may use is refused",
    look: |facts| {
        let findings = facts.keys.iter().filter_map(|it| {
            let (mode, owner) = it.found?;
            let (what, path) = (&it.what, &it.path);
            if mode & 0o077 != 0 {
                let seen = format!(
                    "{what} {path} may be used by others: mode {:04o}",
                    mode & 0o7777
                );
                return Some(problem(
                    seen,
                    format!("chmod 600 {path}; if somebody may have read it, replace the key"),
                ));
            }
            (owner != 0).then(|| {
                warning(
                    format!("{what} {path} belongs to user {owner}"),
                    format!("chown root {path}"),
                )
            })
        });
        let there = facts.keys.iter().filter(|it| it.found.is_some()).count();
        or_ok(findings.collect(), || {
            format!("{} for root alone", crate::report::counted(there, "file"))
        })
    },
};

pub(super) const IDENTITIES: Check = Check {
    name: "identities",
    why: "connections of a workload without a certificate that can be used are refused",
    look: |facts| {
        let findings: Vec<Finding> = facts
            .identities
            .iter()
            .filter_map(|(name, it)| identity(name, it))
            .collect();
        or_ok(findings, || {
            format!(
                "certificates of {} can be used",
                crate::report::counted(facts.identities.len(), "workload")
            )
        })
    },
};

fn identity(name: &str, it: &Identity) -> Option<Finding> {
    let folder = &it.folder;
    if let Some(why) = &it.broken {
        let fix = format!("issue it anew: `underseal pki issue {name}`, or whoever fills {folder}");
        return Some(problem(
            format!("that of {name} cannot be used: {why}"),
            fix,
        ));
    }
    let end = it.not_after.map(date_text).unwrap_or_default();
    it.due.then(|| {
        warning(
            format!("the certificate of {name} ends at {end} and was not renewed"),
            format!("see why: `systemctl status underseal-pki.timer underseal-spire`, or whoever fills {folder}"),
        )
    })
}
