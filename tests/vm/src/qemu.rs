//! One QEMU process: its command line, its console, its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use underseal_vm_guest::{PORT, SYSTEMD};

use crate::artifacts::{self, Kernel};
use crate::console::Console;
use crate::initramfs::Initramfs;
use crate::vm::VmOptions;

/// No mitigations, no audit: they cost time under emulation and change nothing that is tested here.
/// Warnings are printed (loglevel 5), because they fail the run. A panic ends the machine.
const CMDLINE: &str = "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off audit=0 apparmor=0 selinux=0 \
    random.trust_cpu=on tsc=reliable watchdog_thresh=30 net.ifnames=0 systemd.show_status=0";

/// A running machine; killed when dropped, at its deadline, and when its kernel complains.
pub(crate) struct Qemu {
    child: Arc<Mutex<Child>>,
    console: Arc<Console>,
    errors: PathBuf,
    /// Its end tells the deadline's thread that nothing is left to do.
    _alive: Sender<()>,
}

impl Qemu {
    /// Starts a machine whose agent port is connected to the unix socket `agent`, and whose files lie in `folder`.
    pub(crate) fn start(
        kernel: &Kernel,
        options: &VmOptions,
        folder: &Path,
        agent: &Path,
    ) -> Result<Self> {
        let initramfs = folder.join("initramfs");
        fs::write(&initramfs, archive(kernel, options)?)?;
        let errors = folder.join("qemu.stderr");
        let mut child = command(kernel, options, &initramfs, agent)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?)
            .spawn()
            .context("start qemu-system-x86_64; `make setup` installs it")?;
        let output = child.stdout.take().context("QEMU's output")?;
        let child = Arc::new(Mutex::new(child));
        let console = Arc::new(Console::default());
        watch(Arc::clone(&console), output, Arc::clone(&child));
        let alive = end_after(options.deadline, Arc::clone(&child));
        Ok(Self {
            child,
            console,
            errors,
            _alive: alive,
        })
    }

    /// What the guest kernel has printed.
    pub(crate) fn console(&self) -> &Console {
        &self.console
    }

    /// What QEMU itself complained about; mostly empty.
    pub(crate) fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// How QEMU has ended, if it has.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().ok().flatten()
    }

    /// Waits for QEMU to end by itself.
    ///
    /// # Errors
    /// When it does not in time, or fails.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.ended() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("QEMU ended with {status}: {}", self.errors()),
                None if started.elapsed() > timeout => {
                    bail!("the machine did not power off in {timeout:?}")
                }
                None => sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        kill(&self.child);
        // Collects it; there is nothing to do about an error here.
        let _ = lock(&self.child).wait();
    }
}

fn watch(console: Arc<Console>, output: ChildStdout, child: Arc<Mutex<Child>>) {
    thread::spawn(move || {
        console.follow(output, || {
            let child = Arc::clone(&child);
            // A moment for the rest of the kernel's report to be printed.
            thread::spawn(move || {
                sleep(Duration::from_secs(1));
                kill(&child);
            });
        });
    });
}

fn end_after(deadline: Duration, child: Arc<Mutex<Child>>) -> Sender<()> {
    let (alive, gone) = mpsc::channel();
    thread::spawn(move || {
        if gone.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
            kill(&child);
        }
    });
    alive
}

/// Whoever waits for the agent then sees its connection closed. No error: it may have ended already.
fn kill(child: &Mutex<Child>) {
    let _ = lock(child).kill();
}

fn lock(child: &Mutex<Child>) -> std::sync::MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

fn command(
    kernel: &Kernel,
    options: &VmOptions,
    initramfs: &Path,
    agent: &Path,
) -> Result<Command> {
    let mut qemu = Command::new("qemu-system-x86_64");
    // KVM is never used: results and timing are the same on every machine, and tests may run inside one.
    qemu.args([
        "-M",
        "q35",
        "-accel",
        "tcg,thread=multi,tb-size=256",
        "-cpu",
        "max",
    ])
    .args(["-nodefaults", "-no-user-config", "-display", "none"])
    .args([
        "-smp",
        &options.cpus.to_string(),
        "-m",
        &options.memory_mib.to_string(),
    ])
    .arg("-kernel")
    .arg(kernel.image())
    .arg("-initrd")
    .arg(initramfs)
    .args([
        "-chardev",
        "stdio,id=console,signal=off",
        "-serial",
        "chardev:console",
    ])
    .args([
        "-device",
        "virtio-serial-pci",
        "-chardev",
        &format!("socket,id=agent,path={}", agent.display()),
    ])
    .args([
        "-device",
        &format!("virtserialport,chardev=agent,name={PORT}"),
    ])
    .args([
        "-drive",
        &format!(
            "file={},format=raw,if=none,id=root,snapshot=on",
            artifacts::root_image()?.display()
        ),
    ])
    .args(["-device", "nvme,drive=root,serial=root"])
    .args([
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=rng",
    ]);
    for (number, port) in options.nics.iter().enumerate() {
        qemu.args(["-netdev", &port.netdev(&format!("n{number}"))]);
        qemu.args([
            "-device",
            &format!(
                "virtio-net-pci,netdev=n{number},mac={},romfile=",
                port.mac()
            ),
        ]);
    }
    let mut line = format!("{CMDLINE} {}", options.cmdline.join(" "));
    if options.systemd {
        line += &format!(" {SYSTEMD}");
    } else {
        // Under systemd a scenario may reboot; elsewhere a reboot can only be a panic.
        qemu.arg("-no-reboot");
    }
    qemu.args(["-append", &line]);
    Ok(qemu)
}

/// PID 1, the modules, and everything that is to be in the guest's PATH.
fn archive(kernel: &Kernel, options: &VmOptions) -> Result<Vec<u8>> {
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
