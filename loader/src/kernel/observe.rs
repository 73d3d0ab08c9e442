//! Reads the node: what Underseal has made of it, and what the desired state depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;

use ipnet::IpNet;
use underseal_abi::names::PIN_ROOT;
use underseal_abi::{ABI_VERSION, Config as RawConfig, THIS_NODE};
use underseal_ktls::speed;

use super::bpf::{attach, maps, named, object, policies};
use super::error::Error;
use super::key::{PresharedKey as Secret, PrivateKey};
use super::netns::Netns;
use super::wireguard::Device;
use super::{address, link, route, sysctl, wireguard};
use crate::config::choice::Cipher;
use crate::config::cipher::CipherChoice;
use crate::config::value::{AbsolutePath, Digest, InterfaceName, PublicKey, WorkloadName};
use crate::config::{self, Config};
use crate::generation::Number;
use crate::state::{
    Attachment, Datapath, Facts, Found, Key, Link, Live, Namespace, Peer, PresharedKey, Program,
    Route, Saved, Settings, State, Target, Veth, Wireguard,
};

/// Kind of a WireGuard device, as the kernel calls it.
const WIREGUARD: &str = "wireguard";

/// What was found on the node, all of it at one time.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What Underseal has made.
    pub state: State,
    /// The WireGuard devices in it, with what is no part of a state: their sessions.
    pub devices: BTreeMap<InterfaceName, Device>,
}

/// The state of the node; see [`node`].
///
/// # Errors
/// Those of [`node`].
pub fn state(config: Option<&Config>) -> Result<State, Error> {
    Ok(node(config)?.state)
}

/// Looks at the node. A configuration tells where else to look than in what is pinned: at the
/// device and the namespaces that it names.
///
/// # Errors
/// Something cannot be read, or was written by a version with other layouts.
pub fn node(config: Option<&Config>) -> Result<Observed, Error> {
    let raw = maps::config()?;
    let datapath = if Path::new(PIN_ROOT).exists() {
        Some(datapath(raw.as_ref(), config)?)
    } else {
        None
    };
    let mut devices = BTreeMap::new();
    let mut found = |name: InterfaceName| -> Result<Wireguard, Error> {
        let read = wireguard::read(&name)?;
        let state = device(name.clone(), &read)?;
        devices.insert(name, read);
        Ok(state)
    };
    let wireguard = device_name(datapath.as_ref(), config)?
        .map(&mut found)
        .transpose()?;
    let mut beside = BTreeMap::new();
    for name in names_beside(face(datapath.as_ref(), config))? {
        beside.insert(name.clone(), found(name)?);
    }
    let mut state = State {
        wireguard,
        beside,
        routes: routes()?,
        datapath,
        namespaces: BTreeMap::new(),
    };
    state.namespaces = namespaces(&state, config)?;
    Ok(Observed { state, devices })
}

/// What the desired state of `config` depends on, beside what is in `observed`.
///
/// # Errors
/// Something cannot be read. A key file that others can read is refused.
pub fn facts(config: &Config, observed: &Observed) -> Result<Facts, Error> {
    let state = &observed.state;
    let own = config.wireguard.as_ref();
    let next = own.and_then(|own| own.next.as_ref());
    let mut uplinks = BTreeMap::new();
    for uplink in &config.node.uplinks {
        uplinks.insert(uplink.clone(), link::named(uplink.as_str())?.mtu);
    }
    let ids = state
        .datapath
        .iter()
        .flat_map(|datapath| &datapath.workloads);
    Ok(Facts {
        object: object::digest(),
        public_key: public_key(own.map(|own| &own.private_key_file))?,
        next_public_key: public_key(next.map(|next| &next.private_key_file))?,
        preshared_keys: digests(config, |peer| peer.preshared_key_file.as_ref())?,
        next_preshared_keys: digests(config, |peer| peer.next_preshared_key_file.as_ref())?,
        leading: leading(state),
        sessions: sessions(&observed.devices),
        uplinks,
        sendpage: attach::has_function(Program::Sendpage)?,
        ids: ids
            .map(|(id, workload)| (workload.name.clone(), *id))
            .collect(),
        cipher: cipher(config, state)?,
        namespaces: found(config, state),
    })
}

