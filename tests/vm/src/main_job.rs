//! The main job on two nodes: unmodified programs talk, once to a workload on the same node and once to one on the
//! other, and recordings say what could have been read on the way.
//!
//! ```text
//!   node-a: shop, cart ── eth0 ── wire (this process) ── eth0 ── node-b: till
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::artifacts::Kernel;
use crate::capture::{self, PathCount, Question};
use crate::identities::Authority;
use crate::matrix::Lab;
use crate::pcap::Pcap;
use crate::site::{Settings, Site};
use crate::topology::{Node, Workload};
use crate::wire::Wire;
use crate::{Output, Process, Vm, VmOptions};

/// What is in everything that the programs send: found in a recording, it was readable.
pub const MARKER: &str = "marker-that-only-plaintext-contains";
const PAGE_BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the peer of a path lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// On the same node: mTLS is to protect the path.
    SameNode,
    /// On the other node: WireGuard is.
    OtherNode,
}

/// One path with what was seen on it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Where the peer lives.
    pub peer: Peer,
    /// The programs that talked, and over what.
    pub programs: String,
    /// What a recording inside the client's namespace saw.
    pub veth: PathCount,
    /// What the wire between the nodes saw.
    pub uplink: PathCount,
}

impl Row {
    /// How many layers encrypted the path.
    #[must_use]
    pub fn layers(&self) -> u32 {
        u32::from(self.veth.tls_records > 0 && self.veth.plaintext_bytes == 0)
            + u32::from(self.uplink.wireguard_data_packets > 0)
    }

    /// Whether somebody could have read what nobody may: anything on the wire, or data inside the node.
    #[must_use]
    pub fn is_leak(&self) -> bool {
        self.uplink.is_readable() || (self.peer == Peer::SameNode && self.veth.is_readable())
    }

    /// Bytes of TCP payload that the client's veth carried.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.veth.tls_bytes + self.veth.plaintext_bytes
    }
}

/// Two nodes, applied and at work.
pub struct Stage {
    /// Node 1, with the workloads `shop` and `cart`.
    pub a: Site,
    /// Node 2, with the workload `till`.
    pub b: Site,
    /// What is between them.
    pub wire: Wire,
}

impl Stage {
    /// Boots both machines, exchanges public keys, applies once on each, starts helpers and servers.
    ///
    /// # Errors
    /// When a step fails. `progress` is told of each before it begins.
    pub fn set(
        boot: impl FnOnce(&[VmOptions; 2]) -> Result<[Arc<Vm>; 2]>,
        settings: &Settings,
        progress: &dyn Fn(&str),
    ) -> Result<Self> {
        progress("booting node-a and node-b");
        let wire = Wire::new(2)?;
        let options = |name: &str, port| VmOptions {
            name: name.into(),
            nics: vec![wire.port(port)],
            ..VmOptions::default()
        };
        let [a, b] = boot(&[options("node-a", 0), options("node-b", 1)])?;
        Node(1).uplink(&a)?;
        Node(2).uplink(&b)?;
        progress("workloads: shop and cart on node-a, till on node-b");
        let authority = Authority::new("test authority")?;
        let a = Site::prepare(&a, Node(1), &authority, &[("shop", 10), ("cart", 11)])?;
        let b = Site::prepare(&b, Node(2), &authority, &[("till", 12)])?;
        for site in [&a, &b] {
            site.configure(&Settings {
                wireguard: true,
                ..settings.clone()
            })?;
        }
        let keys = (a.public_key()?, b.public_key()?);
        progress("underseal apply on both nodes");
        for (site, peer, key) in [(&a, Node(2), keys.1), (&b, Node(1), keys.0)] {
            site.configure(&Settings {
                peers: vec![(peer, key)],
                ..settings.clone()
            })?;
            site.apply()?;
            site.start_helper()?;
        }
        let stage = Self { a, b, wire };
        progress("servers: python3 -m http.server, redis-server");
        stage.serve()?;
        Ok(stage)
    }

    /// The same in a lab, without a word.
    ///
    /// # Errors
    /// When a step fails.
    pub fn up(lab: &Lab, settings: &Settings) -> Result<Self> {
        Self::set(|options| lab.boot_all(options), settings, &|_| {})
    }

    fn serve(&self) -> Result<()> {
        let page = MARKER.repeat(PAGE_BYTES / MARKER.len());
        for (site, name) in [(&self.a, "cart"), (&self.b, "till")] {
            site.vm.put("/srv/page", page.as_bytes(), 0o644)?;
            site.serve_http(name, 80)?;
            site.serve_redis(name)?;
        }
        Ok(())
    }

