//! A virtual machine: its start, its files, its end.

use std::fmt;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use tempfile::TempDir;
use underseal_vm_guest::{Answer, Bytes, Call, Hello, Program};

use crate::agent::Agent;
use crate::artifacts::Kernel;
use crate::capture::Recording;
use crate::machine::VmOptions;
use crate::place::{Output, PATIENCE, Place, Process};
use crate::qemu::Qemu;

/// A running machine; dropping it kills it.
pub struct Vm {
    name: String,
    // Dropped before the folder that its files are in.
    qemu: Qemu,
    agent: Arc<Agent>,
    hellos: Mutex<Receiver<Hello>>,
    booted: Mutex<Hello>,
    _folder: TempDir,
}

impl Vm {
    /// Starts a machine and waits until its agent answers.
    ///
    /// # Errors
    /// When something that setup or the release build makes is missing, or the guest does not come up.
    pub fn boot(kernel: &Kernel, options: &VmOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("underseal-vm.").tempdir()?;
        let socket = folder.path().join("agent");
        let listener = UnixListener::bind(&socket)?;
        let qemu = Qemu::start(kernel, options, folder.path(), &socket)?;
        let (agent, hellos) = Agent::new(accept(&listener, &qemu)?)?;
        let booted = hellos.recv_timeout(Duration::from_secs(120));
        let Ok(booted) = booted else {
            let (why, tail) = (qemu.errors(), qemu.console().tail(40));
            bail!(
                "{} ({}) did not come up; {why}console:\n{tail}",
                options.name,
                kernel.release
            );
        };
        if booted.release != kernel.release {
            bail!("booted {} instead of {}", booted.release, kernel.release);
        }
        let vm = Self {
            name: options.name.clone(),
            qemu,
            agent,
            hellos: Mutex::new(hellos),
            booted: Mutex::new(booted),
            _folder: folder,
        };
        vm.sh(&format!("hostname {}", options.name))?;
        Ok(vm)
    }

    /// The name given to it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Seconds from the kernel's start to the agent's, at the last boot.
    pub fn boot_seconds(&self) -> f64 {
        lock(&self.booted).uptime
    }

