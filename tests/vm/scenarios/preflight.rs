//! What a machine may lack: one message for each, with a hint, and nothing is changed.

use anyhow::{Result, ensure};
use underseal_vm::site::{CONFIG, Settings, Site};
use underseal_vm::{Lab, VmOptions, Wire};

use crate::lifecycle::{WORLD, ensure_same};

/// What is made wrong, the command, how it is put right, and what the message begins with and hints at.
struct Lack {
    break_it: &'static str,
    command: &'static str,
    mend_it: &'static str,
    message: &'static str,
    hint: &'static str,
}

const APPLY: &str = "underseal apply";

const LACKS: &[Lack] = &[
    Lack {
        break_it: "",
        command: "setpriv --reuid=nobody --regid=nogroup --clear-groups underseal apply",
        mend_it: "",
        message: "error: not enough privileges: not running as root",
        hint: "sudo",
    },
    Lack {
        break_it: "",
        command: "setpriv --bounding-set=-net_admin underseal apply",
        mend_it: "",
        message: "error: not enough privileges: root without CAP_NET_ADMIN",
        hint: "container",
    },
    Lack {
        break_it: "",
        command: "unshare --user --map-root-user underseal apply",
        mend_it: "",
        message: "error: not enough privileges: root of a user namespace only",
        hint: "first user namespace",
    },
    Lack {
        break_it: "umount /sys/fs/cgroup",
        command: APPLY,
        mend_it: "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        message: "error: no cgroup2: /sys/fs/cgroup has another file system",
        hint: "mount -t cgroup2",
    },
    Lack {
        break_it: "umount /sys/fs/bpf",
        command: APPLY,
        mend_it: "mount -t bpf bpf /sys/fs/bpf",
        message: "error: no BPF file system: /sys/fs/bpf has another file system",
        hint: "mount -t bpf",
    },
    Lack {
        break_it: "mkdir -p /tmp/empty && mount --bind /tmp/empty /sys/kernel/btf",
        command: APPLY,
        mend_it: "umount /sys/kernel/btf",
        message: "error: no BTF of the running kernel: cannot open /sys/kernel/btf/vmlinux",
        hint: "CONFIG_DEBUG_INFO_BTF",
    },
    Lack {
        break_it: "umount /sys/kernel/security",
        command: APPLY,
        mend_it: "mount -t securityfs securityfs /sys/kernel/security",
        message: "error: cannot tell whether BPF programs at LSM hooks run",
        hint: "mount -t securityfs",
    },
    Lack {
        break_it: "ip link set eth0 down && ip link set eth0 name other",
        command: APPLY,
        mend_it: "ip link set other name eth0 && ip link set eth0 up",
        message: "error: no uplink eth0",
        hint: "node.uplinks",
    },
];

pub(crate) fn run(lab: &Lab) -> Result<()> {
    what_can_be_mended(lab)?;
    what_the_kernel_lacks(lab)
}

fn what_can_be_mended(lab: &Lab) -> Result<()> {
    let wire = Wire::new(1)?;
    let site = site(lab, &wire, VmOptions::default())?;
    for lack in LACKS {
        site.vm.sh(lack.break_it)?;
        let messages = refusal(&site, lack.command)?;
        site.vm.sh(lack.mend_it)?;
        ensure!(
            messages.len() == 1
                && messages[0].starts_with(lack.message)
                && messages[0].contains(lack.hint),
            "{}: {messages:?}",
            lack.break_it
        );
    }
    // All that was missing was missing only because it was taken away.
    site.apply()?;
    site.ensure_settled()?;
    site.down().map(drop)
}

/// A kernel without kTLS, WireGuard, sock_diag and BPF at LSM hooks: all of it is told at once.
fn what_the_kernel_lacks(lab: &Lab) -> Result<()> {
    let wire = Wire::new(1)?;
    let options = VmOptions {
        name: "poor".into(),
        without_modules: vec!["tls", "wireguard", "tcp_diag"],
        cmdline: vec!["lsm=capability".into()],
        ..VmOptions::default()
    };
    let site = site(lab, &wire, options)?;
    let messages = refusal(&site, APPLY)?;
    let expected = [
        (
            "error: BPF programs at LSM hooks do not run: /sys/kernel/security/lsm lists ",
            "boot with lsm=",
        ),
        ("error: no kernel TLS: ", "CONFIG_TLS"),
        ("error: connections cannot be reset: ", "inet_diag"),
        ("error: no WireGuard: ", "CONFIG_WIREGUARD"),
    ];
    ensure!(
        messages.len() == expected.len(),
        "not one message for each: {messages:?}"
    );
    for (message, (begin, hint)) in messages.iter().zip(expected) {
        ensure!(
            message.starts_with(begin) && message.contains(hint),
            "not {begin:?} with {hint:?}: {message}"
        );
    }
    Ok(())
}

/// A node that is configured and lacks nothing but what `options` leave out.
fn site(lab: &Lab, wire: &Wire, options: VmOptions) -> Result<Site> {
    let vm = lab.boot(&VmOptions {
        nics: vec![wire.port(0)],
        ..options
    })?;
    let site = Site::pair(&vm)?;
    site.configure(&Settings::with_peer())?;
    Ok(site)
}

/// The messages of a command, each with its hint; it must fail with exit code 1 and change nothing.
fn refusal(site: &Site, command: &str) -> Result<Vec<String>> {
    let world = format!(
        "{WORLD}; find /run/underseal /var/lib/underseal 2>/dev/null; sha256sum {CONFIG}; true"
    );
    let before = site.vm.sh(&world)?.text();
    let said = site.vm.try_sh(command)?;
    ensure!(
        said.code == Some(1) && said.stdout.is_empty(),
        "{command}: {said:?}"
    );
    ensure_same(command, &before, &site.vm.sh(&world)?.text())?;
    let text = format!("\n{}", said.error_text());
    let messages = text.split("\nerror: ").skip(1);
    Ok(messages
        .map(|message| format!("error: {message}"))
        .collect())
}
