//! From the kernel's first process to a running agent.

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{chdir, chroot};
use underseal_vm_guest::{AGENT, BIN, SYSTEMD};

const ROOT: &str = "/newroot";
/// The only NVMe: with two, their names would depend on which is found first.
const DISK: &str = "/dev/nvme0n1";

/// Brings the guest up; returns only when it cannot.
pub(crate) fn run() -> Result<Infallible> {
    mount_as("proc", "/proc", "proc")?;
    mount_as("sysfs", "/sys", "sysfs")?;
    mount_as("devtmpfs", "/dev", "devtmpfs")?;
    load_modules()?;
    mount_root()?;
    copy_payload()?;
    let systemd = fs::read_to_string("/proc/cmdline")?
        .split_whitespace()
        .any(|word| word == SYSTEMD);
    enter_root()?;
    mount_as("tmpfs", "/run", "tmpfs")?;
    mount_as("tmpfs", "/tmp", "tmpfs")?;
    fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777))?;
    if systemd { become_systemd() } else { stay() }
}

fn mount_as(source: &str, target: &str, kind: &str) -> Result<()> {
    fs::create_dir_all(target)?;
    mount(
        Some(source),
        target,
        Some(kind),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mount {kind} on {target}"))
}

/// Names begin with a number: their order is the order of loading.
fn load_modules() -> Result<()> {
    let mut modules: Vec<_> = fs::read_dir("/modules")?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    modules.sort();
    for path in modules {
        let file = File::open(&path)?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            // Built in, or the processor lacks what a faster variant needs.
            Ok(()) | Err(nix::Error::EEXIST | nix::Error::ENODEV) => {}
            Err(error) => bail!("module {}: {error}", path.display()),
        }
    }
    Ok(())
}

fn mount_root() -> Result<()> {
    let started = Instant::now();
    while !Path::new(DISK).exists() {
        if started.elapsed() > Duration::from_secs(20) {
            bail!("{DISK} did not appear");
        }
        sleep(Duration::from_millis(5));
    }
    fs::create_dir_all(ROOT)?;
    mount(
        Some(DISK),
        ROOT,
        Some("ext4"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mount the root image")
}

fn copy_payload() -> Result<()> {
    let bin = format!("{ROOT}{BIN}");
    fs::create_dir_all(&bin)?;
    for entry in fs::read_dir("/payload")? {
        let entry = entry?;
        install(&entry.path(), &Path::new(&bin).join(entry.file_name()))?;
    }
    install(Path::new("/init"), Path::new(&format!("{ROOT}{AGENT}")))
}

/// Renamed into place, because after a reboot the old file may be in use.
fn install(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(from, &new)
        .with_context(|| format!("copy {} to {}", from.display(), new.display()))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    fs::rename(&new, to)?;
    Ok(())
}

fn enter_root() -> Result<()> {
    for name in ["proc", "sys", "dev"] {
        let (from, to) = (format!("/{name}"), format!("{ROOT}/{name}"));
        mount(
            Some(from.as_str()),
            to.as_str(),
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )
        .with_context(|| format!("move {from}"))?;
    }
    chdir(ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("move the root")?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

const UNIT: &str = "\
[Unit]
Description=agent of the test harness
DefaultDependencies=no
[Service]
ExecStart=/usr/local/sbin/vm-agent
StandardOutput=journal+console
StandardError=journal+console
# what a scenario starts belongs to the scenario, not to this unit's end
KillMode=process
Delegate=yes
";

fn become_systemd() -> Result<Infallible> {
    let wants = "/run/systemd/system/sysinit.target.wants";
    fs::create_dir_all(wants)?;
    fs::write("/run/systemd/system/vm-agent.service", UNIT)?;
    symlink("../vm-agent.service", format!("{wants}/vm-agent.service"))?;
    Err(Command::new("/sbin/init").exec()).context("start systemd")
}

fn stay() -> Result<Infallible> {
    mount_as("cgroup2", "/sys/fs/cgroup", "cgroup2")?;
    mount_as("bpf", "/sys/fs/bpf", "bpf")?;
    mount_as("tracefs", "/sys/kernel/tracing", "tracefs")?;
    mount_as("securityfs", "/sys/kernel/security", "securityfs")?;
    mount_as("devpts", "/dev/pts", "devpts")?;
    mount_as("tmpfs", "/dev/shm", "tmpfs")?;
    let agent = Command::new(AGENT).spawn().context("start the agent")?;
    loop {
        // Orphans become children of PID 1 and are collected here.
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() as u32 == agent.id() => {
                bail!("the agent exited {code}")
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() as u32 == agent.id() => {
                bail!("the agent was killed by {signal}")
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => bail!("wait: {error}"),
        }
    }
}
