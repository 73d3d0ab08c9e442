//! A node with workloads, certificates and a configuration: what a user of Underseal would set up before the first
//! `underseal apply`, and short words for the commands that follow.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::identities::{Authority, Validity};
use crate::topology::{Node, Workload};
use crate::{Output, Place, Process, Vm};

/// Where the configuration is, as the documentation says.
pub const CONFIG: &str = "/etc/underseal/underseal.toml";
/// A WireGuard public key that nobody has.
pub const NOBODY: &str = "C8LHcQxrDOFUSUP9ZMJFtvAWDLLWxIQNGQYFvcEBCU8=";
const TRUST_DOMAIN: &str = "example.org";
const PATIENCE: Duration = Duration::from_secs(60);

/// What a configuration is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `seal.mode`.
    pub mode: &'static str,
    /// `seal.cipher`.
    pub cipher: &'static str,
    /// `seal.rekey_after`.
    pub rekey_after: Option<&'static str>,
    /// `seal.recheck`.
    pub recheck: Option<&'static str>,
    /// `seal.existing`.
    pub existing: &'static str,
    /// `policy.outside`.
    pub outside: &'static str,
    /// `policy.non_tcp`.
    pub non_tcp: &'static str,
    /// The other nodes, with their WireGuard public keys.
    pub peers: Vec<(Node, String)>,
    /// Whether there is a WireGuard device even before there are peers.
    pub wireguard: bool,
    /// Whether peers are reached over IPv6.
    pub underlay_v6: bool,
    /// Over what the nodes' helpers reach each other; none: not at all.
    pub helpers: Option<Helpers>,
    /// Sections that come after all others.
    pub more: String,
}

/// The family of the addresses of helpers inside of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helpers {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: "same-node",
            cipher: "aes-128-gcm",
            rekey_after: None,
            recheck: None,
            existing: "reset",
            outside: "allow",
            non_tcp: "deny",
            peers: Vec::new(),
            wireguard: false,
            underlay_v6: false,
            helpers: None,
            more: String::new(),
        }
    }
}

impl Settings {
    /// With another node that is not there: there is all that a tunnel needs, and nobody at its other end.
    #[must_use]
    pub fn with_peer() -> Self {
        Self {
            peers: vec![(Node(2), NOBODY.to_owned())],
            ..Self::default()
        }
    }
}

/// A node with its workloads.
#[derive(Debug)]
pub struct Site {
    /// The machine.
    pub vm: Arc<Vm>,
    /// Its number.
    pub node: Node,
    /// What runs on it.
    pub workloads: Vec<Workload>,
}

