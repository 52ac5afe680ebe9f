//! Curves as SVG that reads on light and on dark ground. The horizontal axis is logarithmic.

use std::fmt::Write as _;

use serde::Serialize;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 48.0;
/// Of one line in the legend.
const LEGEND: f64 = 140.0;
/// Middle tones, far from both grounds, that differ in brightness too.
const COLOURS: [&str; 6] = ["#3b82f6", "#f97316", "#10b981", "#d946ef", "#a3a010", "#ef4444"];
/// So that lines can be told apart without colours.
const DASHES: [&str; 6] = ["none", "8 3", "3 3", "12 3 3 3", "1 3", "16 4"];
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1f2937}.title{font-weight:600;font-size:15px}\
.grid{stroke:#9ca3af;stroke-opacity:.35}.line{fill:none;stroke-width:2}\
@media(prefers-color-scheme:dark){text{fill:#e5e7eb}}";

/// One picture.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    /// Of its file, without an ending.
    pub(super) name: &'static str,
    pub(super) title: String,
    pub(super) across: &'static str,
    pub(super) upwards: &'static str,
    /// Whether the vertical axis is logarithmic too; else it begins at 0.
    pub(super) logarithmic: bool,
    pub(super) lines: Vec<Line>,
}

/// Points `(x, y)`, both above 0, in ascending order of x.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) label: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Least and greatest of an axis, in its own scale.
#[derive(Clone, Copy)]
struct Axis {
    logarithmic: bool,
    least: f64,
    greatest: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, logarithmic: bool) -> Self {
        let (least, greatest) = values.fold((f64::MAX, 0.0_f64), |(least, greatest), value| {
            (least.min(value), greatest.max(value))
        });
        if greatest <= 0.0 {
            return Self { logarithmic: false, least: 0.0, greatest: 1.0 };
        }
        if logarithmic {
            // Room for a single value.
            let greatest = if greatest > least { greatest } else { 2.0 * least };
            Self { logarithmic, least, greatest }
        } else {
            Self { logarithmic, least: 0.0, greatest: 1.05 * greatest }
        }
    }

    /// Where a value lies, from 0 to 1.
    fn place(self, value: f64) -> f64 {
        if self.logarithmic {
            (value / self.least).ln() / (self.greatest / self.least).ln()
        } else {
            (value - self.least) / (self.greatest - self.least)
        }
    }

    /// Round values to write at the axis.
    fn ticks(self) -> Vec<f64> {
        if self.logarithmic {
            let powers = (-9..=12).map(|power| 10_f64.powi(power));
            let steps = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * power));
            return steps.filter(|tick| (self.least..=self.greatest).contains(tick)).collect();
        }
        let rough = self.greatest / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        (0..=5).map(|count| f64::from(count) * step).filter(|tick| *tick <= self.greatest).collect()
    }
}

