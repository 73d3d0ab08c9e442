//! Debian's systemd as PID 1: it comes up whole, runs a unit, and comes back from a reboot with its disk.

use std::time::Duration;

use anyhow::{Result, ensure};
use underseal_vm::{Lab, VmOptions};

const UNIT: &str = "
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo started >> /var/lib/smoke'
[Install]
WantedBy=multi-user.target
";

pub(crate) fn run(lab: &Lab) -> Result<()> {
    let vm = lab.boot(&VmOptions {
        systemd: true,
        programs: &[],
        ..VmOptions::default()
    })?;
    let running = |what: &str| -> Result<()> {
        let state = vm.node().sh_for(
            "systemctl is-system-running --wait",
            Duration::from_secs(120),
        );
        let failed = vm.sh("systemctl --failed --no-legend --plain")?.text();
        ensure!(state.is_ok(), "{what}: {state:?} {failed}");
        Ok(())
    };
    running("first boot")?;
    vm.put("/etc/systemd/system/smoke.service", UNIT.as_bytes(), 0o644)?;
    vm.sh("systemctl daemon-reload && systemctl enable --now smoke.service && systemctl is-active smoke.service")?;
    vm.reboot()?;
    running("after the reboot")?;
    let started = vm
        .sh("systemctl is-active smoke.service; cat /var/lib/smoke")?
        .text();
    ensure!(started == "active\nstarted\nstarted", "{started}");
    Ok(())
}
