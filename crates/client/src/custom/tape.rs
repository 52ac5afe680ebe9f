//! The record of a calculation: one node an operation, with its value where values are known.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use super::{
    array::{Array, Fallible},
    op::Op,
    var::Var,
};

/// Numbers that one calculation holds: 2 GiB of them.
const NUMBERS_MAX: usize = 1 << 28;

/// One step of a calculation.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) op: Op,
    pub(super) args: Vec<Operand>,
}

/// What an operation takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operand {
    /// The value of an earlier node.
    Node(usize),
    Number(f64),
}

/// Whether numbers flow, or only the steps are written down.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    Eager,
    Traced,
}

#[derive(Debug)]
enum Value {
    Known(Array),
    /// Of a traced calculation, the rank.
    Rank(usize),
}

/// A calculation in progress. The first thing that goes wrong is kept, and is what the whole calculation ends with:
/// so operators need no `Result`.
#[derive(Debug)]
pub(super) struct Tape {
    mode: Mode,
    nodes: RefCell<Vec<(Node, Value)>>,
    error: RefCell<Option<String>>,
    /// Of all values.
    numbers: Cell<usize>,
}

impl Tape {
    pub(super) fn new(mode: Mode) -> Rc<Self> {
        Rc::new(Self {
            mode,
            nodes: RefCell::default(),
            error: RefCell::default(),
            numbers: Cell::default(),
        })
    }

    /// A value that nothing computes.
    pub(super) fn leaf(self: &Rc<Self>, value: Array) -> Var {
        self.keep(Node { op: Op::Leaf, args: Vec::new() }, Value::Known(value))
    }

    /// An input of a traced calculation.
    pub(super) fn input(self: &Rc<Self>, rank: usize) -> Var {
        self.keep(Node { op: Op::Leaf, args: Vec::new() }, Value::Rank(rank))
    }

    /// The result of an operation; after a failure, something that nobody will see.
    pub(super) fn push(self: &Rc<Self>, op: Op, args: Vec<Operand>) -> Var {
        let value = if self.error.borrow().is_some() {
            Err(None)
        } else {
            self.run(&op, &args).map_err(Some)
        };
        let value = value.unwrap_or_else(|message| {
            if let Some(message) = message {
                self.fail(&format!("{op}: {message}"));
            }
            match self.mode {
                Mode::Eager => Value::Known(Array::scalar(f64::NAN)),
                Mode::Traced => Value::Rank(0),
            }
        });
        self.keep(Node { op, args }, value)
    }

    fn run(&self, op: &Op, args: &[Operand]) -> Fallible<Value> {
        let nodes = self.nodes.borrow();
        if self.mode == Mode::Traced {
            let ranks: Vec<usize> = args.iter().map(|arg| rank(&nodes, arg)).collect();
            return Ok(Value::Rank(op.rank(&ranks)?));
        }
        let values = args.iter().map(|arg| match arg {
            Operand::Number(number) => Ok(Array::scalar(*number)),
            Operand::Node(place) => known(&nodes, *place).cloned(),
        });
        Ok(Value::Known(op.value(&values.collect::<Fallible<Vec<_>>>()?)?))
    }

    fn keep(self: &Rc<Self>, node: Node, value: Value) -> Var {
        let held = if let Value::Known(array) = &value { array.data().len() } else { 0 };
        let numbers = self.numbers.get().saturating_add(held);
        self.numbers.set(numbers);
        if numbers > NUMBERS_MAX {
            self.fail(&format!(
                "the calculation holds more than {NUMBERS_MAX} numbers: use fewer datums at once"
            ));
        }
        let mut nodes = self.nodes.borrow_mut();
        nodes.push((node, value));
        Var::new(self, nodes.len() - 1)
    }

    /// Ends the calculation with this message, unless it has failed already.
    pub(super) fn fail(&self, message: &str) {
        self.error.borrow_mut().get_or_insert_with(|| message.to_owned());
    }

    /// What went wrong first.
    pub(super) fn error(&self) -> Option<String> {
        self.error.borrow().clone()
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn node(&self, place: usize) -> Node {
        self.nodes.borrow()[place].0.clone()
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        self.nodes.borrow().iter().map(|(node, _)| node.clone()).collect()
    }

    /// A node's value, where values are known.
    pub(super) fn value(&self, place: usize) -> Option<Array> {
        known(&self.nodes.borrow(), place).ok().cloned()
    }

    pub(super) fn rank(&self, place: usize) -> usize {
        rank(&self.nodes.borrow(), &Operand::Node(place))
    }
}

fn known(nodes: &[(Node, Value)], place: usize) -> Fallible<&Array> {
    match &nodes[place].1 {
        Value::Known(value) => Ok(value),
        Value::Rank(_) => Err("its value is not known here".to_owned()),
    }
}

fn rank(nodes: &[(Node, Value)], operand: &Operand) -> usize {
    match operand {
        Operand::Number(_) => 0,
        Operand::Node(place) => match &nodes[*place].1 {
            Value::Known(value) => value.rank(),
            Value::Rank(rank) => *rank,
        },
    }
}
