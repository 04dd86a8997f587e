//! Medians and their kin.

/// The number below which so many of a hundred lie, of numbers in order.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place among numbers in memory"
    )]
    let at = (percent / 100.0 * sorted.len() as f64) as usize;
    sorted[at.min(sorted.len() - 1)]
}

/// The middle one; of an even count the mean of the two in the middle.
pub(crate) fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_unstable_by(f64::total_cmp);
    let half = numbers.len() / 2;
    match numbers.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => f64::midpoint(numbers[half - 1], numbers[half]),
        _ => numbers[half],
    }
}
