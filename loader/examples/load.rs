//! Shows on the running kernel that every program passes the verifier, and that attaching,
//! replacing, reading, iterating and removing work: `load CGROUP INTERFACE`, as root, where
//! Underseal is not in use. It makes a WireGuard device of its own for a while, and leaves nothing
//! behind. The last line is `load: passed`; nothing else is a success.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use underseal::config::value::{AbsolutePath, InterfaceName};
use underseal::controls::Controls;
use underseal::kernel::bpf::object::{self, LoadError, Loaded};
use underseal::kernel::bpf::{attach, iterate, maps};
use underseal::kernel::netns::Netns;
use underseal::kernel::{address, link};
use underseal::state::{Attachment, Endpoint, Hook, Program, Target};
use underseal_abi::{ABI_VERSION, Config, ip_key, names};

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cgroup, interface] = &arguments[..] else {
        return Err("usage: load CGROUP INTERFACE".into());
    };
    let cgroup: AbsolutePath = cgroup.parse()?;
    let wanted = attachments(&cgroup, &interface.parse()?)?;
    let result = run(&wanted, &cgroup);
    if let Some(device) = link::find(DEVICE)? {
        device.delete()?;
    }
    object::unload()?;
    result?;
    check("nothing is left", !Path::new(names::PIN_ROOT).exists())?;
    println!("load: passed");
    Ok(())
}

fn run(wanted: &[Attachment], cgroup: &AbsolutePath) -> Outcome {
    let loaded = Loaded::load(Controls::default())
        .inspect_err(|error| println!("{}", error.log().unwrap_or_default()))?;
    for (name, count) in loaded.verified()? {
        println!("verified {name} {count}");
    }
    contents()?;
    for attachment in wanted {
        let _ = attach::attach(&loaded, attachment)?;
        println!("attached {}", attachment.pin());
    }
    let first = attach::observe(Some(cgroup))?;
    check(
        "all are found where they were attached",
        same(wanted, &first),
    )?;
    check("and without a hint", same(wanted, &attach::observe(None)?))?;
    replacement(wanted, &first)?;
    vanished_interface(&loaded)?;
    sockets()?;
    foreign_maps()?;
    for (name, tally) in maps::counters()? {
        println!("counter {name} {} {}", tally.packets, tally.bytes);
    }
    for attachment in wanted {
        let _ = attach::detach(attachment)?;
    }
    check(
        "nothing is attached any more",
        attach::observe(Some(cgroup))?.is_empty(),
    )
}

fn contents() -> Outcome {
    set_abi(ABI_VERSION)?;
    for net in ["10.1.0.0/24", "fd00:1::10/128"] {
        maps::set_endpoint(
            net.parse()?,
            &Endpoint {
                node: 1,
                workload: 7,
                ifindex: 0,
                device: None,
                next: None,
            },
        )?;
    }
    let ipcache = maps::ipcache()?;
    println!("ipcache {ipcache:?}");
    check(
        "the ipcache reads as written",
        ipcache.len() == 2 && ipcache.contains_key(&"10.1.0.0/24".parse()?),
    )?;
    maps::delete_endpoint("10.9.0.0/24".parse()?)?;
    check(
        "an absent entry is deleted already",
        maps::ipcache()?.len() == 2,
    )
}

/// What a second loader does: the maps and what they hold stay, the programs are replaced. Then
/// they are put back.
fn replacement(wanted: &[Attachment], first: &[attach::Attached]) -> Outcome {
    // As if the one before had been interrupted.
    let links = Path::new(names::PIN_ROOT).join(names::LINKS);
    let unfinished = links.join("egress%new");
    fs::rename(links.join("egress"), &unfinished)?;
    let newer = Loaded::load(Controls::default())?;
    check(
        "what was left unfinished is swept away",
        !unfinished.exists(),
    )?;
    check("the maps keep what they hold", maps::ipcache()?.len() == 2)?;
    let mut replaced = Vec::new();
    for attachment in wanted {
        replaced.push(attach::attach(&newer, attachment)?);
    }
    let second = attach::observe(None)?;
    check("replaced ones are found", same(wanted, &second))?;
    check(
        "each has a new program",
        first
            .iter()
            .zip(&second)
            .all(|(a, b)| a.program_id != b.program_id),
    )?;
    for previous in replaced.into_iter().rev() {
        previous.restore()?;
    }
    let third = attach::observe(None)?;
    let restored = first
        .iter()
        .filter(|a| a.attachment.program != Program::Egress);
    check(
        "restored ones are the first",
        restored.clone().count() + 1 == first.len() && restored.eq(&third),
    )
}

