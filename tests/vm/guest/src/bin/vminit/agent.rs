//! The agent: carries out what the harness asks for, each request in a thread of its own.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::reboot::{RebootMode, reboot};
use underseal_vm_guest::{Answer, Bytes, Call, Hello, Line, PORT, Reply, Request};

use crate::capture::Captures;
use crate::process::Processes;
use crate::sys;

/// What requests share.
#[derive(Default)]
struct Agent {
    processes: Processes,
    captures: Captures,
}

/// Serves the port until the machine ends; returns only when it cannot.
pub(crate) fn run() -> Result<Infallible> {
    sys::loopback_up()?;
    let path = port()?;
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    let output = Arc::new(Mutex::new(port.try_clone()?));
    send(&output, &Line::Hello(hello()?))?;
    let agent = Arc::new(Agent::default());
    let mut lines = BufReader::new(port);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            // The host's side is closed: the harness is gone, however it ended, and nobody needs this machine.
            reboot(RebootMode::RB_POWER_OFF)?;
        }
        let Request { id, call } = serde_json::from_str(&line).context("request")?;
        let (agent, output) = (Arc::clone(&agent), Arc::clone(&output));
        thread::spawn(move || {
            let result = agent.answer(call).map_err(|error| format!("{error:#}"));
            // Without its reply the harness runs into its own time limit and says so.
            let _ = send(&output, &Line::Reply(Reply { id, result }));
        });
    }
}

impl Agent {
    fn answer(&self, call: Call) -> Result<Answer> {
        let ms = Duration::from_millis;
        match call {
            Call::Spawn(program) => self.processes.start(&program),
            Call::Wait {
                process,
                timeout_ms,
            } => self
                .processes
                .wait(process, ms(timeout_ms))
                .map(Answer::Ended),
            Call::Signal { process, signal } => self
                .processes
                .signal(process, signal)
                .map(|()| Answer::Done),
            Call::Until {
                program,
                timeout_ms,
            } => self
                .processes
                .until(&program, ms(timeout_ms))
                .map(|()| Answer::Done),
            Call::Read {
                path,
                offset,
                length,
            } => read(&path, offset, length).with_context(|| format!("read {path}")),
            Call::Write {
                path,
                data,
                mode,
                append,
            } => write(Path::new(&path), &data.0, mode, append)
                .with_context(|| format!("write {path}")),
            Call::CaptureStart { netns, interface } => self
                .captures
                .start(netns.as_deref(), &interface)
                .with_context(|| format!("capture {interface}")),
            Call::CaptureStop { capture } => self.captures.stop(capture),
            Call::PowerOff => {
                reboot(RebootMode::RB_POWER_OFF)?;
                Ok(Answer::Done)
            }
        }
    }
}

/// The port's device, found by the name that QEMU gave it.
fn port() -> Result<PathBuf> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(20) {
        for entry in fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        sleep(Duration::from_millis(5));
    }
    bail!("no virtio-serial port {PORT}")
}

fn hello() -> Result<Hello> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
    Ok(Hello {
        release: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        boot: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        uptime: read("/proc/uptime")?
            .split(' ')
            .next()
            .unwrap_or_default()
            .parse()?,
    })
}

/// One line in one piece; writers take turns.
fn send(output: &Mutex<File>, line: &Line) -> Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    output
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .write_all(&text)?;
    Ok(())
}

fn read(path: &str, offset: u64, length: u64) -> Result<Answer> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut data = Vec::new();
    file.take(length).read_to_end(&mut data)?;
    Ok(Answer::Data(Bytes(data)))
}

fn write(path: &Path, data: &[u8], mode: u32, append: bool) -> Result<Answer> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(append)
        .truncate(!append)
        .open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(data)?;
    Ok(Answer::Done)
}
