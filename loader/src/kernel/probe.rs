//! What the kernel or the machine lacks, found by trying, without changing anything. Where the
//! kernel would load a module at first use, the probe makes it load it: that is the only way to
//! know, and what `wg show` does too.
//!
//! A kernel's version is never asked: distributions move features both ways.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt::TcpUlp};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, SECURITYFS_MAGIC, statfs};
use underseal_ktls::diag;

use super::{link, wireguard};
use crate::config::value::InterfaceName;

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What does not work.
    pub what: String,
    /// How that shows, and why where it is known.
    pub why: String,
    /// What to do about it.
    pub fix: String,
}

impl Problem {
    fn new(what: &str, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.to_owned(),
            why: why.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  hint: {}", self.what, self.why, self.fix)
    }
}

/// Everything that is missing to cover the processes of `cgroup`. Without privileges nothing else
/// can be judged, so that is then the only problem.
#[must_use]
pub fn node(cgroup: &Path) -> Vec<Problem> {
    if let Some(problem) = privileges() {
        return vec![problem];
    }
    let mut problems = Vec::new();
    problems.extend(cgroup2(cgroup));
    problems.extend(bpf_fs());
    problems.extend(btf());
    problems.extend(bpf_lsm());
    problems.extend(kernel_tls());
    problems.extend(socket_destroy());
    problems
}

/// Whether this process may do what apply does.
#[must_use]
pub fn privileges() -> Option<Problem> {
    const WHAT: &str = "not enough privileges";
    if !nix::unistd::geteuid().is_root() {
        return Some(Problem::new(
            WHAT,
            "not running as root",
            "run it with sudo",
        ));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lacking = lacking_capabilities(&status);
    if !lacking.is_empty() {
        let why = format!("root without {}", lacking.join(" and "));
        return Some(Problem::new(
            WHAT,
            why,
            "run it outside of the container, or grant the container these capabilities",
        ));
    }
    // Capabilities in a user namespace are no capabilities for BPF.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !is_whole_uid_map(&map) {
        return Some(Problem::new(
            WHAT,
            "root of a user namespace only",
            "run it in the machine's first user namespace",
        ));
    }
    None
}

/// Whether `folder` is in a cgroup2 file system.
#[must_use]
pub fn cgroup2(folder: &Path) -> Option<Problem> {
    let path = folder.display();
    let fix = format!(
        "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 cgroup2 {path}, or set node.cgroup to where cgroup2 is mounted"
    );
    mounted(folder, CGROUP2_SUPER_MAGIC)
        .map(|why| Problem::new("no cgroup2", format!("{path} {why}"), fix))
}

/// Whether an interface that the configuration names as an uplink exists.
#[must_use]
pub fn uplink(name: &InterfaceName) -> Option<Problem> {
    let why = match link::find(name.as_str()) {
        Ok(Some(_)) => return None,
        Ok(None) => "there is no interface of this name".to_owned(),
        Err(error) => error.to_string(),
    };
    let fix = "correct node.uplinks, or apply when the interface is there: the strict check must stand on it first";
    Some(Problem::new(&format!("no uplink {name}"), why, fix))
}

/// Whether the BPF file system is where it belongs.
#[must_use]
pub fn bpf_fs() -> Option<Problem> {
    const FOLDER: &str = "/sys/fs/bpf";
    let fix = format!("mount -t bpf bpf {FOLDER}");
    mounted(Path::new(FOLDER), BPF_FS_MAGIC)
        .map(|why| Problem::new("no BPF file system", format!("{FOLDER} {why}"), fix))
}

/// Whether the kernel describes its own types, from which the programs get the offsets they read at.
#[must_use]
pub fn btf() -> Option<Problem> {
    const FILE: &str = "/sys/kernel/btf/vmlinux";
    let error = File::open(FILE).err()?;
    let why = format!(
        "cannot open {FILE}: {}",
        Errno::from_raw(error.raw_os_error().unwrap_or(0)).desc()
    );
    Some(Problem::new(
        "no BTF of the running kernel",
        why,
        "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
    ))
}

/// Whether BPF programs at LSM hooks run. Without `bpf` in this list the kernel attaches them all the same, and
/// never calls them.
#[must_use]
pub fn bpf_lsm() -> Option<Problem> {
    const FOLDER: &str = "/sys/kernel/security";
    const WHAT: &str = "BPF programs at LSM hooks do not run";
    if let Some(why) = mounted(Path::new(FOLDER), SECURITYFS_MAGIC) {
        let fix = format!("mount -t securityfs securityfs {FOLDER}");
        return Some(Problem::new(
            "cannot tell whether BPF programs at LSM hooks run",
            format!("{FOLDER} {why}"),
            fix,
        ));
    }
    let file = format!("{FOLDER}/lsm");
    let list = match fs::read_to_string(&file) {
        Ok(list) => list,
        Err(error) => {
            return Some(Problem::new(
                WHAT,
                format!("cannot read {file}: {error}"),
                LSM_FIX,
            ));
        }
    };
    if list.trim().split(',').any(|name| name == "bpf") {
        return None;
    }
    let fix = format!(
        "boot with lsm={},bpf on the kernel's command line",
        list.trim()
    );
    Some(Problem::new(
        WHAT,
        format!("{file} lists {}, not bpf", list.trim()),
        fix,
    ))
}