fn vanished_interface(loaded: &Loaded) -> Outcome {
    let interface: InterfaceName = DEVICE.parse()?;
    let there = Attachment {
        program: Program::FromWireguard,
        target: Target::Interface(interface.clone()),
    };
    let gone = Attachment {
        program: Program::FromWireguard,
        target: Target::Gone(interface),
    };
    let is = |wanted: &Attachment| {
        Ok::<_, Box<dyn Error>>(
            attach::observe(None)?
                .iter()
                .any(|a| a.attachment == *wanted),
        )
    };
    link::create_wireguard(DEVICE)?;
    let _ = attach::attach(loaded, &there)?;
    check("it is attached to a new device", is(&there)?)?;
    link::named(DEVICE)?.delete()?;
    check("a vanished device is seen", is(&gone)?)?;
    link::create_wireguard(DEVICE)?;
    check("another device of that name is no substitute", is(&gone)?)?;
    let _ = attach::attach(loaded, &there)?;
    check("it is attached anew", is(&there)? && !is(&gone)?)?;
    link::named(DEVICE)?.delete()?;
    let _ = attach::detach(&gone)?;
    check(
        "what is left of it can be removed",
        !is(&there)? && !is(&gone)?,
    )
}

/// The configuration denies what is no workload, so both ends of a connection are to be listed.
fn sockets() -> Outcome {
    let device = link::create_wireguard(DEVICE)?;
    address::add(&device, "198.18.0.1/32".parse()?)?;
    device.set_up()?;
    let listener = TcpListener::bind("198.18.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (_server, _) = listener.accept()?;
    let here = Netns::open(Path::new("/proc/self/ns/net"))?.ok_or("no network namespace")?;
    let found = iterate::take_over(&here)?;
    println!("take-over found {found:?}");
    let (ours, theirs) = (client.local_addr()?.port(), listener.local_addr()?.port());
    let lists = |local: u16, remote: u16| {
        let address = ip_key([198, 18, 0, 1]);
        found.iter().any(|conn| {
            let tuple = conn.tuple;
            (
                tuple.local,
                tuple.remote,
                tuple.local_port,
                tuple.remote_port,
            ) == (address, address, local, remote)
                && conn.cookie != 0
        })
    };
    check(
        "both ends are listed, and the listener is not",
        found.len() == 2 && lists(ours, theirs) && lists(theirs, ours),
    )?;
    check("nobody waits for keys", iterate::let_go(&here)?.is_empty())
}

fn foreign_maps() -> Outcome {
    set_abi(ABI_VERSION + 1)?;
    let refused = Loaded::load(Controls::default());
    check(
        "maps of another version are refused",
        matches!(&refused, Err(LoadError::Foreign(_))),
    )?;
    if let Err(error) = refused {
        println!("{error}");
    }
    set_abi(ABI_VERSION)?;
    let maps = Path::new(names::PIN_ROOT).join(names::MAPS);
    fs::rename(maps.join(names::CONNS), maps.join("aside"))?;
    fs::rename(maps.join(names::NETNS), maps.join(names::CONNS))?;
    let refused = Loaded::load(Controls::default());
    check(
        "maps of another shape are refused",
        matches!(&refused, Err(LoadError::Foreign(_))),
    )?;
    if let Err(error) = refused {
        println!("{error}");
    }
    Ok(())
}

const DEVICE: &str = "underseal.load";

fn set_abi(abi: u32) -> Outcome {
    Ok(maps::set_config(&Config {
        abi,
        object: object::digest().0,
        ..Config::default()
    })?)
}

fn attachments(
    cgroup: &AbsolutePath,
    interface: &InterfaceName,
) -> Result<Vec<Attachment>, Box<dyn Error>> {
    let mut all = Vec::new();
    for &(program, name, hook) in Program::ALL {
        if !attach::has_function(program)? {
            println!("absent {name}");
            continue;
        }
        let target = match hook {
            Hook::Cgroup(_) => Target::Cgroup(cgroup.clone()),
            Hook::Kernel => Target::Kernel,
            Hook::Ingress | Hook::Egress => Target::Interface(interface.clone()),
        };
        all.push(Attachment { program, target });
    }
    Ok(all)
}

fn same(wanted: &[Attachment], found: &[attach::Attached]) -> bool {
    wanted.len() == found.len()
        && wanted
            .iter()
            .all(|w| found.iter().any(|f| f.attachment == *w))
}

fn check(what: &str, holds: bool) -> Outcome {
    println!("{} {what}", if holds { "ok" } else { "FAILED" });
    if holds { Ok(()) } else { Err(what.into()) }
}
