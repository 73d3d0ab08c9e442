//! The main job (see `underseal_vm::main_job` for the picture): every path is encrypted exactly once, nothing can be
//! read on the wire, and inside the node nothing but TLS records. With sealing off the same recordings find plaintext.

use anyhow::{Result, ensure};
use underseal_vm::Lab;
use underseal_vm::main_job::{Peer, Stage};
use underseal_vm::site::Settings;

pub(crate) fn sealed(lab: &Lab) -> Result<()> {
    let stage = Stage::up(lab, &Settings::default())?;
    for row in stage.run(&|_| {})? {
        ensure!(!row.is_leak() && row.layers() == 1, "{row:?}");
        ensure!(
            row.veth.missing_bytes == 0,
            "a recording with holes: {row:?}"
        );
        match row.peer {
            Peer::SameNode => ensure!(
                row.veth.tls_records > 0 && row.uplink.wireguard_data_packets == 0,
                "{row:?}"
            ),
            Peer::OtherNode => ensure!(row.uplink.wireguard_data_packets > 0, "{row:?}"),
        }
    }
    for site in [&stage.a, &stage.b] {
        site.ensure_settled()?;
        site.down()?;
    }
    Ok(())
}

pub(crate) fn control(lab: &Lab) -> Result<()> {
    let settings = Settings {
        mode: "never",
        underlay_v6: true,
        ..Settings::default()
    };
    let stage = Stage::up(lab, &settings)?;
    for row in stage.run(&|_| {})? {
        match row.peer {
            Peer::SameNode => ensure!(
                row.is_leak() && row.veth.marker_hits > 0,
                "the control finds nothing: {row:?}"
            ),
            Peer::OtherNode => ensure!(!row.is_leak() && row.layers() == 1, "{row:?}"),
        }
    }
    Ok(())
}
