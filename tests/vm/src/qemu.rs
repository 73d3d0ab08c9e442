//! One QEMU process: its start, its console, its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::artifacts::Kernel;
use crate::console::Console;
use crate::machine::{self, VmOptions};

/// After a kernel's first complaint the machine has so long to print the rest of it.
const COMPLAINT_ENDS: Duration = Duration::from_secs(1);

/// A running machine; killed when dropped, at its deadline, and when its kernel complains.
pub(crate) struct Qemu {
    child: Arc<Mutex<Child>>,
    console: Arc<Console>,
    /// Ends when the whole console has been read.
    follower: Mutex<Option<JoinHandle<()>>>,
    errors: PathBuf,
    deadline: Duration,
    started: Instant,
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
        fs::write(&initramfs, machine::archive(kernel, options)?)?;
        let errors = folder.join("qemu.stderr");
        let mut child = machine::command(kernel, options, &initramfs, agent)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?)
            .spawn()
            .context("start qemu-system-x86_64; `make setup` installs it")?;
        let output = child.stdout.take().context("QEMU's output")?;
        let child = Arc::new(Mutex::new(child));
        let console = Arc::new(Console::default());
        let follower = watch(Arc::clone(&console), output, Arc::clone(&child));
        let alive = end_after(options.deadline, Arc::clone(&child));
        Ok(Self {
            child,
            console,
            follower: Mutex::new(Some(follower)),
            errors,
            deadline: options.deadline,
            started: Instant::now(),
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

    /// The first thing that explains the end of a machine which did not end by itself.
    pub(crate) fn why_ended(&self) -> Option<String> {
        if let Some(complaint) = self.console.complaint() {
            // It is killed a second later: let the kernel's report be complete.
            sleep(COMPLAINT_ENDS);
            return Some(complaint);
        }
        if self.started.elapsed() > self.deadline {
            return Some(format!("killed at its deadline of {:?}", self.deadline));
        }
        Some(self.errors()).filter(|errors| !errors.is_empty())
    }

    /// How QEMU has ended, if it has.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        lock(&self.child).try_wait().ok().flatten()
    }

    /// Waits for QEMU to end by itself, and for the console's last line.
    ///
    /// # Errors
    /// When it does not in time, or fails.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.ended() {
                Some(status) if status.success() => break,
                Some(status) => bail!("QEMU ended with {status}: {}", self.errors()),
                None if started.elapsed() > timeout => {
                    bail!("the machine did not power off in {timeout:?}")
                }
                None => sleep(Duration::from_millis(5)),
            }
        }
        // What was printed last may still be on its way.
        if let Some(follower) = lock(&self.follower).take() {
            follower
                .join()
                .map_err(|_| anyhow!("the console's reader panicked"))?;
        }
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        kill(&self.child);
        // Collects it; there is nothing to do about an error here.
        let _ = lock(&self.child).wait();
    }
}

fn watch(console: Arc<Console>, output: ChildStdout, child: Arc<Mutex<Child>>) -> JoinHandle<()> {
    thread::spawn(move || {
        console.follow(output, || {
            let child = Arc::clone(&child);
            // A moment for the rest of the kernel's report to be printed.
            thread::spawn(move || {
                sleep(COMPLAINT_ENDS);
                kill(&child);
            });
        });
    })
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
