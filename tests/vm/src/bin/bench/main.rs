//! `make bench`: what sealing costs, beside the same two programs with kTLS set by hand and beside plain TCP.
//!
//! `KERNEL=6.1|6.12|7.3` chooses the kernel (default 7.3); `--json` prints the numbers alone, `--costs`
//! measures the parts alone, `--costs=memory` one of them. All run in one machine
//! over the same pair of veths, in turns, and of the turns the median counts. The machine is emulated, so its times
//! say little by themselves; their ratios do, but for the cipher: emulation makes it dearer than a processor does.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod costs;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use underseal_vm::site::{Settings, Site};
use underseal_vm::{Kernel, Vm, VmOptions};

/// How often everything is measured; odd, so that one of the samples is the median.
const TURNS: u32 = 5;
/// Bulk, in each turn: requests of 2^22 bytes, 8 of them.
const BULK: (u8, u32) = (22, 8);
/// Round trips of one byte, in each turn.
const ROUNDS: u32 = 1250;
/// New connections in each turn, and what is between two of them when they are not back to back.
const CONNECTIONS: u32 = 50;
const PAUSE_MS: u32 = 20;
/// Connections that are open while the helper's memory is read.
const HELD: u32 = 200;
const PATIENCE: Duration = Duration::from_secs(240);
const PORT: u16 = 7000;
const PORT_KTLS: u16 = 7001;

/// How the bytes between the programs are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    /// Not at all: mode `never`.
    Plain,
    /// By fixed keys that both programs set themselves: mode `never`.
    ByHand,
    /// By Underseal: mode `same-node`.
    Sealed,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Measure {
    /// Nanoseconds for all of [`BULK`].
    Bulk,
    /// Nanoseconds for [`ROUNDS`] round trips.
    Rounds,
    /// Nanoseconds from connect to the first byte back, connections back to back.
    Connect,
    /// The same with a pause before each.
    ConnectPaused,
}

/// All samples, in nanoseconds.
type Samples = BTreeMap<(Measure, Variant), Vec<u64>>;