impl Site {
    /// Makes namespaces and certificates for workloads with these names and numbers; nothing is applied yet.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn prepare(
        vm: &Arc<Vm>,
        node: Node,
        authority: &Authority,
        names: &[(&str, u8)],
    ) -> Result<Self> {
        let workloads: Vec<_> = names
            .iter()
            .map(|(name, number)| node.workload(name, *number))
            .collect();
        node.add(vm, &workloads)?;
        for workload in &workloads {
            let identity = authority.issue(&spiffe_id(&workload.name), Validity::Now)?;
            identity.put(vm, &identity_folder(&workload.name))?;
        }
        Ok(Self {
            vm: Arc::clone(vm),
            node,
            workloads,
        })
    }

    /// The same on node 1, with an authority that nobody needs again.
    ///
    /// # Errors
    /// As [`Site::prepare`].
    pub fn with(vm: &Arc<Vm>, names: &[(&str, u8)]) -> Result<Self> {
        Self::prepare(vm, Node(1), &Authority::new("test authority")?, names)
    }

    /// The same with `shop` and `cart`, which is all that most scenarios need.
    ///
    /// # Errors
    /// As [`Site::prepare`].
    pub fn pair(vm: &Arc<Vm>) -> Result<Self> {
        Self::with(vm, &[("shop", 10), ("cart", 11)])
    }

    /// The same; `settings` are written, applied, and the helper runs.
    ///
    /// # Errors
    /// When one of these fails.
    pub fn up(vm: &Arc<Vm>, settings: &Settings) -> Result<Self> {
        let site = Self::pair(vm)?;
        site.configure(settings)?;
        site.apply()?;
        site.start_helper()?;
        Ok(site)
    }

    /// The workload with this name.
    ///
    /// # Panics
    /// When there is none: a mistake in a scenario.
    pub fn workload(&self, name: &str) -> &Workload {
        self.workloads
            .iter()
            .find(|workload| workload.name == name)
            .expect("a workload of this site")
    }

    /// Inside the workload with this name.
    pub fn inside(&self, name: &str) -> Place<'_> {
        self.vm.inside(name)
    }

    /// Writes the configuration file.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn configure(&self, settings: &Settings) -> Result<()> {
        self.vm.put(CONFIG, self.toml(settings)?.as_bytes(), 0o644)
    }

    /// `underseal apply`: runs and exits.
    ///
    /// # Errors
    /// When it does not exit with 0.
    pub fn apply(&self) -> Result<Output> {
        self.vm.sh("underseal apply")
    }

    /// `underseal down`.
    ///
    /// # Errors
    /// When it does not exit with 0.
    pub fn down(&self) -> Result<Output> {
        self.vm.sh("underseal down")
    }

    /// The WireGuard public key, generated if need be.
    ///
    /// # Errors
    /// When `underseal key` does not exit with 0.
    pub fn public_key(&self) -> Result<String> {
        Ok(self.vm.sh("underseal key")?.text())
    }

    /// Starts the handshake helper and waits until it serves.
    ///
    /// # Errors
    /// When it ends, or does not take its lock.
    pub fn start_helper(&self) -> Result<Process<'_>> {
        self.start_helper_in(&self.vm.node())
    }

    /// The same, in a place with an environment.
    ///
    /// # Errors
    /// As [`Site::start_helper`].
    pub fn start_helper_in<'vm>(&self, place: &Place<'vm>) -> Result<Process<'vm>> {
        self.start_program(place, "underseal-handshake")
    }

    /// Its test-only twin, which leaves out or stops at what the place's `UNDERSEAL_WITHOUT` or `UNDERSEAL_STOP` says.
    ///
    /// # Errors
    /// As [`Site::start_helper`].
    pub fn start_twin<'vm>(&self, place: &Place<'vm>) -> Result<Process<'vm>> {
        self.start_program(place, "underseal-handshake-controls")
    }

    fn start_program<'vm>(&self, place: &Place<'vm>, program: &str) -> Result<Process<'vm>> {
        // Exactly what is served is in the log: the lock alone is taken before the maps are read.
        self.vm.sh("rm -f /tmp/helper.log")?;
        let helper = place.spawn(&format!("exec {program} 2>/tmp/helper.log"))?;
        self.vm
            .wait_until("grep -q ready /tmp/helper.log", PATIENCE, "the helper")?;
        Ok(helper)
    }

    /// What the helper has logged.
    ///
    /// # Errors
    /// When it was never started.
    pub fn helper_log(&self) -> Result<String> {
        Ok(self.vm.sh("cat /tmp/helper.log")?.text())
    }

    /// A counter of `underseal status --json`, of the datapath or of the helper.
    ///
    /// # Errors
    /// When there is no such counter.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let status: serde_json::Value =
            serde_json::from_str(&self.vm.sh("underseal --json status")?.text())?;
        let groups = ["counters", "helper_counters"]
            .iter()
            .filter_map(|group| status[group].as_array());
        let found = groups
            .flatten()
            .find(|counter| counter["name"] == name)
            .and_then(|counter| counter["count"].as_u64());
        found.with_context(|| format!("status shows no counter {name}: {status}"))
    }

    /// How many connections the helper has sealed. Not by `status`, which lists all connections each time.
    ///
    /// # Errors
    /// When nothing is applied.
    pub fn sealed(&self) -> Result<u64> {
        let said = self.vm.sh(&format!("{SEALED}; echo $sealed"))?.text();
        said.trim()
            .parse()
            .with_context(|| format!("not a number: {said:?}"))
    }

    /// Waits until the helper has sealed so many connections.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_for_sealed(&self, least: u64, patience: Duration) -> Result<()> {
        let enough = format!("{SEALED}; test $sealed -ge {least}");
        let what = format!("{least} sealed connections");
        self.vm.wait_until(&enough, patience, &what)
    }

    /// Serves `/srv` of the machine over HTTP in a workload, until the machine ends.
    ///
    /// # Errors
    /// When nothing listens after half a minute.
    pub fn serve_http(&self, name: &str, port: u16) -> Result<Process<'_>> {
        let server = self.inside(name).spawn(&format!(
            "mkdir -p /srv; cd /srv && exec python3 -m http.server --bind :: {port}"
        ))?;
        self.workload(name).wait_for_port(&self.vm, port)?;
        Ok(server)
    }

    /// Starts a Redis server in a workload, until the machine ends.
    ///
    /// # Errors
    /// When nothing listens after half a minute.
    pub fn serve_redis(&self, name: &str) -> Result<Process<'_>> {
        let server = self.inside(name).spawn(
            "exec redis-server --bind '*' -::'*' --protected-mode no --save '' --dir /tmp",
        )?;
        self.workload(name).wait_for_port(&self.vm, 6379)?;
        Ok(server)
    }

    /// Fails unless an apply that follows finds nothing to do.
    ///
    /// # Errors
    /// When it has changed something.
    pub fn ensure_settled(&self) -> Result<()> {
        let said = self.apply()?.text();
        ensure!(said.contains("no changes"), "a second apply said: {said}");
        Ok(())
    }

    fn toml(&self, settings: &Settings) -> Result<String> {
        let has_uplink = settings.wireguard || !settings.peers.is_empty();
        let Settings {
            mode,
            cipher,
            existing,
            outside,
            non_tcp,
            ..
        } = settings;
        let mut toml = format!(
            "[node]\nname = \"node-{0}\"\nnetworks = [{1}]\nuplinks = [{2}]\ntrust_domain = \"{TRUST_DOMAIN}\"\n\n\
             [seal]\nmode = \"{mode}\"\ncipher = \"{cipher}\"\nexisting = \"{existing}\"\n\n\
             [policy]\noutside = \"{outside}\"\nnon_tcp = \"{non_tcp}\"\n",
            self.node.0,
            networks(self.node),
            if has_uplink { "\"eth0\"" } else { "" },
        );
        if let Some(span) = settings.recheck {
            toml = toml.replace("[seal]\n", &format!("[seal]\nrecheck = \"{span}\"\n"));
        }
        if let Some(bytes) = settings.rekey_after {
            toml = toml.replace("[seal]\n", &format!("[seal]\nrekey_after = \"{bytes}\"\n"));
        }
        if has_uplink {
            toml.push_str("\n[wireguard]\n");
        }
        if settings.helpers.is_some() {
            let [v4, v6] = [Helpers::V4, Helpers::V6].map(|family| self.node.helper(family));
            let ((v4, bits), (v6, bits6)) = (v4, v6);
            writeln!(toml, "addresses = [\"{v4}/{bits}\", \"{v6}/{bits6}\"]")?;
        }
        for peer in &settings.peers {
            toml.push_str(&section(peer, settings)?);
        }
        for workload in &self.workloads {
            let Workload { name, v4, v6 } = workload;
            write!(
                toml,
                "\n[[workload]]\nname = \"{name}\"\nnamespace = \"shop\"\nnetns = \"/run/netns/{name}\"\naddresses = [\"{v4}\", \"{v6}\"]\n",
            )?;
        }
        toml.push_str(&settings.more);
        Ok(toml)
    }
}

