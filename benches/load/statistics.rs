//! Percentiles and medians.

/// The given percentile of a sorted slice; NaN if it is empty.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into a slice in memory"
    )]
    let index = (percent / 100.0 * sorted.len() as f64) as usize;
    sorted[index.min(sorted.len() - 1)]
}

/// The median; of an even count the mean of the two middle values, of no values NaN.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => f64::midpoint(values[half - 1], values[half]),
        _ => values[half],
    }
}
