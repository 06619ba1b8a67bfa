//! Functions of single numbers, and their slopes.

/// `max(x, 0)` in place; returns where `x` was positive.
#[inline(always)]
pub(super) fn relu(values: &mut [f32]) -> Vec<bool> {
    values
        .iter_mut()
        .map(|value| {
            let positive = *value > 0.0;
            *value = value.max(0.0);
            positive
        })
        .collect()
}

/// Drops the slopes where [`relu`]'s input was not positive.
#[inline(always)]
pub(super) fn relu_gradient(positive: &[bool], slopes: &mut [f32]) {
    for (slope, positive) in slopes.iter_mut().zip(positive) {
        *slope = if *positive { *slope } else { 0.0 };
    }
}

/// GELU by its tanh form.
#[inline(always)]
pub(super) fn gelu(input: &[f32], outputs: &mut [f32]) {
    for (output, x) in outputs.iter_mut().zip(input) {
        *output = 0.5 * x * (1.0 + tanh(inner(*x)));
    }
}

/// Multiplies the slopes of GELU's output with those of the function.
#[inline(always)]
pub(super) fn gelu_gradient(input: &[f32], slopes: &mut [f32]) {
    for (slope, x) in slopes.iter_mut().zip(input) {
        let tanh = tanh(inner(*x));
        let bend = ROOT * (1.0 + 3.0 * CUBIC * x * x);
        *slope *= 0.5 * (1.0 + tanh + x * (1.0 - tanh * tanh) * bend);
    }
}

#[inline(always)]
fn inner(x: f32) -> f32 {
    ROOT * (x + CUBIC * x * x * x)
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Beyond 10 the result is one to the last bit. Near zero the difference of two ones keeps an error of 1e-7,
    // which is what the ones added to it in a GELU have too.
    let power = exp(2.0 * x.clamp(-10.0, 10.0));
    (power - 1.0) / (power + 1.0)
}

/// The exponential function to seven digits, by additions and multiplications alone, so that many are computed at
/// once; the library's is one call for each. Beyond what an `f32` holds it is the nearest that one does.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding and taking away 1.5 * 2^23 leaves the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // e^x = 2^n e^r, with n the nearest integer to x / ln 2 and r less than ln 2 / 2 from zero. ln 2 is taken
    // away in two parts, the first of which has so few bits that its product with n is exact.
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    // Taylor's series; the first term left out, r^7 / 5040, is 1.2e-7 at the most.
    let series = 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    // n goes into the exponent of an `f32`, whose bits begin at 23 and count from 127; it is within -126 to 127.
    let power = f32::from_bits(((n as i32 + 127) as u32) << 23);
    series * power
}

/// The root of 2 / pi.
const ROOT: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;

/// Hendrycks' and Gimpel's.
const CUBIC: f32 = 0.044_715;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_and_tangents_have_seven_digits() {
        for x in (-8700..8800).map(|x| x as f32 / 100.0) {
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) / expected - 1.0).abs();
            assert!(error < 4e-7, "{x}: {error}");
            let error = (f64::from(tanh(x / 8.0)) - f64::from(x / 8.0).tanh()).abs();
            assert!(error < 4e-7, "{x}: {error}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY) > 1e38);
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
    }
}
