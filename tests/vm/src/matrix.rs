//! Runs scenarios on kernels: every scenario on every kernel is a trial of its own.

use std::env;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::artifacts::{Kernel, LINES};
use crate::machine::VmOptions;
use crate::vm::Vm;

/// Something to show on every kernel.
pub struct Scenario {
    /// Its name: that of its file.
    pub name: &'static str,
    /// The kernels of [`LINES`] on which `make test` runs it. On the others it is ignored, by name; `make vm-all` runs it
    /// there, too.
    pub everyday: &'static [&'static str],
    /// How many machines it runs at once; so many processors are kept for it.
    pub machines: usize,
    /// Returns only if all that was to be shown was shown.
    pub run: fn(&Lab) -> Result<()>,
}

/// What a scenario is given: the kernel, and machines that are checked at the end.
#[derive(Debug)]
pub struct Lab {
    /// The kernel to show it on.
    pub kernel: Kernel,
    machines: Mutex<Vec<Arc<Vm>>>,
}

impl Lab {
    /// A lab without machines.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            machines: Mutex::default(),
        }
    }

    /// Starts a machine; the lab ends it, and checks that its kernel stayed healthy.
    ///
    /// # Errors
    /// As [`Vm::boot`].
    pub fn boot(&self, options: &VmOptions) -> Result<Arc<Vm>> {
        let vm = Arc::new(Vm::boot(&self.kernel, options)?);
        self.machines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&vm));
        Ok(vm)
    }

    /// Starts several machines at once.
    ///
    /// # Errors
    /// As [`Vm::boot`].
    pub fn boot_all<const N: usize>(&self, options: &[VmOptions; N]) -> Result<[Arc<Vm>; N]> {
        let booted = std::thread::scope(|scope| {
            let threads: Vec<_> = options
                .iter()
                .map(|options| scope.spawn(|| self.boot(options)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("boot panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        booted
            .try_into()
            .map_err(|_| anyhow!("machines are missing"))
    }

    /// Runs `scenario` and ends all machines.
    ///
    /// # Errors
    /// When the scenario fails, with the consoles' last lines, or a guest's kernel was not healthy.
    pub fn show(&self, scenario: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let result = scenario(self);
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = result {
            let consoles: Vec<_> = machines
                .iter()
                .map(|vm| format!("console of {}:\n{}", vm.name(), vm.console_tail()))
                .collect();
            return Err(anyhow!("{error:#}\n{}", consoles.join("\n")));
        }
        machines.iter().try_for_each(|vm| vm.finish())
    }
}

/// Runs `scenarios` on the kernels of the variable `KERNELS` ("6.1,7.3"; default all), as `cargo test` would:
/// trials are named KERNEL::SCENARIO, and arguments select among them.
#[must_use]
pub fn run(scenarios: &'static [Scenario]) -> ExitCode {
    let arguments = Arguments::from_args();
    let processors = Arc::new(Processors::new());
    let trials = match kernels() {
        Ok(kernels) => kernels,
        // Named, so that what is missing is a failure and not an empty success.
        Err(error) => return libtest_mimic::run(&arguments, vec![failing(&error)]).exit_code(),
    };
    let trials = trials.into_iter().flat_map(|kernel| {
        let processors = Arc::clone(&processors);
        scenarios
            .iter()
            .map(move |scenario| trial(kernel.clone(), scenario, Arc::clone(&processors)))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn kernels() -> Result<Vec<Kernel>> {
    let wanted = env::var("KERNELS").unwrap_or_default();
    let wanted: Vec<_> = wanted
        .split(',')
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let lines = if wanted.is_empty() {
        LINES.to_vec()
    } else {
        wanted
    };
    lines
        .into_iter()
        .map(|line| Kernel::find(line).with_context(|| format!("kernel {line}")))
        .collect()
}

fn failing(error: &anyhow::Error) -> Trial {
    let text = format!("{error:#}");
    Trial::test("kernels", move || Err(Failed::from(text)))
}

fn trial(kernel: Kernel, scenario: &'static Scenario, processors: Arc<Processors>) -> Trial {
    let is_ignored = !scenario.everyday.contains(&kernel.line);
    Trial::test(format!("{}::{}", kernel.line, scenario.name), move || {
        let _taken = processors.take(scenario.machines);
        let started = Instant::now();
        let mut result = attempt(&kernel, scenario);
        for _ in 1..ATTEMPTS {
            match &result {
                Err(error) if is_emulator_fault(error) => {
                    let what = "QEMU failed its own assertion; once more";
                    tell(&kernel, scenario, what);
                }
                _ => break,
            }
            result = attempt(&kernel, scenario);
        }
        let seconds = started.elapsed().as_secs_f32();
        if result.is_ok() {
            tell(&kernel, scenario, &format!("{seconds:.0} s"));
        }
        result.map_err(|error| format!("after {seconds:.1} s: {error:#}").into())
    })
    .with_ignored_flag(is_ignored)
}

/// How often a scenario is begun while the emulator fails.
const ATTEMPTS: u32 = 3;

fn attempt(kernel: &Kernel, scenario: &Scenario) -> Result<()> {
    let shown = std::panic::catch_unwind(|| Lab::new(kernel.clone()).show(scenario.run));
    shown.unwrap_or_else(|_| Err(anyhow!("panicked")))
}

/// Whether QEMU has failed one of its own assertions, which says nothing about the guest: with two emulated processors
/// QEMU 10.0 does so once in a hundred boots (system/physmem.c, `iotlb_to_section`). Whatever else ends a machine, a
/// complaint of the guest's kernel above all, fails the trial.
fn is_emulator_fault(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    text.contains("qemu-system-x86_64: ") && text.contains(": Assertion `")
}

#[allow(
    clippy::print_stderr,
    reason = "how long it takes, and a second attempt, must not go unseen"
)]
fn tell(kernel: &Kernel, scenario: &Scenario, what: &str) {
    eprintln!("{}::{}: {what}", kernel.line, scenario.name);
}

/// The machine's processors, of which each trial takes as many as it runs machines.
struct Processors {
    free: Mutex<usize>,
    changed: Condvar,
    all: usize,
}

struct Taken<'a>(&'a Processors, usize);

impl Processors {
    fn new() -> Self {
        let all = available_parallelism().map_or(2, usize::from).max(2);
        Self {
            free: Mutex::new(all),
            changed: Condvar::new(),
            all,
        }
    }

    fn take(&self, count: usize) -> Taken<'_> {
        let count = count.min(self.all);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .changed
            .wait_while(free, |free| *free < count)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= count;
        Taken(self, count)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += self.1;
        self.0.changed.notify_all();
    }
}

/// Fails with a sentence unless `condition` holds.
///
/// # Errors
/// When it does not.
pub fn ensure(condition: bool, sentence: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { bail!(sentence()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_emulators_own_assertion_is_tried_again() {
        let fault = "node-b did not come up; qemu-system-x86_64: system/physmem.c:2678: iotlb_to_section: Assertion `x' failed.";
        assert!(is_emulator_fault(&anyhow!(fault)));
        for other in [
            "the guest's kernel complained: BUG: Assertion",
            "curl: exit code 7",
            "QEMU did not start: qemu-system-x86_64: -netdev: no such file",
        ] {
            assert!(!is_emulator_fault(&anyhow!(other)), "{other}");
        }
    }
}
