//! The connection to the agent in the guest.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use underseal_vm_guest::{Answer, Call, Hello, Line, Reply, Request};

/// Sends requests and hands their replies to those who wait.
pub(crate) struct Agent {
    stream: Mutex<UnixStream>,
    /// Whom to give the reply with an id. A closed connection empties it, which wakes all.
    waiting: Mutex<HashMap<u64, Sender<Result<Answer, String>>>>,
    last: AtomicU64,
}

impl Agent {
    /// Takes over a connected stream; the agent's greetings, one a boot, arrive at the receiver.
    pub(crate) fn new(stream: UnixStream) -> Result<(Arc<Self>, Receiver<Hello>)> {
        let agent = Arc::new(Self {
            stream: Mutex::new(stream.try_clone()?),
            waiting: Mutex::default(),
            last: AtomicU64::new(0),
        });
        let (sender, hellos) = mpsc::channel();
        let reader = Arc::clone(&agent);
        thread::spawn(move || reader.follow(stream, &sender));
        Ok((agent, hellos))
    }

    /// Sends a request; the receiver gets the result, or nothing if the connection ends.
    pub(crate) fn ask(&self, call: Call) -> Result<Receiver<Result<Answer, String>>> {
        let (sender, answer) = mpsc::channel();
        let id = self.number();
        lock(&self.waiting).insert(id, sender);
        let sent = self.send(&Request { id, call });
        if sent.is_err() {
            lock(&self.waiting).remove(&id);
        }
        sent.map(|()| answer)
    }

    /// Sends a request whose result nobody waits for.
    pub(crate) fn tell(&self, call: Call) -> Result<()> {
        self.send(&Request {
            id: self.number(),
            call,
        })
    }

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

    fn number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn send(&self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        lock(&self.stream)
            .write_all(&line)
            .context("the machine is gone")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
