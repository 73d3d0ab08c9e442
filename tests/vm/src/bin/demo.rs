//! `make demo`: the main job on two real kernels, seen from outside, and once more with sealing switched off.
//!
//! `KERNEL=6.1|6.12|7.3` chooses the kernel (default 7.3). Exit code 1 if anything could be read that nobody may
//! read, or if the control, which seals nothing, finds nothing to read.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, presets};
use underseal_vm::Kernel;
use underseal_vm::main_job::{Peer, Row, Stage, boot_two};
use underseal_vm::site::Settings;

fn main() -> ExitCode {
    match demo() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<bool> {
    let line = std::env::var("KERNEL")
        .ok()
        .filter(|line| !line.is_empty())
        .unwrap_or_else(|| "7.3".into());
    let kernel = Kernel::find(&line)?;
    println!(
        "Two nodes with kernel {}, one wire between them.\n",
        kernel.release
    );
    let sealed = run(&kernel, "same-node")?;
    println!("\nThe control: the same with sealing switched off (mode \"never\").\n");
    let control = run(&kernel, "never")?;
    let leaks = sealed
        .iter()
        .filter(|row| row.is_leak() || row.layers() != 1)
        .count();
    let found = control
        .iter()
        .filter(|row| row.peer == Peer::SameNode)
        .all(Row::is_leak);
    println!(
        "\nsealed:  {} paths, {leaks} that somebody could read or that were not encrypted exactly once",
        sealed.len()
    );
    let verdict = if found {
        "finds the plaintext inside the node, so the recordings would show a leak"
    } else {
        "FINDS NO PLAINTEXT: this run proves nothing"
    };
    println!("control: {verdict}");
    Ok(leaks == 0 && found)
}

fn run(kernel: &Kernel, mode: &'static str) -> Result<Vec<Row>> {
    let started = Instant::now();
    let progress = |step: &str| println!("{:6.1} s  {step}", started.elapsed().as_secs_f32());
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    let stage = Stage::set(|options| boot_two(kernel, options), &settings, &progress)?;
    let rows = stage.run(&progress)?;
    for site in [&stage.a, &stage.b] {
        site.vm.finish()?;
    }
    println!("\n{}", table(&rows));
    Ok(rows)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "path",
        "programs",
        "bytes",
        "veth: TLS records",
        "plaintext",
        "uplink: WireGuard",
        "plaintext",
        "layers",
        "verdict",
    ]);
    for row in rows {
        let path = match row.peer {
            Peer::SameNode => "same node",
            Peer::OtherNode => "other node",
        };
        let number = |n: u64| Cell::new(n).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(path),
            Cell::new(&row.programs),
            number(row.bytes()),
            number(row.veth.tls_records),
            number(row.veth.plaintext_segments),
            number(row.uplink.wireguard_packets),
            number(row.uplink.plaintext_segments + row.uplink.other_packets),
            number(row.layers().into()),
            verdict(row),
        ]);
    }
    table
}

fn verdict(row: &Row) -> Cell {
    match (row.is_leak(), row.layers()) {
        (true, _) => Cell::new("READABLE")
            .fg(Color::Red)
            .add_attribute(Attribute::Bold),
        (false, 1) => Cell::new("encrypted once").fg(Color::Green),
        (false, layers) => Cell::new(format!("encrypted {layers} times")).fg(Color::Yellow),
    }
}
