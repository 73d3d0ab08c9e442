//! Waiting: for the one helper before this one to end, and for `underseal apply` to pin its maps.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, Write},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use underseal_abi::names::PIN_ROOT;

use super::maps;

/// Only one helper may run: two would hand over the same connection.
pub struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl Lock {
    /// The file: `status` sees by its lock whether a helper runs, and which.
    pub const PATH: &'static str = "/run/underseal/handshake.lock";

    /// Takes the lock and writes this process's id into the file.
    ///
    /// # Errors
    /// Another helper runs, or the folder cannot be written.
    pub(super) fn take() -> Result<Self> {
        let path = Path::new(Self::PATH);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let lock = locked(file, PATIENCE);
        let Some(mut lock) = lock.with_context(|| format!("cannot lock {}", path.display()))?
        else {
            let holder = fs::read_to_string(path).unwrap_or_default();
            bail!("another helper runs (process {})", holder.trim());
        };
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self(lock))
    }
}

/// `status` asks for the lock for a moment, to see whether a helper has it: that is no other helper.
fn locked(mut file: File, patience: Duration) -> io::Result<Option<Flock<File>>> {
    let end = Instant::now() + patience;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= end => return Ok(None),
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(errno.into()),
        }
        thread::sleep(PAUSE);
    }
}

/// How long the lock is tried, and how often: the kernel cannot wait for a limited time.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Watches the pinned maps: they go with `underseal down` and come with the next apply.
pub(super) struct Watch(Inotify);

impl Watch {
    /// Starts to watch `folder`.
    fn on(folder: &Path) -> Result<Self> {
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let what = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF;
        watch
            .add_watch(folder, what)
            .with_context(|| format!("cannot watch {}", folder.display()))?;
        Ok(Self(watch))
    }

    /// Watches the maps that are pinned now.
    pub(super) fn maps() -> Result<Self> {
        Self::on(&maps::folder())
    }

    /// Watches for the end of an apply: it has the lock's file open for writing as long as it runs.
    ///
    /// # Errors
    /// There is no folder for locks, though this process's own lock is in it.
    pub(super) fn applies() -> Result<Self> {
        let folder = Path::new(Lock::PATH).parent().unwrap_or(Path::new("/"));
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        watch
            .add_watch(folder, AddWatchFlags::IN_CLOSE_WRITE)
            .with_context(|| format!("cannot watch {}", folder.display()))?;
        Ok(Self(watch))
    }

    /// Whether something has changed since the last call.
    pub(super) fn changed(&self) -> bool {
        self.0.read_events().is_ok_and(|events| !events.is_empty())
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Blocks until maps are pinned.
///
/// # Errors
/// The BPF file system is not there.
pub(super) fn wait_for_maps() -> Result<()> {
    let root = Path::new(PIN_ROOT);
    let parent = root.parent().unwrap_or(root);
    loop {
        // Set up before the look, so that a change between the two is seen. The deepest folder
        // that exists is the one in which something must appear.
        let deepest = [maps::folder().as_path(), root, parent]
            .into_iter()
            .find(|p| p.exists())
            .map(Path::to_owned);
        let Some(folder) = deepest else {
            bail!(
                "{} does not exist\n  hint: mount -t bpf bpf /sys/fs/bpf",
                parent.display()
            );
        };
        let watch = Watch::on(&folder)?;
        if maps::Maps::open().is_ok() {
            return Ok(());
        }
        let mut wait = [nix::poll::PollFd::new(
            watch.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut wait, RECHECK)?;
    }
}

/// An apply pins the maps first and writes the ABI version last, which makes no event: look again
/// after this many milliseconds.
const RECHECK: u16 = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_status_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        File::create(&path).unwrap();
        let open = || File::open(&path).unwrap();
        let status = Flock::lock(open(), FlockArg::LockSharedNonblock).map_err(|(_, errno)| errno);
        let status = status.unwrap();
        // Control: whoever does not wait does not get it.
        assert!(locked(open(), Duration::ZERO).unwrap().is_none());
        let moment = thread::spawn(move || {
            thread::sleep(5 * PAUSE);
            drop(status);
        });
        assert!(locked(open(), Duration::from_secs(60)).unwrap().is_some());
        moment.join().unwrap();
    }
}
