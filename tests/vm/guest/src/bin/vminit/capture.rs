//! Records packets into pcap files by AF_PACKET sockets.
//!
//! A recording has begun when its socket is bound, before `start` returns, and has ended when everything queued on
//! the socket at the time of `stop` is written: between the two nothing is missed, or it is counted as dropped.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail};
use underseal_vm_guest::Answer;

use crate::process::{FILES, open_netns};
use crate::sys::{self, Packets};

/// The recordings that run, by number.
#[derive(Default)]
pub(crate) struct Captures {
    running: Mutex<HashMap<u64, Capture>>,
    last: AtomicU64,
}

struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Answer>>,
}

impl Captures {
    /// Starts to record `interface` of a network namespace.
    pub(crate) fn start(&self, netns: Option<&str>, interface: &str) -> Result<Answer> {
        let netns = netns.map(open_netns).transpose()?;
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        fs::create_dir_all(FILES)?;
        let path = format!("{FILES}/capture-{number}.pcap");
        let file = File::create(&path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (interface, flag) = (interface.to_owned(), Arc::clone(&stop));
        let (ready, bound) = mpsc::channel();
        let thread = thread::spawn(move || {
            // A namespace is a thread's own; this thread never leaves it.
            let opened = netns
                .map_or(Ok(()), |netns| sys::enter_netns(&netns))
                .and_then(|()| Packets::open(&interface));
            match opened {
                Ok(packets) => {
                    ready.send(Ok(()))?;
                    let (packets, dropped) = record(packets, file, &flag)?;
                    Ok(Answer::Captured {
                        packets,
                        dropped,
                        path,
                    })
                }
                Err(error) => {
                    ready.send(Err(error))?;
                    bail!("not started")
                }
            }
        });
        bound.recv().context("capture thread")??;
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Capture { stop, thread });
        Ok(Answer::Capturing { capture: number })
    }

    /// Ends a recording and completes its file.
    pub(crate) fn stop(&self, number: u64) -> Result<Answer> {
        let capture = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number);
        let Capture { stop, thread } =
            capture.ok_or_else(|| anyhow!("no capture has number {number}"))?;
        stop.store(true, Ordering::Release);
        thread
            .join()
            .map_err(|_| anyhow!("the capture thread panicked"))?
    }
}

/// Records until told to stop; returns how many packets were written, and how many were dropped.
fn record(packets: Packets, file: File, stop: &AtomicBool) -> Result<(u64, u64)> {
    let mut out = BufWriter::new(file);
    out.write_all(&header(packets.link_type()?))?;
    // Offloading makes "packets" of up to 64 KiB, and on newer kernels of more.
    let mut buffer = vec![0; 512 << 10];
    let mut count = 0;
    loop {
        // Read before the queue: what was queued at the time of the request is then surely seen.
        let last = stop.load(Ordering::Acquire);
        while let Some(length) = packets.next(&mut buffer)? {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            for word in [
                now.as_secs() as u32,
                now.subsec_micros(),
                length as u32,
                length as u32,
            ] {
                out.write_all(&word.to_le_bytes())?;
            }
            out.write_all(&buffer[..length])?;
            count += 1;
        }
        if last {
            out.flush()?;
            return Ok((count, packets.dropped()?));
        }
        packets.wait();
    }
}

/// Header of a pcap file, see <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html>.
fn header(link_type: u32) -> Vec<u8> {
    let mut header = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
    header.extend([2, 0, 4, 0]); // version 2.4
    for word in [0, 0, 1 << 20, link_type] {
        header.extend(word.to_le_bytes());
    }
    header
}
