//! The operations that a loss may use, and nothing else.
//!
//! A table's entry has the names that clients call it by, the parameters in torch's order, and a function.

mod call;
mod compare;
mod create;
mod elementwise;
mod functional;
mod index;
mod lines;
mod math;
mod matmul;
mod python;
mod reduce;
mod scatter;
mod shapes;

pub(crate) use self::call::Call;

use crate::{
    error::Fallible,
    value::Value,
    wire::{Argument, Kind, Node},
};

/// One operation.
#[derive(Debug)]
pub(crate) struct Op {
    /// Divided by blanks. A plain name stands for `torch.name` and the method `.name`; `F` is
    /// `torch.nn.functional`, `get` is an attribute.
    pub(crate) names: &'static str,
    /// Divided by blanks, in order: `name`, `name?` may be left out, `-name` must be left out or off,
    /// `*name` takes all the rest.
    pub(crate) parameters: &'static str,
    pub(crate) run: fn(&mut Call<'_>) -> Fallible<Value>,
}

const TABLES: [&[Op]; 12] = [
    elementwise::OPS,
    math::OPS,
    compare::OPS,
    reduce::OPS,
    lines::OPS,
    shapes::OPS,
    index::OPS,
    scatter::OPS,
    matmul::OPS,
    functional::OPS,
    create::OPS,
    python::OPS,
];

/// Keywords that change nothing here.
const IGNORED: [&str; 6] =
    ["_stacklevel", "layout", "device", "memory_format", "pin_memory", "non_blocking"];
/// Keywords that are there for other uses: only the value that turns them off is taken.
const OFF: [&str; 6] = ["out", "inplace", "size_average", "reduce", "requires_grad", "generator"];

const fn op(
    names: &'static str,
    parameters: &'static str,
    run: fn(&mut Call<'_>) -> Fallible<Value>,
) -> Op {
    Op { names, parameters, run }
}

/// The operation that a node calls.
pub(crate) fn find(node: &Node) -> Fallible<&'static Op> {
    let name = name_of(node)?;
    let plain = name.strip_prefix("torch.").or_else(|| name.strip_prefix('.'));
    let found = TABLES
        .iter()
        .flat_map(|table| table.iter())
        .find(|op| op.names.split(' ').any(|known| known == name || Some(known) == plain));
    found.ok_or_else(|| {
        let target = &node.target;
        match node.kind {
            Kind::Method if target.ends_with('_') => format!(
                "the method {target:?} works in place, which a loss cannot; use {:?}",
                target.trim_end_matches('_')
            ),
            Kind::Method if ["item", "tolist", "numpy"].contains(&target.as_str()) => {
                format!("the method {target:?} leaves torch; keep every value a tensor")
            }
            Kind::Method => format!("the method {target:?} is not one that a loss may call"),
            Kind::Function if name.starts_with("get.") => {
                format!("the attribute {:?} is not one that a loss may read", &name["get.".len()..])
            }
            Kind::Function | Kind::Placeholder | Kind::Output => {
                format!("the function {target:?} is not one that a loss may call")
            }
        }
    })
}

/// A node's target in the tables' spelling.
fn name_of(node: &Node) -> Fallible<String> {
    let target = node.target.as_str();
    if node.kind == Kind::Method {
        return Ok(format!(".{target}"));
    }
    if matches!(target, "getattr" | "builtins.getattr") {
        return match node.arguments.get(1) {
            Some(Argument::Text(attribute)) => Ok(format!("get.{attribute}")),
            _ => Err("getattr needs an attribute's name".to_owned()),
        };
    }
    const PREFIXES: [(&str, &str); 10] = [
        ("torch._C._nn.", "F."),
        ("torch.nn.functional.", "F."),
        ("torch._C._special.special_", "special."),
        ("torch.special.", "special."),
        ("torch._C._linalg.linalg_", "linalg."),
        ("torch.linalg.", "linalg."),
        ("torch.functional.", "torch."),
        ("torch.Tensor.", "."),
        ("_operator.", "operator."),
        ("builtins.", "builtins."),
    ];
    let found = PREFIXES.iter().find_map(|(prefix, short)| {
        target.strip_prefix(prefix).map(|rest| format!("{short}{rest}"))
    });
    Ok(found.unwrap_or_else(|| target.to_owned()))
}

/// A node's arguments, one for each parameter.
pub(crate) fn bind(op: &Op, node: &Node) -> Fallible<Vec<Argument>> {
    let attribute = matches!(node.target.as_str(), "getattr" | "builtins.getattr");
    let mut arguments = node.arguments.iter().take(if attribute { 1 } else { usize::MAX });
    let mut keywords = node.keywords.clone();
    let mut slots = Vec::new();
    for parameter in op.parameters.split(' ').filter(|parameter| !parameter.is_empty()) {
        let name = parameter.trim_matches(['?', '-', '*']);
        let keyword = keywords.iter().position(|(keyword, _)| alias(keyword) == name);
        let keyword = keyword.map(|place| keywords.swap_remove(place).1);
        if parameter.starts_with('*') {
            let rest = arguments.by_ref().cloned().chain(keyword).collect();
            slots.push(Argument::List(rest));
            continue;
        }
        let slot = match (arguments.next(), keyword) {
            (Some(_), Some(_)) => return Err(format!("{name} is given twice")),
            (Some(argument), None) => argument.clone(),
            (None, Some(argument)) => argument,
            (None, None) if parameter.ends_with('?') || parameter.starts_with('-') => {
                Argument::None
            }
            (None, None) => return Err(format!("{name} is missing")),
        };
        if parameter.starts_with('-') && !is_off(&slot) {
            return Err(format!("{name} is not supported"));
        }
        slots.push(slot);
    }
    if let [_, index @ Argument::List(_)] = slots.as_mut_slice()
        && op.names == index::GETITEM
    {
        // A list chooses elements of one dimension; a tuple has a part for each.
        *index = Argument::Tuple(vec![index.clone()]);
    }
    if arguments.next().is_some() {
        return Err("takes fewer arguments in a loss".to_owned());
    }
    for (keyword, value) in &keywords {
        let known = IGNORED.contains(&keyword.as_str())
            || (OFF.contains(&keyword.as_str()) && is_off(value));
        if !known {
            return Err(format!("the argument {keyword:?} is not supported"));
        }
    }
    Ok(slots)
}

fn is_off(argument: &Argument) -> bool {
    matches!(argument, Argument::None | Argument::Bool(false))
}

/// Other names of a parameter.
fn alias(keyword: &str) -> &str {
    match keyword {
        "axis" | "axes" => "dim",
        "keepdims" => "keepdim",
        "self" | "x" => "input",
        "x2" => "other",
        keyword => keyword,
    }
}

#[cfg(test)]
mod tests;
