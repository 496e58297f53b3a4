//! Small SVG plots, by hand: curves of latency by percentile, and rows of figures with their spread.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

/// Colours that are told apart in print and by those who see fewer of them.
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666", "#8c564b",
];
/// The percentiles along the axis, and between them as many points again.
const NINES: [f64; 6] = [0.0, 0.9, 0.99, 0.999, 0.9999, 0.99999];

/// How long deliveries took, for one line of a plot.
#[derive(Debug, Clone, Default)]
pub struct Curve {
    /// What it is of.
    pub name: String,
    /// The share of deliveries, from 0 to less than 1, that took at most so many microseconds.
    pub points: Vec<(f64, u64)>,
}

impl Curve {
    /// The curve of a histogram in microseconds.
    #[must_use]
    pub fn of(name: &str, latency: &Histogram<u64>) -> Self {
        let mut points = Vec::new();
        let count = latency.len();
        // Down to the last delivery, and no further: beyond it all percentiles are the maximum.
        let end = (count.max(1) as f64).log10().min(5.0);
        let steps = 60;
        for step in 0..=steps {
            let nines = end * f64::from(step) / f64::from(steps);
            let share = 1.0 - 10_f64.powf(-nines);
            if count > 0 {
                points.push((share, latency.value_at_quantile(share).max(1)));
            }
        }
        Self {
            name: name.to_owned(),
            points,
        }
    }
}

/// A plot of curves: percentile across, latency upwards, both on scales that spread what is rare and what is small.
#[must_use]
pub fn latencies(title: &str, curves: &[Curve]) -> String {
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 420.0;
    const LEFT: f64 = 70.0;
    const RIGHT: f64 = 700.0;
    const TOP: f64 = 50.0;
    const BOTTOM: f64 = 330.0;
    let values = || curves.iter().flat_map(|curve| &curve.points);
    let least = values().map(|(_, us)| *us).min().unwrap_or(1) as f64;
    let most = values().map(|(_, us)| *us).max().unwrap_or(1000) as f64;
    let (low, high) = decades(least, most);
    let nines = |share: f64| -(1.0 - share).log10();
    let end = values().map(|(share, _)| nines(*share)).fold(1.0, f64::max);
    // A hair less, so that five nines are not six.
    let end = (end - 1e-6).ceil();
    let x = |share: f64| LEFT + (RIGHT - LEFT) * nines(share) / end;
    let y = |us: f64| BOTTOM - (BOTTOM - TOP) * (us.log10() - low) / (high - low);
    let mut svg = head(WIDTH, HEIGHT, title);
    for (at, share) in NINES.iter().enumerate().filter(|(at, _)| *at as f64 <= end) {
        let (x, label) = (x(*share), percentile(at, *share));
        line(&mut svg, (x, TOP), (x, BOTTOM), "#ddd");
        text(&mut svg, (x, BOTTOM + 18.0), "middle", &label);
    }
    let mut decade = low;
    while decade <= high {
        let us = 10_f64.powf(decade);
        line(&mut svg, (LEFT, y(us)), (RIGHT, y(us)), "#ddd");
        text(&mut svg, (LEFT - 8.0, y(us) + 4.0), "end", &tick(us));
        decade += 1.0;
    }
    let middle = f64::midpoint(LEFT, RIGHT);
    text(
        &mut svg,
        (middle, BOTTOM + 38.0),
        "middle",
        "percentile of deliveries",
    );
    for (at, curve) in curves.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let mut points = String::new();
        for (share, us) in &curve.points {
            write!(points, "{:.1},{:.1} ", x(*share), y(*us as f64))
                .expect("writing to a string can't fail");
        }
        push(
            &mut svg,
            format_args!(
                r#"<polyline fill="none" stroke="{colour}" stroke-width="2" points="{}"/>"#,
                points.trim_end()
            ),
        );
        legend(
            &mut svg,
            at,
            (LEFT, BOTTOM + 60.0),
            210.0,
            colour,
            &curve.name,
        );
    }
    svg + "</svg>\n"
}

/// One row of a plot of figures.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Whose figure, its median, its least and its greatest.
    pub figures: Vec<(String, [f64; 3])>,
}

/// A plot of figures over 0: a dot for each median on a logarithmic scale, and a line for its spread.
#[must_use]
pub fn figures(title: &str, unit: &str, rows: &[Row]) -> String {
    const WIDTH: f64 = 820.0;
    const LEFT: f64 = 270.0;
    const RIGHT: f64 = 790.0;
    const TOP: f64 = 50.0;
    const STEP: f64 = 34.0;
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.figures) {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    let bottom = TOP + STEP * rows.len() as f64;
    let legend_rows = names.len().div_ceil(4) as f64;
    let values = || rows.iter().flat_map(|row| &row.figures);
    let least = values()
        .map(|(_, [_, least, _])| *least)
        .fold(f64::MAX, f64::min);
    let most = values().map(|(_, [_, _, most])| *most).fold(0.0, f64::max);
    let (low, high) = decades(least.min(most), most);
    let x = |value: f64| LEFT + (RIGHT - LEFT) * (value.log10() - low) / (high - low);
    let mut svg = head(WIDTH, bottom + 60.0 + 20.0 * legend_rows, title);
    let mut decade = low;
    while decade <= high {
        let value = 10_f64.powf(decade);
        line(&mut svg, (x(value), TOP), (x(value), bottom), "#ddd");
        text(
            &mut svg,
            (x(value), bottom + 18.0),
            "middle",
            &format!("{value} {unit}"),
        );
        decade += 1.0;
    }
    for (at, row) in rows.iter().enumerate() {
        let y = TOP + STEP * (at as f64 + 0.5);
        line(&mut svg, (LEFT, y), (RIGHT, y), "#eee");
        text(&mut svg, (LEFT - 10.0, y + 4.0), "end", &row.name);
        for (name, [median, least, most]) in &row.figures {
            let which = names.iter().position(|known| known == name).unwrap_or(0);
            let colour = COLOURS[which % COLOURS.len()];
            // Side by side enough to be seen where they coincide.
            let y = y + (which as f64 - (names.len() as f64 - 1.0) / 2.0) * 3.0;
            line(&mut svg, (x(*least), y), (x(*most), y), colour);
            push(
                &mut svg,
                format_args!(
                    r#"<circle cx="{:.1}" cy="{y:.1}" r="4" fill="{colour}"/>"#,
                    x(*median)
                ),
            );
        }
    }
    for (at, name) in names.iter().enumerate() {
        legend(
            &mut svg,
            at,
            (40.0, bottom + 44.0),
            180.0,
            COLOURS[at % COLOURS.len()],
            name,
        );
    }
    svg + "</svg>\n"
}

