//! The report of a batch as one page that needs nothing else: the figures as a table, how it went as a picture.

use std::error::Error;

use plotters::prelude::*;
use serde_json::Value;

const COLOURS: [RGBColor; 6] = [
    RGBColor(179, 71, 29),
    RGBColor(46, 98, 139),
    RGBColor(92, 138, 56),
    RGBColor(140, 90, 150),
    RGBColor(190, 150, 40),
    RGBColor(90, 90, 90),
];

/// The page.
pub(super) fn page(report: &Value) -> Result<String, Box<dyn Error>> {
    let name = escaped(text(&report["name"]));
    let mut rows = String::new();
    for stage in list(&report["stages"]) {
        let slowest: Vec<String> = list(&stage["slowest"])
            .iter()
            .map(|it| format!("{} ({:.3} s)", escaped(text(&it["id"])), number(&it["seconds"])))
            .collect();
        rows.push_str(&format!(
            "<tr><td>{}</td><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1}</td><td>{:.1}</td>\
             <td>{:.0} MiB</td><td>{:.0} %</td></tr><tr><td></td><td colspan=9 class=ids>slowest: {}</td></tr>",
            escaped(text(&stage["name"])),
            number(&stage["done"]),
            number(&stage["rate"]),
            number(&stage["failed"]),
            number(&stage["retries"]),
            number(&stage["deaths"]),
            number(&stage["busy_seconds"]),
            number(&stage["cpu_seconds"]),
            number(&stage["peak_kib"]) / 1024.0,
            number(&stage["busy"]) * 100.0,
            slowest.join(", "),
        ));
    }
    let mut failures = String::new();
    for failure in list(&report["failures"]) {
        let ids: Vec<String> = list(&failure["ids"]).iter().map(|id| escaped(text(id))).collect();
        failures.push_str(&format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=ids>{}</td></tr>",
            number(&failure["count"]),
            escaped(text(&failure["stage"])),
            escaped(text(&failure["cause"])),
            ids.join(", "),
        ));
    }
    let failures = if failures.is_empty() {
        "<p>Nothing failed.</p>".to_owned()
    } else {
        format!("<table><tr><th>items</th><th>stage</th><th>cause</th><th>such as</th></tr>{failures}</table>")
    };
    let why = report["why"].as_str().map_or(String::new(), |why| format!("<p>It ended early: {}</p>", escaped(why)));
    let again = match text(&report["command"]) {
        "" => String::new(),
        command => format!("<p>Run it again: <code>{}</code></p>", escaped(command)),
    };
    let counts = &report["counts"];
    Ok(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>body{{font:15px/1.5 sans-serif;\
         max-width:60em;margin:2em auto;padding:0 1em}}table{{border-collapse:collapse}}td,th{{text-align:left;padding:\
         .2em .8em .2em 0;border-bottom:1px solid #ddd}}.ids{{color:#666;font-size:13px}}svg{{max-width:100%;height:auto}}\
         </style><h1>{name}: {}</h1><p>{} done in this run, {} dead, {} wait between stages; {:.1} s; run {}.</p>{why}\
         <h2>Stages</h2><table><tr><th>stage</th><th>done</th><th>per s</th><th>failed</th><th>retries</th><th>deaths</th>\
         <th>work, s</th><th>CPU, s</th><th>peak</th><th>busy</th></tr>{rows}</table>{}<h2>Failures</h2>{failures}\
         {again}</html>",
        escaped(text(&report["state"])),
        number(&counts["done"]),
        number(&counts["dead"]),
        number(&counts["waiting"]),
        number(&report["seconds"]),
        number(&report["run"]),
        picture(report)?,
    ))
}

/// Items done over time, a line for each stage.
fn picture(report: &Value) -> Result<String, Box<dyn Error>> {
    let timeline = list(&report["timeline"]);
    let most = timeline.iter().flat_map(|it| list(&it[1])).map(number).fold(1.0, f64::max);
    let last = timeline.last().map_or(1.0, |it| number(&it[0])).max(0.001);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (900, 320)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(35)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..last, 0.0..most * 1.05)?;
        chart.configure_mesh().x_desc("seconds").y_desc("items done").light_line_style(WHITE).draw()?;
        for (number_of, stage) in list(&report["stages"]).iter().enumerate() {
            let colour = COLOURS[number_of % COLOURS.len()];
            let points = timeline.iter().map(|it| (number(&it[0]), number(&it[1][number_of])));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                .label(text(&stage["name"]))
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], colour.stroke_width(2)));
        }
        let place = SeriesLabelPosition::LowerRight;
        chart.configure_series_labels().position(place).background_style(WHITE).border_style(BLACK).draw()?;
        area.present()?;
    }
    Ok(svg)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_needs_nothing_else_and_believes_nobody() {
        let mut report = json!({
            "name": "p", "state": "done", "seconds": 2.0, "run": 1, "counts": { "done": 7, "dead": 1, "waiting": 0 },
            "stages": [{ "name": "parse", "done": 7, "slowest": [{ "id": "<script>", "seconds": 1.0 }] }],
            "failures": [{ "count": 1, "stage": "parse", "cause": "<b>", "ids": ["x"] }],
            "timeline": [[0.5, [3]], [1.0, [7]]],
        });
        report["command"] = json!("rebeam batch 'a&b.py'");
        let goes_on = page(&report).expect("it can be drawn");
        assert!(goes_on.contains("Run it again: <code>rebeam batch 'a&amp;b.py'</code>"), "{goes_on}");
        report["command"] = json!("");
        let page = page(&report).expect("it can be drawn");
        assert!(!page.contains("Run it again"), "there is nothing more to do: {page}");
        assert!(page.contains("<svg") && page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
        assert!(!page.contains("http://") || page.matches("http://").count() == page.matches("www.w3.org").count());
    }
}
