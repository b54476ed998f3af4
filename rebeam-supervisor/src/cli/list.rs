//! `ps` and `tree`: what runs, as a table, as a tree, as JSON.

use rebeam_protocol::outside::{Answer, ChildInfo, Request};
use serde_json::{Value as Json, json};

use crate::cli::client::{Client, unexpected};
use crate::cli::render;
use crate::view::failure::Failure;
use crate::view::members::{child_json, describe, nest, row};
use crate::view::text::{in_line, table};

/// `rebeam ps`.
pub(crate) fn ps(client: &mut Client, as_json: bool) -> Result<(), Failure> {
    let children = list(client)?;
    if as_json {
        let actors: Vec<Json> = children.iter().filter(|child| child.kind.is_actor()).map(child_json).collect();
        render::data(&Json::Array(actors).to_string());
        return Ok(());
    }
    let rows: Vec<Vec<String>> = children.iter().filter(|child| child.kind.is_actor()).map(row).collect();
    render::data(&table(&["NAME", "STATE", "PROCESS", "RESTARTS", "WAITING", "MEMORY", "AGE", "DOING"], &rows));
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
        lines.push(format!("{indent}{branch}{}", in_line(&describe(child))));
    }
    render::data(&lines.join("\n"));
    Ok(())
}

fn list(client: &mut Client) -> Result<Vec<ChildInfo>, Failure> {
    match client.expect(Request::List)? {
        Answer::List(children) => Ok(children),
        other => Err(unexpected(&other)),
    }
}