fn main() -> ExitCode {
    let has = |option| std::env::args().any(|word| word == option);
    let part = std::env::args().find_map(|word| {
        let (option, part) = word.split_once('=')?;
        (option == "--costs").then(|| part.to_owned())
    });
    let costs = has("--costs").then(String::new).or(part);
    match bench(has("--json"), costs.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(as_json: bool, part: Option<&str>) -> Result<()> {
    let line = std::env::var("KERNEL").ok().filter(|line| !line.is_empty());
    let kernel = Kernel::find(line.as_deref().unwrap_or("7.3"))?;
    let started = Instant::now();
    // Standard output is for the result.
    let progress = |step: &str| eprintln!("{:6.1} s  {step}", started.elapsed().as_secs_f32());
    progress(&format!("booting kernel {}", kernel.release));
    let options = VmOptions {
        name: "bench".into(),
        // With one processor nobody waits for another to wake, which is what emulation is worst at.
        cpus: 1,
        programs: &["underseal", "underseal-handshake", "underseal-controls"],
        deadline: Duration::from_secs(1800),
        ..VmOptions::default()
    };
    let vm = Arc::new(Vm::boot(&kernel, &options)?);
    let bench = Bench::set(&vm)?;
    if let Some(part) = part {
        let costs = costs::all(&bench.site, part, &progress)?;
        println!("{}", costs_table(&costs));
        return vm.finish();
    }
    let mut samples = Samples::new();
    for turn in 1..=TURNS {
        progress(&format!("turn {turn} of {TURNS}"));
        bench.turn(&mut samples, &progress)?;
    }
    progress("the helper's memory");
    let memory = bench.helper_memory()?;
    let costs = costs::all(&bench.site, "", &progress)?;
    vm.finish()?;
    let ratios = ratios(&samples)?;
    if as_json {
        println!(
            "{:#}",
            json!({
                "kernel": kernel.release,
                "nanoseconds": medians(&samples),
                "ratios": ratios.iter().map(|row| row.json()).collect::<Vec<_>>(),
                "costs": costs.iter().map(costs::Cost::json).collect::<Vec<_>>(),
                "helper_resident_kib": { "after": memory[0], "with_held": memory[1], "held": HELD },
            })
        );
    } else {
        println!(
            "\nKernel {}, aes-128-gcm\n\n{}\n",
            kernel.release,
            times(&samples)
        );
        println!("{}\n", targets(&ratios));
        println!("{}\n", costs_table(&costs));
        println!(
            "helper: {} KiB resident after the run, {} KiB with {HELD} connections held (target: under 10 MB)",
            memory[0], memory[1]
        );
    }
    Ok(())
}

/// A site with servers in `cart`; clients run in `shop`.
struct Bench {
    site: Site,
}

impl Bench {
    fn set(vm: &Arc<Vm>) -> Result<Self> {
        let site = Site::up(vm, &Settings::default())?;
        for (port, option) in [(PORT, ""), (PORT_KTLS, "--ktls")] {
            site.inside("cart")
                .spawn(&format!("exec traffic serve 0.0.0.0:{port} {option}"))?;
            site.workload("cart").wait_for_port(vm, port)?;
        }
        Ok(Self { site })
    }

    fn turn(&self, samples: &mut Samples, progress: &dyn Fn(&str)) -> Result<()> {
        for (mode, variants) in [
            ("never", [Variant::Plain, Variant::ByHand].as_slice()),
            ("same-node", &[Variant::Sealed]),
        ] {
            self.site.configure(&Settings {
                mode,
                ..Settings::default()
            })?;
            self.site.apply()?;
            let before = self.site.counter("sealed")?;
            for variant in variants {
                for measure in Measure::ALL {
                    let more = self.measure(measure, *variant)?;
                    let (name, how) = (measure.name(), variant.name());
                    progress(&format!("{name}, {how}: {}", measure.show(median(&more)?)));
                    samples.entry((measure, *variant)).or_default().extend(more);
                }
            }
            let sealed = self.site.counter("sealed")? - before;
            ensure!(
                (sealed > 0) == (mode == "same-node"),
                "{sealed} connections were sealed in mode {mode}"
            );
        }
        Ok(())
    }

    fn measure(&self, measure: Measure, variant: Variant) -> Result<Vec<u64>> {
        let (port, option) = match variant {
            Variant::ByHand => (PORT_KTLS, "--ktls"),
            Variant::Plain | Variant::Sealed => (PORT, ""),
        };
        let address = format!("{}:{port}", self.site.workload("cart").v4);
        let words = match measure {
            Measure::Bulk => format!("rounds {address} {} {}", BULK.0, BULK.1),
            Measure::Rounds => format!("rounds {address} 0 {ROUNDS}"),
            Measure::Connect => format!("connects {address} {CONNECTIONS} 0"),
            Measure::ConnectPaused => format!("connects {address} {CONNECTIONS} {PAUSE_MS}"),
        };
        let said = self
            .site
            .inside("shop")
            .sh_for(&format!("exec traffic {words} {option}"), PATIENCE)?
            .text();
        let numbers = said.lines().map(str::parse).collect::<Result<_, _>>();
        numbers.with_context(|| format!("traffic {words} said {said:?}"))
    }

    /// The helper's resident memory in KiB: as it is, and with connections held that it has sealed.
    fn helper_memory(&self) -> Result<[u64; 2]> {
        let after = self.resident()?;
        let address = format!("{}:{PORT}", self.site.workload("cart").v4);
        let holder = self
            .site
            .inside("shop")
            .spawn(&format!("exec traffic hold {address} {HELD}"))?;
        let open = format!("[ $(ss -Hnt state established dport = :{PORT} | wc -l) = {HELD} ]");
        self.site
            .inside("shop")
            .wait_until(&open, PATIENCE, "connections to be held")?;
        let with_held = self.resident()?;
        holder.signal(15)?;
        Ok([after, with_held])
    }

    fn resident(&self) -> Result<u64> {
        let script = "awk '/^VmRSS/ { print $2 }' /proc/$(pidof underseal-handshake)/status";
        Ok(self.site.vm.sh(script)?.text().parse()?)
    }
}

impl Measure {
    const ALL: [Self; 4] = [Self::Bulk, Self::Rounds, Self::Connect, Self::ConnectPaused];

    fn name(self) -> &'static str {
        match self {
            Self::Bulk => "throughput",
            Self::Rounds => "round trip",
            Self::Connect => "connect to first byte, back to back",
            Self::ConnectPaused => "connect to first byte, 20 ms apart",
        }
    }

    /// A number of nanoseconds, as people read it.
    fn show(self, nanoseconds: u64) -> String {
        let bytes = u64::from(BULK.1) << BULK.0;
        match self {
            Self::Bulk => format!("{:.1} MB/s", bytes as f64 * 1e3 / nanoseconds as f64),
            Self::Rounds => format!("{:.1} µs", nanoseconds as f64 / 1e3 / f64::from(ROUNDS)),
            Self::Connect | Self::ConnectPaused => format!("{:.2} ms", nanoseconds as f64 / 1e6),
        }
    }
}

impl Variant {
    const ALL: [Self; 3] = [Self::Plain, Self::ByHand, Self::Sealed];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::ByHand => "kTLS by hand",
            Self::Sealed => "sealed",
        }
    }
}

