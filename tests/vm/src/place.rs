//! Running programs in a guest: where, how long, and what came of it.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use underseal_vm_guest::{Answer, Call, Ended, Program};

use crate::capture::Recording;
use crate::vm::Vm;

/// How long a command may take unless told otherwise: far longer than any should, under emulation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// Where in the guest something runs.
#[derive(Clone, Debug)]
pub struct Place<'vm> {
    vm: &'vm Vm,
    netns: Option<String>,
    cgroup: Option<String>,
    env: Vec<(String, String)>,
}

impl<'vm> Place<'vm> {
    pub(crate) fn new(vm: &'vm Vm, netns: Option<&str>) -> Self {
        Self {
            vm,
            netns: netns.map(str::to_owned),
            cgroup: None,
            env: Vec::new(),
        }
    }

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

    /// Runs a shell script, at most four minutes.
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

    /// Runs a shell script, at most four minutes, and leaves the judgement of its exit code to the caller.
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
        let output = process.wait(limit).inspect_err(|_| {
            // The reason to give up on it is the error to report.
            let _ = process.signal(9);
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
        let call = Call::CaptureStart {
            netns: self.netns.clone(),
            interface: interface.to_owned(),
        };
        let Answer::Capturing { capture } = self.vm.call(call, PATIENCE)? else {
            bail!("not an answer to CaptureStart")
        };
        Ok(Recording::new(self.vm, capture))
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
            Some(netns) => write!(formatter, "{}/{netns}", self.vm.name()),
            None => write!(formatter, "{}", self.vm.name()),
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
