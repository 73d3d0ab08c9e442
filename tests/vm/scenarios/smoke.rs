//! The ground that other scenarios stand on: the kernel has what is needed, and a recording finds plaintext.
//!
//! ```text
//!   shop ── h-shop ── node (plain forwarding) ── h-cart ── cart: python3 -m http.server
//! ```

use anyhow::{Result, ensure};
use underseal_vm::capture::{self, Question};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, VmOptions};

const MARKER: &str = "marker that only plaintext contains";

/// A TLS socket is one whose ULP can be set; the rest of kTLS needs keys.
const KTLS: &str = "
import socket
listener = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(listener.getsockname())
client.setsockopt(socket.IPPROTO_TCP, 31, b'tls')
key = (0x0304).to_bytes(2, 'little') + (51).to_bytes(2, 'little') + bytes(36)
client.setsockopt(282, 1, key)
client.sendall(b'x')
server, _ = listener.accept()
assert server.recv(5) == bytes.fromhex('1703030012'), 'no record'
";

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        programs: &[],
        ..VmOptions::default()
    })?;
    for (folder, kind) in [
        ("/sys/fs/bpf", "bpf_fs"),
        ("/sys/fs/cgroup", "cgroup2fs"),
        ("/sys/kernel/tracing", "tracefs"),
    ] {
        let found = vm.sh(&format!("stat -fc %T {folder}"))?.text();
        ensure!(found == kind, "{folder} is {found}");
    }
    vm.sh("test -e /sys/kernel/btf/vmlinux && grep -q bpf /sys/kernel/security/lsm || mount -t securityfs s /sys/kernel/security && grep -q bpf /sys/kernel/security/lsm")?;
    vm.put("/tmp/ktls.py", KTLS.as_bytes(), 0o644)?;
    vm.sh("python3 /tmp/ktls.py")?;
    vm.sh("ip link add wg0 type wireguard && ip link del wg0")?;

    let node = Node(1);
    let (shop, cart) = (node.workload("shop", 10), node.workload("cart", 11));
    node.add(&vm, &[shop.clone(), cart.clone()])?;
    node.forward(&vm)?;
    vm.put("/srv/page", MARKER.as_bytes(), 0o644)?;
    vm.inside("cart")
        .spawn("cd /srv && exec python3 -m http.server --bind :: 80")?;
    cart.wait_for_port(&vm, 80)?;
    let recording = vm.capture(&cart.host_interface())?;
    for url in [
        format!("http://{}/page", cart.v4),
        format!("http://[{}]/page", cart.v6),
    ] {
        let page = vm
            .inside("shop")
            .sh(&format!("curl -sS --max-time 20 '{url}'"))?
            .text();
        ensure!(page == MARKER, "{url} is {page:?}");
    }
    let pcap = recording.stop()?;
    let question = Question {
        networks: &node.networks(),
        wireguard_port: 51871,
        markers: &[MARKER.as_bytes()],
    };
    let count = capture::count(&pcap, &question);
    ensure!(
        count.streams == 4 && count.marker_hits == 2,
        "the control finds its plaintext: {count:?}"
    );
    ensure!(
        count.plaintext_segments >= 4 && count.tls_records == 0 && count.missing_bytes == 0,
        "{count:?}"
    );
    shop.remove(&vm)
}
