//! Identities: each reason to refuse has its counter and a line that names workload and file; files replaced under load
//! harm no connection; files that cannot be used leave the old ones; a revocation ends a live connection, unless the
//! configuration says otherwise, and a helper that starts after it ends it too.
//!
//! ```text
//!   shop: curl, nc ── h-shop ── node: underseal-handshake ── h-cart ── cart: http.server, nc
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::identities::{Authority, Identity, Validity};
use underseal_vm::main_job::MARKER;
use underseal_vm::site::{CONFIG, Settings, Site, identity_folder, spiffe_id};
use underseal_vm::{Lab, Output, Process, VmOptions};

use crate::session::Session;

const PATIENCE: Duration = Duration::from_secs(60);
const KILL: i32 = 9;

/// The reasons that have counters of their own.
const REASONS: [&str; 8] = [
    "refused_expired",
    "refused_not_yet_valid",
    "refused_unknown_ca",
    "refused_trust_domain",
    "refused_id",
    "refused_revoked",
    "refused_key",
    "refused_file",
];

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions::default())?;
    let authority = Authority::new("test authority")?;
    let names = [("shop", 10), ("cart", 11)];
    let site = Site::prepare(&vm, underseal_vm::topology::Node(1), &authority, &names)?;
    site.configure(&Settings::default())?;
    site.apply()?;
    vm.put("/srv/page", MARKER.as_bytes(), 0o644)?;
    site.serve_http("cart", 80)?;
    let good = authority.issue(&spiffe_id("shop"), Validity::Now)?;

    reasons(&site, &authority, &good)?;
    lay_out(&site, &authority)?;
    let helper = site.start_helper()?;
    rotated_under_load(&site)?;
    broken_files_leave_the_old(&site, &good)?;
    let helper = revoked_while_open(&site, &authority, &good, helper)?;
    stop(&helper)?;
    site.ensure_settled()?;
    site.down()?;
    Ok(())
}

/// A connection of `shop` with this identity is refused for this reason alone.
struct Wrong {
    counter: &'static str,
    /// What the line says beside "reset".
    line: String,
    identity: Identity,
}

fn reasons(site: &Site, authority: &Authority, good: &Identity) -> Result<()> {
    let folder = identity_folder("shop");
    let lists = format!("{}/ca.crl", identity_folder("cart"));
    for wrong in wrongs(authority)? {
        wrong.identity.put(&site.vm, &folder)?;
        match wrong.counter {
            "refused_revoked" => {
                let list = authority.revoke(&[&wrong.identity])?;
                site.vm.put(&lists, list.as_bytes(), 0o644)?;
            }
            "refused_file" => drop(site.vm.sh(&format!("rm {folder}/tls.key {lists}"))?),
            _ => {}
        }
        // A helper that has seen good files would go on with them.
        let helper = site.start_helper()?;
        is_refused(site, &wrong)?;
        stop(&helper)?;
    }
    good.put(&site.vm, &folder)
}

fn is_refused(site: &Site, wrong: &Wrong) -> Result<()> {
    let Wrong { counter, line, .. } = wrong;
    let before = counts(site)?;
    let said = site.inside("shop").try_sh(&fetch(site))?;
    ensure!(
        is_reset(&said) && said.stdout.is_empty(),
        "{counter}: {said:?}"
    );
    for ((name, before), now) in REASONS.iter().zip(before).zip(counts(site)?) {
        let wanted = before + u64::from(name == counter);
        ensure!(now == wanted, "{counter}: {name} is {now}, not {wanted}");
    }
    let log = site.helper_log()?;
    let tells = |told: &str| told.contains("reset ") && told.contains(line.as_str());
    ensure!(log.lines().any(tells), "{counter}: no {line} in: {log}");
    Ok(())
}

