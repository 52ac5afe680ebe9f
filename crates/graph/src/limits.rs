//! What a loss may use up. Counted, not timed, so that the same loss always ends at the same place.

/// Bounds of one loss; what is beyond them is an error that names the bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Nodes of a graph.
    pub nodes_max: usize,
    /// Constants and references in a graph's arguments.
    pub arguments_max: usize,
    /// Elements of one tensor.
    pub elements_max: usize,
    /// Bytes that one evaluation may hold.
    pub bytes_max: usize,
    /// Elementary steps of one evaluation, about a nanosecond each.
    pub steps_max: usize,
}

/// What is left of the limits during one evaluation.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    bytes: usize,
    steps: usize,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, bytes: 0, steps: 0 }
    }

    /// Asks for a tensor of `elements`, of which `copies` will be held (values, gradient, index maps).
    pub(crate) fn tensor(&mut self, elements: usize, copies: usize) -> Result<(), String> {
        if elements > self.limits.elements_max {
            let limit = self.limits.elements_max;
            return Err(format!("a tensor of {elements} elements; the limit is {limit}"));
        }
        let bytes = elements.saturating_mul(size_of::<f64>()).saturating_mul(copies);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.bytes_max {
            let limit = self.limits.bytes_max;
            return Err(format!("the loss needs more than {limit} bytes on this datum, the limit"));
        }
        self.steps(elements)
    }

    /// Counts work.
    pub(crate) fn steps(&mut self, steps: usize) -> Result<(), String> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > self.limits.steps_max {
            let limit = self.limits.steps_max;
            return Err(format!("the loss takes more than {limit} steps on this datum, the limit"));
        }
        Ok(())
    }
}
