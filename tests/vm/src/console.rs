//! The guest kernel's console: kept whole, and watched for anything a healthy kernel does not say.

use std::io::Read;
use std::sync::{Mutex, PoisonError};

/// How a kernel message begins (after its time stamp) that no run may contain. Compare the kernel's own list for
/// tests, `tools/testing/selftests/wireguard/qemu/` and `tools/testing/kunit/`.
const BEGINS: [&str; 10] = [
    "WARNING: ",
    "BUG: ",
    "kernel BUG at",
    "Oops",
    "Kernel panic",
    "Call Trace:",
    "watchdog: BUG:",
    "general protection fault",
    "rcu: INFO: rcu",
    "UBSAN: ",
];
/// The same, anywhere in a message.
const CONTAINS: [&str; 4] = [
    "self-detected stall",
    "blocked for more than",
    "refcount_t: ",
    "unreferenced object",
];

/// All that has been printed so far.
#[derive(Debug, Default)]
pub(crate) struct Console {
    text: Mutex<String>,
}

impl Console {
    /// Copies `source` until its end, calling `complaint` at the first bad line.
    pub(crate) fn follow(&self, mut source: impl Read, complaint: impl Fn()) {
        let mut buffer = [0; 4096];
        let (mut line, mut complained) = (String::new(), false);
        while let Ok(length @ 1..) = source.read(&mut buffer) {
            let new = String::from_utf8_lossy(&buffer[..length]).replace('\r', "");
            self.text
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push_str(&new);
            for part in new.split_inclusive('\n') {
                line.push_str(part);
                if line.ends_with('\n') {
                    if !complained && is_complaint(&line) {
                        complained = true;
                        complaint();
                    }
                    line.clear();
                }
            }
        }
    }

    /// The first line that no healthy kernel prints.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.text()
            .lines()
            .find(|line| is_complaint(line))
            .map(str::to_owned)
    }

    /// The last `lines` lines.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = self.text();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Everything.
    pub(crate) fn text(&self) -> String {
        self.text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Only lines with the kernel's time stamp count: what programs print is theirs.
fn is_complaint(line: &str) -> bool {
    let Some((stamp, message)) = line
        .trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    else {
        return false;
    };
    let stamped = stamp.trim().parse::<f64>().is_ok();
    // Some kernels put the task between stamp and message, as in "[    1.0][  T123] message".
    let message = message.trim_start();
    stamped
        && (BEGINS.iter().any(|begin| message.starts_with(begin))
            || CONTAINS.iter().any(|part| message.contains(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernel_lines_complain() {
        assert!(is_complaint(
            "[    1.234567] WARNING: CPU: 0 PID: 1 at net/core/sock.c:1\n"
        ));
        assert!(is_complaint(
            "[   12.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!"
        ));
        assert!(is_complaint(
            "[   12.000000] rcu: INFO: rcu_preempt self-detected stall on CPU"
        ));
        assert!(!is_complaint("WARNING: a program's own words"));
        assert!(!is_complaint(
            "[    1.234567] systemd[1]: Started something."
        ));
    }

    #[test]
    fn lines_in_pieces_are_put_together() {
        let console = Console::default();
        let count = std::cell::Cell::new(0);
        let pieces: &[&[u8]] = &[
            b"[    1.0] Kernel pa",
            b"nic - not syncing\r\n[    1.1] Call Trace:\n",
        ];
        console.follow(std::io::Read::chain(pieces[0], pieces[1]), || {
            count.set(count.get() + 1)
        });
        assert_eq!(count.get(), 1);
        assert_eq!(
            console.complaint().unwrap(),
            "[    1.0] Kernel panic - not syncing"
        );
        assert_eq!(console.tail(1), "[    1.1] Call Trace:");
    }
}
