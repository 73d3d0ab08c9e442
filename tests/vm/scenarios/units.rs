//! The units as they are shipped, on Debian's systemd: workloads start after the node is closed, also at boot, and never
//! without it; reload, a helper that is killed, stop.
//!
//! ```text
//!   namespaces.service ─▶ recorder.service ─▶ underseal.service ─▶ cart.service (http.server)
//!                                               └▶ underseal-handshake.service   └▶ shop.service (curl)
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::capture::{self, Question};
use underseal_vm::identities::{Authority, Validity};
use underseal_vm::main_job::MARKER;
use underseal_vm::pcap::Pcap;
use underseal_vm::site::{CONFIG, Settings, Site, identity_folder, spiffe_id};
use underseal_vm::topology::Node;
use underseal_vm::{Lab, VmOptions, Wire};

const PATIENCE: Duration = Duration::from_secs(120);
const SHIPPED: [(&str, &str); 3] = [
    (
        "underseal-metrics.service",
        include_str!("../../../systemd/underseal-metrics.service"),
    ),
    (
        "underseal.service",
        include_str!("../../../systemd/underseal.service"),
    ),
    (
        "underseal-handshake.service",
        include_str!("../../../systemd/underseal-handshake.service"),
    ),
];
/// As the comment in underseal.service asks for. The node forwards, so that nothing but Underseal keeps plaintext back.
const NAMESPACES: &str = "[Unit]
DefaultDependencies=no
After=local-fs.target
Before=underseal.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/namespaces
[Install]
WantedBy=multi-user.target
";
/// Runs before anything is applied, until it is stopped.
const RECORDER: &str = "[Unit]
DefaultDependencies=no
Requires=namespaces.service
After=namespaces.service
Before=underseal.service
[Service]
ExecStart=/usr/bin/tcpdump -Z root -i h-shop -s 0 -U --immediate-mode -w /run/shop.pcap
ExecStartPost=/bin/sh -c 'until test -s /run/shop.pcap; do sleep 0.05; done'
[Install]
WantedBy=multi-user.target
";
const CART: &str = "[Unit]
Requires=underseal.service
After=underseal.service
[Service]
NetworkNamespacePath=/run/netns/cart
WorkingDirectory=/srv
ExecStart=/usr/bin/python3 -m http.server --bind :: 80
[Install]
WantedBy=multi-user.target
";
const SHOP: &str = "[Unit]
Requires=underseal.service
After=underseal.service
StartLimitIntervalSec=0
[Service]
Type=oneshot
RemainAfterExit=yes
NetworkNamespacePath=/run/netns/shop
ExecStart=/usr/bin/curl -sS --max-time 60 -o /run/got http://10.1.0.11/page
Restart=on-failure
RestartSec=200ms
[Install]
WantedBy=multi-user.target
";

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let wire = Wire::new(1)?;
    let vm = lab.boot(&VmOptions {
        systemd: true,
        nics: vec![wire.port(0)],
        ..VmOptions::default()
    })?;
    let node = Node(1);
    let workloads = vec![node.workload("shop", 10), node.workload("cart", 11)];
    let site = Site {
        vm: Arc::clone(&vm),
        node,
        workloads,
    };
    install(&site)?;
    vm.sh("systemctl daemon-reload && systemctl enable namespaces recorder underseal underseal-handshake cart shop")?;
    vm.node().sh_for(
        "systemctl start namespaces recorder underseal cart && systemctl start --no-block shop",
        PATIENCE,
    )?;
    sealed_from_the_first_byte(&site, "started by hand")?;
    metrics_are_written(&site)?;
    reload(&site)?;
    helper_comes_back(&site)?;
    stop(&site)?;
    workloads_need_it(&site)?;
    // Without warning: nothing is stopped, nothing taken down.
    vm.reset()?;
    sealed_from_the_first_byte(&site, "started at boot")
}

/// Units, what they start, the configuration and the identities.
fn install(site: &Site) -> Result<()> {
    let vm = &site.vm;
    let ours = [
        ("namespaces.service", NAMESPACES),
        ("recorder.service", RECORDER),
        ("cart.service", CART),
        ("shop.service", SHOP),
    ];
    vm.put_units(SHIPPED.into_iter().chain(ours))?;
    let mut script =
        "#!/bin/sh\nset -e\nsysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1\n"
            .to_owned();
    let authority = Authority::new("test authority")?;
    for workload in &site.workloads {
        script.push_str(&site.node.script(workload));
        script.push('\n');
        let identity = authority.issue(&spiffe_id(&workload.name), Validity::Now)?;
        identity.put(vm, &identity_folder(&workload.name))?;
    }
    vm.put("/usr/local/sbin/namespaces", script.as_bytes(), 0o755)?;
    vm.put("/srv/page", MARKER.as_bytes(), 0o644)?;
    site.configure(&Settings::with_peer())
}

