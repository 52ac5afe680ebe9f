//! A graph as JSON: nodes in order, their arguments, and the references between them.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};

use crate::{Dtype, Error, Limits, Result, error::Fallible};

/// One node as it was sent.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) target: String,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) keywords: Vec<(String, Argument)>,
}

/// What a node does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Placeholder,
    Function,
    Method,
    Output,
}

/// An argument of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Argument {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// The value of an earlier node, by its place.
    Node(usize),
    List(Vec<Self>),
    Tuple(Vec<Self>),
    Dict(Vec<(String, Self)>),
    Slice(Vec<Self>),
    Ellipsis,
    Dtype(Dtype),
    /// A device, a layout or a memory format: all the same here.
    Setting,
}

/// Decodes `{"format": 1, "nodes": […]}`.
pub(crate) fn nodes(graph: &Json, limits: &Limits) -> Result<Vec<Node>> {
    let refused = |message: String| Error::Graph(format!("graph: {message}"));
    if graph.get("format").is_some_and(|format| format.as_u64() != Some(1)) {
        return Err(refused(format!("format {} is not known, only 1 is", graph["format"])));
    }
    let Some(nodes) = graph.get("nodes").and_then(Json::as_array) else {
        return Err(refused("has no list \"nodes\"".to_owned()));
    };
    if nodes.len() > limits.nodes_max {
        let (count, limit) = (nodes.len(), limits.nodes_max);
        return Err(refused(format!("has {count} nodes; the limit is {limit}")));
    }
    let mut decoder = Decoder { places: HashMap::new(), left: limits.arguments_max };
    let mut decoded = Vec::with_capacity(nodes.len());
    for (place, node) in nodes.iter().enumerate() {
        let node = decoder.node(node).map_err(|message| {
            let message = message.replace("{limit}", &limits.arguments_max.to_string());
            Error::Graph(format!("graph: nodes[{place}]: {message}"))
        })?;
        if decoder.places.insert(node.name.clone(), place).is_some() {
            return Err(refused(format!("two nodes have the name {:?}", node.name)));
        }
        decoded.push(node);
    }
    Ok(decoded)
}

struct Decoder {
    /// Of the nodes so far, by name.
    places: HashMap<String, usize>,
    /// Arguments that may still come.
    left: usize,
}

impl Decoder {
    fn node(&mut self, node: &Json) -> Fallible<Node> {
        let text = |key: &str| {
            let value = node.get(key).and_then(Json::as_str);
            value.map(ToOwned::to_owned).ok_or_else(|| format!("has no text {key:?}"))
        };
        let (kind, name, target) = (text("op")?, text("name")?, text("target")?);
        let kind = match kind.as_str() {
            "placeholder" => Kind::Placeholder,
            "call_function" => Kind::Function,
            "call_method" => Kind::Method,
            "output" => Kind::Output,
            "get_attr" => {
                return Err(format!(
                    "{name} reads the attribute {target:?}: a loss may only read its inputs"
                ));
            }
            "call_module" => return Err(format!("{name} calls the module {target:?}")),
            other => return Err(format!("op {other:?} is not known")),
        };
        let mut arguments = Vec::new();
        match node.get("args") {
            None | Some(Json::Null) => {}
            Some(Json::Array(values)) => {
                for value in values {
                    arguments.push(self.argument(value)?);
                }
            }
            Some(_) => return Err(format!("{name}: \"args\" is not a list")),
        }
        let mut keywords = Vec::new();
        match node.get("kwargs") {
            None | Some(Json::Null) => {}
            Some(Json::Object(values)) => {
                for (key, value) in values {
                    keywords.push((key.clone(), self.argument(value)?));
                }
            }
            Some(_) => return Err(format!("{name}: \"kwargs\" is not an object")),
        }
        Ok(Node { kind, name, target, arguments, keywords })
    }

    fn argument(&mut self, value: &Json) -> Fallible<Argument> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or("the graph's nodes have more than {limit} arguments, the limit")?;
        Ok(match value {
            Json::Null => Argument::None,
            Json::Bool(value) => Argument::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(value), _) => Argument::Int(value),
                (None, Some(value)) if number.is_f64() => Argument::Float(value),
                _ => return Err(format!("the integer {number} has more than 64 bits")),
            },
            Json::String(text) => Argument::Text(text.clone()),
            Json::Array(values) => Argument::List(self.list(values)?),
            Json::Object(object) => self.encoded(object)?,
        })
    }

    fn list(&mut self, values: &[Json]) -> Fallible<Vec<Argument>> {
        values.iter().map(|value| self.argument(value)).collect()
    }

    /// An object with one key, which says what the value stands for.
    fn encoded(&mut self, object: &Map<String, Json>) -> Fallible<Argument> {
        let mut entries = object.iter();
        let (Some((key, value)), None) = (entries.next(), entries.next()) else {
            return Err("an argument is an object that has not exactly one key".to_owned());
        };
        Ok(match (key.as_str(), value) {
            ("ref", Json::String(name)) => match self.places.get(name) {
                Some(place) => Argument::Node(*place),
                None => return Err(format!("refers to {name:?}, which no earlier node is called")),
            },
            ("tuple", Json::Array(values)) => Argument::Tuple(self.list(values)?),
            ("dict", Json::Object(values)) => {
                let entry =
                    |(key, value): (&String, &Json)| Ok((key.clone(), self.argument(value)?));
                Argument::Dict(values.iter().map(entry).collect::<Fallible<_>>()?)
            }
            ("slice", Json::Array(values)) if values.len() == 3 => {
                Argument::Slice(self.list(values)?)
            }
            ("ellipsis", Json::Bool(true)) => Argument::Ellipsis,
            ("float", Json::String(text)) => Argument::Float(match text.as_str() {
                "inf" => f64::INFINITY,
                "-inf" => f64::NEG_INFINITY,
                "nan" => f64::NAN,
                _ => return Err(format!("{{\"float\": {text:?}}} is none of inf, -inf, nan")),
            }),
            ("dtype", Json::String(name)) => Argument::Dtype(name.parse()?),
            ("device" | "layout" | "memory_format", Json::String(_)) => Argument::Setting,
            _ => return Err(format!("an argument {{{key:?}: …}} has no meaning that is known")),
        })
    }
}