/// Whether the kernel can encrypt TLS records (kTLS).
#[must_use]
pub fn kernel_tls() -> Option<Problem> {
    const WHAT: &str = "no kernel TLS";
    let attempt = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .and_then(|socket| setsockopt(&socket, TcpUlp::default(), b"tls"));
    match attempt {
        // Only a connected socket can have it: the kernel got as far as that.
        Ok(()) | Err(Errno::ENOTCONN) => None,
        Err(Errno::ENOENT) => {
            let fix = "boot a kernel with CONFIG_TLS, or install the module tls";
            Some(Problem::new(WHAT, without_module("tls"), fix))
        }
        Err(errno) => Some(Problem::new(
            WHAT,
            format!("a socket refuses TCP_ULP tls: {}", errno.desc()),
            "see the kernel's log",
        )),
    }
}

/// Whether the kernel has WireGuard. Only a node with peers needs it.
#[must_use]
pub fn wireguard() -> Option<Problem> {
    const WHAT: &str = "no WireGuard";
    match wireguard::is_available() {
        Ok(true) => None,
        Ok(false) => {
            let fix = "boot a kernel with CONFIG_WIREGUARD, or install the module wireguard";
            Some(Problem::new(WHAT, without_module("wireguard"), fix))
        }
        Err(error) => Some(Problem::new(
            WHAT,
            error.to_string(),
            "see the kernel's log",
        )),
    }
}

/// Whether connections can be reset (`SOCK_DESTROY`).
#[must_use]
pub fn socket_destroy() -> Option<Problem> {
    const WHAT: &str = "connections cannot be reset";
    let error = diag::probe().err()?;
    Some(match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP) => Problem::new(
            WHAT,
            "the kernel has no SOCK_DESTROY",
            "boot a kernel with CONFIG_INET_DIAG_DESTROY=y",
        ),
        Some(Errno::ENOENT) => {
            let fix = "boot a kernel with CONFIG_INET_DIAG, or install the modules inet_diag and tcp_diag";
            Problem::new(WHAT, without_module("tcp_diag"), fix)
        }
        _ => Problem::new(WHAT, error.to_string(), "see the kernel's log"),
    })
}

/// What is wrong with the file system at `folder`; `None` if it is of this type.
fn mounted(folder: &Path, wanted: FsType) -> Option<String> {
    match statfs(folder) {
        Ok(found) if found.filesystem_type() == wanted => None,
        Ok(_) => Some("has another file system".to_owned()),
        Err(errno) => Some(format!("cannot be looked at: {}", errno.desc())),
    }
}

/// Why the kernel could not load a module that it asked for.
fn without_module(module: &str) -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    if fs::read_to_string("/proc/sys/kernel/modules_disabled")
        .is_ok_and(|value| value.trim() == "1")
    {
        return format!(
            "the module {module} is not loaded, and loading is switched off (kernel.modules_disabled)"
        );
    }
    if !Path::new("/lib/modules").join(release).exists() {
        return format!(
            "kernel {release} has it neither built in nor loaded, and there is no /lib/modules/{release} \
             (was the kernel upgraded without a reboot?)"
        );
    }
    format!("kernel {release} has it neither built in nor as module {module}")
}

/// The names of the capabilities that `/proc/self/status` does not show as effective.
fn lacking_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect()
}

/// Whether user ids are those of the machine's first user namespace.
fn is_whole_uid_map(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// `include/uapi/linux/capability.h`. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON, and setns needs it.
const CAPABILITIES: [(u8, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
const LSM_FIX: &str = "boot with bpf in the list lsm= on the kernel's command line";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_status() {
        let status = |mask: &str| {
            format!("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t{mask}\nCapBnd:\t0\n")
        };
        assert!(lacking_capabilities(&status("000001ffffffffff")).is_empty());
        assert_eq!(
            lacking_capabilities(&status("0000000000001000")),
            ["CAP_SYS_ADMIN"]
        );
        // What cannot be read counts as lacking.
        assert_eq!(lacking_capabilities(""), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    }

    #[test]
    fn uid_map_of_a_user_namespace_is_told_apart() {
        assert!(is_whole_uid_map("         0          0 4294967295\n"));
        assert!(!is_whole_uid_map("         0       1000          1\n"));
        assert!(!is_whole_uid_map("         0     100000      65536\n"));
        assert!(!is_whole_uid_map(""));
    }

    #[test]
    fn wrong_file_system_is_a_problem_with_a_cure() {
        let problem = cgroup2(Path::new("/proc")).unwrap();
        assert!(
            problem.why.contains("/proc has another file system"),
            "{problem}"
        );
        let problem = cgroup2(Path::new("/nonexistent")).unwrap();
        assert!(problem.why.contains("No such file"), "{problem}");
        assert!(problem.fix.contains("node.cgroup"), "{problem}");
    }

    /// Asks the kernel it runs on; the answers must agree with what the kernel lists elsewhere.
    #[test]
    fn probes_agree_with_the_kernel() {
        // Only the machine's first network namespace has this file.
        let listed = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp").unwrap_or_default();
        let has_tls = kernel_tls().is_none();
        if listed.split_whitespace().any(|ulp| ulp == "tls") {
            assert!(has_tls);
        }
        if Path::new("/sys/module/wireguard").exists() {
            assert_eq!(wireguard(), None);
        }
        assert_eq!(
            btf().is_none(),
            Path::new("/sys/kernel/btf/vmlinux").exists()
        );
    }
}
