//! Pools and shortcuts: images that become smaller without parameters.

use super::multiply::LANES;
use crate::model::{Extent, shortcut};

/// The largest of each window by window square goes to `outputs`.
#[inline(always)]
pub(super) fn max_pool(input: &[f32], outputs: &mut [f32], (from, to): (Extent, Extent), window: usize) {
    let columns = outputs.len() / to.values();
    for (square, output) in outputs.chunks_exact_mut(columns).enumerate() {
        let first = first(square, from, to, window);
        for (lane, output) in lanes_mut(output).enumerate() {
            *output = largest(input, first, from, window, columns, lane);
        }
    }
}

/// The slopes of a pool's input go to `gradient`, which holds zeros: each output's goes to the first number that is
/// as large.
#[inline(always)]
pub(super) fn max_pool_gradient(
    input: &[f32],
    slopes: &[f32],
    gradient: &mut [f32],
    (from, to): (Extent, Extent),
    window: usize,
) {
    let columns = slopes.len() / to.values();
    for (square, slopes) in slopes.chunks_exact(columns).enumerate() {
        let first = first(square, from, to, window);
        for (lane, slopes) in slopes.as_chunks::<LANES>().0.iter().enumerate() {
            let best = largest(input, first, from, window, columns, lane);
            let mut rest = *slopes;
            for cell in cells(first, from, window) {
                let values = lane_of(input, cell, columns, lane);
                let Some(target) = lanes_mut(&mut gradient[cell * columns..][..columns]).nth(lane) else {
                    continue;
                };
                for i in 0..LANES {
                    let here = values[i] == best[i];
                    target[i] = if here { rest[i] } else { 0.0 };
                    rest[i] = if here { 0.0 } else { rest[i] };
                }
            }
        }
    }
}

/// The largest numbers of a square, for some of the samples.
#[inline(always)]
fn largest(
    input: &[f32],
    first: usize,
    from: Extent,
    window: usize,
    columns: usize,
    lane: usize,
) -> [f32; LANES] {
    let mut best = lane_of(input, first, columns, lane);
    for cell in cells(first, from, window).skip(1) {
        let values = lane_of(input, cell, columns, lane);
        for i in 0..LANES {
            best[i] = if values[i] > best[i] { values[i] } else { best[i] };
        }
    }
    best
}

#[inline(always)]
fn lane_of(input: &[f32], cell: usize, columns: usize, lane: usize) -> [f32; LANES] {
    let first = cell * columns + lane * LANES;
    let mut values = [0.0; LANES];
    values.copy_from_slice(&input[first..first + LANES]);
    values
}

/// A row in pieces; rows are a multiple of [`LANES`] long.
#[inline(always)]
fn lanes_mut(row: &mut [f32]) -> impl Iterator<Item = &mut [f32; LANES]> {
    row.as_chunks_mut::<LANES>().0.iter_mut()
}

/// The first cell of a square.
#[inline(always)]
fn first(square: usize, from: Extent, to: Extent, window: usize) -> usize {
    let (row, x) = (square / to.width, square % to.width);
    let (channel, y) = (row / to.height, row % to.height);
    (channel * from.height + y * window) * from.width + x * window
}

/// The cells of a square, row by row.
#[inline(always)]
fn cells(first: usize, from: Extent, window: usize) -> impl Iterator<Item = usize> {
    (0..window).flat_map(move |y| (0..window).map(move |x| first + y * from.width + x))
}

/// The mean of each channel is added to `outputs`.
pub(super) fn global_average(input: &[f32], outputs: &mut [f32], from: Extent) {
    let columns = outputs.len() / from.channels;
    let area = from.height * from.width;
    for (channel, output) in input
        .chunks_exact(area * columns)
        .zip(outputs.chunks_exact_mut(columns))
    {
        for row in channel.chunks_exact(columns) {
            output.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        output.iter_mut().for_each(|sum| *sum /= area as f32);
    }
}

/// The slopes of the input of [`global_average`].
pub(super) fn global_average_gradient(slopes: &[f32], gradient: &mut [f32], from: Extent) {
    let columns = slopes.len() / from.channels;
    let area = from.height * from.width;
    for (slopes, channel) in slopes
        .chunks_exact(columns)
        .zip(gradient.chunks_exact_mut(area * columns))
    {
        for row in channel.chunks_exact_mut(columns) {
            row.iter_mut()
                .zip(slopes)
                .for_each(|(target, slope)| *target = slope / area as f32);
        }
    }
}

/// Adds a residual's input to what its body made of it.
pub(super) fn add_shortcut(input: &[f32], outputs: &mut [f32], (from, to): (Extent, Extent)) {
    let columns = input.len() / from.values();
    for (source, target) in shortcut_cells(from, to) {
        let outputs = &mut outputs[target * columns..][..columns];
        let input = &input[source * columns..][..columns];
        outputs
            .iter_mut()
            .zip(input)
            .for_each(|(sum, value)| *sum += value);
    }
}

/// Adds a residual's slopes to those that its body gave its input.
pub(super) fn add_shortcut_gradient(slopes: &[f32], gradient: &mut [f32], (from, to): (Extent, Extent)) {
    let columns = gradient.len() / from.values();
    for (source, target) in shortcut_cells(from, to) {
        let gradient = &mut gradient[source * columns..][..columns];
        let slopes = &slopes[target * columns..][..columns];
        gradient
            .iter_mut()
            .zip(slopes)
            .for_each(|(sum, slope)| *sum += slope);
    }
}

/// Which cell of a residual's input is added to which cell of its output.
fn shortcut_cells(from: Extent, to: Extent) -> impl Iterator<Item = (usize, usize)> {
    // A model whose shortcut does not fit is not made.
    let (stride, before) = shortcut(from, to).unwrap_or((1, 0));
    (0..from.channels).flat_map(move |channel| {
        (0..to.height).flat_map(move |y| {
            (0..to.width).map(move |x| {
                let source = (channel * from.height + y * stride) * from.width + x * stride;
                let target = ((channel + before) * to.height + y) * to.width + x;
                (source, target)
            })
        })
    })
}
