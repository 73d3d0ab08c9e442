//! The wire between machines: the test process itself is the switch.
//!
//! Each port is a pair of unix datagram sockets, ours and QEMU's; a datagram is an Ethernet frame. Frames are
//! recorded as they leave a machine, before the filter: what an attacker on the wire would see.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::pcap::{Link, Pcap};

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on as it is.
    Pass,
    /// It is lost.
    Drop,
    /// Another one goes on in its place.
    Replace(Vec<u8>),
    /// It goes on later; frames after it are not held up.
    Delay(Duration),
}

/// Decides about each frame, given the number of the port it came from and its bytes.
pub type Filter = Box<dyn FnMut(usize, &[u8]) -> Fate + Send>;

/// A switch with a fixed number of ports. Machines on it end before it does.
pub struct Wire {
    ports: Vec<Port>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    folder: TempDir,
}

/// One end of the wire, to be given to a machine.
#[derive(Clone, Debug)]
pub struct Port {
    number: usize,
    ours: PathBuf,
    theirs: PathBuf,
}

struct Shared {
    stop: AtomicBool,
    started: Instant,
    frames: Mutex<Vec<(Duration, Vec<u8>)>>,
    filter: Mutex<Filter>,
    /// Which port an Ethernet address was last seen at.
    addresses: Mutex<HashMap<[u8; 6], usize>>,
    /// How many frames no machine has taken.
    lost: AtomicU64,
}

/// A frame that waits for its time: when, a number that keeps order, what.
type Delayed = Reverse<(Instant, u64, Vec<u8>)>;

