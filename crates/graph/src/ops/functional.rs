//! The losses and distances of `torch.nn.functional`.

use super::{
    Call, Op,
    elementwise::{ADD, DIV, MAX, MUL, SUB, clamped},
    lines::log_softmaxed,
    math::{ABS, EXP, LOG, LOG_SIGMOID, NEG, RELU, SQUARE, log1p_exp, sigmoid},
    op,
    reduce::{averaged, dot, normed, summed, total},
};
use crate::{
    Dtype,
    error::Fallible,
    shape::{self, Lines},
    tape::{NOWHERE, Var},
    value::{Value, count, whole},
};

pub(super) const OPS: &[Op] = &[
    op("F.mse_loss", "input target -size_average -reduce reduction? weight?", |call| {
        let difference = difference(call)?;
        let squares = call.one(&SQUARE, &difference)?;
        weighted(call, &squares, (4, 5))
    }),
    op("F.l1_loss", "input target -size_average -reduce reduction? weight?", |call| {
        let difference = difference(call)?;
        let sizes = call.one(&ABS, &difference)?;
        weighted(call, &sizes, (4, 5))
    }),
    op("F.smooth_l1_loss", "input target -size_average -reduce reduction? beta?", smooth_l1),
    op("F.huber_loss", "input target reduction? delta? weight?", huber),
    op("F.kl_div", "input target -size_average -reduce reduction? log_target?", kl_div),
    op(
        "F.binary_cross_entropy",
        "input target weight? -size_average -reduce reduction?",
        binary_cross_entropy,
    ),
    op(
        "F.binary_cross_entropy_with_logits",
        "input target weight? -size_average -reduce reduction? pos_weight?",
        binary_cross_entropy_with_logits,
    ),
    op(
        "F.nll_loss",
        "input target weight? -size_average ignore_index? -reduce reduction?",
        |call| {
            let input = call.tensor(0)?;
            Ok(nll(call, &input)?.into())
        },
    ),
    op(
        "F.cross_entropy",
        "input target weight? -size_average ignore_index? -reduce reduction? label_smoothing?",
        cross_entropy,
    ),
    op(
        "F.margin_ranking_loss",
        "input1 input2 target margin? -size_average -reduce reduction?",
        margin_ranking,
    ),
    op(
        "F.hinge_embedding_loss",
        "input target margin? -size_average -reduce reduction?",
        hinge_embedding,
    ),
    op("F.soft_margin_loss", "input target -size_average -reduce reduction?", soft_margin),
    op("F.gaussian_nll_loss", "input target var full? eps? reduction?", gaussian_nll),
    op(
        "F.poisson_nll_loss",
        "input target log_input? full? -size_average eps? -reduce reduction?",
        poisson_nll,
    ),
    op("cosine_similarity F.cosine_similarity", "x1 other dim? eps?", cosine_similarity),
    op("F.pairwise_distance pairwise_distance", "x1 other p? eps? keepdim?", pairwise_distance),
    op("F.normalize", "input p? dim? eps?", normalize),
];

/// The reduction that a slot names, of terms and nothing else.
fn reduced(call: &mut Call<'_>, terms: &Var, slot: usize) -> Fallible<Value> {
    let dims: Vec<usize> = (0..terms.rank()).collect();
    let result = match call.text_or(slot, "mean")? {
        "none" => terms.clone(),
        "sum" => total(call, terms)?,
        "mean" => averaged(call, terms, &dims, false)?,
        "batchmean" => {
            let sum = total(call, terms)?;
            call.two(&DIV, &sum, count(terms.shape().first().copied().unwrap_or(1)))?
        }
        other => return Err(format!("reduction {other:?} is not known")),
    };
    Ok(result.into())
}

/// Terms times weights; a mean is then relative to the weights.
fn weighted(
    call: &mut Call<'_>,
    terms: &Var,
    (reduction, weight): (usize, usize),
) -> Fallible<Value> {
    if call.value(weight).is_none() {
        return reduced(call, terms, reduction);
    }
    let weight = call.tensor(weight)?;
    let terms = call.two(&MUL, terms, &weight)?;
    if call.text_or(reduction, "mean")? != "mean" {
        return reduced(call, &terms, reduction);
    }
    let (terms, weight) = (total(call, &terms)?, total(call, &weight)?);
    Ok(call.two(&DIV, &terms, &weight)?.into())
}

fn difference(call: &mut Call<'_>) -> Fallible<Var> {
    let (input, target) = (call.tensor(0)?, call.tensor(1)?);
    call.two(&SUB, &input, &target)
}