fn public_key(file: Option<&AbsolutePath>) -> Result<Option<PublicKey>, Error> {
    let Some(file) = file else {
        return Ok(None);
    };
    Ok(PrivateKey::read(file.as_path())?.map(|key| key.public()))
}

/// Digests of preshared keys, by the peer's public key.
fn digests(
    config: &Config,
    file: impl Fn(&config::Peer) -> Option<&AbsolutePath>,
) -> Result<BTreeMap<PublicKey, Digest>, Error> {
    let mut digests = BTreeMap::new();
    for peer in &config.peers {
        if let Some(file) = file(peer) {
            digests.insert(peer.public_key, Secret::read(file.as_path())?.digest());
        }
    }
    Ok(digests)
}

/// Which device leads to each network of a peer.
fn leading(state: &State) -> BTreeMap<IpNet, InterfaceName> {
    let all = state.datapath.iter().flat_map(|d| &d.ipcache);
    let others = all.filter(|(_, endpoint)| endpoint.node != THIS_NODE);
    let leading = others.filter_map(|(network, endpoint)| {
        let device = state.leading(endpoint)?;
        Some((*network, device.interface.clone()))
    });
    leading.collect()
}

/// How old sessions are, by device and peer.
fn sessions(
    devices: &BTreeMap<InterfaceName, Device>,
) -> BTreeMap<InterfaceName, BTreeMap<PublicKey, u64>> {
    let now = SystemTime::now();
    let ages = |device: &Device| {
        let peers = device.peers.iter();
        let ages = peers.filter_map(|(key, peer)| Some((*key, peer.handshake_age(now)?)));
        ages.collect()
    };
    let devices = devices.iter();
    devices
        .map(|(name, device)| (name.clone(), ages(device)))
        .collect()
}

/// What `seal.cipher = "auto"` stands for: what the node has, so that it stays, or else what is measured now.
fn cipher(config: &Config, state: &State) -> Result<Option<Cipher>, Error> {
    if config.seal.cipher != CipherChoice::Auto {
        return Ok(None);
    }
    let workloads = state.datapath.iter().flat_map(|d| d.workloads.values());
    if let Some(cipher) = workloads.map(|workload| workload.cipher).next() {
        return Ok(Some(cipher));
    }
    let fail = |error| Error::new("measure", "the kernel's TLS", std::io::Error::other(error));
    let numbers = CipherChoice::CANDIDATES.map(|cipher| u16::try_from(cipher.number()).ok());
    let candidates = numbers.into_iter().flatten();
    let candidates: Vec<_> = candidates
        .filter_map(underseal_ktls::Cipher::from_number)
        .collect();
    let fastest = speed::fastest(&candidates).map_err(fail)?;
    Ok(fastest.and_then(|cipher| Cipher::from_number(cipher.number().into())))
}

fn datapath(raw: Option<&RawConfig>, config: Option<&Config>) -> Result<Datapath, Error> {
    let attached = attach::observe(config.map(|config| &config.node.cgroup))?;
    let attachments = attached
        .into_iter()
        .map(|attached| attached.attachment)
        .collect();
    // All zeros, or no map at all: nobody has written yet.
    let Some(raw) = raw.filter(|raw| raw.abi != 0) else {
        return Ok(Datapath {
            attachments,
            ..Datapath::default()
        });
    };
    if raw.abi != ABI_VERSION {
        let why = format!(
            "it was written by version {} of its layout, this is {ABI_VERSION}",
            raw.abi
        );
        let hint = "run `underseal down` of the version that wrote it";
        return Err(
            Error::new("understand map", "CONFIG", std::io::Error::other(why)).explained(hint),
        );
    }
    Ok(Datapath {
        object: Some(Digest(raw.object)).filter(|digest| digest.0 != [0; 16]),
        settings: settings(raw)?,
        ipcache: maps::ipcache()?,
        workloads: maps::workloads()?,
        nodes: maps::nodes()?,
        bundles: maps::bundles()?,
        peer_workloads: maps::peer_workloads()?,
        dns_names: named::read()?,
        policies: policies::read(raw.policy)?,
        attachments,
    })
}

