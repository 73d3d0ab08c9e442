//! The model as an edge of an apply. Fails where it is told to.

use ipnet::IpNet;
use underseal::{
    config::value::InterfaceName,
    execute::{Edge, Node},
    op::{DeviceChange, DeviceOp, Op},
    plan::plan,
    state::{Key, State},
};

use super::model::{Model, Refused, refuse};

/// What fails: the one of this number, from 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fails {
    pub(crate) step: Option<usize>,
    /// Taking a step back.
    pub(crate) undo: Option<usize>,
    pub(crate) look: Option<usize>,
    pub(crate) speak: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) steps: usize,
    pub(crate) undone: usize,
    pub(crate) looks: usize,
}

/// The model, and what it is to become.
pub(crate) struct Towards<'a> {
    pub(crate) model: &'a mut Model,
    pub(crate) wanted: &'a State,
}

/// How a step is taken back.
pub(crate) enum Undo {
    Steps(Vec<Op>),
    Key(InterfaceName, Key),
}

impl Model {
    /// On its way to a state.
    pub(crate) fn towards<'a>(&'a mut self, wanted: &'a State) -> Towards<'a> {
        Towards {
            model: self,
            wanted,
        }
    }

    /// What the kernel's edge takes for done is no mistake when a step is taken back.
    fn is_done(&self, op: &Op) -> bool {
        let Op::Device(DeviceOp { interface, change }) = op else {
            return false;
        };
        let is_there = |net: &IpNet| {
            let mut routes = self.state.routes.iter();
            routes.any(|route| route.destination == *net && route.interface == *interface)
        };
        match change {
            DeviceChange::AddRoute(net) => is_there(net),
            DeviceChange::DeleteRoute(net) => !is_there(net),
            _ => false,
        }
    }
}

impl Edge for Model {
    type Undo = Undo;
    type Error = Refused;

    fn apply(&mut self, op: &Op) -> Result<Undo, Refused> {
        let number = self.count.steps;
        self.count.steps += 1;
        if self.fails.step == Some(number) {
            return refuse("as told");
        }
        let old = match op {
            Op::Device(DeviceOp {
                interface,
                change: DeviceChange::SetPrivateKey(_),
            }) => self.state.device(interface).map(|device| &device.key),
            _ => None,
        };
        let old = old.filter(|key| key.public.is_some()).cloned();
        self.step(op)?;
        Ok(match (op, old) {
            (Op::Device(op), Some(key)) => Undo::Key(op.interface.clone(), key),
            _ => Undo::Steps(op.inverse(&self.before)),
        })
    }

    fn undo(&mut self, undo: Undo) -> Result<(), Refused> {
        let number = self.count.undone;
        self.count.undone += 1;
        if self.fails.undo == Some(number) {
            return refuse("as told");
        }
        match undo {
            Undo::Steps(ops) => ops.iter().try_for_each(|op| {
                if self.is_done(op) {
                    return Ok(());
                }
                self.step(op)
            }),
            Undo::Key(interface, key) => {
                let beside = self.state.beside.values_mut();
                let mut devices = self.state.wireguard.iter_mut().chain(beside);
                match devices.find(|device| device.interface == interface) {
                    Some(device) => device.key = key,
                    None => return refuse("no such device"),
                }
                Ok(())
            }
        }
    }
}

impl Edge for Towards<'_> {
    type Undo = Undo;
    type Error = Refused;

    fn apply(&mut self, op: &Op) -> Result<Undo, Refused> {
        self.model.apply(op)
    }

    fn undo(&mut self, undo: Undo) -> Result<(), Refused> {
        self.model.undo(undo)
    }
}

impl Node for Towards<'_> {
    fn left(&mut self) -> Result<Vec<Op>, Refused> {
        let model = &mut *self.model;
        let number = model.count.looks;
        model.count.looks += 1;
        if model.fails.look == Some(number) {
            return refuse("as told");
        }
        model.before = model.state.clone();
        Ok(plan(self.wanted, &model.state))
    }

    fn speak(&mut self) -> Result<bool, Refused> {
        if self.model.fails.speak {
            return refuse("as told");
        }
        Ok(false)
    }
}