fn wrongs(authority: &Authority) -> Result<Vec<Wrong>> {
    let shop = spiffe_id("shop");
    let folders = [identity_folder("shop"), identity_folder("cart")];
    let by = |judge: usize| {
        let (by, of) = (&folders[judge], &folders[1 - judge]);
        format!("{of}/tls.crt against {by}/ca.crt")
    };
    let own = |file: &str| format!("{}/{file}`", folders[0]);
    let issue = |id: &str, validity| authority.issue(id, validity);
    let other = Authority::new("other authority")?.issue(&shop, Validity::Now)?;
    let foreign = issue("spiffe://partner.test/ns/shop/sa/shop", Validity::Now)?;
    let mut mixed = issue(&shop, Validity::Now)?;
    mixed.key = issue(&shop, Validity::Now)?.key;
    let wrong = |counter, line, identity| Wrong {
        counter,
        line,
        identity,
    };
    let now = Validity::Now;
    let (expired, future) = (Validity::Expired, Validity::Future);
    Ok(vec![
        wrong("refused_expired", own("tls.crt"), issue(&shop, expired)?),
        wrong(
            "refused_not_yet_valid",
            own("tls.crt"),
            issue(&shop, future)?,
        ),
        wrong("refused_unknown_ca", by(0), other),
        wrong("refused_trust_domain", by(0), foreign),
        wrong("refused_id", by(1), issue(&spiffe_id("thief"), now)?),
        wrong("refused_key", own("tls.key"), mixed),
        wrong("refused_revoked", by(1), issue(&shop, now)?),
        wrong("refused_file", own("tls.key"), issue(&shop, now)?),
    ])
}

/// Versions of the files of `shop`, the first of them in place, as the kubelet lays them out.
fn lay_out(site: &Site, authority: &Authority) -> Result<()> {
    let folder = identity_folder("shop");
    for version in 0..ROTATIONS {
        let identity = authority.issue(&spiffe_id("shop"), Validity::Now)?;
        identity.put(&site.vm, &format!("{folder}/..v{version}"))?;
    }
    site.vm.sh(&format!(
        "cd {folder} && ln -s ..v0 ..data && rm tls.crt tls.key ca.crt && \
         for f in tls.crt tls.key ca.crt; do ln -s ..data/$f $f; done"
    ))?;
    Ok(())
}

/// New files for `shop`, by one rename each time, while one connection after another is made.
fn rotated_under_load(site: &Site) -> Result<()> {
    let folder = identity_folder("shop");
    let before = site.counter("sealed")?;
    let load = site.inside("shop").spawn(&format!(
        "n=0; until test -e /tmp/rotated; do {} >/dev/null || exit 1; n=$((n+1)); echo $n >/tmp/loaded; done; echo $n",
        fetch(site)
    ))?;
    for version in 1..ROTATIONS {
        // Each version serves a connection before the next comes.
        site.vm.sh(&format!(
            "cat /tmp/loaded >/tmp/seen 2>/dev/null; cd {folder} && ln -s ..v{version} ..next && mv -T ..next ..data"
        ))?;
        site.vm.wait_until(
            "test \"$(cat /tmp/loaded 2>/dev/null)\" != \"$(cat /tmp/seen)\"",
            PATIENCE,
            "a connection after a rotation",
        )?;
    }
    site.vm.sh("touch /tmp/rotated")?;
    let made: u64 = load.wait(PATIENCE)?.successful()?.text().parse()?;
    ensure!(made >= u64::from(ROTATIONS), "only {made} connections");
    let sealed = site.counter("sealed")? - before;
    ensure!(sealed >= made, "{made} made, {sealed} sealed");
    let log = site.helper_log()?;
    ensure!(!log.contains("reset "), "a rotation did harm: {log}");
    ensure!(site.counter("identity_kept")? == 0, "complaints: {log}");
    Ok(())
}

/// How often files are replaced under load.
const ROTATIONS: u8 = 10;

