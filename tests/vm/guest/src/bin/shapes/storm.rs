//! Many connections with a sleeping sender and a sleeping reader each, handed over at once while other processes keep
//! the processors busy with short calls on sockets that nobody manages: what provokes preemption inside send and recv.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process;
use std::thread;

use anyhow::{Context as _, Result};

use crate::data::{LISTENER, SPEAKER, compare_all, stream};
use crate::lab::Side;
use crate::{sys, wait};

/// Connections; each has two threads on either side.
const CONNECTIONS: usize = 100;
/// Bytes each way.
const AMOUNT: usize = 3000;
/// Processes that do nothing but make calls.
const CHURNERS: usize = 4;
const STACK: usize = 128 << 10;

pub(crate) fn client(side: &mut Side) -> Result<()> {
    for _ in 0..CHURNERS {
        sys::spawn(churn)?;
    }
    side.hear("listening")?;
    let mut threads = Vec::new();
    for _ in 0..CONNECTIONS {
        threads.extend(both_ways(
            TcpStream::connect(side.address)?,
            SPEAKER,
            LISTENER,
        )?);
    }
    let mut sleep = 0;
    let waited = wait::until("all to sleep", wait::PATIENCE * 4, || {
        sleep = asleep()?;
        Ok(sleep == CONNECTIONS * 2)
    });
    waited.with_context(|| format!("{sleep} threads sleep"))?;
    side.tell("accept")?;
    join(threads)
}

pub(crate) fn server(side: &mut Side) -> Result<()> {
    let listener = sys::listener_with_queue(side.address, CONNECTIONS as i32)?;
    side.tell("listening")?;
    side.hear("accept")?;
    let mut threads = Vec::new();
    for _ in 0..CONNECTIONS {
        threads.extend(both_ways(listener.accept()?.0, LISTENER, SPEAKER)?);
    }
    join(threads)
}

/// A thread that sends on a connection, and one that receives. The first to fail ends the process: others may wait
/// for ever then.
fn both_ways(socket: TcpStream, sends: u64, receives: u64) -> Result<[thread::JoinHandle<()>; 2]> {
    let other = socket.try_clone()?;
    let send = move || (&socket).write_all(&stream(sends, AMOUNT)).context("send");
    let receive = move || {
        let mut got = vec![0; AMOUNT];
        (&other).read_exact(&mut got).context("receive")?;
        compare_all(receives, &got, AMOUNT)
    };
    Ok([begin(send)?, begin(receive)?])
}

fn begin(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<thread::JoinHandle<()>> {
    let run = || {
        if let Err(error) = work() {
            eprintln!("{error:#}");
            process::exit(1);
        }
    };
    Ok(thread::Builder::new().stack_size(STACK).spawn(run)?)
}

fn join(threads: Vec<thread::JoinHandle<()>>) -> Result<()> {
    threads
        .into_iter()
        .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("panicked")))
}

/// How many threads of this process sleep in send or recv. The one that looks is inside a read itself.
fn asleep() -> Result<usize> {
    let mut count = 0;
    let own = process::id().to_string();
    for task in fs::read_dir("/proc/self/task")?.flatten() {
        if task.file_name() == own.as_str() {
            continue;
        }
        let call = fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
        let number = call.split(' ').next().and_then(|word| word.parse().ok());
        count += usize::from(matches!(
            number,
            Some(libc::SYS_sendto | libc::SYS_write | libc::SYS_recvfrom | libc::SYS_read)
        ));
    }
    Ok(count)
}

/// Short sends and receives over loopback until this is killed.
fn churn() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut one = TcpStream::connect(listener.local_addr()?)?;
    let (mut other, _) = listener.accept()?;
    one.set_nonblocking(true)?;
    let mut buffer = [0; 64];
    loop {
        // Reads that find nothing are as good as others.
        let _ = one.read(&mut buffer);
        other.write_all(&buffer)?;
        let _ = one.read(&mut buffer);
    }
}
