//! Identities that must not do: expired, of another authority, of somebody else, missing. Both ends see a reset, the
//! reason is in the helper's log and in a counter, and nothing was sent.

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::identities::{Authority, Validity};
use underseal_vm::main_job::MARKER;
use underseal_vm::site::{Settings, Site, identity_folder, spiffe_id};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, Output, VmOptions};

const KILL: i32 = 9;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions::default())?;
    let authority = Authority::new("test authority")?;
    let other = Authority::new("other authority")?;
    let names = [("shop", 10), ("cart", 11)];
    let site = Site::prepare(&vm, Node(1), &authority, &names)?;
    site.configure(&Settings::default())?;
    site.apply()?;
    vm.put("/srv/page", MARKER.as_bytes(), 0o644)?;
    site.serve_http("cart", 80)?;
    let fetch = format!(
        "curl -sS --max-time 30 http://{}/page",
        site.workload("cart").v4
    );
    let folder = identity_folder("shop");
    let wrong = [
        (
            "expired",
            authority.issue(&spiffe_id("shop"), Validity::Expired)?,
        ),
        (
            "valid only from",
            authority.issue(&spiffe_id("shop"), Validity::Future)?,
        ),
        (
            "not issued by a CA",
            other.issue(&spiffe_id("shop"), Validity::Now)?,
        ),
        (
            "spiffe://example.org/ns/shop/sa/thief",
            authority.issue(&spiffe_id("thief"), Validity::Now)?,
        ),
    ];
    for (number, (reason, identity)) in wrong.iter().enumerate() {
        identity.put(&vm, &folder)?;
        // A helper that has seen good files would go on with them.
        let helper = site.start_helper()?;
        let said = site.inside("shop").try_sh(&fetch)?;
        ensure!(
            is_reset(&said) && said.stdout.is_empty(),
            "{reason}: {said:?}"
        );
        let log = site.helper_log()?;
        ensure!(
            log.lines()
                .any(|line| line.contains("reset ") && line.contains(reason)),
            "no {reason} in the log: {log}"
        );
        ensure!(
            site.counter("reset_refused")? == number as u64 + 1,
            "{reason} is not counted"
        );
        helper.signal(KILL)?;
        helper.wait(PATIENCE)?;
    }
    vm.sh(&format!("rm {folder}/tls.key"))?;
    site.start_helper()?;
    ensure!(
        is_reset(&site.inside("shop").try_sh(&fetch)?),
        "sealed without a key"
    );
    ensure!(
        site.helper_log()?.contains(&format!("{folder}/tls.key")),
        "the missing file is not named"
    );

    authority
        .issue(&spiffe_id("shop"), Validity::Now)?
        .put(&vm, &folder)?;
    let page = site.inside("shop").sh_for(&fetch, PATIENCE)?.text();
    ensure!(page == MARKER, "a renewed certificate is not used: {page}");
    Ok(())
}

/// Whether curl saw a reset: while it looked whether the connection is there (7), or later.
fn is_reset(said: &Output) -> bool {
    matches!(said.code, Some(7 | 52 | 55 | 56))
}