fn broken_files_leave_the_old(site: &Site, good: &Identity) -> Result<()> {
    let folder = identity_folder("shop");
    site.vm.sh(&format!("rm {folder}/tls.key"))?;
    site.vm.sh(&format!("echo nonsense >{folder}/tls.key"))?;
    let shows = |count: u64| {
        site.vm.wait_until(
            &format!(
                "underseal --json status | tr -d ' \\n' | grep -q '\"identities_broken\",\"count\":{count}[,}}]'"
            ),
            PATIENCE,
            "identities_broken in status",
        )
    };
    shows(1)?;
    site.inside("shop").sh_for(&fetch(site), PATIENCE)?;
    ensure!(site.counter("identity_kept")? > 0, "it is not counted");
    let log = site.helper_log()?;
    let told = format!("identity of shop/shop: `{folder}/tls.key`");
    ensure!(log.contains(&told), "no complaint of {told}: {log}");
    ensure!(!log.contains("reset "), "broken files did harm: {log}");
    site.vm
        .sh(&format!("cd {folder} && rm tls.crt tls.key ca.crt"))?;
    good.put(&site.vm, &folder)?;
    shows(0)?;
    site.inside("shop").sh_for(&fetch(site), PATIENCE)?;
    Ok(())
}

/// A connection that is open while its client's certificate is revoked.
fn revoked_while_open<'a>(
    site: &'a Site,
    authority: &Authority,
    good: &Identity,
    helper: Process<'a>,
) -> Result<Process<'a>> {
    let lists = format!("{}/ca.crl", identity_folder("cart"));
    let revoke = |list: &str| site.vm.put(&lists, list.as_bytes(), 0o644);
    // Control: it stays open, and only new ones are refused.
    close_revoked(site, false)?;
    let kept = Session::open(site, "shop", 7001)?;
    revoke(&authority.revoke(&[good])?)?;
    let said = site.inside("shop").try_sh(&fetch(site))?;
    ensure!(is_reset(&said), "a revoked client is let in: {said:?}");
    kept.says("after")?;
    ensure!(site.counter("reset_revoked")? == 0, "closed all the same");
    // A helper that starts after that knows with whom it was sealed.
    stop(&helper)?;
    close_revoked(site, true)?;
    kept.says("without a helper")?;
    let helper = site.start_helper()?;
    kept.ends()?;
    is_told(site, 1)?;
    // The same while it runs; a list that revokes somebody else does nothing.
    site.vm.sh(&format!("rm {lists}"))?;
    let other = authority.issue(&spiffe_id("shop"), Validity::Now)?;
    let live = Session::open(site, "shop", 7002)?;
    revoke(&authority.revoke(&[&other])?)?;
    site.inside("shop").sh_for(&fetch(site), PATIENCE)?;
    live.says("after")?;
    revoke(&authority.revoke(&[&other, good])?)?;
    live.ends()?;
    is_told(site, 2)?;
    Ok(helper)
}

fn close_revoked(site: &Site, close: bool) -> Result<()> {
    site.vm.sh(&format!(
        "sed -i '/^close_revoked/d; s/^\\[seal\\]/[seal]\\nclose_revoked = {close}/' {CONFIG}"
    ))?;
    site.apply()?;
    Ok(())
}

fn is_told(site: &Site, least: u64) -> Result<()> {
    let counted = site.counter("reset_revoked")?;
    ensure!(
        counted >= least,
        "{counted} counted, at least {least} expected"
    );
    let log = site.helper_log()?;
    let line = format!("shop/cart accepts {} no longer", spiffe_id("shop"));
    ensure!(log.contains(&line), "no {line} in: {log}");
    Ok(())
}

fn stop(helper: &Process<'_>) -> Result<()> {
    helper.signal(KILL)?;
    helper.wait(PATIENCE)?;
    Ok(())
}

fn counts(site: &Site) -> Result<Vec<u64>> {
    REASONS.iter().map(|name| site.counter(name)).collect()
}

fn fetch(site: &Site) -> String {
    let cart = site.workload("cart").v4;
    format!("curl -sS --max-time 30 http://{cart}/page")
}

/// Whether curl saw a reset: while it looked whether the connection is there (7), or later.
fn is_reset(said: &Output) -> bool {
    matches!(said.code, Some(7 | 52 | 55 | 56))
}
