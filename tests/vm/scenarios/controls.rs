//! What each defence is good for: with one taken away the same traffic leaks or fails, and the other stops the leak.
//!
//! | hold | restart | guard | on the veth | the programs |
//! |------|---------|-------|-------------|--------------|
//! | yes  | yes     | no    | TLS only    | succeed      |
//! | no   | yes     | no    | plaintext   |              |
//! | yes  | no      | no    | plaintext   | fail         |
//! | no   | yes     | yes   | TLS only    | fail         |
//! | yes  | no      | yes   | TLS only    | fail         |

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::capture::PathCount;
use underseal_vm::main_job::seen;
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Lab, VmOptions};

use crate::programs;

const PATIENCE: Duration = Duration::from_secs(60);

/// The test-only twins of the two programs: the environment takes defences away.
const PROGRAMS: &[&str] = &[
    "underseal",
    "underseal-handshake",
    "underseal-controls",
    "underseal-handshake-controls",
];

struct Case {
    without: &'static str,
    leaks: bool,
    succeeds: Option<bool>,
}

const CASES: &[Case] = &[
    Case {
        without: "guard",
        leaks: false,
        succeeds: Some(true),
    },
    Case {
        without: "hold,guard",
        leaks: true,
        succeeds: None,
    },
    Case {
        without: "restart,guard",
        leaks: true,
        succeeds: Some(false),
    },
    Case {
        without: "hold",
        leaks: false,
        succeeds: Some(false),
    },
    Case {
        without: "restart",
        leaks: false,
        succeeds: Some(false),
    },
];

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        programs: PROGRAMS,
        ..VmOptions::default()
    })?;
    let site = Site::pair(&vm)?;
    site.configure(&Settings::default())?;
    programs::put(&site)?;
    for case in CASES {
        let (count, succeeded) = show(&site, case)?;
        ensure!(
            count.is_readable() == case.leaks,
            "without {}: {count:?}",
            case.without
        );
        ensure!(
            case.succeeds.is_none_or(|s| s == succeeded),
            "without {}: programs succeeded: {succeeded}",
            case.without
        );
    }
    Ok(())
}

fn show(site: &Site, case: &Case) -> Result<(PathCount, bool)> {
    let place = site.vm.node().env("UNDERSEAL_WITHOUT", case.without);
    place.sh("underseal-controls apply")?;
    let helper = site.start_twin(&place)?;
    let recording = site.inside("shop").capture("eth0")?;
    // Without the hold the client does not sleep; it may even be reset before the server accepts.
    let client = if case.without.contains("hold") {
        unheld(site)?
    } else {
        programs::eager(site, &site.workload("cart").v4.to_string(), "")?
    };
    // A program that got ciphertext, or lost its plaintext, may also wait for ever: that is failing too.
    let succeeded = client
        .wait(Duration::from_secs(20))
        .is_ok_and(|output| output.code == Some(0));
    client.signal(9)?;
    site.vm.sh("pkill -x python3; true")?;
    let count = seen(&recording.stop()?);
    helper.signal(15)?;
    helper.wait(PATIENCE)?;
    site.vm.sh("underseal down")?;
    Ok((count, succeeded))
}

fn unheld(site: &Site) -> Result<underseal_vm::Process<'_>> {
    site.vm.sh("rm -f /tmp/accept")?;
    site.inside("cart")
        .spawn("exec python3 /tmp/late_server.py 7000")?;
    let cart = site.workload("cart");
    cart.wait_for_port(&site.vm, 7000)?;
    let client = site.inside("shop").spawn(&format!(
        "exec python3 /tmp/eager_client.py {} 7000",
        cart.v4
    ))?;
    // Sent, or refused by the guard: either way the segment has been made when the queue is not empty or the socket gone.
    let tried = "! ss -Htn state established 'dport = :7000' | grep -q . || ss -Htn state established 'dport = :7000' | awk '{exit !($2 > 0)}' || ss -Htn state established 'sport = :7000' | awk '{exit !($1 > 0)}'";
    site.inside("shop")
        .wait_until(tried, PATIENCE, "the client to send")?;
    site.vm.sh("touch /tmp/accept")?;
    Ok(client)
}
