//! Checks of the machine itself.

use super::{Check, Finding, ok, or_ok, problem, warning};

pub(super) const FEATURES: Check = Check {
    name: "kernel features",
    why: "without one of them apply changes nothing and fails",
    look: |facts| {
        let missing = facts.missing.iter();
        let findings = missing.map(|it| problem(&it.seen, &it.fix)).collect();
        or_ok(findings, || {
            "privileges, cgroup2, BPF file system, BTF, LSM programs, kernel TLS, resets and WireGuard are there".to_owned()
        })
    },
};

/// The one place that asks for the version: what these releases do wrong cannot be probed.
pub(super) const POINT_RELEASE: Check = Check {
    name: "point release",
    why: "kTLS of earlier point releases loses or corrupts data in rare cases; this goes by the version, since it cannot be probed",
    look: |facts| {
        let Some(found) = point_release(&facts.release, &facts.version) else {
            return vec![ok(format!("{}: unknown, so not judged", facts.release))];
        };
        let (major, minor, point) = found;
        let floor = FLOORS
            .iter()
            .find(|floor| (floor.0, floor.1) == (major, minor));
        match floor {
            Some((_, _, least)) if point < *least => vec![warning(
                format!("{major}.{minor}.{point}, with known bugs in kTLS"),
                format!("boot {major}.{minor}.{least} or later"),
            )],
            _ => vec![ok(format!("{major}.{minor}.{point}"))],
        }
    },
};

/// First releases of long-term lines with the fixes.
const FLOORS: [(u32, u32, u32); 2] = [(6, 1, 192), (6, 12, 115)];

/// The point release: Debian's names of kernels have it, or else what is behind the name has.
fn point_release(release: &str, version: &str) -> Option<(u32, u32, u32)> {
    let debian = version.split("Debian ").nth(1);
    let parse = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let mut parts = text[..end.unwrap_or(text.len())].split('.');
        let mut next = || parts.next()?.parse().ok();
        Some((next()?, next()?, next()?))
    };
    debian.and_then(parse).or_else(|| parse(release))
}

pub(super) const PTRACE: Check = Check {
    name: "ptrace",
    why: "the helper makes programs that are asleep in send or receive enter the call again; where it may not, their connections are reset",
    look: |facts| {
        let finding: Finding = match facts.ptrace_scope.as_deref() {
            Some("3") => warning(
                "kernel.yama.ptrace_scope is 3: nobody may",
                "set it to 2 or lower; 3 stays until the next boot",
            ),
            Some(scope) => ok(format!("kernel.yama.ptrace_scope is {scope}")),
            None => ok("not restricted by Yama"),
        };
        vec![finding]
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn point_releases() {
        for (release, version, wanted) in [
            (
                "6.1.0-57-cloud-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-1 (2026-10-01)",
                Some((6, 1, 192)),
            ),
            (
                "6.12.95+deb12-cloud-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.12.95-1~bpo12+1 (2026-10-01)",
                Some((6, 12, 95)),
            ),
            ("7.3.4", "#1 SMP", Some((7, 3, 4))),
            ("6.8.0-31-generic", "#31-Ubuntu SMP", Some((6, 8, 0))),
            ("7.3", "", None),
            ("", "Debian", None),
        ] {
            assert_eq!(
                point_release(release, version),
                wanted,
                "{release} {version}"
            );
        }
    }
}
