//! The lock that keeps two loaders apart, and what the helper's own lock tells.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::error::Error;

/// Folder of everything that lives until reboot.
const FOLDER: &str = "/run/underseal";
/// Held by a loader that changes the node.
const LOADER: &str = "/run/underseal/lock";
/// Held by the helper as long as it runs (`underseal_ktls`, `helper::pins::Lock`).
const HELPER: &str = "/run/underseal/handshake.lock";
/// How often a lock that somebody else has is tried: the kernel cannot wait for a limited time.
const PAUSE: Duration = Duration::from_millis(50);

/// The lock; free again when this value is dropped, or its process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock, or waits for it as long as `patience`. `waiting` is told once who has it.
    ///
    /// # Errors
    /// Somebody else has it still, and the message says who; or the file cannot be opened.
    pub fn take(patience: Duration, waiting: impl FnOnce(&str)) -> Result<Self, Error> {
        let fail = |source: std::io::Error| Error::new("lock", LOADER, source);
        fs::create_dir_all(FOLDER).map_err(fail)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(LOADER)
            .map_err(fail)?;
        let end = Instant::now() + patience;
        let mut waiting = Some(waiting);
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return signed(lock).map_err(fail),
                Err((back, Errno::EWOULDBLOCK)) => file = back,
                Err((_, errno)) => return Err(fail(errno.into())),
            }
            let holder = holder_of(LOADER);
            if Instant::now() >= end {
                return Err(fail(Errno::EWOULDBLOCK.into()).explained(format!("held by {holder}")));
            }
            if let Some(waiting) = waiting.take() {
                waiting(&holder);
            }
            thread::sleep(PAUSE);
        }
    }
}

/// The helper's process id, if it is running.
///
/// # Errors
/// Its lock cannot be tried.
pub fn helper() -> Result<Option<u32>, Error> {
    let fail = |source: std::io::Error| Error::new("look at", HELPER, source);
    let file = match File::open(HELPER) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(fail)?,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        // Nobody has it: what the file says is about the past.
        Ok(_) => Ok(None),
        Err((_, Errno::EWOULDBLOCK)) => {
            let text = fs::read_to_string(HELPER).map_err(fail)?;
            Ok(Some(
                text.split_whitespace()
                    .next()
                    .and_then(|pid| pid.parse().ok())
                    .unwrap_or(0),
            ))
        }
        Err((_, errno)) => Err(fail(errno.into())),
    }
}

/// When the helper that runs was started: that is when it wrote into its lock.
///
/// # Errors
/// Its lock cannot be looked at.
pub fn helper_since() -> Result<Option<SystemTime>, Error> {
    match fs::metadata(HELPER).and_then(|found| found.modified()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other
            .map(Some)
            .map_err(|source| Error::new("look at", HELPER, source)),
    }
}

/// Writes into the file who has the lock.
fn signed(mut lock: Flock<File>) -> std::io::Result<Lock> {
    let command: Vec<String> = std::env::args().collect();
    lock.set_len(0)?;
    lock.rewind()?;
    write!(&mut *lock, "{} {}", std::process::id(), command.join(" "))?;
    Ok(Lock { _file: lock })
}

/// What the holder wrote.
fn holder_of(path: impl AsRef<Path>) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    match (read, text.trim().split_once(' ')) {
        (Ok(_), Some((pid, command))) => format!("process {pid} ({command})"),
        _ => "another process".to_owned(),
    }
}
