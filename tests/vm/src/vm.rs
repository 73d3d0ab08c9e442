//! A virtual machine and what one can do in it.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use tempfile::TempDir;
use underseal_vm_guest::{Answer, Bytes, Call, Ended, Hello, Line, Program, Reply, Request};

use crate::artifacts::Kernel;
use crate::capture::Recording;
use crate::qemu::Qemu;
use crate::wire::Port;

/// The programs under test, from the release build.
pub const PRODUCT: &[&str] = &["underseal", "underseal-handshake"];

/// How long a command may take unless told otherwise: far longer than any should, under emulation.
const PATIENCE: Duration = Duration::from_secs(60);

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
            deadline: Duration::from_secs(240),
        }
    }
}

/// A running machine; dropping it kills it.
pub struct Vm {
    name: String,
    // Dropped before the folder that its files are in.
    qemu: Qemu,
    agent: Arc<Agent>,
    hellos: Mutex<Receiver<Hello>>,
    booted: Mutex<Hello>,
    numbers: AtomicU64,
    _folder: TempDir,
}

/// The connection to the agent in the guest.
struct Agent {
    stream: Mutex<UnixStream>,
    /// Whom to give the reply with an id. A closed connection empties it, which wakes all.
    waiting: Mutex<HashMap<u64, Sender<Result<Answer, String>>>>,
    last: AtomicU64,
}

/// A program that has ended with exit code 0, or that [`Place::try_sh`] was told to accept.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
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
        let stream = accept(&listener, &qemu)?;
        let (hello_sender, hellos) = mpsc::channel();
        let agent = Arc::new(Agent {
            stream: Mutex::new(stream.try_clone()?),
            waiting: Mutex::default(),
            last: AtomicU64::new(0),
        });
        let reader = Arc::clone(&agent);
        thread::spawn(move || reader.follow(stream, &hello_sender));
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
            numbers: AtomicU64::new(0),
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
        Place {
            vm: self,
            netns: None,
            cgroup: None,
            env: Vec::new(),
        }
    }

    /// The network namespace with this name in /run/netns: a workload.
    pub fn inside(&self, netns: &str) -> Place<'_> {
        Place {
            netns: Some(netns.to_owned()),
            ..self.node()
        }
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
        // The connection of this command's own answer may go before it arrives.
        self.node().start(Program::shell("systemctl reboot"))?;
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
        let id = self.agent.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.agent.send(&Request {
            id,
            call: Call::PowerOff,
        })?;
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
        self.qemu.console().tail(30)
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

    /// An error with all that is known about the end of a machine.
    fn died(&self, error: anyhow::Error) -> anyhow::Error {
        // When the kernel has complained, the machine is killed a second later: let its report be complete.
        if self.qemu.console().complaint().is_some() {
            sleep(Duration::from_millis(1200));
        }
        let why = self
            .qemu
            .console()
            .complaint()
            .unwrap_or_else(|| self.qemu.errors());
        let tail = self.qemu.console().tail(60);
        error.context(format!(
            "{}: {why}\nconsole of {}:\n{tail}\n",
            self.name, self.name
        ))
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
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
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

impl Agent {
    /// Hands out what arrives until the connection ends.
    fn follow(&self, stream: UnixStream, hellos: &Sender<Hello>) {
        for line in BufReader::new(stream).lines() {
            match line.ok().and_then(|line| serde_json::from_str(&line).ok()) {
                Some(Line::Hello(hello)) => {
                    // Nobody is left to be told only when the machine is being dropped.
                    let _ = hellos.send(hello);
                }
                Some(Line::Reply(Reply { id, result })) => {
                    if let Some(waiting) = lock(&self.waiting).remove(&id) {
                        let _ = waiting.send(result);
                    }
                }
                None => break,
            }
        }
        let _ = lock(&self.stream).shutdown(Shutdown::Both);
        lock(&self.waiting).clear();
    }

    fn ask(&self, call: Call) -> Result<Receiver<Result<Answer, String>>> {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, answer) = mpsc::channel();
        lock(&self.waiting).insert(id, sender);
        let sent = self.send(&Request { id, call });
        if sent.is_err() {
            lock(&self.waiting).remove(&id);
        }
        sent.map(|()| answer)
    }

    fn send(&self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        lock(&self.stream)
            .write_all(&line)
            .context("the machine is gone")
    }
}

/// Where in the guest something runs.
#[derive(Clone, Debug)]
pub struct Place<'vm> {
    vm: &'vm Vm,
    netns: Option<String>,
    cgroup: Option<String>,
    env: Vec<(String, String)>,
}

impl<'vm> Place<'vm> {
    /// The same place, in the cgroup with this folder, made when missing.
    #[must_use]
    pub fn cgroup(mut self, folder: &str) -> Self {
        self.cgroup = Some(folder.to_owned());
        self
    }

