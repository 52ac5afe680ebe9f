//! A loss curve in characters.

/// Columns and rows of the curve.
const WIDTH: usize = 60;
const HEIGHT: usize = 8;

/// The curve of `losses`, with its highest and lowest value; nothing for fewer than two.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "places on a small grid"
)]
pub(super) fn lines(losses: &[f64]) -> Vec<String> {
    let finite: Vec<f64> = losses.iter().copied().filter(|loss| loss.is_finite()).collect();
    if finite.len() < 2 {
        return Vec::new();
    }
    let width = finite.len().min(WIDTH);
    // Each column is the mean of its steps.
    let columns: Vec<f64> = (0..width)
        .map(|column| {
            let part = &finite[column * finite.len() / width..(column + 1) * finite.len() / width];
            part.iter().sum::<f64>() / part.len() as f64
        })
        .collect();
    let low = columns.iter().copied().fold(f64::INFINITY, f64::min);
    let high = columns.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = if high > low { high - low } else { 1.0 };
    let mut grid = vec![vec![' '; width]; HEIGHT];
    for (column, loss) in columns.iter().enumerate() {
        let row = ((high - loss) / range * (HEIGHT - 1) as f64).round() as usize;
        grid[row.min(HEIGHT - 1)][column] = '•';
    }
    let label = |row: usize| match row {
        0 => format!("{high:9.4}"),
        row if row == HEIGHT - 1 => format!("{low:9.4}"),
        _ => " ".repeat(9),
    };
    let rows = grid.iter().enumerate();
    let mut lines: Vec<String> = rows
        .map(|(row, cells)| {
            format!("{} │{}", label(row), cells.iter().collect::<String>().trim_end())
        })
        .collect();
    lines.push(format!("{} └{}", " ".repeat(9), "─".repeat(width)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_loss_goes_down() {
        let losses: Vec<f64> = (0..8).map(|step| f64::from(8 - step)).collect();
        let lines = lines(&losses);
        assert_eq!(lines[0], "   8.0000 │•");
        assert_eq!(lines[7], "   1.0000 │       •");
        assert_eq!(lines[8], "          └────────");
    }

    #[test]
    fn any_number_of_steps_fits() {
        for count in [0, 1, 2, 59, 60, 61, 1000] {
            let losses = vec![2.0; count];
            let lines = lines(&losses);
            assert_eq!(lines.len(), if count < 2 { 0 } else { HEIGHT + 1 });
        }
        assert_eq!(lines(&[f64::NAN, 1.0, f64::INFINITY, 2.0]).len(), HEIGHT + 1);
    }
}
