//! How a running node is, and what its actors do: `health`, `stack`, `log-level`.

use rebeam_protocol::outside::{Answer, Request, TreeRequest};
use serde_json::json;

use crate::cli::client::Client;
use crate::cli::render;
use crate::config;
use crate::view::failure::Failure;
use crate::view::members::health_json;
use crate::view::text::in_line;

/// `rebeam health`: for a probe that runs a program.
pub(super) fn health(client: &mut Client, as_json: bool) -> Result<(), Failure> {
    let Answer::Health(health) = client.expect(Request::Health)? else {
        return Err(Failure::request("an unexpected answer"));
    };
    if as_json {
        render::data(&health_json(&health).to_string());
    } else if health.is_ready() {
        render::data("ready");
    }
    if health.is_ready() {
        return Ok(());
    }
    let failure = Failure::request(format!("not ready: the node is {}", health.state.word()));
    let failure = health
        .troubles
        .iter()
        .fold(failure, |failure, trouble| failure.cause(format!("{}: {}", trouble.actor, trouble.detail)));
    Err(Failure { is_told: as_json, ..failure })
}

/// `rebeam stack`: what actors do right now.
pub(super) fn stack(client: &mut Client, name: Option<&str>, as_json: bool) -> Result<(), Failure> {
    let request = Request::Stacks { name: name.map(str::to_owned) };
    let Answer::Stacks(stacks) = client.expect(request)? else {
        return Err(Failure::request("an unexpected answer"));
    };
    if let (Some(name), []) = (name, stacks.as_slice()) {
        return Err(Failure::request(format!("`{name}` has no process that could tell")));
    }
    if as_json {
        let one = |(actor, stacks): &(String, Result<String, String>)| match stacks {
            Ok(stacks) => json!({ "actor": actor, "stacks": stacks, "why_not": null }),
            Err(why) => json!({ "actor": actor, "stacks": null, "why_not": why }),
        };
        render::data(&serde_json::Value::Array(stacks.iter().map(one).collect()).to_string());
        return Ok(());
    }
    let blocks = stacks.iter().map(|(actor, stacks)| {
        let text = stacks.as_ref().unwrap_or_else(|why| why);
        format!("{}\n{}", in_line(actor), text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"))
    });
    render::data(&blocks.collect::<Vec<_>>().join("\n\n"));
    Ok(())
}

/// `rebeam log-level`.
pub(super) fn log_level(client: &mut Client, name: &str, level: &str) -> Result<(), Failure> {
    let level = config::parse_level(level)?;
    client.expect_of_tree(TreeRequest::LogLevel { name: name.to_owned(), level }).map(drop)
}
