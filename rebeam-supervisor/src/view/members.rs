//! Members of the tree, as `ps` and `tree` show them, and how a node is.

use std::time::Duration;

use rebeam_protocol::id::Version;
use rebeam_protocol::outside::{ChildInfo, Health, MemberKind};
use serde_json::{Value as Json, json};

use crate::view::text::{duration, kib};

/// How a node is, as data.
pub(crate) fn health_json(health: &Health) -> Json {
    json!({ "ready": health.is_ready(), "state": health.state, "troubles": health.troubles })
}

/// A line of `rebeam tree`.
pub(crate) fn describe(child: &ChildInfo) -> String {
    let id = child.id.rsplit('/').next().unwrap_or(&child.id);
    let restarts = match child.restarts {
        0 => String::new(),
        1 => ", 1 restart".into(),
        n => format!(", {n} restarts"),
    };
    let class = match &child.kind {
        MemberKind::Supervisor(sort) => return format!("{id} ({}{restarts}) {}", sort.word(), child.state),
        MemberKind::Actor(class) => class,
    };
    let name = child.name.as_deref().filter(|name| *name != id).map(|name| format!(" \"{name}\"")).unwrap_or_default();
    let process = child.os_pid.map(|os_pid| format!(" {os_pid}")).unwrap_or_default();
    let code = child.code.filter(|code| *code != Version::FIRST).map(|code| format!(", {code}")).unwrap_or_default();
    format!("{id}{name} ({class}) {}{process}{code}{restarts}", child.state)
}

/// A row of `rebeam ps`.
pub(crate) fn row(child: &ChildInfo) -> Vec<String> {
    vec![
        child.name.clone().unwrap_or_else(|| child.id.clone()),
        child.state.word().to_owned(),
        child.os_pid.map_or("-".into(), |os_pid| os_pid.to_string()),
        child.restarts.to_string(),
        child.waiting.to_string(),
        child.memory_kib.map_or("-".into(), kib),
        child.age_ms.map_or("-".into(), |ms| duration(Duration::from_millis(ms))),
        child
            .busy
            .as_ref()
            .map_or(String::new(), |(method, ms)| format!("`{method}` for {}", duration(Duration::from_millis(*ms)))),
    ]
}

/// An actor as data.
pub(crate) fn child_json(child: &ChildInfo) -> Json {
    let class = if let MemberKind::Actor(class) = &child.kind { class } else { "" };
    json!({
        "id": child.id,
        "name": child.name,
        "state": child.state.word(),
        "class": class,
        "pid": child.pid.map(|pid| pid.to_string()),
        "os_pid": child.os_pid,
        "version": child.code.map(|code| code.0),
        "restarts": child.restarts,
        "waiting": child.waiting,
        "expired": child.expired,
        "memory_kib": child.memory_kib,
        "age_s": child.age_ms.map(|ms| ms as f64 / 1000.0),
        "busy": child.busy.as_ref().map(|(method, ms)| json!({ "method": method, "age_s": *ms as f64 / 1000.0 })),
    })
}

/// The children from `depth` on, each with its own; and how many entries that took.
pub(crate) fn nest(children: &[ChildInfo], depth: u32) -> (Vec<Json>, usize) {
    let mut nested = Vec::new();
    let mut used = 0;
    while let Some(child) = children.get(used).filter(|child| child.depth == depth) {
        used += 1;
        if let MemberKind::Supervisor(sort) = child.kind {
            let (below, taken) = nest(&children[used..], depth + 1);
            used += taken;
            nested.push(json!({
                "id": child.id,
                "supervisor": true,
                "strategy": sort.word(),
                "state": child.state.word(),
                "restarts": child.restarts,
                "children": below,
            }));
        } else {
            nested.push(child_json(child));
        }
    }
    (nested, used)
}
