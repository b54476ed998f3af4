//! `ps` and `tree`: what runs, as a table, as a tree, as JSON.

use std::time::Duration;

use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::control::{Answer, ChildInfo, Request};
use rebeam_protocol::exit::ExitReason;
use serde_json::{Value as Json, json};

use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::render::{self, duration, kib};

/// `rebeam ps`.
pub(crate) fn ps(client: &mut Client, as_json: bool) -> Result<(), Failure> {
    let children = list(client)?;
    if as_json {
        let actors: Vec<Json> = children.iter().filter(|child| !child.supervisor).map(child_json).collect();
        render::data(&Json::Array(actors).to_string());
        return Ok(());
    }
    let rows: Vec<Vec<String>> = children.iter().filter(|child| !child.supervisor).map(row).collect();
    render::data(&render::table(&["NAME", "STATE", "PROCESS", "RESTARTS", "WAITING", "MEMORY", "AGE", "DOING"], &rows));
    Ok(())
}

/// `rebeam tree`.
pub(crate) fn tree(client: &mut Client, as_json: bool) -> Result<(), Failure> {
    let children = list(client)?;
    if as_json {
        let (nested, _) = nest(&children, 0);
        render::data(&json!({ "id": "root", "supervisor": true, "children": nested }).to_string());
        return Ok(());
    }
    let mut lines = vec!["root".to_owned()];
    let mut is_last_at: Vec<bool> = Vec::new();
    for (index, child) in children.iter().enumerate() {
        let depth = child.depth as usize;
        let next = children[index + 1..].iter().find(|other| other.depth <= child.depth);
        is_last_at.truncate(depth);
        is_last_at.push(next.is_none_or(|next| next.depth < child.depth));
        let indent: String = is_last_at[..depth].iter().map(|last| if *last { "   " } else { "│  " }).collect();
        let branch = if is_last_at[depth] { "└─ " } else { "├─ " };
        lines.push(format!("{indent}{branch}{}", describe(child)));
    }
    render::data(&lines.join("\n"));
    Ok(())
}

fn list(client: &mut Client) -> Result<Vec<ChildInfo>, Failure> {
    match client.expect(&Request::List)? {
        Answer::List(children) => Ok(children),
        _ => Err(Failure::request("an answer that does not fit")),
    }
}

fn describe(child: &ChildInfo) -> String {
    let id = child.id.rsplit('/').next().unwrap_or(&child.id);
    let restarts = match child.restarts {
        0 => String::new(),
        1 => ", 1 restart".into(),
        n => format!(", {n} restarts"),
    };
    if child.supervisor {
        return format!("{id} ({}{restarts}) {}", strategy(&child.class), child.state);
    }
    let name = child.name.as_deref().filter(|name| *name != id).map(|name| format!(" \"{name}\"")).unwrap_or_default();
    let process = child.os_pid.map(|os_pid| format!(" {os_pid}")).unwrap_or_default();
    format!("{id}{name} ({}) {}{process}{restarts}", child.class, child.state)
}

fn next_json(next: Next) -> Json {
    match next {
        Next::Nothing => Json::Null,
        Next::Restarts { after_ms } => json!({ "restarts_after_s": after_ms as f64 / 1000.0 }),
        Next::StaysDown => json!("stays_down"),
        Next::GivesUp => json!("gives_up"),
        Next::Parked => json!("parked"),
    }
}

fn strategy(name: &str) -> &str {
    match name {
        "Dynamic" => "dynamic",
        "Partition" => "partition",
        "Registry" => "registry",
        "OneForAll" => "one_for_all",
        "RestForOne" => "rest_for_one",
        _ => "one_for_one",
    }
}

fn row(child: &ChildInfo) -> Vec<String> {
    vec![
        child.name.clone().unwrap_or_else(|| child.id.clone()),
        child.state.clone(),
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

fn child_json(child: &ChildInfo) -> Json {
    json!({
        "id": child.id,
        "name": child.name,
        "state": child.state,
        "class": child.class,
        "pid": child.pid.map(|pid| pid.to_string()),
        "os_pid": child.os_pid,
        "restarts": child.restarts,
        "waiting": child.waiting,
        "expired": child.expired,
        "memory_kib": child.memory_kib,
        "age_s": child.age_ms.map(|ms| ms as f64 / 1000.0),
        "busy": child.busy.as_ref().map(|(method, ms)| json!({ "method": method, "age_s": *ms as f64 / 1000.0 })),
    })
}

/// The children from `depth` on, each with its own; and how many entries that took.
fn nest(children: &[ChildInfo], depth: u32) -> (Vec<Json>, usize) {
    let mut nested = Vec::new();
    let mut used = 0;
    while let Some(child) = children.get(used).filter(|child| child.depth == depth) {
        used += 1;
        if child.supervisor {
            let (below, taken) = nest(&children[used..], depth + 1);
            used += taken;
            nested.push(json!({
                "id": child.id,
                "supervisor": true,
                "strategy": strategy(&child.class),
                "state": child.state,
                "restarts": child.restarts,
                "children": below,
            }));
        } else {
            nested.push(child_json(child));
        }
    }
    (nested, used)
}

/// A certificate as JSON.
pub(crate) fn certificate_json(certificate: &Certificate) -> Json {
    let traceback = match &certificate.reason {
        ExitReason::Exception(raised) => Some(&raised.traceback),
        _ => None,
    };
    let in_hand: Vec<Json> = certificate
        .in_hand
        .iter()
        .map(|message| {
            json!({
                "method": message.method,
                "sender": message.sender,
                "age_s": message.age_ms as f64 / 1000.0,
                "delivery": message.delivery,
            })
        })
        .collect();
    json!({
        "actor": certificate.actor,
        "pid": certificate.pid.to_string(),
        "os_pid": certificate.os_pid,
        "kind": certificate.reason.kind(),
        "reason": certificate.reason.to_string(),
        "traceback": traceback,
        "in_hand": in_hand,
        "killer": certificate.killer.words(),
        "stacks": certificate.stacks,
        "next": next_json(certificate.next),
        "last_output": certificate.last_output,
        "age_s": certificate.age_ms as f64 / 1000.0,
        "cpu_s": certificate.cpu_ms as f64 / 1000.0,
        "peak_kib": certificate.peak_kib,
        "restarts": certificate.restarts,
    })
}
