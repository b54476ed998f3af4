//! What became of a reload, as people read it and as data.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rebeam_protocol::outside::{Change, Failure, Fate, Reloaded};
use serde_json::{Value, json};

use crate::view::text::{duration, in_line};

/// How many names stand in a line before the rest is counted.
const MOST_NAMES: usize = 4;

/// The first line: what has changed, and who has gone over.
pub(crate) fn summary(reloaded: &Reloaded, files: &[PathBuf], took: Duration) -> String {
    let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let files = if files.is_empty() { "as asked".to_owned() } else { listed(&files) };
    format!("reloaded to {} in {}: {files}; {}", reloaded.version, duration(took), through(reloaded))
}

/// The same, without the files, for whoever has asked for it.
pub(crate) fn outcome(reloaded: &Reloaded) -> String {
    format!("reloaded to {}: {}", reloaded.version, through(reloaded))
}

/// Who has gone over, and how long they stood still.
fn through(reloaded: &Reloaded) -> String {
    let of = |is_it: fn(&Fate) -> bool| -> Vec<String> {
        reloaded
            .changes
            .iter()
            .filter(|change| is_it(&change.fate))
            .map(|change| in_line(&change.actor).into())
            .collect()
    };
    let words = [
        (of(|fate| matches!(fate, Fate::Moved { .. })), "moved with state and mail"),
        (of(|fate| matches!(fate, Fate::StartedOver { .. })), "started over"),
        (of(|fate| matches!(fate, Fate::Added)), "added"),
        (of(|fate| matches!(fate, Fate::Removed)), "removed"),
        (of(|fate| matches!(fate, Fate::Respecified)), "restarted with new options"),
        (of(|fate| matches!(fate, Fate::Failed { what: Failure::Start, .. })), "did not start"),
        (of(is_failed_move), "not moved, since code has failed"),
        (of(|fate| matches!(fate, Fate::Stays { .. })), "not moved"),
    ];
    let words: Vec<String> = words
        .iter()
        .filter(|(names, _)| !names.is_empty())
        .map(|(names, what)| format!("{} {what}", listed(names)))
        .collect();
    let mut still: Vec<u64> = reloaded.changes.iter().filter_map(still_us).collect();
    still.sort_unstable();
    let still = match (still.first(), still.last()) {
        (Some(first), Some(last)) if first == last => format!(" (stood still for {})", ms(*last)),
        (Some(first), Some(last)) => format!(" (stood still for {} to {})", ms(*first), ms(*last)),
        _ => String::new(),
    };
    match words.is_empty() {
        true => "no actor imports that code".into(),
        false => format!("{}{still}", words.join("; ")),
    }
}

fn still_us(change: &Change) -> Option<u64> {
    match change.fate {
        Fate::Moved { still_us } | Fate::StartedOver { still_us, .. } => Some(still_us),
        _ => None,
    }
}

fn ms(us: u64) -> String {
    duration(Duration::from_micros(us))
}

pub(crate) fn listed(names: &[String]) -> String {
    match names.len() {
        0..=MOST_NAMES => names.join(", "),
        all => format!("{} and {} more", names[..MOST_NAMES - 1].join(", "), all - (MOST_NAMES - 1)),
    }
}

/// Further lines: why somebody started over, or stays.
pub(crate) fn details(reloaded: &Reloaded) -> Vec<String> {
    let mut by_why: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for change in &reloaded.changes {
        let (what, why) = match &change.fate {
            Fate::StartedOver { why: Some(why), .. } => ("started over without its state", why),
            Fate::Stays { why } => ("not moved", why),
            _ => continue,
        };
        by_why.entry((what, why)).or_default().push(in_line(&change.actor).into());
    }
    by_why.into_iter().map(|((what, why), names)| format!("{} {what}: {}", listed(&names), in_line(why))).collect()
}

/// What has failed: a line for each, and its traceback.
pub(crate) fn failures(reloaded: &Reloaded) -> Vec<(String, String)> {
    let failed = reloaded.changes.iter().filter_map(|change| match &change.fate {
        Fate::Failed { what, why } => Some((change, *what, why)),
        _ => None,
    });
    let line = |change: &Change, what: Failure| {
        let actor = in_line(&change.actor);
        match what {
            Failure::NewCode => {
                format!("the new code of `{}` has failed in `{actor}`, which runs the code before again", change.class)
            }
            Failure::OldCode => format!(
                "`{actor}` goes on as it was: the code that it runs has failed as it was to hand over its state; \
                 `rebeam restart {actor}` starts it over with the new code"
            ),
            Failure::Start => {
                format!("`{actor}`, which is new in the tree, did not start; it is tried again when its code changes")
            }
        }
    };
    failed.map(|(change, what, why)| (line(change, what), why.clone())).collect()
}

fn is_failed_move(fate: &Fate) -> bool {
    matches!(fate, Fate::Failed { what: Failure::NewCode | Failure::OldCode, .. })
}

/// The same as data.
pub(crate) fn data(reloaded: &Reloaded, files: &[PathBuf], took: Duration) -> Value {
    let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    json!({
        "version": reloaded.version.0,
        "files": files,
        "took_s": took.as_secs_f64(),
        "changes": changes(reloaded),
    })
}

/// What it was to each.
pub(crate) fn changes(reloaded: &Reloaded) -> Vec<Value> {
    let change = |change: &Change| {
        let (fate, why) = match &change.fate {
            Fate::Moved { .. } => ("moved", None),
            Fate::StartedOver { why, .. } => ("started_over", why.as_ref()),
            Fate::Failed { what: Failure::Start, why } => ("not_started", Some(why)),
            Fate::Failed { why, .. } => ("failed", Some(why)),
            Fate::Stays { why } => ("stays", Some(why)),
            Fate::Added => ("added", None),
            Fate::Removed => ("removed", None),
            Fate::Respecified => ("respecified", None),
        };
        let still_s = still_us(change).map(|us| us as f64 / 1e6);
        json!({ "actor": change.actor, "class": change.class, "fate": fate, "why": why, "still_s": still_s })
    };
    reloaded.changes.iter().map(change).collect()
}