    /// The same place with an environment variable more.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs a shell script, at most a minute.
    ///
    /// # Errors
    /// With its output, when its exit code is not 0.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.run(Program::shell(script), PATIENCE)
    }

    /// The same for scripts that need longer, or must not.
    ///
    /// # Errors
    /// As [`Place::sh`].
    pub fn sh_for(&self, script: &str, limit: Duration) -> Result<Output> {
        self.run(Program::shell(script), limit)
    }

    /// Runs a shell script, at most a minute, and leaves the judgement of its exit code to the caller.
    ///
    /// # Errors
    /// When it could not be run to its end.
    pub fn try_sh(&self, script: &str) -> Result<Output> {
        self.start(Program::shell(script))?.wait(PATIENCE)
    }

    /// Runs a program; its place is this one.
    ///
    /// # Errors
    /// With its output, when its exit code is not 0; when it takes longer than `limit`.
    pub fn run(&self, program: Program, limit: Duration) -> Result<Output> {
        let command = program.argv.join(" ");
        let process = self.start(program)?;
        let output = process.wait(limit).or_else(|error| {
            process.signal(9)?;
            Err(error)
        });
        output
            .and_then(Output::successful)
            .with_context(|| format!("{}: {}", self, command.trim_start_matches("/bin/sh -c ")))
    }

    /// Starts a shell script that goes on by itself.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, script: &str) -> Result<Process<'vm>> {
        self.start(Program::shell(script))
    }

    /// Starts a program that goes on by itself; its place is this one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, program: Program) -> Result<Process<'vm>> {
        let Answer::Started { process, pid } =
            self.vm.call(Call::Spawn(self.placed(program)), PATIENCE)?
        else {
            bail!("not an answer to Spawn")
        };
        Ok(Process {
            vm: self.vm,
            number: process,
            pid,
        })
    }

    /// Tries a shell script again and again until its exit code is 0.
    ///
    /// # Errors
    /// After `limit`, with `what` was waited for and the last output.
    pub fn wait_until(&self, condition: &str, limit: Duration, what: &str) -> Result<()> {
        let program = self.placed(Program::shell(condition));
        let call = Call::Until {
            program,
            timeout_ms: limit.as_millis() as u64,
        };
        self.vm
            .call(call, limit)
            .map(drop)
            .with_context(|| format!("{self}: waiting for {what}"))
    }

    /// Starts to record every packet of an interface of this network namespace; it runs when this returns.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn capture(&self, interface: &str) -> Result<Recording<'vm>> {
        let number = self.vm.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let path = format!("/run/vm-agent/capture-{number}.pcap");
        let interface = interface.to_owned();
        let call = Call::CaptureStart {
            netns: self.netns.clone(),
            interface,
            path: path.clone(),
        };
        let Answer::Capturing { capture } = self.vm.call(call, PATIENCE)? else {
            bail!("not an answer to CaptureStart")
        };
        Ok(Recording::new(self.vm, capture, path))
    }

    fn placed(&self, program: Program) -> Program {
        let mut env = self.env.clone();
        env.extend(program.env.clone());
        Program {
            netns: self.netns.clone(),
            cgroup: self.cgroup.clone(),
            env,
            ..program
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            Some(netns) => write!(formatter, "{}/{netns}", self.vm.name),
            None => write!(formatter, "{}", self.vm.name),
        }
    }
}

/// A program that was started; it goes on when this is dropped.
#[derive(Debug)]
pub struct Process<'vm> {
    vm: &'vm Vm,
    number: u64,
    pid: u32,
}

impl Process<'_> {
    /// Its process id; it is also that of its process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// With what it has written, when it still runs after `limit`; it then goes on.
    pub fn wait(&self, limit: Duration) -> Result<Output> {
        let call = Call::Wait {
            process: self.number,
            timeout_ms: limit.as_millis() as u64,
        };
        let Answer::Ended(ended) = self.vm.call(call, limit)? else {
            bail!("not an answer to Wait")
        };
        let Ended {
            code,
            signal,
            stdout,
            stderr,
        } = ended;
        Ok(Output {
            code,
            signal,
            stdout: stdout.0,
            stderr: stderr.0,
        })
    }

    /// Sends a signal to it and all that it has started.
    ///
    /// # Errors
    /// When there is no such signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.vm
            .call(
                Call::Signal {
                    process: self.number,
                    signal,
                },
                PATIENCE,
            )
            .map(drop)
    }
}

impl Output {
    /// Standard output as text, without white space at the ends.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Standard error as text, without white space at the ends.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }

    /// This, if the exit code was 0.
    ///
    /// # Errors
    /// Otherwise, with all output.
    pub fn successful(self) -> Result<Self> {
        if self.code == Some(0) {
            return Ok(self);
        }
        let how = match (self.code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("killed by signal {}", signal.unwrap_or_default()),
        };
        bail!(
            "{how}\nstdout: {}\nstderr: {}",
            self.text(),
            self.error_text()
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
