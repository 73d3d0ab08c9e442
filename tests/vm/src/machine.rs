//! What a machine is made of: QEMU's command line and the initramfs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use underseal_vm_guest::{PORT, SYSTEMD};

use crate::artifacts::{self, Kernel};
use crate::initramfs::Initramfs;
use crate::wire::Port;

/// The programs under test, from the release build.
pub const PRODUCT: &[&str] = &["underseal", "underseal-handshake"];

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct VmOptions {
    /// Name in reports, and host name in the guest's own view of itself.
    pub name: String,
    /// Virtual processors.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Network cards in order: eth0, eth1, ...
    pub nics: Vec<Port>,
    /// Debian's systemd as PID 1; else a small one of ours, seconds faster.
    pub systemd: bool,
    /// More words for the kernel command line.
    pub cmdline: Vec<String>,
    /// Programs from the release build to put into the PATH.
    pub programs: &'static [&'static str],
    /// Kernel modules that are not to be loaded, to see what is said about their absence.
    pub without_modules: Vec<&'static str>,
    /// The machine is killed after this time: a scenario that hangs fails.
    pub deadline: Duration,
}

impl Default for VmOptions {
    fn default() -> Self {
        Self {
            name: "node".into(),
            cpus: 2,
            memory_mib: 768,
            nics: Vec::new(),
            systemd: false,
            cmdline: Vec::new(),
            programs: PRODUCT,
            without_modules: Vec::new(),
            deadline: Duration::from_secs(480),
        }
    }
}

/// No mitigations, no audit: they cost time under emulation and change nothing that is tested here.
/// Warnings are printed (loglevel 5), because they fail the run. A panic ends the machine.
const CMDLINE: &str = "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off audit=0 apparmor=0 selinux=0 \
    random.trust_cpu=on tsc=reliable watchdog_thresh=30 net.ifnames=0 systemd.show_status=0";

/// QEMU's command line, for a machine whose agent port is connected to the unix socket `agent`.
pub(crate) fn command(
    kernel: &Kernel,
    options: &VmOptions,
    initramfs: &Path,
    agent: &Path,
) -> Result<Command> {
    let root = artifacts::root_image()?;
    // KVM is never used: results and timing are the same on every machine, and tests may run inside one.
    let mut arguments = vec![
        ("-M", "q35".to_owned()),
        ("-accel", "tcg,thread=multi,tb-size=256".into()),
        ("-cpu", "max".into()),
        ("-smp", options.cpus.to_string()),
        ("-m", options.memory_mib.to_string()),
        ("-display", "none".into()),
        ("-kernel", kernel.image().display().to_string()),
        ("-initrd", initramfs.display().to_string()),
        ("-append", command_line(options)),
        ("-chardev", "stdio,id=console,signal=off".into()),
        ("-serial", "chardev:console".into()),
        (
            "-chardev",
            format!("socket,id=agent,path={}", agent.display()),
        ),
        ("-device", "virtio-serial-pci".into()),
        (
            "-device",
            format!("virtserialport,chardev=agent,name={PORT}"),
        ),
        (
            "-drive",
            format!(
                "file={},format=raw,if=none,id=root,snapshot=on",
                root.display()
            ),
        ),
        ("-device", "nvme,drive=root,serial=root".into()),
        ("-object", "rng-random,id=rng,filename=/dev/urandom".into()),
        ("-device", "virtio-rng-pci,rng=rng".into()),
    ];
    for (number, port) in options.nics.iter().enumerate() {
        let id = format!("n{number}");
        arguments.push(("-netdev", port.netdev(&id)));
        arguments.push((
            "-device",
            format!("virtio-net-pci,netdev={id},mac={},romfile=", port.mac()),
        ));
    }
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config"]);
    for (name, value) in &arguments {
        qemu.args([name, value.as_str()]);
    }
    if !options.systemd {
        // Under systemd a scenario may reboot; elsewhere a reboot can only be a panic.
        qemu.arg("-no-reboot");
    }
    Ok(qemu)
}

fn command_line(options: &VmOptions) -> String {
    let systemd = if options.systemd { SYSTEMD } else { "" };
    format!("{CMDLINE} {systemd} {}", options.cmdline.join(" "))
}

/// The initramfs: PID 1, the modules, and everything that is to be in the guest's PATH.
pub(crate) fn archive(kernel: &Kernel, options: &VmOptions) -> Result<Vec<u8>> {
    let mut archive = Initramfs::new();
    archive.file("init", &fs::read(artifacts::init()?)?);
    archive.folder("modules");
    for path in kernel.modules()? {
        let name = file_name(&path)?;
        // Names are NUMBER-MODULE.ko.
        let module = name
            .split_once('-')
            .map_or(name, |(_, module)| module)
            .trim_end_matches(".ko");
        if !options.without_modules.contains(&module) {
            archive.file(&format!("modules/{name}"), &fs::read(&path)?);
        }
    }
    archive.folder("payload");
    let mut programs = artifacts::tools()?;
    for name in options.programs {
        programs.push(artifacts::program(name)?);
    }
    for path in programs {
        archive.file(&format!("payload/{}", file_name(&path)?), &fs::read(&path)?);
    }
    Ok(archive.finish())
}

fn file_name(path: &Path) -> Result<&str> {
    path.file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("odd file name {}", path.display()))
}