    /// The network namespace of PID 1: the node itself.
    pub fn node(&self) -> Place<'_> {
        Place::new(self, None)
    }

    /// The network namespace with this name in /run/netns: a workload.
    pub fn inside(&self, netns: &str) -> Place<'_> {
        Place::new(self, Some(netns))
    }

    /// [`Place::sh`] on the node.
    ///
    /// # Errors
    /// As there.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.node().sh(script)
    }

    /// [`Place::try_sh`] on the node.
    ///
    /// # Errors
    /// As there.
    pub fn try_sh(&self, script: &str) -> Result<Output> {
        self.node().try_sh(script)
    }

    /// [`Place::spawn`] on the node.
    ///
    /// # Errors
    /// As there.
    pub fn spawn(&self, script: &str) -> Result<Process<'_>> {
        self.node().spawn(script)
    }

    /// [`Place::wait_until`] on the node.
    ///
    /// # Errors
    /// As there.
    pub fn wait_until(&self, condition: &str, limit: Duration, what: &str) -> Result<()> {
        self.node().wait_until(condition, limit, what)
    }

    /// Writes units where systemd of the guest looks for them, by name and text.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn put_units<'a>(&self, units: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<()> {
        units.into_iter().try_for_each(|(name, text)| {
            self.put(
                &format!("/etc/systemd/system/{name}"),
                text.as_bytes(),
                0o644,
            )
        })
    }

    /// Writes a file in the guest, making missing folders; `mode` is its permission bits.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn put(&self, path: &str, data: &[u8], mode: u32) -> Result<()> {
        let mut chunks = data.chunks(1 << 20);
        let first = chunks.next().unwrap_or_default();
        for (chunk, append) in
            std::iter::once((first, false)).chain(chunks.map(|chunk| (chunk, true)))
        {
            let call = Call::Write {
                path: path.to_owned(),
                data: Bytes(chunk.to_vec()),
                mode,
                append,
            };
            self.call(call, PATIENCE)?;
        }
        Ok(())
    }

    /// Reads a file in the guest.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        loop {
            let call = Call::Read {
                path: path.to_owned(),
                offset: data.len() as u64,
                length: 1 << 20,
            };
            let Answer::Data(Bytes(part)) = self.call(call, PATIENCE)? else {
                bail!("not an answer to Read")
            };
            if part.is_empty() {
                return Ok(data);
            }
            data.extend(part);
        }
    }

    /// Starts to record every packet of an interface of the node; it runs when this returns.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn capture(&self, interface: &str) -> Result<Recording<'_>> {
        self.node().capture(interface)
    }

    /// Reboots by `systemctl reboot` and waits until the agent answers again. What was written to disk stays.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn reboot(&self) -> Result<()> {
        self.restart("systemctl reboot")
    }

    /// Resets the machine without a word to any program, and waits until the agent answers again. What was written to
    /// disk before stays; nothing is shut down.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn reset(&self) -> Result<()> {
        self.sh("sync")?;
        self.restart("echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger")
    }

    fn restart(&self, script: &str) -> Result<()> {
        // Nobody waits for the answer: the machine may be gone before it is given.
        self.agent.tell(Call::Spawn(Program::shell(script)))?;
        let hello = lock(&self.hellos).recv_timeout(Duration::from_secs(180));
        let hello = hello.map_err(|_| self.died(anyhow!("did not come back from its reboot")))?;
        let mut booted = lock(&self.booted);
        if hello.boot == booted.boot {
            bail!("{}: the agent restarted, not the machine", self.name);
        }
        *booted = hello;
        drop(booted);
        self.sh(&format!("hostname {}", self.name)).map(drop)
    }

    /// Ends the machine and vouches for it: the kernel had nothing to complain about, and it powered off.
    ///
    /// # Errors
    /// With the console's last lines otherwise.
    pub fn finish(&self) -> Result<()> {
        self.agent.tell(Call::PowerOff)?;
        self.qemu
            .wait(Duration::from_secs(30))
            .map_err(|error| self.died(error))?;
        match self.qemu.console().complaint() {
            Some(_) => Err(self.died(anyhow!("was not healthy"))),
            None => Ok(()),
        }
    }

    /// The last lines of the console, for reports.
    pub fn console_tail(&self) -> String {
        self.qemu.console().tail(60)
    }

    /// Asks the agent; `patience` is for the call itself, the connection gets some more.
    pub(crate) fn call(&self, call: Call, patience: Duration) -> Result<Answer> {
        let answer = self.agent.ask(call).and_then(|answer| {
            match answer.recv_timeout(patience + Duration::from_secs(30)) {
                Ok(result) => Ok(result),
                Err(_) => bail!("the agent does not answer"),
            }
        });
        match answer {
            Ok(result) => result.map_err(|error| anyhow!("{}: {error}", self.name)),
            Err(error) => Err(self.died(error)),
        }
    }

    /// An error with what is known about the end of a machine.
    fn died(&self, error: anyhow::Error) -> anyhow::Error {
        match self.qemu.why_ended() {
            Some(why) => error.context(format!("{}: {why}", self.name)),
            None => error.context(self.name.clone()),
        }
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Vm({})", self.name)
    }
}

/// QEMU connects at once, or it has failed.
fn accept(listener: &UnixListener, qemu: &Qemu) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let started = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                return Err(error.into());
            }
            Err(_) if qemu.ended().is_some() => bail!("QEMU did not start: {}", qemu.errors()),
            Err(_) if started.elapsed() > Duration::from_secs(60) => {
                bail!("QEMU does not connect: {}", qemu.errors())
            }
            Err(_) => sleep(Duration::from_millis(2)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
