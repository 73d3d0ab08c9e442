//! Sockets used through io_uring.

use std::fs;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Result, bail, ensure};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{DestinationSlot, Fd};
use io_uring::{IoUring, cqueue, opcode};
use nix::sys::socket::{SockaddrLike as _, SockaddrStorage};
use nix::unistd::pipe;

use crate::data::{self, AMOUNT, LISTENER, SPEAKER, Turn, talk};
use crate::lab::Side;
use crate::passing::is_reset;
use crate::{sys, wait};

/// A socket as an entry names it: by descriptor, or by its place in the ring's own table.
#[derive(Clone, Copy)]
struct Target {
    number: i32,
    flags: Flags,
}

impl Target {
    fn descriptor(fd: &impl std::os::fd::AsRawFd) -> Self {
        Self {
            number: fd.as_raw_fd(),
            flags: Flags::empty(),
        }
    }

    const fn registered(number: i32) -> Self {
        Self {
            number,
            flags: Flags::FIXED_FILE,
        }
    }
}

/// A ring with at most one entry at work, but for those that complete many times.
struct Ring(IoUring);

impl Ring {
    fn new() -> Result<Self> {
        Ok(Self(IoUring::new(8)?))
    }

    fn start(&mut self, entry: &Entry) -> Result<()> {
        sys::push(&mut self.0, entry)?;
        self.0.submit()?;
        Ok(())
    }

    fn completion(&mut self) -> Result<cqueue::Entry> {
        loop {
            if let Some(entry) = self.0.completion().next() {
                if entry.result() < 0 {
                    return Err(std::io::Error::from_raw_os_error(-entry.result()).into());
                }
                return Ok(entry);
            }
            self.0.submit_and_wait(1)?;
        }
    }

    fn run(&mut self, entry: &Entry) -> Result<usize> {
        self.start(entry)?;
        Ok(self.completion()?.result() as usize)
    }

    fn connect(&mut self, target: Target, side: &Side) -> Result<()> {
        let address = SockaddrStorage::from(side.address);
        let entry = opcode::Connect::new(Fd(target.number), address.as_ptr(), address.len());
        self.run(&entry.build().flags(target.flags)).map(drop)
    }

    fn send(&mut self, target: Target, data: &[u8]) -> Result<()> {
        let mut sent = 0;
        while sent < data.len() {
            let rest = &data[sent..];
            let entry = opcode::Send::new(Fd(target.number), rest.as_ptr(), rest.len() as u32);
            sent += self.run(&entry.build().flags(target.flags))?;
        }
        Ok(())
    }

    /// Until the end, or as much as a stream has.
    fn receive(&mut self, target: Target) -> Result<Vec<u8>> {
        let mut got = vec![0; AMOUNT];
        let mut have = 0;
        while have < AMOUNT {
            let rest = &mut got[have..];
            let entry = opcode::Recv::new(Fd(target.number), rest.as_mut_ptr(), rest.len() as u32);
            match self.run(&entry.build().flags(target.flags))? {
                0 => break,
                some => have += some,
            }
        }
        got.truncate(have);
        Ok(got)
    }

    /// As `data::talk` does it.
    fn speak(&mut self, target: Target) -> Result<()> {
        self.send(target, &data::stream(SPEAKER, AMOUNT))?;
        data::compare(LISTENER, &self.receive(target)?)
    }

    fn listen(&mut self, target: Target) -> Result<()> {
        data::compare(SPEAKER, &self.receive(target)?)?;
        self.send(target, &data::stream(LISTENER, AMOUNT))
    }
}

/// connect, send, recv.
pub(crate) fn client(side: &mut Side) -> Result<()> {
    let mut ring = Ring::new()?;
    let socket = sys::tcp_socket(side.address)?;
    side.hear("listening")?;
    ring.connect(Target::descriptor(&socket), side)?;
    ring.speak(Target::descriptor(&socket))?;
    finish(socket)
}

