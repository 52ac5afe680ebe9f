//! Packed linear with adapters, and its gradient.

use std::{cell::Cell, ops::Range};

use tinsmith_backend::{
    GRADIENT_TILE, Linear, LinearGradientPart, LinearPart, LoraGradientUse, LoraUse,
    recycle::recycle,
};

use crate::{
    CpuBackend, KernelSet, Weight,
    buffer::{Lora, Pair, Rows, View, overlap},
    gemm::{Adapter, Gradient, Product, narrow},
    lanes::Path,
    lists::with_list,
    pool::Pool,
};

#[cfg(target_arch = "x86_64")]
pub(crate) mod tiled;

/// Several linear maps of the same rows.
pub(crate) fn linears(cpu: &mut CpuBackend, x: &Rows, parts: &mut [LinearPart<'_, CpuBackend>]) {
    for LinearPart { out, linear, .. } in &*parts {
        let Linear { weight, .. } = linear;
        assert!(x.features == weight.inputs && out.features == weight.outputs, "features fit");
        assert!(x.rows == out.rows, "rows fit");
    }
    match cpu.set {
        KernelSet::F32 | KernelSet::W16Avx2 | KernelSet::Bf16Avx512 => {
            for LinearPart { out, linear: map, hidden } in parts {
                linear(cpu, out, x, map, hidden.as_deref_mut());
            }
        }
        #[cfg(target_arch = "x86_64")]
        KernelSet::Bf16Amx => tiled::linears(cpu, x, parts),
        #[cfg(not(target_arch = "x86_64"))]
        KernelSet::Bf16Amx => unreachable!("the set is not available on this CPU"),
    }
}

/// The gradients of several linear maps of the same rows; `dx` is added to, or overwritten.
pub(crate) fn linears_backward(
    cpu: &mut CpuBackend,
    (mut dx, mut add): (Option<&mut Rows>, bool),
    x: &Rows,
    parts: &mut [LinearGradientPart<'_, '_, CpuBackend>],
) {
    for LinearGradientPart { dy, weight, .. } in &*parts {
        assert!(x.features == weight.inputs && dy.features == weight.outputs, "features fit");
        assert!(x.rows == dy.rows, "rows fit");
    }
    if let Some(dx) = &dx {
        assert!((dx.rows, dx.features) == (x.rows, x.features), "dx has the shape of x");
    }
    match cpu.set {
        KernelSet::F32 | KernelSet::W16Avx2 | KernelSet::Bf16Avx512 => {
            for LinearGradientPart { dy, weight, hidden, uses } in parts {
                linear_backward(cpu, (dx.as_deref_mut(), add), (dy, x), weight, hidden, uses);
                add = true;
            }
        }
        #[cfg(target_arch = "x86_64")]
        KernelSet::Bf16Amx => tiled::linears_backward(cpu, (dx, add), x, parts),
        #[cfg(not(target_arch = "x86_64"))]
        KernelSet::Bf16Amx => unreachable!("the set is not available on this CPU"),
    }
}

fn linear(
    cpu: &mut CpuBackend,
    out: &mut Rows,
    x: &Rows,
    linear: &Linear<'_, CpuBackend>,
    hidden: Option<&mut Rows>,
) {
    let (path, pool) = (cpu.path, &cpu.pool);
    let weight = linear.weight;
    let hidden = hidden.unwrap_or(&mut cpu.hidden);
    project(hidden, x, linear.uses, Side::Down, (path, pool));
    with_adapters(linear.uses, hidden, Side::Down, &(0..x.rows), |adapters| {
        let product = Product {
            out: out.view_mut(),
            x: x.view(),
            rows: x.rows,
            inputs: weight.inputs,
            outputs: weight.outputs,
            operand: weight.operand(),
            bias: linear.bias.map(|bias| bias.data.pointer()),
            adapters,
            add: linear.add,
        };
        // SAFETY: shapes were compared above; `out` is borrowed for us alone.
        unsafe { product.run(path, pool) };
    });
}

/// Order, in the sets without tiles: `dx += ((dy W blocks) + Σ scale * (dy B) A)`; each gradient folds its datums' tiles.
fn linear_backward(
    cpu: &mut CpuBackend,
    (dx, add): (Option<&mut Rows>, bool),
    (dy, x): (&Rows, &Rows),
    weight: &Weight,
    hidden: &Rows,
    uses: &mut [LoraGradientUse<'_, Lora, Pair>],
) {
    let (path, pool) = (cpu.path, &cpu.pool);
    let forward = forward_uses(uses.iter());
    project(&mut cpu.hidden_gradients[0], dy, &forward, Side::Up, (path, pool));
    let hidden_gradient = &cpu.hidden_gradients[0];
    if let Some(dx) = dx {
        with_adapters(&forward, hidden_gradient, Side::Up, &(0..dy.rows), |adapters| {
            let product = Product {
                out: dx.view_mut(),
                x: dy.view(),
                rows: dy.rows,
                inputs: weight.outputs,
                outputs: weight.inputs,
                operand: weight.transposed(pool),
                bias: None,
                adapters,
                add,
            };
            // SAFETY: shapes were compared above; `dx` is borrowed for us alone.
            unsafe { product.run(path, pool) };
        });
    }
    keep_uses(forward);
    for lora_use in uses {
        let sides = Sides {
            hidden: hidden.view(),
            hidden_gradient: hidden_gradient.view(),
            x: x.view(),
            dy: dy.view(),
        };
        with_list(&TILES, |tiles| {
            tiles.extend(lora_use.datums.iter().flat_map(datum_tiles));
            assert!(tiles.iter().all(|tile| tile.end <= x.rows), "datums lie in the step");
            // SAFETY: tiles lie in the rows of all four; the gradient is borrowed for us alone.
            unsafe {
                add_gradients(lora_use.gradient, &sides, tiles, lora_use.scale, (path, pool));
            };
        });
    }
}

thread_local! {
    /// Gradient tiles of one use.
    pub(crate) static TILES: Cell<Vec<Range<usize>>> = const { Cell::new(Vec::new()) };
    /// Products of an op's uses.
    pub(crate) static PRODUCTS: Cell<Vec<Product<'static>>> = const { Cell::new(Vec::new()) };
    static ADAPTERS: Cell<Vec<Adapter>> = const { Cell::new(Vec::new()) };
    static USES: Cell<Vec<LoraUse<'static, Lora>>> = const { Cell::new(Vec::new()) };
}

/// Where an adapter's two gradients come from; all have the rows that tiles count.
pub(crate) struct Sides {
    pub(crate) hidden: View,
    pub(crate) hidden_gradient: View,
    pub(crate) x: View,
    pub(crate) dy: View,
}

/// Folds the tiles onto the pending gradient.
///
/// # Safety
///
/// The sides have the rows of all tiles, and the features of the gradient.
pub(crate) unsafe fn add_gradients(
    gradient: &mut Pair,
    sides: &Sides,
    tiles: &[Range<usize>],
    scale: f32,
    (path, pool): (Path, &Pool),
) {
    let rank = gradient.a.rows;
    let pairs = [
        (&mut gradient.a, sides.hidden_gradient, sides.x),
        (&mut gradient.b, sides.hidden, sides.dy),
    ];
    for (out, small, big) in pairs {
        let outputs = out.features;
        Gradient { out: out.view_mut(), small, big, rank, outputs, tiles, scale }.run(path, pool);
    }
}

/// Tiles of a datum, counted from its first token.
pub(crate) fn datum_tiles(datum: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = datum.end;
    datum.clone().step_by(GRADIENT_TILE).map(move |start| start..end.min(start + GRADIENT_TILE))
}

/// The uses as forward sees them; [`keep_uses`] takes the list back.
pub(crate) fn forward_uses<'u, 'a: 'u>(
    uses: impl Iterator<Item = &'u LoraGradientUse<'a, Lora, Pair>>,
) -> Vec<LoraUse<'a, Lora>> {
    let mut forward = USES.take();
    let of = |u: &LoraGradientUse<'a, _, _>| LoraUse {
        rows: u.rows.clone(),
        lora: u.lora,
        scale: u.scale,
    };
    forward.extend(uses.map(of));
    forward
}

