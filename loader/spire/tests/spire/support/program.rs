//! A node's folder, and `underseal-spire` running on it. Tests wait for what it says, never for time.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use underseal_ktls::{Identity, Party, memory, secrets::Cipher};

use super::agent::Agent;

pub(crate) const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
pub(crate) const WEB: &str = "spiffe://example.org/ns/shop/sa/web";

/// A configuration, a place for identities, a place for the agent's socket.
pub(crate) struct Node(TempDir);

impl Node {
    /// With the workloads `cart` and `web`, both of SPIRE.
    pub(crate) fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        node.configure(&["cart", "web"], "");
        node
    }

    pub(crate) fn configure(&self, workloads: &[&str], more: &str) {
        let mut text = format!(
            "[node]\nname = \"a\"\nnetworks = [\"10.1.0.0/24\"]\ntrust_domain = \"example.org\"\n\
             [spire]\nsocket = \"unix://{}\"\n",
            self.socket().display()
        );
        for (i, name) in workloads.iter().enumerate() {
            text += &format!(
                "[[workload]]\nname = \"{name}\"\nnamespace = \"shop\"\nnetns = \"/run/netns/{name}\"\n\
                 addresses = [\"10.1.0.{}\"]\nidentity = \"{}\"\nspire = true\n",
                i + 1,
                self.folder(name).display()
            );
        }
        let next = self.path("underseal.toml.new");
        fs::write(&next, text + more).unwrap();
        fs::rename(next, self.file()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.path("underseal.toml")
    }

    pub(crate) fn folder(&self, workload: &str) -> PathBuf {
        self.path("identities").join(workload)
    }

    pub(crate) fn agent(&self) -> Agent {
        Agent::start(self.socket())
    }

    fn socket(&self) -> PathBuf {
        self.path("agent.sock")
    }

    pub(crate) fn identity(&self, workload: &str) -> Identity {
        Identity::load(&self.folder(workload)).unwrap()
    }

    /// The bytes of a workload's files; a missing one is empty.
    pub(crate) fn files(&self, workload: &str) -> Vec<Vec<u8>> {
        let names = ["tls.crt", "tls.key", "ca.crt", "ca.crl"];
        let read = |name| fs::read(self.folder(workload).join(name)).unwrap_or_default();
        names.map(read).to_vec()
    }

    /// `cart` and `web` accept each other.
    pub(crate) fn shake_hands(&self) {
        let (cart, web) = (self.identity("cart"), self.identity("web"));
        let client = Party {
            identity: &cart,
            expects: web.id().into(),
        };
        let server = Party {
            identity: &web,
            expects: cart.id().into(),
        };
        memory::handshake(client, server, Cipher::Aes128Gcm).unwrap();
    }

    pub(crate) fn run(&self) -> Program {
        Program::start(&self.file())
    }

    /// `--once`, with whatever else is said.
    pub(crate) fn once(&self, more: &[&str]) -> Output {
        let mut command = program(&self.file());
        command.arg("--once").args(more).output().unwrap()
    }
}

/// A running `underseal-spire`; killed, without any warning, when this is dropped.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Program {
    fn start(file: &Path) -> Self {
        let mut command = program(file);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (send, lines) = mpsc::channel();
        let streams: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for stream in streams {
            let send = send.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = send.send(line);
                }
            });
        }
        Self {
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// Waits until it says something with all of these words; returns the line.
    pub(crate) fn says(&mut self, words: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line =
                line.unwrap_or_else(|_| panic!("it did not say {words:?}, but {:#?}", self.said));
            self.said.push(line.clone());
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }

    /// Everything that it has said until now.
    pub(crate) fn said(&self) -> &[String] {
        &self.said
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_underseal-spire"));
    command.arg("-c").arg(file).env_remove("UNDERSEAL_CONFIG");
    command
}

/// A test that waits longer has failed, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
