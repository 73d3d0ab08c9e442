//! Reads what `doctor` goes by, beside what `status` reads, too. It changes nothing; as everywhere, the kernel loads a module
//! that is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use underseal_ktls::Identity as Loaded;

use super::bpf::attach;
use super::{link, lock, probe, route, sysctl, wireguard};
use crate::config::Config;
use crate::doctor::facts::{Attached, Facts, Identity, Link, Missing, SecretFile};
use crate::doctor::network::OLD;
use crate::pki::authority::Authority;
use crate::pki::certificate;
use crate::state::{State, Target};

/// Longer than the time after which WireGuard tries a handshake again (5 s, `drivers/net/wireguard/messages.h`).
const RETRY: Duration = Duration::from_secs(6);

/// What the machine shows. What cannot be read is left out: each such failure is one that `status` has met before.
#[must_use]
pub fn machine(config: Option<&Config>, state: Option<&State>) -> Facts {
    let device = state.and_then(|state| state.wireguard.as_ref());
    Facts {
        missing: missing(config),
        release: kernel("osrelease"),
        version: kernel("version"),
        ptrace_scope: sysctl::read("kernel.yama.ptrace_scope").ok(),
        keys: config.map(keys).unwrap_or_default(),
        identities: config
            .map(|config| identities(config, state))
            .unwrap_or_default(),
        helper_is_old: helper_is_old(),
        units: units(config),
        hooks: hooks(config, state),
        uplinks: config.map(uplinks).unwrap_or_default(),
        device: device.and_then(|device| found(device.interface.as_str())),
        trying: state.map(|state| trying(state, config)).unwrap_or_default(),
        unroutable: config.map(unroutable).unwrap_or_default(),
        ways: config.map(ways).unwrap_or_default(),
        ip_forward: sysctl::read("net.ipv4.ip_forward").ok().map(|it| it == "1"),
        allows_outside: state
            .and_then(|state| state.datapath.as_ref())
            .is_some_and(|datapath| datapath.settings.allow_outside),
        ..Facts::default()
    }
}

fn missing(config: Option<&Config>) -> Vec<Missing> {
    let cgroup = config.map_or(Path::new("/sys/fs/cgroup"), |it| it.node.cgroup.as_path());
    let mut problems = probe::node(cgroup);
    if config.is_none_or(|config| config.wireguard.is_some()) {
        problems.extend(probe::wireguard());
    }
    let missing = problems.into_iter().map(|it| Missing {
        seen: format!("{}: {}", it.what, it.why),
        fix: it.fix,
    });
    missing.collect()
}

fn kernel(name: &str) -> String {
    sysctl::read(&format!("kernel.{name}")).unwrap_or_default()
}

fn keys(config: &Config) -> Vec<SecretFile> {
    let mut keys = Vec::new();
    let mut add = |what: &str, path: &Path| {
        let found = fs::metadata(path).ok().filter(fs::Metadata::is_file);
        keys.push(SecretFile {
            what: what.to_owned(),
            path: path.display().to_string(),
            found: found.map(|it| (it.mode() & 0o7777, it.uid())),
        });
    };
    if let Some(own) = &config.wireguard {
        add("the WireGuard key", own.private_key_file.as_path());
        if let Some(next) = &own.next {
            add("the next WireGuard key", next.private_key_file.as_path());
        }
    }
    for peer in &config.peers {
        let files = [&peer.preshared_key_file, &peer.next_preshared_key_file];
        for file in files.into_iter().flatten() {
            add("the preshared key", file.as_path());
        }
    }
    for workload in &config.workloads {
        let what = format!("the key of {}", workload.name);
        add(&what, &workload.identity.as_path().join("tls.key"));
    }
    for file in authority_keys(config.pki.directory.as_path()) {
        add("the CA's key", &file);
    }
    keys
}

/// One folder for each CA, while one is replaced by another.
fn authority_keys(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let keys = entries.map(|entry| entry.path().join("ca.key"));
    keys.filter(|key| key.exists()).collect()
}

fn identities(config: &Config, state: Option<&State>) -> BTreeMap<String, Identity> {
    let applied = state.and_then(|state| state.datapath.as_ref());
    let all = config.workloads.iter().map(|workload| {
        let known =
            applied.and_then(|it| it.workloads.values().find(|it| it.name == workload.name));
        let before = Duration::from_secs(known.map_or(0, |it| it.renew_before).into());
        let name = workload.name.to_string();
        (name, identity(workload.identity.as_path(), before))
    });
    all.collect()
}

fn identity(folder: &Path, renew_before: Duration) -> Identity {
    let loaded = Loaded::load(folder);
    let text = fs::read_to_string(folder.join("tls.crt")).ok();
    let facts = text.and_then(|text| certificate::facts(&text).ok());
    let now = SystemTime::now();
    Identity {
        folder: folder.display().to_string(),
        due: loaded
            .as_ref()
            .is_ok_and(|it| it.is_due_within(renew_before, now)),
        broken: loaded.err().map(|error| error.to_string()),
        not_before: facts.as_ref().map(|it| it.not_before),
        not_after: facts.map(|it| it.not_after),
    }
}

