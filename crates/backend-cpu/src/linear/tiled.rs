//! Linear maps of the set whose adapters are multiplied on tiles too.

use tinsmith_backend::{LinearGradientPart, LinearPart, LoraUse};

use super::{forward_uses, keep_uses, rank_max};
use crate::{
    CpuBackend,
    buffer::{Lora, Rows, View, ViewMut},
    sets::bf16_amx::{
        job::PRODUCTS_MAX,
        linear::{InputGradient, Map, MapBack},
    },
};

const NOWHERE: View = View { pointer: std::ptr::null(), stride: 0 };

pub(super) fn linears(cpu: &mut CpuBackend, x: &Rows, parts: &mut [LinearPart<'_, CpuBackend>]) {
    for parts in parts.chunks_mut(PRODUCTS_MAX) {
        let count = parts.len();
        let mut maps = [None; PRODUCTS_MAX];
        for (map, part) in maps.iter_mut().zip(parts) {
            let linear = &part.linear;
            let hidden = part.hidden.as_deref_mut();
            *map = Some(Map {
                panels: linear.weight.panels(),
                outputs: linear.weight.outputs,
                bias: linear.bias.map(|bias| bias.data.pointer()),
                uses: linear.uses,
                hidden: hidden.map(|hidden| shaped(hidden, x.rows, linear.uses)),
                out: part.out.view_mut(),
                add: linear.add,
            });
        }
        let maps = maps.map(|map| map.unwrap_or(Map::NONE));
        let rows = 0..x.rows;
        // SAFETY: shapes were compared; outputs and hidden rows are borrowed for us alone.
        unsafe {
            cpu.tiles.forward((x.view(), x.features), &rows, &maps[..count], &cpu.pool);
        }
    }
}

/// The rows' view, shaped for the uses.
fn shaped(hidden: &mut Rows, rows: usize, uses: &[LoraUse<'_, Lora>]) -> ViewMut {
    hidden.reshape(rows, rank_max(uses));
    hidden.view_mut()
}

pub(super) fn linears_backward(
    cpu: &mut CpuBackend,
    (dx, add): (Option<&mut Rows>, bool),
    x: &Rows,
    parts: &mut [LinearGradientPart<'_, '_, CpuBackend>],
) {
    let mut dx = dx.map(|dx| {
        let inputs = dx.features;
        InputGradient { out: dx.view_mut(), inputs, add }
    });
    for parts in parts.chunks_mut(PRODUCTS_MAX) {
        backward(cpu, dx, x, parts);
        dx = dx.map(|dx| InputGradient { add: true, ..dx });
    }
}

/// Up to [`PRODUCTS_MAX`] parts.
fn backward(
    cpu: &mut CpuBackend,
    dx: Option<InputGradient>,
    x: &Rows,
    parts: &mut [LinearGradientPart<'_, '_, CpuBackend>],
) {
    let forward = forward_uses(parts.iter().flat_map(|part| part.uses.iter()));
    let (mut maps, mut rest) = ([None; PRODUCTS_MAX], forward.as_slice());
    for ((map, part), hidden) in maps.iter_mut().zip(&*parts).zip(&mut cpu.hidden_gradients) {
        let (uses, later) = rest.split_at(part.uses.len());
        rest = later;
        let weight = part.weight;
        *map = Some(MapBack {
            dy: part.dy.view(),
            outputs: weight.outputs,
            panels: if dx.is_some() { weight.transposed_panels(&cpu.pool) } else { NOWHERE },
            uses,
            hidden: Some(shaped(hidden, x.rows, uses)),
        });
    }
    let maps = maps.map(|map| map.unwrap_or(MapBack::NONE));
    let rows = 0..x.rows;
    // SAFETY: shapes were compared; `dx` and hidden rows are borrowed for us alone.
    unsafe { cpu.tiles.backward(dx, &rows, &maps[..parts.len()], &cpu.pool) };
    keep_uses(forward);
    let gradients = &mut cpu.tiles.gradients;
    gradients.clear();
    let most = parts.iter().map(|part| part.uses.len()).max().unwrap_or(0);
    for index in 0..most {
        for (i, part) in parts.iter_mut().enumerate() {
            let Some(lora_use) = part.uses.get_mut(index) else { continue };
            let sides = (part.hidden.view(), cpu.hidden_gradients[i].view());
            let datums = lora_use.datums.iter();
            assert!(datums.clone().all(|datum| datum.end <= x.rows), "datums lie in the step");
            let (gradient, scale) = (&mut *lora_use.gradient, lora_use.scale);
            gradients.push(gradient, 1 + i, sides, scale, datums.cloned());
        }
    }
    // SAFETY: datums lie in the rows of all matrices; gradients are borrowed for us alone.
    unsafe {
        let outputs = parts.iter().map(|part| part.dy.features);
        cpu.tiles.sum_gradients((x.view(), x.features), outputs, &cpu.pool);
    }
}