/// Sets `sealed` to the helper's first counter, which bpftool shows byte by byte; two bytes are enough for any scenario.
const SEALED: &str = r#"set -- $(bpftool -j map lookup pinned /sys/fs/bpf/underseal/maps/HELPER_COUNTERS key 0 0 0 0 | sed 's/.*"value":\[//; s/\].*//; s/[",]/ /g'); sealed=$(($1 + 256 * $2))"#;

/// What a configuration says of another node.
fn section((peer, key): &(Node, String), settings: &Settings) -> Result<String> {
    let endpoint = if settings.underlay_v6 {
        format!("[{}]", peer.v6())
    } else {
        peer.v4().to_string()
    };
    let mut toml = format!(
        "\n[[peer]]\nname = \"node-{}\"\npublic_key = \"{key}\"\nendpoint = \"{endpoint}:51871\"\nnetworks = [{}]\n",
        peer.0,
        networks(*peer)
    );
    if let Some(family) = settings.helpers {
        writeln!(toml, "address = \"{}\"", peer.helper(family).0)?;
    }
    Ok(toml)
}

/// A node's networks as the items of a list.
fn networks(node: Node) -> String {
    let items = node.networks();
    let items = items.iter().map(|(ip, bits)| format!("\"{ip}/{bits}\""));
    items.collect::<Vec<_>>().join(", ")
}

/// The SPIFFE ID of a workload, by its name.
#[must_use]
pub fn spiffe_id(name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/shop/sa/{name}")
}

/// Where Underseal looks for a workload's certificate unless told otherwise.
#[must_use]
pub fn identity_folder(name: &str) -> String {
    format!("/var/lib/underseal/identities/shop/{name}")
}