fn settings(raw: &RawConfig) -> Result<Settings, Error> {
    let device = match raw.wireguard {
        0 => None,
        index => link::at(index)?,
    };
    // An index that was given to another interface since is not the device.
    let device = device.filter(|device| device.kind.as_deref() == Some(WIREGUARD));
    Ok(Settings {
        mode: underseal_abi::mode_of(raw.mode).into(),
        wireguard: device.and_then(|device| device.name.parse().ok()),
        allow_outside: raw.flags & RawConfig::ALLOW_OUTSIDE != 0,
        allow_non_tcp: raw.flags & RawConfig::ALLOW_NON_TCP != 0,
        keep_existing: raw.flags & RawConfig::KEEP_EXISTING != 0,
        keep_revoked: raw.flags & RawConfig::KEEP_REVOKED != 0,
        rotating: raw.flags & RawConfig::ROTATING != 0,
        rekey_after: (raw.rekey_after != 0).then(|| raw.rekey_after.into()),
        recheck: raw.recheck,
    })
}

/// Name of our device: the one that the datapath sends to, or else the one that the configuration
/// names, if there is one.
fn device_name(
    datapath: Option<&Datapath>,
    config: Option<&Config>,
) -> Result<Option<InterfaceName>, Error> {
    if let Some(name) = datapath.and_then(|datapath| datapath.settings.wireguard.clone()) {
        return Ok(Some(name));
    }
    let Some(name) = config
        .and_then(|config| config.wireguard.as_ref())
        .map(|device| &device.interface)
    else {
        return Ok(None);
    };
    match link::find(name.as_str())? {
        None => Ok(None),
        Some(found) if found.kind.as_deref() == Some(WIREGUARD) => Ok(Some(name.clone())),
        Some(_) => {
            let why = std::io::Error::other(
                "there is an interface of this name that is no WireGuard device",
            );
            let hint = "name another one in wireguard.interface";
            Err(Error::new("use", name.as_str(), why).explained(hint))
        }
    }
}

/// The device whose name those beside it have, whether it is there or not.
fn face<'a>(
    datapath: Option<&'a Datapath>,
    config: Option<&'a Config>,
) -> Option<&'a InterfaceName> {
    let sent_to = datapath.and_then(|datapath| datapath.settings.wireguard.as_ref());
    let named = config.and_then(|config| config.wireguard.as_ref());
    sent_to.or(named.map(|device| &device.interface))
}

/// Devices for other generations of keys. An interface of such a name that is no WireGuard device is somebody else's.
fn names_beside(face: Option<&InterfaceName>) -> Result<Vec<InterfaceName>, Error> {
    let mut found = Vec::new();
    let names = face.into_iter().flat_map(|face| {
        let others = Number::OTHERS.iter();
        others.filter_map(|it| it.interface(face))
    });
    for name in names {
        let link = link::find(name.as_str())?;
        if link.is_some_and(|link| link.kind.as_deref() == Some(WIREGUARD)) {
            found.push(name);
        }
    }
    Ok(found)
}

fn device(interface: InterfaceName, device: &Device) -> Result<Wireguard, Error> {
    let found = link::named(interface.as_str())?;
    let peers = device.peers.iter().map(|(key, peer)| {
        let peer = Peer {
            endpoint: peer.endpoint,
            networks: peer.networks.clone(),
            persistent_keepalive: peer.persistent_keepalive,
            preshared_key: peer
                .preshared_key
                .map(|digest| PresharedKey { digest, file: None }),
        };
        (*key, peer)
    });
    Ok(Wireguard {
        up: found.up,
        mtu: found.mtu,
        port: device.port,
        key: Key {
            public: device.public_key,
            file: None,
        },
        // The kernel's own link-local address is not ours.
        addresses: address::list(&found)?
            .into_iter()
            .filter(|net| !is_link_local(net))
            .collect(),
        peers: peers.collect(),
        interface,
    })
}

fn is_link_local(net: &ipnet::IpNet) -> bool {
    matches!(net, ipnet::IpNet::V6(net) if net.addr().is_unicast_link_local())
}

fn routes() -> Result<BTreeSet<Route>, Error> {
    let names: BTreeMap<u32, String> = link::list()?
        .into_iter()
        .map(|link| (link.index, link.name))
        .collect();
    let ours = route::list()?.into_iter().filter_map(|route| {
        let interface = names.get(&route.device)?.parse().ok()?;
        Some(Route {
            destination: route.destination,
            interface,
        })
    });
    Ok(ours.collect())
}

