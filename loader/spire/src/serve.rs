//! The program's loop: what the agent says, and now and then a look at the clock and at the configuration.

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;
use underseal::{
    commands,
    config::{Config, Format, Source},
};

use crate::{
    Saying,
    agent::{Agent, Event},
    keep::Keeper,
};

/// Why the program ends.
#[derive(Debug, Error)]
pub enum Error {
    /// The configuration cannot be read, or is wrong.
    #[error(transparent)]
    Configuration(#[from] commands::Error),
    /// There is no thread for the conversation with the agent.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    /// Not everything was given in time.
    #[error("not every workload has what it needs:{}", lines(.0))]
    Unsettled(Vec<String>),
}

impl Error {
    /// The exit code that tells it: 1 failed, 2 bad usage or configuration.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Configuration(error) => error.code(),
            _ => 1,
        }
    }
}

/// Keeps the folders what the agent says, for ever.
///
/// # Errors
/// It cannot begin. Later mistakes in the configuration leave the old one in use.
pub fn run(file: &Path, say: &dyn Fn(Saying)) -> Result<Infallible, Error> {
    let mut service = Service::start(file, say)?;
    let mut looked = Instant::now();
    loop {
        service.listen(TICK);
        service.read_again()?;
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            service.keeper.settle();
        }
    }
}

/// Asks the agent once; the old files stay where it has nothing.
///
/// # Errors
/// It cannot begin, or not everything was given within `patience`.
pub fn once(file: &Path, patience: Duration, say: &dyn Fn(Saying)) -> Result<(), Error> {
    let mut service = Service::start(file, say)?;
    let began = Instant::now();
    while service.talk.is_some() && !service.keeper.is_settled() {
        let Some(left) = patience.checked_sub(began.elapsed()) else {
            let mut why: Vec<String> = service.keeper.standing().map(str::to_owned).collect();
            if why.is_empty() {
                why.push("the agent has not answered".to_owned());
            }
            return Err(Error::Unsettled(why));
        };
        service.listen(left.min(TICK));
    }
    Ok(())
}

struct Service<'a> {
    file: PathBuf,
    /// The configuration file as it was read last.
    text: String,
    keeper: Keeper<'a>,
    talk: Option<Talk>,
    say: &'a dyn Fn(Saying),
}

struct Talk {
    events: Receiver<Event>,
    _agent: Agent,
}

impl<'a> Service<'a> {
    fn start(file: &Path, say: &'a dyn Fn(Saying)) -> Result<Self, Error> {
        let text = read(file)?;
        let config = parse(file, &text)?;
        let mut service = Self {
            file: file.to_owned(),
            text,
            talk: talk(&config)?,
            keeper: Keeper::new(config, say),
            say,
        };
        service.tell_if_idle();
        Ok(service)
    }

    /// What the agent says, for at most so long.
    fn listen(&mut self, patience: Duration) {
        let Some(talk) = &self.talk else {
            return thread::sleep(patience);
        };
        match talk.events.recv_timeout(patience) {
            Ok(event) => self.keeper.hear(event),
            Err(RecvTimeoutError::Timeout) => {}
            // Its task has ended, which it does not do while it is listened to; begun anew it would.
            Err(RecvTimeoutError::Disconnected) => self.talk = None,
        }
    }

    /// Takes in what has changed in the configuration.
    fn read_again(&mut self) -> Result<(), Error> {
        let text = match read(&self.file) {
            Ok(text) if text == self.text => {
                if self.talk.is_none() {
                    self.talk = talk(self.keeper.config())?;
                }
                return Ok(());
            }
            Ok(text) => text,
            Err(error) => {
                self.keeper
                    .complain_of_configuration(Some(format!("{error}; the old one counts")));
                // Whatever is there next is new.
                self.text.clear();
                return Ok(());
            }
        };
        let config = parse(&self.file, &text);
        self.text = text;
        match config {
            Ok(config) => {
                self.keeper.complain_of_configuration(None);
                if config.spire != self.keeper.config().spire {
                    self.talk = None;
                }
                self.keeper.set_config(config);
                if self.talk.is_none() || !is_wanted(self.keeper.config()) {
                    self.talk = talk(self.keeper.config())?;
                }
                self.tell_if_idle();
            }
            Err(error) => {
                self.keeper
                    .complain_of_configuration(Some(format!("{error}; the old one counts")));
            }
        }
        Ok(())
    }

    fn tell_if_idle(&mut self) {
        if self.talk.is_none() {
            let text = "no workload and no trust bundle has `spire = true`: nothing to do";
            (self.say)(Saying::Notice(text.to_owned()));
        }
    }
}

fn talk(config: &Config) -> Result<Option<Talk>, Error> {
    let Some(spire) = config.spire.as_ref().filter(|_| is_wanted(config)) else {
        return Ok(None);
    };
    let (send, events) = mpsc::channel();
    let agent = Agent::talk(spire.socket.as_path(), send)?;
    Ok(Some(Talk {
        events,
        _agent: agent,
    }))
}

fn is_wanted(config: &Config) -> bool {
    config.workloads.iter().any(|workload| workload.spire)
        || config.bundles.iter().any(|bundle| bundle.spire)
}

fn read(file: &Path) -> Result<String, commands::Error> {
    fs::read_to_string(file).map_err(|source| commands::Error::Unreadable {
        path: file.to_owned(),
        source,
    })
}

fn parse(file: &Path, text: &str) -> Result<Config, commands::Error> {
    let source = Source {
        name: file.display().to_string(),
        text: text.to_owned(),
        format: Format::of(file),
    };
    Ok(Config::parse(&source)?)
}

fn lines(why: &[String]) -> String {
    why.iter().map(|why| format!("\n  {why}")).collect()
}

/// How long a change of the configuration may go unnoticed.
const TICK: Duration = Duration::from_secs(5);
/// How often files are held against what the agent has said, and certificates against the clock.
const LOOK: Duration = Duration::from_mins(1);
