//! What the kernel seals is TLS 1.3 to others: one of our ends against OpenSSL's, both roles, each cipher, both ways at
//! once, compared byte by byte. `interop` is an example of the library's crate.
//!
//! ```text
//!   interop client ── lo ── openssl s_server        openssl s_client ── lo ── interop server
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underseal_vm::{Lab, Vm, VmOptions};

/// Each way.
const BYTES: u32 = 32 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
const KILL: i32 = 9;

/// Our names of the ciphers and OpenSSL's.
const CIPHERS: [(&str, &str); 3] = [
    ("aes-128-gcm", "TLS_AES_128_GCM_SHA256"),
    ("aes-256-gcm", "TLS_AES_256_GCM_SHA384"),
    ("chacha20-poly1305", "TLS_CHACHA20_POLY1305_SHA256"),
];

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        programs: &["examples/interop"],
        ..VmOptions::default()
    })?;
    vm.sh(&format!(
        "mkdir /tmp/t && cd /tmp/t && mkfifo in && interop identities . &&
         interop bytes client {BYTES} >from-client && interop bytes server {BYTES} >from-server"
    ))?;
    for (number, (ours, theirs)) in CIPHERS.into_iter().enumerate() {
        as_client(&vm, ours, theirs).with_context(|| format!("client, {ours}"))?;
        as_server(&vm, ours, theirs).with_context(|| format!("server, {ours}"))?;
        let kernel = vm
            .sh("grep -E '^Tls(Tx|Rx)Sw' /proc/net/tls_stat | tr -s ' \\t' ' '")?
            .text();
        let runs = 2 * (number + 1);
        ensure!(
            kernel == format!("TlsTxSw {runs}\nTlsRxSw {runs}"),
            "not sealed by the kernel: {kernel}"
        );
    }
    Ok(())
}

fn as_client(vm: &Vm, ours: &str, theirs: &str) -> Result<()> {
    // Its standard input stays open until our end has closed: at its end OpenSSL would close first.
    let input = vm.spawn("cd /tmp/t && exec 3>in && cat from-server >&3 && exec sleep 600")?;
    let server = vm.spawn(&format!(
        "cd /tmp/t && exec openssl s_server -accept 4433 -naccept 1 -quiet -tls1_3 -ciphersuites {theirs} \
         -cert server/tls.crt -key server/tls.key -CAfile server/ca.crt -Verify 1 -verify_return_error <in >got"
    ))?;
    vm.wait_until("ss -Hltn 'sport = :4433' | grep -q .", PATIENCE, "s_server")?;
    let said = vm.node().sh_for(
        &format!(
            "cd /tmp/t && interop client 127.0.0.1:4433 --cert client --expect spiffe://interop.test/server \
             --cipher {ours} --bytes {BYTES}"
        ),
        PATIENCE,
    )?;
    ensure_all(&said.text())?;
    server.wait(PATIENCE)?.successful()?;
    input.signal(KILL)?;
    vm.sh("cd /tmp/t && cmp from-client got").map(drop)
}

fn as_server(vm: &Vm, ours: &str, theirs: &str) -> Result<()> {
    let server = vm.spawn(&format!(
        "cd /tmp/t && exec interop server 127.0.0.1:4434 --cert server --expect spiffe://interop.test/client \
         --cipher {ours} --bytes {BYTES}"
    ))?;
    vm.wait_until("ss -Hltn 'sport = :4434' | grep -q .", PATIENCE, "interop")?;
    let input = vm.spawn("cd /tmp/t && exec 3>in && cat from-client >&3 && exec sleep 600")?;
    let client = vm.spawn(&format!(
        "cd /tmp/t && exec openssl s_client -connect 127.0.0.1:4434 -quiet -tls1_3 -ciphersuites {theirs} \
         -cert client/tls.crt -key client/tls.key -CAfile client/ca.crt -verify_return_error <in >got"
    ))?;
    ensure_all(&server.wait(PATIENCE)?.successful()?.text())?;
    client.wait(PATIENCE)?.successful()?;
    input.signal(KILL)?;
    vm.sh("cd /tmp/t && cmp from-server got").map(drop)
}

/// Fails unless `interop` has said that every byte came, and none was wrong.
fn ensure_all(said: &str) -> Result<()> {
    ensure!(
        said.ends_with(&format!("INTEROP-OK sent={BYTES} received={BYTES}")),
        "interop said {said}"
    );
    Ok(())
}