/// The same with the descriptor in the ring's table as well.
pub(crate) fn registered_client(side: &mut Side) -> Result<()> {
    let mut ring = Ring::new()?;
    let socket = sys::tcp_socket(side.address)?;
    ring.0.submitter().register_files(&[socket.as_raw_fd()])?;
    side.hear("listening")?;
    ring.connect(Target::registered(0), side)?;
    ring.speak(Target::registered(0))?;
    drop(ring);
    finish(socket)
}

fn finish(socket: OwnedFd) -> Result<()> {
    let socket = TcpStream::from(socket);
    socket.shutdown(Shutdown::Write)?;
    data::at_end(&socket)
}

/// accept, recv, send.
pub(crate) fn server(side: &mut Side) -> Result<()> {
    let mut ring = Ring::new()?;
    let listener = side.listen()?;
    let none = std::ptr::null_mut();
    let entry = opcode::Accept::new(Fd(listener.as_raw_fd()), none, none.cast()).build();
    let socket = sys::inherited(ring.run(&entry)? as i32);
    ring.listen(Target::descriptor(&socket))?;
    data::at_end(&TcpStream::from(socket))
}

/// One accept for several connections; one recv for all of what each brings.
pub(crate) fn multishot_server(side: &mut Side) -> Result<()> {
    let mut accepts = Ring::new()?;
    let listener = side.listen()?;
    accepts.start(&opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build())?;
    for _ in 0..2 {
        let accepted = accepts.completion()?;
        ensure!(cqueue::more(accepted.flags()), "accept ended");
        let socket = TcpStream::from(sys::inherited(accepted.result()));
        data::compare(SPEAKER, &receive_multishot(&socket)?)?;
        data::at_end(&socket)?;
    }
    Ok(())
}

fn receive_multishot(socket: &TcpStream) -> Result<Vec<u8>> {
    const SIZE: usize = 4096;
    const GROUP: u16 = 1;
    let mut buffers = vec![0u8; SIZE * 512];
    let (start, count) = (buffers.as_mut_ptr(), (buffers.len() / SIZE) as u16);
    let mut ring = Ring::new()?;
    ring.run(&opcode::ProvideBuffers::new(start, SIZE as i32, count, GROUP, 0).build())?;
    let receive = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build();
    ring.start(&receive)?;
    let mut got = Vec::new();
    while got.len() < AMOUNT {
        let entry = ring.completion()?;
        let (some, Some(number)) = (
            entry.result() as usize,
            cqueue::buffer_select(entry.flags()),
        ) else {
            bail!("the end after {} bytes", got.len());
        };
        let at = usize::from(number) * SIZE;
        got.extend(&buffers[at..at + some]);
        // It ends when completions come faster than they are taken.
        if !cqueue::more(entry.flags()) && got.len() < AMOUNT {
            ring.start(&receive)?;
        }
    }
    Ok(got)
}

/// They only send: before 6.12.105 the kernel ends a sealed connection whose blocking send is interrupted, and what a
/// ring still has to do for its process interrupts too.
pub(crate) fn two_clients(side: &mut Side) -> Result<()> {
    side.hear("listening")?;
    for _ in 0..2 {
        let socket = TcpStream::connect(side.address)?;
        data::say(&socket, SPEAKER)?;
        socket.shutdown(Shutdown::Write)?;
        data::at_end(&socket)?;
    }
    Ok(())
}

/// A sendmsg that io_uring is told to give to a worker at once.
pub(crate) fn asynchronous_send(side: &mut Side) -> Result<()> {
    let mut ring = Ring::new()?;
    let socket = side.connect()?;
    let all = data::stream(SPEAKER, AMOUNT);
    let mut sent = 0;
    let mut told = false;
    while sent < all.len() {
        let message = sys::Message::new(&all[sent..]);
        let entry = opcode::SendMsg::new(Fd(socket.as_raw_fd()), message.header()).build();
        ring.start(&entry.flags(Flags::ASYNC))?;
        if !told {
            until_worker("io_wq")?;
            side.tell("accept")?;
            told = true;
        }
        sent += ring.completion()?.result() as usize;
    }
    data::hear(&socket, LISTENER)?;
    socket.shutdown(Shutdown::Write)?;
    data::at_end(&socket)
}