impl Wire {
    /// A wire with `ports` ends and no filter.
    ///
    /// # Errors
    /// When its sockets cannot be made.
    pub fn new(ports: usize) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("underseal-wire.")
            .tempdir()?;
        let path = |name: &str, number: usize| folder.path().join(format!("{name}{number}"));
        let ports: Vec<_> = (0..ports)
            .map(|number| Port {
                number,
                ours: path("wire", number),
                theirs: path("vm", number),
            })
            .collect();
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            started: Instant::now(),
            frames: Mutex::default(),
            filter: Mutex::new(Box::new(|_, _| Fate::Pass)),
            addresses: Mutex::default(),
            lost: AtomicU64::new(0),
        });
        let mut threads = Vec::new();
        for port in &ports {
            let socket = UnixDatagram::bind(&port.ours).context("wire")?;
            socket.set_write_timeout(Some(PATIENCE))?;
            let lane = Lane {
                number: port.number,
                ports: ports.clone(),
                shared: Arc::clone(&shared),
            };
            let (late, sender) = (lane.clone(), socket.try_clone()?);
            let (later, delayed) = mpsc::channel();
            threads.push(thread::spawn(move || lane.carry(&socket, &later)));
            threads.push(thread::spawn(move || late.deliver(&sender, &delayed)));
        }
        Ok(Self {
            ports,
            shared,
            threads,
            folder,
        })
    }

    /// The end with this number, from 0.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn port(&self, number: usize) -> Port {
        self.ports[number].clone()
    }

    /// From now on `filter` decides about every frame.
    pub fn set_filter(&self, filter: impl FnMut(usize, &[u8]) -> Fate + Send + 'static) {
        *lock(&self.shared.filter) = Box::new(filter);
    }

    /// From now on everything passes.
    pub fn clear_filter(&self) {
        self.set_filter(|_, _| Fate::Pass);
    }

    /// How many frames have been recorded.
    pub fn frames(&self) -> usize {
        lock(&self.shared.frames).len()
    }

    /// How many frames have been lost because the machine that they were for took none for a minute.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Everything recorded, from frame number `from` on.
    pub fn pcap(&self, from: usize) -> Pcap {
        let frames = lock(&self.shared.frames);
        Pcap {
            link: Link::Ethernet,
            packets: frames.iter().skip(from).cloned().collect(),
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "Wire({}, {} frames)",
            self.folder.path().display(),
            self.frames()
        )
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for port in &self.ports {
            // An empty datagram wakes the thread that reads there.
            if let Ok(socket) = UnixDatagram::unbound() {
                let _ = socket.send_to(&[], &port.ours);
            }
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Port {
    /// QEMU's `-netdev` argument for this port.
    pub(crate) fn netdev(&self, id: &str) -> String {
        let (local, remote) = (self.theirs.display(), self.ours.display());
        format!(
            "dgram,id={id},local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"
        )
    }

    /// The Ethernet address of the card at this port.
    pub(crate) fn mac(&self) -> String {
        format!("52:54:00:00:00:{:02x}", self.number + 1)
    }
}

/// What carries the frames that come from one port.
#[derive(Clone)]
struct Lane {
    number: usize,
    ports: Vec<Port>,
    shared: Arc<Shared>,
}

impl Lane {
    fn carry(&self, socket: &UnixDatagram, later: &Sender<Delayed>) {
        let mut buffer = vec![0; 128 << 10];
        let mut count = 0;
        while let Ok(length) = socket.recv(&mut buffer) {
            if self.shared.stop.load(Ordering::Acquire) {
                return;
            }
            let frame = &buffer[..length];
            lock(&self.shared.frames).push((self.shared.started.elapsed(), frame.to_vec()));
            if let Some(source) = address(frame, 6) {
                lock(&self.shared.addresses).insert(source, self.number);
            }
            let fate = lock(&self.shared.filter)(self.number, frame);
            match fate {
                Fate::Pass => self.forward(socket, frame),
                Fate::Drop => {}
                Fate::Replace(other) => self.forward(socket, &other),
                Fate::Delay(time) => {
                    count += 1;
                    // The other thread ends after this one.
                    let _ = later.send(Reverse((Instant::now() + time, count, frame.to_vec())));
                }
            }
        }
    }

    /// Sends on delayed frames when their time has come.
    fn deliver(&self, socket: &UnixDatagram, delayed: &Receiver<Delayed>) {
        let mut waiting = BinaryHeap::<Delayed>::new();
        loop {
            let pause = match waiting.peek() {
                Some(Reverse((due, ..))) => due.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            match delayed.recv_timeout(pause) {
                Ok(frame) => waiting.push(frame),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(Reverse((_, _, frame))) = waiting.pop() {
                        self.forward(socket, &frame);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// To the port where the destination was seen, else to all others.
    fn forward(&self, socket: &UnixDatagram, frame: &[u8]) {
        let known = address(frame, 0)
            .and_then(|address| lock(&self.shared.addresses).get(&address).copied());
        match known {
            Some(number) if number == self.number => {}
            Some(number) => self.put(socket, frame, &self.ports[number]),
            None => {
                for port in self.ports.iter().filter(|port| port.number != self.number) {
                    self.put(socket, frame, port);
                }
            }
        }
    }

    /// Errors mean that nobody is there yet, or that a machine does not read: the frame is lost.
    fn put(&self, socket: &UnixDatagram, frame: &[u8], port: &Port) {
        if let Err(error) = socket.send_to(frame, &port.theirs)
            && error.kind() == ErrorKind::WouldBlock
        {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How long a frame waits for a machine that does not read. On a busy host a machine may stand still for seconds while
/// another one sends: that loses no frames.
const PATIENCE: Duration = Duration::from_secs(60);

fn address(frame: &[u8], at: usize) -> Option<[u8; 6]> {
    frame.get(at..at + 6)?.try_into().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stands_still_loses_nothing() {
        const FRAMES: u8 = 40;
        let wire = Wire::new(2).unwrap();
        let [a, b] = [0, 1].map(|number| UnixDatagram::bind(wire.port(number).theirs).unwrap());
        let sender = thread::spawn(move || {
            // To everybody, from somebody.
            let mut frame = [0xff; 60];
            frame[6] = 2;
            for number in 0..FRAMES {
                frame[20] = number;
                a.send_to(&frame, wire.port(0).ours).unwrap();
            }
            wire
        });
        thread::sleep(Duration::from_millis(2500));
        b.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 100];
        for number in 0..FRAMES {
            assert_eq!(b.recv(&mut buffer).unwrap(), 60);
            assert_eq!(buffer[20], number, "a frame is missing");
        }
        assert_eq!(sender.join().unwrap().lost(), 0);
    }
}