/// The powers of ten around a range, one apart at least.
fn decades(least: f64, most: f64) -> (f64, f64) {
    let low = least.max(1e-6).log10().floor();
    let high = most.max(1e-6).log10().ceil();
    (low, high.max(low + 1.0))
}

fn percentile(at: usize, share: f64) -> String {
    match at {
        0 => "0 %".to_owned(),
        _ => format!("{:.*} %", at.saturating_sub(2), share * 100.0),
    }
}

/// A power of ten in microseconds, as it stands at an axis.
fn tick(us: f64) -> String {
    match us {
        us if us < 999.0 => format!("{us:.0} µs"),
        us if us < 999e3 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.0} s", us / 1e6),
    }
}

/// A time in microseconds, as a person writes it.
#[must_use]
pub fn time(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0} µs"),
        us if us < 10e3 => format!("{:.2} ms", us / 1e3),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

fn head(width: f64, height: f64, title: &str) -> String {
    let mut svg = String::new();
    push(
        &mut svg,
        format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">"#
        ),
    );
    push(
        &mut svg,
        format_args!(r##"<rect width="{width}" height="{height}" fill="#fff"/>"##),
    );
    push(
        &mut svg,
        format_args!(
            r#"<text x="{}" y="28" text-anchor="middle" font-size="15">{}</text>"#,
            width / 2.0,
            escape(title)
        ),
    );
    svg
}

fn push(svg: &mut String, element: std::fmt::Arguments<'_>) {
    writeln!(svg, "{element}").expect("writing to a string can't fail");
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    push(
        svg,
        format_args!(
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{colour}"/>"#,
            from.0, from.1, to.0, to.1
        ),
    );
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    push(
        svg,
        format_args!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>"#,
            at.0,
            at.1,
            escape(words)
        ),
    );
}

fn legend(svg: &mut String, at: usize, from: (f64, f64), width: f64, colour: &str, name: &str) {
    let (x, y) = (
        from.0 + width * (at % 4) as f64,
        from.1 + 20.0 * (at / 4) as f64,
    );
    push(
        svg,
        format_args!(
            r#"<rect x="{x:.1}" y="{:.1}" width="12" height="12" fill="{colour}"/>"#,
            y - 10.0
        ),
    );
    text(svg, (x + 18.0, y), "start", name);
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tag is closed, nothing stands outside of the one root, and no number is missing.
    fn assert_well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, text) = tag.split_once('>').expect("every tag ends");
            assert!(!text.contains('>'), "{text}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        }
        assert!(open.is_empty() && svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn a_plot_of_latencies_is_well_formed_and_shows_every_curve() {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap();
        for us in 1..2000_u64 {
            histogram.record(us * 7).unwrap();
        }
        let curves = [
            Curve::of("a <b> & c", &histogram),
            Curve::of("other", &histogram),
        ];
        let svg = latencies("lone over \"tcp\"", &curves);
        assert_well_formed(&svg);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(
            svg.contains("99.9 %") && svg.contains("a &lt;b&gt; &amp; c"),
            "{svg}"
        );
    }

    #[test]
    fn plots_of_nothing_are_plots_all_the_same() {
        let empty = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap();
        assert_well_formed(&latencies("nothing", &[Curve::of("nothing", &empty)]));
        assert_well_formed(&latencies("nothing", &[]));
        assert_well_formed(&figures("nothing", "µs", &[]));
    }

    #[test]
    fn a_curve_never_falls_and_ends_with_the_last_delivery() {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap();
        for us in [5, 10, 900, 20] {
            histogram.record(us).unwrap();
        }
        let points = Curve::of("x", &histogram).points;
        assert!(points.is_sorted_by_key(|(_, us)| *us));
        assert!(points.last().unwrap().0 < 0.76);
    }

    #[test]
    fn a_plot_of_figures_is_well_formed_and_has_a_dot_for_each() {
        let row = |name: &str| Row {
            name: name.to_owned(),
            figures: vec![
                ("floor".to_owned(), [2.0, 1.5, 3.0]),
                ("chinwag".to_owned(), [2.2, 2.0, 2.5]),
            ],
        };
        let svg = figures("CPU", "µs", &[row("lone"), row("batched")]);
        assert_well_formed(&svg);
        assert_eq!(svg.matches("<circle").count(), 4);
    }

    #[test]
    fn times_are_written_as_a_person_writes_them() {
        let written = [1.0, 999.0, 1500.0, 25_000.0, 2_500_000.0].map(time);
        assert_eq!(written, ["1 µs", "999 µs", "1.50 ms", "25 ms", "2.5 s"]);
        let ticks = [2.0, 3.0, 6.0, 7.0].map(|power| tick(10_f64.powf(power)));
        assert_eq!(ticks, ["100 µs", "1 ms", "1 s", "10 s"]);
    }
}
