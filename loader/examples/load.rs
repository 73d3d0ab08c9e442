//! Shows on the running kernel that every program passes the verifier, and that attaching,
//! replacing, reading and removing work: `load CGROUP INTERFACE`, as root, where Underseal is not
//! in use. Leaves nothing behind. The last line is `load: passed`, and nothing else is a success.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;

use underseal::config::value::{AbsolutePath, InterfaceName};
use underseal::kernel::bpf::{attach, iterate, maps, object};
use underseal::kernel::netns::Netns;
use underseal::state::{Attachment, Endpoint, Hook, Program, Target};
use underseal_abi::{ABI_VERSION, Config};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cgroup, interface] = &arguments[..] else {
        return Err("usage: load CGROUP INTERFACE".into());
    };
    let wanted = attachments(&cgroup.parse()?, &interface.parse()?)?;
    let result = run(&wanted, &cgroup.parse()?);
    object::unload()?;
    result?;
    check(
        "nothing is left",
        !Path::new(underseal_abi::names::PIN_ROOT).exists(),
    )?;
    println!("load: passed");
    Ok(())
}

fn run(wanted: &[Attachment], cgroup: &AbsolutePath) -> Result<(), Box<dyn Error>> {
    let loaded = object::Loaded::load()
        .inspect_err(|error| println!("{}", error.log().unwrap_or_default()))?;
    for name in loaded.programs() {
        println!("loaded {name}");
    }
    write_maps()?;
    for attachment in wanted {
        let _ = attach::attach(&loaded, attachment)?;
        println!("attached {}", attachment.pin());
    }
    let first = attach::observe(Some(cgroup))?;
    for attached in &first {
        println!(
            "observed {} program {}",
            attached.attachment.pin(),
            attached.program_id
        );
    }
    check(
        "all are found where they were attached",
        same(wanted, &first),
    )?;
    check("and without a hint", same(wanted, &attach::observe(None)?))?;

    // A second loader: the maps and what they hold stay, the programs are replaced and put back.
    let newer = object::Loaded::load()?;
    check("the maps keep what they hold", maps::ipcache()?.len() == 2)?;
    let mut replaced = Vec::new();
    for attachment in wanted {
        replaced.push(attach::attach(&newer, attachment)?);
    }
    let second = attach::observe(Some(cgroup))?;
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
    check(
        "restored ones are the first",
        attach::observe(Some(cgroup))? == first,
    )?;

    let here = Netns::open(Path::new("/proc/self/ns/net"))?.ok_or("no network namespace")?;
    println!("take-over found {:?}", iterate::take_over(&here)?);
    println!("let-go found {:?}", iterate::let_go(&here)?);
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

fn write_maps() -> Result<(), Box<dyn Error>> {
    maps::set_config(&Config {
        abi: ABI_VERSION,
        object: object::digest().0,
        ..Config::default()
    })?;
    for net in ["10.1.0.0/24", "fd00:1::10/128"] {
        maps::set_endpoint(
            net.parse()?,
            Endpoint {
                node: 1,
                workload: 7,
                ifindex: 0,
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

fn check(what: &str, holds: bool) -> Result<(), Box<dyn Error>> {
    println!("{} {what}", if holds { "ok" } else { "FAILED" });
    if holds { Ok(()) } else { Err(what.into()) }
}