fn smooth_l1(call: &mut Call<'_>) -> Fallible<Value> {
    let difference = difference(call)?;
    let beta = call.float_or(5, 1.0)?;
    let f = move |x: f64| {
        if x.abs() < beta { 0.5 * x * x / beta } else { x.abs() - 0.5 * beta }
    };
    let derivative = move |x: f64, _| {
        if x.abs() < beta { x / beta } else { f64::from(x > 0.0) - f64::from(x < 0.0) }
    };
    let terms = call.tape.unary(&difference, difference.dtype(), f, derivative)?;
    reduced(call, &terms, 4)
}

fn huber(call: &mut Call<'_>) -> Fallible<Value> {
    let difference = difference(call)?;
    let delta = call.float_or(3, 1.0)?;
    let f = move |x: f64| {
        if x.abs() <= delta { 0.5 * x * x } else { delta * (x.abs() - 0.5 * delta) }
    };
    let derivative = move |x: f64, _| x.clamp(-delta.abs(), delta.abs());
    let terms = call.tape.unary(&difference, difference.dtype(), f, derivative)?;
    weighted(call, &terms, (2, 4))
}

fn kl_div(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, target) = (call.tensor(0)?, call.tensor(1)?);
    let terms = if call.flag(5, false)? {
        let difference = call.two(&SUB, &target, &input)?;
        let share = call.one(&EXP, &target)?;
        call.two(&MUL, &share, &difference)?
    } else {
        let own = call.two(&super::elementwise::XLOGY, &target, &target)?;
        let cross = call.two(&MUL, &target, &input)?;
        call.two(&SUB, &own, &cross)?
    };
    reduced(call, &terms, 4)
}

/// `1 - x`.
fn rest(call: &mut Call<'_>, input: &Var) -> Fallible<Var> {
    call.two(&SUB, Value::Int(1), input)
}

/// `target * yes + (1 - target) * no`, negated.
fn crossed(call: &mut Call<'_>, target: &Var, yes: &Var, no: &Var) -> Fallible<Var> {
    let other = rest(call, target)?;
    let (yes, no) = (call.two(&MUL, target, yes)?, call.two(&MUL, &other, no)?);
    let sum = call.two(&ADD, &yes, &no)?;
    call.one(&NEG, &sum)
}

/// Terms times the weights of a slot, if there are any; the mean is over elements.
fn scaled(call: &mut Call<'_>, terms: Var, (reduction, weight): (usize, usize)) -> Fallible<Value> {
    let terms = if call.value(weight).is_none() {
        terms
    } else {
        let weight = call.tensor(weight)?;
        call.two(&MUL, &terms, &weight)?
    };
    reduced(call, &terms, reduction)
}

fn binary_cross_entropy(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, target) = (call.tensor(0)?, call.tensor(1)?);
    if input.data().iter().any(|p| !(0.0..=1.0).contains(p)) {
        return Err("binary_cross_entropy of values that are not between 0 and 1".to_owned());
    }
    let other = rest(call, &input)?;
    let mut logs = [call.one(&LOG, &input)?, call.one(&LOG, &other)?];
    for log in &mut logs {
        *log = clamped(call, log.clone(), &Value::Float(-100.0), &Value::None)?;
    }
    let terms = crossed(call, &target, &logs[0], &logs[1])?;
    scaled(call, terms, (5, 2))
}

fn binary_cross_entropy_with_logits(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, target) = (call.tensor(0)?, call.tensor(1)?);
    let opposite = call.one(&NEG, &input)?;
    let mut yes = call.one(&LOG_SIGMOID, &input)?;
    let no = call.one(&LOG_SIGMOID, &opposite)?;
    if !call.value(6).is_none() {
        let weight = call.tensor(6)?;
        yes = call.two(&MUL, &yes, &weight)?;
    }
    let terms = crossed(call, &target, &yes, &no)?;
    scaled(call, terms, (5, 2))
}

/// Classes of `[C]`, `[N, C]` or `[N, C, …]`: lines along the classes.
fn classes(input: &Var) -> Fallible<(usize, Lines)> {
    let dim = usize::from(input.rank() > 1);
    let lines = Lines::new(input.shape(), dim);
    if input.rank() == 0 { Err("classes of a scalar".to_owned()) } else { Ok((dim, lines)) }
}

/// Weight of each line's class; 0 where it is ignored.
fn class_weights(call: &Call<'_>, input: &Var) -> Fallible<(Vec<Option<usize>>, Vec<f64>)> {
    let (target, (dim, lines)) = (call.tensor(1)?, classes(input)?);
    let wanted = super::reduce::without(input.shape(), dim, false);
    if target.shape() != wanted || target.dtype().is_float() {
        return Err(format!(
            "classes of shape {:?} and type {} for {:?}",
            target.shape(),
            target.dtype(),
            input.shape()
        ));
    }
    let ignored = call.int_or(4, -100)?;
    let weight = if call.value(2).is_none() { None } else { Some(call.tensor(2)?) };
    if weight.as_ref().is_some_and(|weight| weight.data().len() != lines.length) {
        return Err(format!("weights for other than the {} classes", lines.length));
    }
    let class = |class: &f64| {
        let class = whole(*class);
        if class == ignored {
            return Ok(None);
        }
        let place = usize::try_from(class).ok().filter(|class| *class < lines.length);
        place.map(Some).ok_or_else(|| format!("class {class} of {}", lines.length))
    };
    let classes = target.data().iter().map(class).collect::<Fallible<Vec<_>>>()?;
    let of = |class: &Option<usize>| {
        class.map_or(0.0, |class| weight.as_ref().map_or(1.0, |weight| weight.data()[class]))
    };
    let weights = classes.iter().map(of).collect();
    Ok((classes, weights))
}