    /// Lets every program talk over every path.
    ///
    /// # Errors
    /// When a program fails or receives something else than was sent.
    pub fn run(&self, progress: &dyn Fn(&str)) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for peer in [Peer::SameNode, Peer::OtherNode] {
            let (site, server) = match peer {
                Peer::SameNode => (&self.a, self.a.workload("cart")),
                Peer::OtherNode => (&self.b, self.b.workload("till")),
            };
            for job in JOBS {
                progress(&format!("shop -> {}: {}", server.name, job.programs));
                rows.push(self.record(peer, job, || (job.run)(&self.a, site, server))?);
            }
        }
        Ok(rows)
    }

    fn record(&self, peer: Peer, job: &Job, talk: impl FnOnce() -> Result<()>) -> Result<Row> {
        let before = self.wire.frames();
        let recording = self.a.inside("shop").capture("eth0")?;
        talk().with_context(|| format!("{} ({peer:?})", job.programs))?;
        let veth = recording.stop()?;
        Ok(Row {
            peer,
            programs: job.programs.to_owned(),
            veth: seen(&veth),
            uplink: seen(&self.wire.pcap(before)),
        })
    }
}

/// What a recording shows of the traffic of the workloads of both nodes.
#[must_use]
pub fn seen(pcap: &Pcap) -> PathCount {
    let networks = [Node(1).networks(), Node(2).networks()].concat();
    let question = Question {
        networks: &networks,
        wireguard_port: 51871,
        markers: &[MARKER.as_bytes()],
    };
    capture::count(pcap, &question)
}

/// Boots machines of one kernel that nobody but the caller keeps.
///
/// # Errors
/// When one does not come up.
pub fn boot_two(kernel: &Kernel, options: &[VmOptions; 2]) -> Result<[Arc<Vm>; 2]> {
    let [a, b] = options;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| Vm::boot(kernel, b));
        let a = Vm::boot(kernel, a)?;
        let b = other
            .join()
            .map_err(|_| anyhow::anyhow!("boot panicked"))??;
        Ok([Arc::new(a), Arc::new(b)])
    })
}

/// Something that programs do: client in `shop` of the first site, server in a workload of the second.
struct Job {
    programs: &'static str,
    run: fn(&Site, &Site, &Workload) -> Result<()>,
}

const JOBS: &[Job] = &[
    Job {
        programs: "curl, http.server, IPv4",
        run: |from, _, to| fetch(from, &to.v4.to_string()),
    },
    Job {
        programs: "curl, http.server, IPv6",
        run: |from, _, to| fetch(from, &format!("[{}]", to.v6)),
    },
    Job {
        programs: "redis-cli, redis-server",
        run: |from, _, to| ask_redis(from, to),
    },
    Job {
        programs: "redis-benchmark, redis-server",
        run: |from, _, to| load_redis(from, to),
    },
    Job {
        programs: "nc, server speaks first",
        run: greet,
    },
];

fn fetch(from: &Site, host: &str) -> Result<()> {
    let script =
        format!("curl -sS --max-time 100 'http://{host}/page' | sha256sum; sha256sum < /srv/page");
    let page = MARKER.repeat(PAGE_BYTES / MARKER.len());
    from.vm.put("/srv/page", page.as_bytes(), 0o644)?;
    let sums = from.inside("shop").sh_for(&script, PATIENCE)?.text();
    let mut sums = sums.lines();
    let (got, sent) = (sums.next(), sums.next());
    ensure!(
        got.is_some() && got == sent,
        "what curl got is not what was served"
    );
    Ok(())
}

fn ask_redis(from: &Site, to: &Workload) -> Result<()> {
    let script = format!(
        "redis-cli -h {0} set key {MARKER} && redis-cli -h {0} get key",
        to.v4
    );
    let said = from.inside("shop").sh_for(&script, PATIENCE)?.text();
    ensure!(said == format!("OK\n{MARKER}"), "redis-cli said {said:?}");
    Ok(())
}

fn load_redis(from: &Site, to: &Workload) -> Result<()> {
    let script = format!(
        "redis-benchmark -h {} -n 1000 -c 10 -d 64 -q set key {MARKER}",
        to.v6
    );
    let said = from.inside("shop").sh_for(&script, PATIENCE)?.text();
    ensure!(
        said.contains("requests per second"),
        "redis-benchmark said {said:?}"
    );
    Ok(())
}

fn greet(from: &Site, there: &Site, to: &Workload) -> Result<()> {
    let server: Process<'_> = there
        .inside(&to.name)
        .spawn(&format!("echo {MARKER} | exec nc -N -l 7000"))?;
    to.wait_for_port(&there.vm, 7000)?;
    let said: Output = from
        .inside("shop")
        .sh_for(&format!("nc -d {} 7000", to.v4), PATIENCE)?;
    server.wait(PATIENCE)?.successful()?;
    ensure!(said.text() == MARKER, "nc received {:?}", said.text());
    Ok(())
}
