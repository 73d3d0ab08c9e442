//! What is sent, and the comparison with what arrives: bytes that follow from a seed, with the marker that recordings
//! are searched for in every block.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context as _, Result, bail, ensure};

/// As in `main_job.rs`.
const MARKER: &[u8] = b"marker-that-only-plaintext-contains";
/// A marker, the block's number, and bytes that follow from both.
const BLOCK: usize = 64;
/// More than a socket buffers at once, many TLS records.
pub(crate) const AMOUNT: usize = 100_000;

/// Seeds of the two directions.
pub(crate) const SPEAKER: u64 = 1;
pub(crate) const LISTENER: u64 = 2;

/// Whose turn it is at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Speak,
    Listen,
}

/// `amount` bytes of the stream with this seed.
pub(crate) fn stream(seed: u64, amount: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(amount + BLOCK);
    for block in 0.. {
        if bytes.len() >= amount {
            break;
        }
        bytes.extend(MARKER);
        bytes.extend(u64::to_be_bytes(block));
        let mut state = (seed << 32 | block).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        while bytes.len() % BLOCK != 0 {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.push(state as u8);
        }
    }
    bytes.truncate(amount);
    bytes
}

/// Fails unless `got` is the whole stream with this seed.
pub(crate) fn compare(seed: u64, got: &[u8]) -> Result<()> {
    compare_all(seed, got, AMOUNT)
}

/// Fails unless `got` is the stream with this seed, of `amount` bytes; says where it first differs.
pub(crate) fn compare_all(seed: u64, got: &[u8], amount: usize) -> Result<()> {
    let sent = stream(seed, amount);
    if let Some(at) = (0..got.len().min(amount)).find(|at| got[*at] != sent[*at]) {
        let end = got.len().min(at + 16);
        bail!(
            "byte {at} differs: {:02x?} instead of {:02x?}",
            &got[at..end],
            &sent[at..end]
        );
    }
    ensure!(
        got.len() == amount,
        "{} bytes instead of {amount}",
        got.len()
    );
    Ok(())
}

/// Sends one stream and receives the other, in turn; then closes, the speaker first.
pub(crate) fn talk(socket: &TcpStream, turn: Turn) -> Result<()> {
    match turn {
        Turn::Speak => {
            say(socket, SPEAKER)?;
            hear(socket, LISTENER)?;
            socket.shutdown(Shutdown::Write).context("shutdown")?;
            at_end(socket)
        }
        Turn::Listen => {
            hear(socket, SPEAKER)?;
            say(socket, LISTENER)?;
            at_end(socket)
        }
    }
}

/// Sends the stream with this seed.
pub(crate) fn say(mut socket: &TcpStream, seed: u64) -> Result<()> {
    socket.write_all(&stream(seed, AMOUNT)).context("send")
}

/// Receives the stream with this seed.
pub(crate) fn hear(mut socket: &TcpStream, seed: u64) -> Result<()> {
    let mut got = vec![0; AMOUNT];
    let mut have = 0;
    while have < AMOUNT {
        match socket.read(&mut got[have..]).context("receive")? {
            0 => break,
            some => have += some,
        }
    }
    compare(seed, &got[..have])
}

/// Fails unless the next thing is the orderly end.
pub(crate) fn at_end(mut socket: &TcpStream) -> Result<()> {
    let more = socket.read(&mut [0; 16]).context("receive the end")?;
    ensure!(more == 0, "{more} bytes too many");
    Ok(())
}