/// The client has what was served, both started after apply had ended, and the recording, which began before it, shows
/// records only.
fn sealed_from_the_first_byte(site: &Site, when: &str) -> Result<()> {
    let vm = &site.vm;
    vm.wait_until(
        "systemctl -q is-active shop && systemctl -q is-active cart",
        PATIENCE,
        "the workloads",
    )?;
    let got = vm.sh("cat /run/got; rm /run/got")?.text();
    ensure!(got == MARKER, "{when}: curl got {got}");
    let time = |unit: &str, property: &str| -> Result<u64> {
        let value = vm.sh(&format!("systemctl show --value -p {property} {unit}"))?;
        Ok(value.text().parse()?)
    };
    let recorded = time("recorder", "ActiveEnterTimestampMonotonic")?;
    let began = time("underseal", "ExecMainStartTimestampMonotonic")?;
    let applied = time("underseal", "ActiveEnterTimestampMonotonic")?;
    ensure!(recorded <= began, "{when}: the recording began after apply");
    for workload in ["cart", "shop"] {
        let started = time(workload, "ExecMainStartTimestampMonotonic")?;
        ensure!(
            began < applied && applied <= started,
            "{when}: {workload} started at {started}, applied from {began} to {applied}"
        );
    }
    vm.sh("systemctl stop recorder")?;
    let networks = site.node.networks();
    let question = Question {
        networks: &networks,
        wireguard_port: 51871,
        markers: &[MARKER.as_bytes()],
    };
    let count = capture::count(&Pcap::parse(&vm.get("/run/shop.pcap")?)?, &question);
    ensure!(
        !count.is_readable() && count.tls_records > 0 && count.missing_bytes == 0,
        "{when}: {count:?}"
    );
    Ok(())
}

fn reload(site: &Site) -> Result<()> {
    let mark = site
        .vm
        .sh("journalctl -q -n 0 --show-cursor | sed -n 's/^-- cursor: //p'")?;
    site.vm
        .sh("systemctl reload underseal && systemctl -q is-active cart")?;
    let said = site.vm.sh(&format!(
        "journalctl -q -o cat -u underseal --after-cursor='{}'",
        mark.text()
    ))?;
    ensure!(
        said.text().contains("no changes"),
        "reload: {}",
        said.text()
    );
    Ok(())
}

/// In its sandbox the unit sees all that there is to see, and says so if it has nowhere to write to.
fn metrics_are_written(site: &Site) -> Result<()> {
    let vm = &site.vm;
    let said = vm.try_sh("systemctl start underseal-metrics")?;
    let log = vm.sh("journalctl -q -o cat -u underseal-metrics")?.text();
    ensure!(
        said.code != Some(0) && log.contains("ReadWritePaths="),
        "without its folder: {said:?} {log}"
    );
    let mark = "journalctl -q -n 0 --show-cursor | sed -n 's/^-- cursor: //p'";
    let mark = vm.sh(mark)?.text();
    vm.sh("mkdir -p /var/lib/prometheus/node-exporter && systemctl start underseal-metrics")?;
    let text = vm
        .sh("cat /var/lib/prometheus/node-exporter/underseal.prom")?
        .text();
    for line in [
        "underseal_up 1",
        "underseal_configuration_differences 0",
        "underseal_helper_running 1",
        "underseal_identities_broken 0",
    ] {
        ensure!(text.lines().any(|it| it == line), "no {line} in {text}");
    }
    let ends = text
        .matches("underseal_identity_not_after_seconds{")
        .count();
    ensure!(ends == 2, "{ends} certificates: {text}");
    let read = format!("journalctl -q -o cat -u underseal-metrics --after-cursor='{mark}'");
    let log = vm.sh(&read)?.text();
    ensure!(!log.contains("warning"), "it complains: {log}");
    // This node's uplink has no address.
    let said = vm.try_sh("underseal doctor")?;
    let (text, code) = (said.text(), said.code);
    for told in [
        "underseal-handshake.service and underseal.service enabled",
        "no route leads to node-2 (192.0.2.2:51871)",
    ] {
        ensure!(text.contains(told) && code == Some(1), "no {told}: {text}");
    }
    Ok(())
}

fn helper_comes_back(site: &Site) -> Result<()> {
    let vm = &site.vm;
    let pid = vm
        .sh("systemctl show --value -p MainPID underseal-handshake")?
        .text();
    vm.sh(&format!("kill -9 {pid}"))?;
    vm.wait_until(
        &format!(
            "test \"$(systemctl show --value -p MainPID underseal-handshake)\" -gt 1 -a \
                  \"$(systemctl show --value -p MainPID underseal-handshake)\" != {pid} && \
                  systemctl -q is-active underseal-handshake"
        ),
        PATIENCE,
        "another helper",
    )?;
    vm.node().sh_for("systemctl restart shop", PATIENCE)?;
    let got = vm.sh("cat /run/got")?.text();
    ensure!(got == MARKER, "after the helper was killed curl got {got}");
    Ok(())
}

/// Stop is down, and takes what needs it along.
fn stop(site: &Site) -> Result<()> {
    let vm = &site.vm;
    vm.node().sh_for("systemctl stop underseal", PATIENCE)?;
    let states = vm.try_sh("systemctl is-active underseal underseal-handshake cart shop")?;
    ensure!(states.text() == ["inactive"; 4].join("\n"), "{states:?}");
    let result = vm
        .sh("systemctl show --value -p Result underseal underseal-handshake")?
        .text();
    ensure!(
        result.split_whitespace().all(|word| word == "success"),
        "stop: {result}"
    );
    vm.sh("! test -e /sys/fs/bpf/underseal && ! ip link show underseal0 2>/dev/null")
        .map(drop)
}

/// Where apply fails, no workload starts.
fn workloads_need_it(site: &Site) -> Result<()> {
    let vm = &site.vm;
    vm.sh(&format!("sed -i.good 's/\"eth0\"/\"eth7\"/' {CONFIG}"))?;
    let said = vm.try_sh("systemctl start cart")?;
    let states = vm.try_sh("systemctl is-active underseal cart")?.text();
    ensure!(
        said.code != Some(0)
            && said.error_text().contains("dependency")
            && states == "failed\ninactive",
        "{said:?} {states}"
    );
    vm.sh(&format!(
        "mv {CONFIG}.good {CONFIG}; systemctl reset-failed"
    ))
    .map(drop)
}