/// Namespaces of the `NETNS` map, of the workloads that the maps list, and of the configuration.
fn namespaces(state: &State, config: Option<&Config>) -> Result<BTreeMap<u64, Namespace>, Error> {
    let mut all: BTreeMap<u64, Namespace> = maps::namespaces()?
        .into_iter()
        .map(|(cookie, raw)| {
            let entry = Saved {
                lowat: raw.saved_lowat,
                mtu: raw.saved_mtu,
                taken_over: raw.taken_over != 0,
            };
            (
                cookie,
                Namespace {
                    workload: raw.workload,
                    entry: Some(entry),
                    live: None,
                },
            )
        })
        .collect();
    for (path, interface) in places(state, config) {
        let Some(netns) = Netns::open(path.as_path())? else {
            continue;
        };
        let live = Live {
            lowat: netns.run(sysctl::notsent_lowat)??,
            veth: match interface {
                Some(interface) => configured_veth(&netns, interface)?,
                None => covered_veth(&netns, state)?,
            },
            path,
        };
        let nothing = Namespace {
            workload: 0,
            entry: None,
            live: None,
        };
        all.entry(netns.cookie()?).or_insert(nothing).live = Some(live);
    }
    Ok(all)
}

/// Paths of namespaces, with the name of the workload's interface where it is configured.
fn places<'a>(
    state: &State,
    config: Option<&'a Config>,
) -> BTreeMap<AbsolutePath, Option<&'a InterfaceName>> {
    let listed = state
        .datapath
        .iter()
        .flat_map(|datapath| datapath.workloads.values());
    let mut places: BTreeMap<_, _> = listed
        .map(|workload| (workload.netns.clone(), None))
        .collect();
    let configured = config.into_iter().flat_map(|config| &config.workloads);
    places.extend(configured.map(|workload| (workload.netns.clone(), Some(&workload.interface))));
    places
}

fn configured_veth(netns: &Netns, interface: &InterfaceName) -> Result<Option<Veth>, Error> {
    let Some(pair) = netns.veth_pair(interface.as_str())? else {
        return Ok(None);
    };
    let Ok(name) = pair.host.name.parse() else {
        return Ok(None);
    };
    Ok(Some(Veth {
        interface: interface.clone(),
        mtu: pair.inside.mtu,
        host: Link {
            name,
            index: pair.host.index,
        },
        host_mtu: pair.host.mtu,
    }))
}

/// The veth pair of a workload that is no longer configured: the one whose host side our programs
/// are attached to.
fn covered_veth(netns: &Netns, state: &State) -> Result<Option<Veth>, Error> {
    let attachments = state
        .datapath
        .iter()
        .flat_map(|datapath| &datapath.attachments);
    let covered: BTreeSet<&InterfaceName> = attachments
        .filter_map(|attachment| match attachment {
            Attachment {
                program: Program::FromWorkload,
                target: Target::Interface(name),
            } => Some(name),
            _ => None,
        })
        .collect();
    let inside = netns.run(link::list)??;
    for candidate in inside
        .iter()
        .filter(|link| link.kind.as_deref() == Some("veth"))
    {
        let Ok(interface) = candidate.name.parse() else {
            continue;
        };
        // Another veth pair of the namespace may lead elsewhere than to this one.
        let Ok(Some(veth)) = configured_veth(netns, &interface) else {
            continue;
        };
        if covered.contains(&veth.host.name) {
            return Ok(Some(veth));
        }
    }
    Ok(None)
}

/// The configured workloads' namespaces, out of all that were found.
fn found(config: &Config, state: &State) -> BTreeMap<WorkloadName, Found> {
    let of = |workload: &config::Workload| {
        state.namespaces.iter().find_map(|(cookie, namespace)| {
            let live = namespace
                .live
                .as_ref()
                .filter(|live| live.path == workload.netns)?;
            Some(Found {
                cookie: *cookie,
                entry: namespace.entry,
                live: live.clone(),
            })
        })
    };
    let all = config.workloads.iter();
    all.filter_map(|workload| Some((workload.name.clone(), of(workload)?)))
        .collect()
}
