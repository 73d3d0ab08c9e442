//! A node whose keys are replaced, and what its file says of keys.

use std::cell::RefCell;
use std::fmt::Write as _;

use anyhow::Result;
use underseal_vm::main_job::MARKER;
use underseal_vm::site::{CONFIG, Helpers, Settings, Site};
use underseal_vm::topology::Node;

use super::{LONG, PAGE};

/// A node.
pub(super) struct Member {
    pub(super) site: Site,
    base: String,
    pub(super) keys: RefCell<Keys>,
}

/// What a node's file says of keys.
pub(super) struct Keys {
    pub(super) generation: u32,
    /// Whether there is a next key.
    pub(super) next: bool,
    /// What it has of each other node.
    pub(super) peers: Vec<Known>,
}

/// A peer as a file has it.
pub(super) struct Known {
    number: u8,
    pub(super) key: String,
    pub(super) generation: u32,
    pub(super) preshared: Option<String>,
    pub(super) next_preshared: Option<String>,
}

impl Known {
    pub(super) fn new(number: u8, key: &str) -> Self {
        Self {
            number,
            key: key.to_owned(),
            generation: 0,
            preshared: None,
            next_preshared: None,
        }
    }

    /// The generation before this one.
    pub(super) fn back(&mut self, key: String) {
        (self.key, self.generation) = (key, self.generation - 1);
    }
}

impl Keys {
    pub(super) fn peer(&mut self, number: u8) -> &mut Known {
        let mut peers = self.peers.iter_mut();
        peers
            .find(|peer| peer.number == number)
            .expect("a peer of this node")
    }
}

impl Member {
    /// A node whose workloads are there and whose file has no peers yet.
    pub(super) fn new(site: Site) -> Result<Self> {
        site.configure(&Settings {
            wireguard: true,
            helpers: Some(Helpers::V4),
            ..Settings::default()
        })?;
        let base = site.vm.sh(&format!("cat {CONFIG}"))?.text();
        let keys = RefCell::new(Keys {
            generation: 0,
            next: false,
            peers: Vec::new(),
        });
        Ok(Self { site, base, keys })
    }

    /// Changes what its file says, and writes it.
    pub(super) fn edit(&self, change: impl FnOnce(&mut Keys)) -> Result<()> {
        change(&mut self.keys.borrow_mut());
        self.write()
    }

    pub(super) fn next_key(&self) -> Result<String> {
        Ok(self.site.vm.sh("underseal key --next")?.text())
    }

    pub(super) fn write(&self) -> Result<()> {
        self.site.vm.put(CONFIG, self.text().as_bytes(), 0o644)
    }

    pub(super) fn text(&self) -> String {
        let keys = self.keys.borrow();
        let mut own = format!("[wireguard]\ngeneration = {}\n", keys.generation);
        if keys.generation > 0 {
            own += &format!("private_key_file = \"{}\"\n", next_file(keys.generation));
        }
        let mut text = self.base.replace("[wireguard]\n", &own);
        if keys.next {
            let file = next_file(keys.generation + 1);
            // Writing to a String does not fail.
            let _ = write!(text, "\n[wireguard.next]\nprivate_key_file = \"{file}\"\n");
        }
        for peer in &keys.peers {
            let Known {
                number,
                key,
                generation,
                ..
            } = peer;
            let _ = write!(
                text,
                "\n[[peer]]\nname = \"node-{number}\"\npublic_key = \"{key}\"\ngeneration = {generation}\n\
                 endpoint = \"{}:51871\"\nnetworks = [\"10.{number}.0.0/24\", \"fd00:{number}::/64\"]\n",
                Node(*number).v4()
            );
            if let Some(file) = &peer.preshared {
                let _ = writeln!(text, "preshared_key_file = \"{file}\"");
            }
            if let Some(file) = peer.next_preshared.as_ref().filter(|_| keys.next) {
                let _ = writeln!(text, "next_preshared_key_file = \"{file}\"");
            }
        }
        text
    }

    pub(super) fn serve(&self) -> Result<()> {
        let number = self.site.node.0;
        let vm = &self.site.vm;
        vm.put(
            "/srv/page",
            MARKER.repeat(PAGE / MARKER.len() + 1)[..PAGE].as_bytes(),
            0o644,
        )?;
        vm.sh(&format!("yes {MARKER} | head -c {LONG} >/srv/long"))?;
        self.site.serve_http(&format!("w{number}"), 80).map(drop)
    }
}

/// Where a node keeps its key of a generation.
pub(super) fn next_file(generation: u32) -> String {
    format!("/var/lib/underseal/wireguard-{generation}.key")
}