/// Keeps the room of the list for the next op.
pub(crate) fn keep_uses(forward: Vec<LoraUse<'_, Lora>>) {
    USES.set(recycle(forward));
}

/// Which of an adapter's matrices leads to the rank.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Side {
    /// Forward: `x Aᵀ`, then B.
    Down,
    /// Backward: `dy B`, then A.
    Up,
}

/// `hidden[rows of use] = x Aᵀ` or `dy B`, without the scale; zero elsewhere.
pub(crate) fn project(
    hidden: &mut Rows,
    x: &Rows,
    uses: &[LoraUse<'_, Lora>],
    side: Side,
    (path, pool): (Path, &Pool),
) {
    hidden.reshape(x.rows, rank_max(uses));
    hidden.zero();
    let out = hidden.view_mut();
    with_list(&PRODUCTS, |products| {
        for lora_use in uses {
            let lora = lora_use.lora;
            let (b, inputs) = match side {
                Side::Down => (lora.down(), lora.trained.a.features),
                Side::Up => (lora.up_transposed(), lora.trained.b.features),
            };
            let rows = &lora_use.rows;
            assert!(rows.end <= x.rows && inputs == x.features, "the use fits the step");
            // SAFETY: the rows lie in both buffers.
            let views = unsafe { (out.skip_rows(rows.start), x.view().skip_rows(rows.start), b) };
            products.push(narrow(views, (rows.len(), inputs, lora.rank())));
        }
        // SAFETY: shapes were compared above; uses do not share rows.
        unsafe { Product::run_all(products, path, pool) };
    });
}

/// The greatest rank; 0 of no uses.
pub(crate) fn rank_max(uses: &[LoraUse<'_, Lora>]) -> usize {
    uses.iter().map(|u| u.lora.rank()).max().unwrap_or(0)
}

/// Calls `work` with the adapters of some of the rows, which become rows 0 and on.
pub(crate) fn with_adapters(
    uses: &[LoraUse<'_, Lora>],
    hidden: &Rows,
    side: Side,
    rows: &Range<usize>,
    work: impl FnOnce(&mut [Adapter]),
) {
    with_list(&ADAPTERS, |adapters| {
        let touching = uses.iter().filter(|u| !overlap(&u.rows, rows).is_empty());
        adapters.extend(touching.map(|lora_use| {
            let shared = overlap(&lora_use.rows, rows);
            let trained = &lora_use.lora.trained;
            Adapter {
                rows: shared.start - rows.start..shared.end - rows.start,
                // SAFETY: `hidden` has all rows of the step.
                hidden: unsafe { hidden.view().skip_rows(rows.start) },
                up: if side == Side::Down { trained.b.view() } else { trained.a.view() },
                rank: trained.a.rows,
                scale: lora_use.scale,
            }
        }));
        work(adapters);
    });
}
