//! Programs that scenarios start.
//!
//! Output goes to files, not pipes, so that what a program leaves running in the background holds nobody up.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use underseal_vm_guest::{Answer, Bytes, Ended, Program};

use crate::sys;

/// What is kept for the harness. Not in /tmp, which systemd empties when it starts.
pub(crate) const FILES: &str = "/run/vm-agent";

/// All programs started so far, by number.
#[derive(Default)]
pub(crate) struct Processes {
    all: Mutex<HashMap<u64, Process>>,
    last: AtomicU64,
}

struct Process {
    child: Child,
    /// Kept once known: a process can be waited for once only.
    status: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Processes {
    /// Starts `program` as the leader of its own process group.
    pub(crate) fn start(&self, program: &Program) -> Result<Answer> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let process = start(program, number)?;
        let pid = process.child.id();
        self.lock().insert(number, process);
        Ok(Answer::Started {
            process: number,
            pid,
        })
    }

    /// Waits for the end of a program and returns all it wrote.
    pub(crate) fn wait(&self, number: u64, timeout: Duration) -> Result<Ended> {
        let started = Instant::now();
        loop {
            let mut all = self.lock();
            let process = all.get_mut(&number).ok_or_else(|| unknown(number))?;
            if let Some(ended) = process.poll()? {
                return Ok(ended);
            }
            if started.elapsed() > timeout {
                let Output { stdout, stderr } = process.output()?;
                bail!("still running after {timeout:?}; stdout:\n{stdout}\nstderr:\n{stderr}");
            }
            drop(all);
            pause(started);
        }
    }

    /// Signals the program's process group; one that has ended already is no error.
    pub(crate) fn signal(&self, number: u64, signal: i32) -> Result<()> {
        let all = self.lock();
        let process = all.get(&number).ok_or_else(|| unknown(number))?;
        match killpg(
            Pid::from_raw(process.child.id() as i32),
            Signal::try_from(signal)?,
        ) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(error) => bail!("kill: {error}"),
        }
    }

    /// Runs `program` until it exits 0.
    pub(crate) fn until(&self, program: &Program, timeout: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let Answer::Started { process, .. } = self.start(program)? else {
                bail!("not started")
            };
            let left = timeout
                .saturating_sub(started.elapsed())
                .max(Duration::from_millis(100));
            let ended = self.wait(process, left)?;
            self.forget(process)?;
            if ended.code == Some(0) {
                return Ok(());
            }
            if started.elapsed() > timeout {
                let text = |bytes: &Bytes| String::from_utf8_lossy(&bytes.0).into_owned();
                bail!(
                    "not so after {timeout:?}; last try: {}{}",
                    text(&ended.stdout),
                    text(&ended.stderr)
                );
            }
            sleep(Duration::from_millis(5));
        }
    }

    fn forget(&self, number: u64) -> Result<()> {
        let process = self.lock().remove(&number).ok_or_else(|| unknown(number))?;
        fs::remove_file(&process.stdout)?;
        fs::remove_file(&process.stderr)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Process>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(number: u64) -> anyhow::Error {
    anyhow!("no program has number {number}")
}

/// Short programs are answered soon, long ones cost little.
fn pause(started: Instant) {
    sleep((started.elapsed() / 20).clamp(Duration::from_millis(1), Duration::from_millis(20)));
}

fn start(program: &Program, number: u64) -> Result<Process> {
    let (name, arguments) = program.argv.split_first().context("no program named")?;
    fs::create_dir_all(FILES)?;
    let (stdout, stderr) = (
        PathBuf::from(format!("{FILES}/{number}.out")),
        PathBuf::from(format!("{FILES}/{number}.err")),
    );
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env_clear()
        .envs([
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
        ])
        .envs(program.env.iter().map(|(key, value)| (key, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(if program.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(File::create(&stdout)?)
        .stderr(File::create(&stderr)?);
    if let Some(netns) = &program.netns {
        sys::start_in_netns(&mut command, open_netns(netns)?);
    }
    if let Some(cgroup) = &program.cgroup {
        fs::create_dir_all(cgroup).with_context(|| cgroup.clone())?;
        let procs = format!("{cgroup}/cgroup.procs");
        sys::start_in_cgroup(
            &mut command,
            File::options().write(true).open(&procs).context(procs)?,
        );
    }
    let mut child = command.spawn().with_context(|| format!("start {name}"))?;
    if let (Some(Bytes(data)), Some(mut stdin)) = (program.stdin.clone(), child.stdin.take()) {
        // A program that does not read all of its input is no error.
        thread::spawn(move || stdin.write_all(&data));
    }
    Ok(Process {
        child,
        status: None,
        stdout,
        stderr,
    })
}

/// Opens a network namespace by its name in /run/netns.
pub(crate) fn open_netns(name: &str) -> Result<File> {
    let path = format!("/run/netns/{name}");
    File::open(&path).context(path)
}

/// What a program has written so far, as text.
struct Output {
    stdout: String,
    stderr: String,
}

impl Process {
    fn poll(&mut self) -> Result<Option<Ended>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        let Some(status) = self.status else {
            return Ok(None);
        };
        Ok(Some(Ended {
            code: status.code(),
            signal: status.signal(),
            stdout: Bytes(fs::read(&self.stdout)?),
            stderr: Bytes(fs::read(&self.stderr)?),
        }))
    }

    fn output(&self) -> Result<Output> {
        let text = |path: &PathBuf| {
            fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Output {
            stdout: text(&self.stdout)?,
            stderr: text(&self.stderr)?,
        })
    }
}