/// `-w[class] * input[class]` of each line; a mean is relative to the weights.
fn nll(call: &mut Call<'_>, input: &Var) -> Fallible<Var> {
    let (dim, lines) = classes(input)?;
    let (classes, weights) = class_weights(call, input)?;
    let shape = super::reduce::without(input.shape(), dim, false);
    let place = |(line, class): (usize, &Option<usize>)| {
        class.map_or(NOWHERE, |class| lines.place(line, class))
    };
    let map = classes.iter().enumerate().map(place).collect();
    let chosen = call.tape.take(input, shape.clone(), map, 0.0)?;
    let weights = call.tape.constant(input.dtype(), shape, weights)?;
    let terms = call.two(&MUL, &chosen, &weights)?;
    let terms = call.one(&NEG, &terms)?;
    relative(call, &terms, &weights)
}

/// Slot 6's reduction, a mean being relative to the weights.
fn relative(call: &mut Call<'_>, terms: &Var, weights: &Var) -> Fallible<Var> {
    match call.text_or(6, "mean")? {
        "none" => Ok(terms.clone()),
        "sum" => total(call, terms),
        "mean" => {
            let (sum, weight) = (total(call, terms)?, total(call, weights)?);
            call.two(&DIV, &sum, &weight)
        }
        other => Err(format!("reduction {other:?} is not known")),
    }
}

fn cross_entropy(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, target) = (call.tensor(0)?, call.tensor(1)?);
    let (dim, lines) = classes(&input)?;
    let log = log_softmaxed(call, &input, &[dim])?;
    let smoothing = call.float_or(7, 0.0)?;
    let share = smoothing / count(lines.length);
    if target.shape() == input.shape() && target.dtype().is_float() {
        let target = call.two(&MUL, &target, 1.0 - smoothing)?;
        let target = call.two(&ADD, &target, share)?;
        return shared(call, (&log, &target), dim);
    }
    let chosen = nll(call, &log)?;
    if smoothing == 0.0 {
        return Ok(chosen.into());
    }
    let (classes, weights) = class_weights(call, &log)?;
    let mut all = log.clone();
    if !call.value(2).is_none() {
        let weight = call.tensor(2)?;
        let mut shape = vec![1; log.rank()];
        shape[dim] = lines.length;
        let weight = call.tape.reshaped(&weight, shape)?;
        all = call.two(&MUL, &all, &weight)?;
    }
    let sums = summed(call, &all, &[dim], false, all.dtype())?;
    let counted = classes.iter().map(|class| f64::from(class.is_some())).collect();
    let shape = sums.shape().to_vec();
    let counted = call.tape.constant(sums.dtype(), shape.clone(), counted)?;
    let terms = call.two(&MUL, &sums, &counted)?;
    let terms = call.one(&NEG, &terms)?;
    let weights = call.tape.constant(sums.dtype(), shape, weights)?;
    let smooth = relative(call, &terms, &weights)?;
    let (chosen, smooth) =
        (call.two(&MUL, &chosen, 1.0 - smoothing)?, call.two(&MUL, &smooth, share)?);
    Ok(call.two(&ADD, &chosen, &smooth)?.into())
}

/// Cross-entropy with a share for every class.
fn shared(call: &mut Call<'_>, (log, target): (&Var, &Var), dim: usize) -> Fallible<Value> {
    let mut log = log.clone();
    if !call.value(2).is_none() {
        let weight = call.tensor(2)?;
        let mut shape = vec![1; log.rank()];
        shape[dim] = weight.data().len();
        let weight = call.tape.reshaped(&weight, shape)?;
        log = call.two(&MUL, &log, &weight)?;
    }
    let terms = dot(call, &log, target, &[dim])?;
    let terms = call.one(&NEG, &terms)?;
    reduced(call, &terms, 6)
}

fn margin_ranking(call: &mut Call<'_>) -> Fallible<Value> {
    let (difference, target) = (difference(call)?, call.tensor(2)?);
    let margin = call.float_or(3, 0.0)?;
    let product = call.two(&MUL, &target, &difference)?;
    let distance = call.two(&SUB, margin, &product)?;
    let terms = call.one(&RELU, &distance)?;
    reduced(call, &terms, 6)
}

