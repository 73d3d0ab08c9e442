//! Threads that are to sleep in a certain system call at a certain time.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::sys;

const PATIENCE: Duration = Duration::from_secs(10);

/// A thread at work.
pub(crate) struct Task<T> {
    thread: JoinHandle<Result<T>>,
    sleep: Sleep,
}

/// Where a thread is to sleep.
#[derive(Clone)]
pub(crate) struct Sleep {
    id: i32,
    calls: &'static [i64],
    done: Arc<AtomicBool>,
}

impl<T: Send + 'static> Task<T> {
    /// Starts a thread that will sleep in one of `calls`.
    pub(crate) fn start(
        calls: &'static [i64],
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let (sender, id) = mpsc::channel();
        let done = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&done);
        let thread = thread::spawn(move || {
            sender.send(sys::thread_id())?;
            let result = work();
            flag.store(true, Ordering::Release);
            result
        });
        let sleep = Sleep {
            id: id.recv()?,
            calls,
            done,
        };
        Ok(Self { thread, sleep })
    }

    pub(crate) fn sleep(&self) -> Sleep {
        self.sleep.clone()
    }

    /// What it came to. The case's own time limit ends a wait that has no end.
    pub(crate) fn join(self) -> Result<T> {
        let panicked = |_| anyhow!("a thread panicked");
        self.thread.join().map_err(panicked)?
    }
}

impl Sleep {
    /// Waits until the thread sleeps in one of its calls.
    pub(crate) fn wait(&self) -> Result<()> {
        let started = Instant::now();
        let path = format!("/proc/self/task/{}/syscall", self.id);
        loop {
            if self.done.load(Ordering::Acquire) {
                bail!("a call returned that should have slept until the hand-over");
            }
            // A thread that runs has no number; one that has ended, no file.
            let line = fs::read_to_string(&path).unwrap_or_default();
            let number = line.split(' ').next().and_then(|word| word.parse().ok());
            if number.is_some_and(|number: i64| self.calls.contains(&number)) {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                bail!("a thread does not sleep in {:?}: {line}", self.calls);
            }
            sleep(Duration::from_millis(1));
        }
    }
}