pub(crate) fn told_server(side: &mut Side) -> Result<()> {
    talk(&side.accept_when_told()?, Turn::Listen)
}

/// Waits until a worker of this process sleeps in a function with this in its name.
fn until_worker(function: &str) -> Result<()> {
    wait::until("a worker of io_uring", wait::PATIENCE, || {
        for task in fs::read_dir("/proc/self/task")?.flatten() {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            if read("comm").starts_with("iou-wrk") && read("stack").contains(function) {
                return Ok(true);
            }
        }
        Ok(false)
    })
}

/// A splice, for which a worker sleeps inside the socket.
pub(crate) fn splice(side: &mut Side) -> Result<()> {
    let mut ring = Ring::new()?;
    let socket = side.connect()?;
    let (reader, writer) = pipe()?;
    let (from, to) = (Fd(socket.as_raw_fd()), Fd(writer.as_raw_fd()));
    ring.start(&opcode::Splice::new(from, -1, to, -1, 1000).build())?;
    until_worker("splice_read")?;
    side.tell("accept")?;
    let spliced = ring.completion().map(|entry| entry.result() as usize);
    refused(side, spliced, |side, some| {
        let mut got = vec![0; some];
        nix::unistd::read(&reader, &mut got)?;
        ensure!(
            data::stream(SPEAKER, AMOUNT).starts_with(&got),
            "other bytes than were sent"
        );
        side.tell("read")
    })
}

/// A socket that is in no process, but in the ring's table alone.
pub(crate) fn direct_client(side: &mut Side) -> Result<()> {
    let mut ring = Ring::new()?;
    ring.0.submitter().register_files_sparse(1)?;
    let family = if side.address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let socket = opcode::Socket::new(family, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    ring.run(&socket.file_index(Some(slot())).build())?;
    side.hear("listening")?;
    side.tell("accept")?;
    // Where the ring waits until the socket is writable, connect itself is told of the reset.
    let connected = ring.connect(Target::registered(0), side);
    let received = connected.and_then(|()| receive_once(&mut ring));
    refused(side, received, |side, _| side.tell("read"))
}

/// The same, accepted.
pub(crate) fn direct_server(side: &mut Side) -> Result<()> {
    let mut ring = Ring::new()?;
    ring.0.submitter().register_files_sparse(1)?;
    let listener = side.listen()?;
    let none = std::ptr::null_mut();
    let accept = opcode::Accept::new(Fd(listener.as_raw_fd()), none, none.cast());
    ring.run(&accept.file_index(Some(slot())).build())?;
    let received = receive_once(&mut ring);
    refused(side, received, |_, _| Ok(()))
}

/// Its client says a little, and waits for the end.
pub(crate) fn client_of_direct(side: &mut Side) -> Result<()> {
    let socket = side.connect()?;
    if side.is_sealed() {
        return crate::passing::ensure_reset(&socket);
    }
    std::io::Write::write_all(&mut &socket, &data::stream(SPEAKER, 1000))?;
    data::at_end(&socket)
}

fn slot() -> DestinationSlot {
    DestinationSlot::auto_target()
}

fn receive_once(ring: &mut Ring) -> Result<usize> {
    let mut got = vec![0; 1000];
    let entry = opcode::Recv::new(Fd(0), got.as_mut_ptr(), got.len() as u32).build();
    let some = ring.run(&entry.flags(Flags::FIXED_FILE))?;
    ensure!(
        data::stream(SPEAKER, AMOUNT).starts_with(&got[..some]),
        "other bytes than were sent"
    );
    Ok(some)
}

/// Plain, `then`; sealed, there must have been a reset.
fn refused(
    side: &mut Side,
    result: Result<usize>,
    then: impl FnOnce(&mut Side, usize) -> Result<()>,
) -> Result<()> {
    match result {
        Ok(some) if side.is_sealed() => bail!("{some} bytes instead of a reset"),
        Err(error) if side.is_sealed() => is_reset(&error),
        result => then(side, result?),
    }
}