fn hinge_embedding(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, target, margin) = (call.tensor(0)?, call.tensor(1)?, call.float_or(2, 1.0)?);
    let distance = call.two(&SUB, margin, &input)?;
    let hinge = call.one(&RELU, &distance)?;
    let zero = call.two(&MUL, &input, 0.0)?;
    let far = call.test(|x, y| f64::from(x != y), &target, 1.0)?;
    let near = call.test(|x, y| f64::from(x != y), &target, -1.0)?;
    let far = call.choose(&far, &hinge, &zero)?;
    let near = call.choose(&near, &input, &zero)?;
    let terms = call.two(&ADD, &far, &near)?;
    reduced(call, &terms, 5)
}

fn soft_margin(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, target) = (call.tensor(0)?, call.tensor(1)?);
    let product = call.two(&MUL, &input, &target)?;
    let dtype = product.dtype().fractional();
    let terms = call.tape.unary(&product, dtype, |x| log1p_exp(-x), |x, _| -sigmoid(-x))?;
    reduced(call, &terms, 4)
}

fn gaussian_nll(call: &mut Call<'_>) -> Fallible<Value> {
    let difference = difference(call)?;
    let value = call.value(2).clone();
    let (variance, eps) = (call.as_tensor(&value)?, call.float_or(4, 1e-6)?);
    if variance.data().iter().any(|x| *x < 0.0) {
        return Err("gaussian_nll_loss with a negative variance".to_owned());
    }
    // The bound holds without taking part in the gradient.
    let derivative = |_: f64, _: f64| 1.0;
    let variance = call.tape.unary(&variance, variance.dtype(), move |x| x.max(eps), derivative)?;
    let squares = call.one(&SQUARE, &difference)?;
    let share = call.two(&DIV, &squares, &variance)?;
    let log = call.one(&LOG, &variance)?;
    let sum = call.two(&ADD, &log, &share)?;
    let mut terms = call.two(&MUL, &sum, 0.5)?;
    if call.flag(3, false)? {
        terms = call.two(&ADD, &terms, 0.5 * libm::log(2.0 * std::f64::consts::PI))?;
    }
    reduced(call, &terms, 5)
}

fn poisson_nll(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, target, eps) = (call.tensor(0)?, call.tensor(1)?, call.float_or(5, 1e-8)?);
    let terms = if call.flag(2, true)? {
        let (rate, product) = (call.one(&EXP, &input)?, call.two(&MUL, &target, &input)?);
        call.two(&SUB, &rate, &product)?
    } else {
        let safe = call.two(&ADD, &input, eps)?;
        let log = call.one(&LOG, &safe)?;
        let product = call.two(&MUL, &target, &log)?;
        call.two(&SUB, &input, &product)?
    };
    if call.flag(3, false)? {
        return Err("poisson_nll_loss: full=True is not supported".to_owned());
    }
    reduced(call, &terms, 7)
}

fn cosine_similarity(call: &mut Call<'_>) -> Fallible<Value> {
    let (left, right) = (call.tensor(0)?, call.tensor(1)?);
    let rank = shape::broadcast(left.shape(), right.shape())?.len();
    let (dim, eps) = (call.dim_or(2, 1, rank)?, call.float_or(3, 1e-8)?);
    let mut units = Vec::with_capacity(2);
    for vector in [&left, &right] {
        let own = dim.checked_sub(rank - vector.rank()).ok_or("the dimension is missing")?;
        let norm = normed(call, vector, (2.0, &[own]), true)?;
        let norm = call.two(&MAX, &norm, eps)?;
        units.push(call.two(&DIV, vector, &norm)?);
    }
    Ok(dot(call, &units[0], &units[1], &[dim])?.into())
}

fn pairwise_distance(call: &mut Call<'_>) -> Fallible<Value> {
    let (difference, p, eps) = (difference(call)?, call.float_or(2, 2.0)?, call.float_or(3, 1e-6)?);
    let difference = call.two(&ADD, &difference, eps)?;
    let last = difference.rank().saturating_sub(1);
    let keep = call.flag(4, false)?;
    Ok(normed(call, &difference, (p, &[last]), keep)?.into())
}

fn normalize(call: &mut Call<'_>) -> Fallible<Value> {
    let (input, p, eps) = (call.tensor(0)?, call.float_or(1, 2.0)?, call.float_or(3, 1e-12)?);
    let dim = call.dim_or(2, 1, input.rank())?;
    let norm = normed(call, &input, (p, &[dim]), true)?;
    let norm = clamped(call, norm, &Value::Float(eps), &Value::None)?;
    if norm.dtype() == Dtype::Bool {
        return Err("normalize of bools".to_owned());
    }
    Ok(call.two(&DIV, &input, &norm)?.into())
}