impl Chart {
    /// The picture's text.
    pub(super) fn draw(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let across = Axis::new(points().map(|point| point.0), true);
        let upwards = Axis::new(points().map(|point| point.1), self.logarithmic);
        let x = |value: f64| LEFT + across.place(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - upwards.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut picture = Picture::new(&self.title);
        let mut marks: Vec<f64> = points().map(|point| point.0).collect();
        marks.sort_by(f64::total_cmp);
        marks.dedup();
        for value in marks {
            let x = x(value);
            picture.grid((x, TOP), (x, HEIGHT - BOTTOM));
            picture.text((x, HEIGHT - BOTTOM + 18.0), "middle", &short(value));
        }
        for value in upwards.ticks() {
            let y = y(value);
            picture.grid((LEFT, y), (WIDTH - RIGHT, y));
            picture.text((LEFT - 8.0, y + 4.0), "end", &short(value));
        }
        let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
        picture.text((middle, HEIGHT - 8.0), "middle", self.across);
        picture.text((LEFT, TOP - 8.0), "start", self.upwards);
        let mut legend = WIDTH - RIGHT - LEGEND * self.lines.len() as f64;
        for (index, line) in self.lines.iter().enumerate() {
            let places: Vec<(f64, f64)> =
                line.points.iter().map(|point| (x(point.0), y(point.1))).collect();
            picture.line(index, &places, &line.label, legend);
            legend += LEGEND;
        }
        picture.end()
    }
}

/// Elements, one a line.
struct Picture(String);

impl Picture {
    fn new(title: &str) -> Self {
        let mut picture = Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n"
        ));
        picture.element(&format!("<text class=\"title\" x=\"{LEFT}\" y=\"20\">{title}</text>"));
        picture
    }

    fn element(&mut self, element: &str) {
        self.0.push_str(element);
        self.0.push('\n');
    }

    fn grid(&mut self, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.element(&format!(
            "<line class=\"grid\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, text: &str) {
        self.element(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn line(&mut self, index: usize, places: &[(f64, f64)], label: &str, legend: f64) {
        let colour = COLOURS[index % COLOURS.len()];
        let dashes = DASHES[index % DASHES.len()];
        let stroke = format!("class=\"line\" stroke=\"{colour}\" stroke-dasharray=\"{dashes}\"");
        let mut path = String::new();
        for (number, (x, y)) in places.iter().enumerate() {
            let command = if number == 0 { 'M' } else { 'L' };
            write!(path, "{command}{x:.1} {y:.1}").expect("a string takes all");
        }
        self.element(&format!("<path {stroke} d=\"{path}\"/>"));
        for (x, y) in places {
            self.element(&format!(
                "<circle fill=\"{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"
            ));
        }
        let y = TOP - 30.0;
        let end = legend + 26.0;
        self.element(&format!("<path {stroke} d=\"M{legend:.1} {y:.1}L{end:.1} {y:.1}\"/>"));
        self.text((end + 6.0, y + 4.0), "start", label);
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

/// 2048 as 2k, 32,768 as 32k (of 1,024 each where that is whole), 29,400,000 as 29M.
fn short(value: f64) -> String {
    let (binary, decimal, letter) = match value {
        1e6.. => (1024.0 * 1024.0, 1e6, "M"),
        1000.0.. => (1024.0, 1000.0, "k"),
        _ => (1.0, 1.0, ""),
    };
    let whole = [binary, decimal].into_iter().find(|unit| value % unit == 0.0);
    let (unit, letter) = match whole {
        Some(unit) => (unit, letter),
        None if value >= 10_000.0 => (decimal, letter),
        None => (1.0, ""),
    };
    let scaled = value / unit;
    let decimals = usize::from(scaled < 10.0 && scaled.fract() != 0.0);
    format!("{scaled:.decimals$}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let found = [1.0, 0.5, 256.0, 2048.0, 32_768.0, 8000.0, 1500.0, 29_400_000.0].map(short);
        assert_eq!(found, ["1", "0.5", "256", "2k", "32k", "8k", "1500", "29M"]);
    }

    #[test]
    fn lines_stay_inside() {
        let line = |label: &str, points: &[(f64, f64)]| Line {
            label: label.to_owned(),
            points: points.to_vec(),
        };
        for logarithmic in [false, true] {
            let lines = vec![
                line("a", &[(1.0, 10.0), (8.0, 1000.0)]),
                line("b", &[]),
                line("c", &[(4.0, 3.0)]),
            ];
            let (across, upwards, title) = ("x", "y", "t".to_owned());
            let chart = Chart { name: "n", title, across, upwards, logarithmic, lines };
            let text = chart.draw();
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
            assert_eq!(text.matches("<circle").count(), 3);
            let top = format!("cy=\"{TOP:.1}\"");
            assert_eq!(text.contains(&top), logarithmic, "only an axis from 0 has room above");
        }
        let empty = Chart {
            name: "n",
            title: String::new(),
            across: "",
            upwards: "",
            logarithmic: true,
            lines: vec![],
        };
        assert!(empty.draw().ends_with("</svg>\n"));
    }
}