/// Whether the program that the helper runs is not the one any more that its path names.
fn helper_is_old() -> bool {
    let Ok(Some(pid)) = lock::helper() else {
        return false;
    };
    let program = fs::read_link(format!("/proc/{pid}/exe"));
    program.is_ok_and(|it| it.to_string_lossy().ends_with(" (deleted)"))
}

/// Whether the units that this node needs are enabled, as `systemctl enable` leaves it.
fn units(config: Option<&Config>) -> Option<BTreeMap<String, bool>> {
    // sd_booted(3)
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    let mut needed = vec!["underseal.service", "underseal-handshake.service"];
    if config.is_some_and(|it| Authority::is_in(it.pki.directory.as_path())) {
        needed.push("underseal-pki.timer");
    }
    if config.is_some_and(|it| it.spire.is_some()) {
        needed.push("underseal-spire.service");
    }
    let wanted: BTreeSet<String> = UNIT_FOLDERS.iter().flat_map(|it| wanted_in(it)).collect();
    let unit = |name: &str| (name.to_owned(), wanted.contains(name));
    Some(needed.into_iter().map(unit).collect())
}

/// systemd.unit(5), "Unit File Load Path"; NixOS has all of its own in the first.
const UNIT_FOLDERS: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];

fn wanted_in(folder: &str) -> Vec<String> {
    let is_list = |path: &PathBuf| {
        let ending = path.extension().and_then(|it| it.to_str());
        matches!(ending, Some("wants" | "requires"))
    };
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let lists = entries(Path::new(folder))
        .map(|it| it.path())
        .filter(is_list);
    let units = lists.flat_map(|list| entries(&list).collect::<Vec<_>>());
    units
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Programs on the interfaces that ours are attached to.
fn hooks(config: Option<&Config>, state: Option<&State>) -> BTreeMap<String, Vec<Attached>> {
    let cgroup = config.map(|config| &config.node.cgroup);
    if state.is_none_or(|state| state.datapath.is_none()) {
        return BTreeMap::new();
    }
    let attached = attach::observe(cgroup).unwrap_or_default();
    let ours: BTreeSet<u32> = attached.iter().map(|it| it.program_id).collect();
    let mut hooks = BTreeMap::new();
    for it in &attached {
        let Target::Interface(interface) = &it.attachment.target else {
            continue;
        };
        let hook = it.attachment.program.hook();
        let Some(programs) = attach::in_order(interface.as_str(), hook) else {
            continue;
        };
        let programs = programs.into_iter().map(|(name, id)| Attached {
            name,
            ours: ours.contains(&id),
        });
        let way = match hook {
            crate::state::Hook::Egress => "egress",
            _ => "ingress",
        };
        hooks.insert(format!("{interface} {way}"), programs.collect());
    }
    hooks
}

fn uplinks(config: &Config) -> BTreeMap<String, Option<Link>> {
    let names = config.node.uplinks.iter();
    names
        .map(|name| (name.to_string(), found(name.as_str())))
        .collect()
}

fn found(name: &str) -> Option<Link> {
    let found = link::find(name).ok()??;
    Some(Link {
        name: found.name,
        up: found.up,
        mtu: found.mtu,
    })
}

/// Sessions that are old and yet sent to. Only where one is old does this take time.
fn trying(state: &State, config: Option<&Config>) -> BTreeSet<String> {
    let old = sent(state, config);
    if old.is_empty() {
        return BTreeSet::new();
    }
    thread::sleep(RETRY);
    let now = sent(state, config).into_iter();
    let grown = now.filter(|(name, sent)| old.get(name).is_some_and(|before| sent > before));
    grown.map(|(name, _)| name).collect()
}

/// What was sent to the peers of sessions that are old.
fn sent(state: &State, config: Option<&Config>) -> BTreeMap<String, u64> {
    let now = SystemTime::now();
    let mut sent = BTreeMap::new();
    for device in state.devices() {
        let peers = wireguard::read(&device.interface).map(|it| it.peers);
        for (key, peer) in peers.unwrap_or_default() {
            if peer.handshake_age(now).is_some_and(|age| age > OLD) {
                let known = config.and_then(|it| it.peers.iter().find(|it| it.public_key == key));
                let name = known.map_or_else(|| key.to_string(), |it| it.name.to_string());
                sent.insert(format!("{name} ({})", device.interface), peer.sent);
            }
        }
    }
    sent
}

/// Peers to whose endpoint no route leads.
fn unroutable(config: &Config) -> BTreeSet<String> {
    let lost = |peer: &&crate::config::Peer| {
        let way = route::way(peer.endpoint.0.ip());
        matches!(way, Ok(None))
    };
    let peers = config.peers.iter().filter(lost);
    peers
        .map(|it| format!("{} ({})", it.name, it.endpoint))
        .collect()
}

/// Which interface leads to the first address of each network of a peer.
fn ways(config: &Config) -> BTreeMap<String, String> {
    let networks = config.peers.iter().flat_map(|peer| &peer.networks);
    let way = |network: &crate::config::network::Network| {
        let first: IpAddr = network.0.hosts().next()?;
        let found = link::at(route::way(first).ok()??).ok()??;
        Some((network.to_string(), found.name))
    };
    networks.filter_map(way).collect()
}