/// What is to be reached, or at least known.
struct Ratio {
    what: String,
    value: f64,
    target: &'static str,
}

impl Ratio {
    fn json(&self) -> Value {
        json!({ "what": self.what, "ratio": self.value, "target": self.target })
    }
}

/// Speeds for throughput, times for all else.
fn ratios(samples: &Samples) -> Result<Vec<Ratio>> {
    use Measure::{Bulk, Connect, ConnectPaused, Rounds};
    use Variant::{ByHand, Plain, Sealed};
    let rows = [
        (Bulk, ByHand, "at least 0.98"),
        (Bulk, Plain, ""),
        (Rounds, ByHand, "at most 1.02"),
        (Rounds, Plain, ""),
        (Connect, Plain, "below 3.8, aim 2"),
        (ConnectPaused, Plain, "below 3.8, aim 2"),
    ];
    let ratio = |(measure, beside, target): (Measure, Variant, &'static str)| {
        let of = |variant| median_of(samples, measure, variant).map(|ns| ns as f64);
        let (sealed, other) = (of(Sealed)?, of(beside)?);
        Ok(Ratio {
            what: format!("{}, sealed / {}", measure.name(), beside.name()),
            value: if measure == Bulk {
                other / sealed
            } else {
                sealed / other
            },
            target,
        })
    };
    rows.into_iter().map(ratio).collect()
}

fn targets(ratios: &[Ratio]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["", "ratio", "target"]);
    for ratio in ratios {
        table.add_row([&ratio.what, &format!("{:.3}", ratio.value), ratio.target]);
    }
    table
}

fn costs_table(costs: &[costs::Cost]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    for cost in costs {
        table.add_row([&cost.what, &format!("{:.3}", cost.value), cost.unit]);
    }
    table
}

fn times(samples: &Samples) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["median", "plain", "kTLS by hand", "sealed"]);
    for measure in Measure::ALL {
        let cell = |variant| median_of(samples, measure, variant).map(|ns| measure.show(ns));
        let cells = Variant::ALL.map(|variant| cell(variant).unwrap_or_default());
        let [plain, by_hand, sealed] = cells;
        table.add_row([measure.name().to_owned(), plain, by_hand, sealed]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn medians(samples: &Samples) -> Value {
    let row = |measure: Measure| {
        let cells = Variant::ALL.map(|variant| {
            let median = median_of(samples, measure, variant).ok();
            (variant.name().to_owned(), json!(median))
        });
        (
            measure.name().to_owned(),
            Value::Object(cells.into_iter().collect()),
        )
    };
    Value::Object(Measure::ALL.map(row).into_iter().collect())
}

fn median_of(samples: &Samples, measure: Measure, variant: Variant) -> Result<u64> {
    median(samples.get(&(measure, variant)).map_or(&[], Vec::as_slice))
}

fn median(samples: &[u64]) -> Result<u64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len() / 2);
    middle.copied().context("nothing was measured")
}
