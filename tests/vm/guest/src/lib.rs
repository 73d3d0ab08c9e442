//! The words that the harness and the agent in the guest exchange.
//!
//! One JSON object a line, over a virtio-serial port. The agent says [`Hello`] when it is ready (again after each
//! boot); then every [`Request`] gets exactly one [`Reply`] with its id, in any order.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Name of the virtio-serial port on both sides.
pub const PORT: &str = "underseal.agent";
/// Where in the guest programs from the host are put: there the units in systemd/ expect them.
pub const BIN: &str = "/usr/bin";
/// Name under which PID 1 puts itself into the root image, to be started as the agent.
pub const AGENT: &str = "/usr/local/sbin/vm-agent";
/// Kernel command line word that makes PID 1 hand over to systemd.
pub const SYSTEMD: &str = "underseal.systemd";

/// Any bytes; base64 in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

/// The agent's first line after each boot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Release of the running kernel, as in `uname -r`.
    pub release: String,
    /// The kernel's boot id: another one after a reboot.
    pub boot: String,
    /// Seconds since the kernel started.
    pub uptime: f64,
}

/// A call and the id that its reply will carry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller, unique on this connection.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// Result of the request with the same id; the error is a sentence.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// Id of the request.
    pub id: u64,
    /// What came of it.
    pub result: Result<Answer, String>,
}

/// Any line from the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Line {
    /// The agent is ready.
    Hello(Hello),
    /// A request is done.
    Reply(Reply),
}

/// What the agent can do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Call {
    /// Start a program; answered with [`Answer::Started`] at once.
    Spawn(Program),
    /// Wait for a started program to end; answered with [`Answer::Ended`], or an error after `timeout_ms`.
    Wait {
        /// Number from [`Answer::Started`].
        process: u64,
        /// How long to wait; what runs then is left running.
        timeout_ms: u64,
    },
    /// Send a signal to the started program's whole process group.
    Signal {
        /// Number from [`Answer::Started`].
        process: u64,
        /// Signal number.
        signal: i32,
    },
    /// Try a program again and again until it exits 0; an error with its last output after `timeout_ms`.
    Until {
        /// What to try.
        program: Program,
        /// When to give up.
        timeout_ms: u64,
    },
    /// Read a part of a file; answered with [`Answer::Data`], shorter than `length` only at the end.
    Read {
        /// Path in the guest.
        path: String,
        /// First byte.
        offset: u64,
        /// At most so many.
        length: u64,
    },
    /// Write a file, making missing folders.
    Write {
        /// Path in the guest.
        path: String,
        /// What to write.
        data: Bytes,
        /// Permission bits.
        mode: u32,
        /// Add to what is there; else replace.
        append: bool,
    },
    /// Record every packet of an interface; answered with [`Answer::Capturing`] once nothing is missed any more.
    CaptureStart {
        /// Name of a network namespace in /run/netns; none for the one of PID 1.
        netns: Option<String>,
        /// Interface name.
        interface: String,
    },
    /// End a recording after all packets that have passed so far; answered with [`Answer::Captured`].
    CaptureStop {
        /// Number from [`Answer::Capturing`].
        capture: u64,
    },
    /// Power the machine off at once; there is no answer.
    PowerOff,
}

/// What a call came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Done, nothing to tell.
    Done,
    /// The program runs.
    Started {
        /// Number for later calls.
        process: u64,
        /// Its process id.
        pid: u32,
    },
    /// The program has ended.
    Ended(Ended),
    /// Bytes of a file.
    Data(Bytes),
    /// The recording runs.
    Capturing {
        /// Number for the call that stops it.
        capture: u64,
    },
    /// The recording is complete.
    Captured {
        /// Packets written.
        packets: u64,
        /// Packets that the kernel dropped for want of buffer: above zero, the recording proves nothing.
        dropped: u64,
        /// The pcap file.
        path: String,
    },
}

/// How a program ended, with all it wrote.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: Bytes,
    /// Standard error.
    pub stderr: Bytes,
}

/// A program to start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Program {
    /// The program and its arguments; it is looked for in PATH.
    pub argv: Vec<String>,
    /// Added to a plain environment (PATH, HOME, LANG).
    pub env: Vec<(String, String)>,
    /// Name of a network namespace in /run/netns.
    pub netns: Option<String>,
    /// Folder of a cgroup to be started in, made when missing, such as `/sys/fs/cgroup/shop/cart`.
    pub cgroup: Option<String>,
    /// What it reads from standard input; none: /dev/null.
    pub stdin: Option<Bytes>,
}

impl Program {
    /// `script`, run by the guest's `/bin/sh`.
    pub fn shell(script: &str) -> Self {
        Self {
            argv: ["/bin/sh", "-c", script].map(String::from).into(),
            ..Self::default()
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD
            .decode(text)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_line() {
        let call = Call::Write {
            path: "/x".into(),
            data: Bytes((0..=255).collect()),
            mode: 0o600,
            append: true,
        };
        let line = serde_json::to_string(&Request { id: 7, call }).unwrap();
        assert!(!line.contains('\n'));
        let Request {
            id: 7,
            call: Call::Write { data, .. },
        } = serde_json::from_str(&line).unwrap()
        else {
            panic!()
        };
        assert_eq!(data.0, (0..=255).collect::<Vec<u8>>());
    }
}
