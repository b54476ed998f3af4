//! The command line: one function per command. Nothing may depend on this module but `main`.

pub(crate) mod args;
mod batch;
mod batch_report;
mod client;
mod dead;
mod doctor;
mod inspect;
mod list;
mod names;
pub(crate) mod render;
mod start;
mod tables;

use rebeam_protocol::message::{CallFailure, Outcome};
use rebeam_protocol::outside::{Answer, Reloaded, Request, TreeRequest};
use rebeam_protocol::value;

use crate::cli::args::{Cli, Command};
use crate::cli::client::Client;
use crate::config::{self, Project};
use crate::view::crash::{certificate_json, plain_crash_block};
use crate::view::failure::Failure;
use crate::view::{self, values};

/// Does what the command line says.
///
/// # Errors
/// What went wrong, for the one renderer.
pub(crate) fn run(cli: &Cli) -> Result<(), Failure> {
    if let Command::Version(output) = &cli.command {
        let version = env!("CARGO_PKG_VERSION");
        render::data(&if output.json {
            serde_json::json!({ "version": version }).to_string()
        } else {
            format!("rebeam {version}")
        });
        return Ok(());
    }
    let here = std::env::current_dir()
        .map_err(|error| Failure::usage("the current directory cannot be read").because(&error))?;
    let project = match &cli.project {
        Some(directory) => {
            let path = here.join(directory);
            let path = path.canonicalize().map_err(|error| {
                Failure::usage(format!("there is no project directory `{}`", directory.display())).because(&error)
            })?;
            let mut project = Project::find(&path);
            project.directory = path;
            project
        }
        None => Project::find(&here),
    };
    let runtime_dir = cli.runtime_dir.as_deref();
    let connect = || Client::connect(&project, runtime_dir);
    match &cli.command {
        Command::Version(_) => Ok(()),
        Command::Up(up) => start::up(up, &project, runtime_dir, &here),
        Command::Batch(batch) => batch::run(batch, &project, runtime_dir, &here),
        Command::Run(run) => start::run(run, &project, runtime_dir, &here),
        Command::Stack(stack) => inspect::stack(&mut connect()?, stack.name.as_deref(), stack.json),
        Command::LogLevel(it) => inspect::log_level(&mut connect()?, &it.name, &it.level),
        Command::Health(output) => inspect::health(&mut connect()?, output.json),
        Command::Doctor(it) => doctor::run(&project, runtime_dir, it.python.as_deref(), it.json),
        Command::Ps(output) => list::ps(&mut connect()?, output.json),
        Command::Tree(output) => list::tree(&mut connect()?, output.json),
        Command::Call(call) => self::call(&mut connect()?, call),
        Command::Cast(cast) => self::cast(&mut connect()?, &cast.message),
        Command::Reload(output) => reload(&mut connect()?, output.json),
        Command::Stop(it) => connect()?.expect_of_tree(TreeRequest::Stop { name: it.name.clone() }).map(drop),
        Command::Restart(it) => connect()?.expect_of_tree(TreeRequest::Restart { name: it.name.clone() }).map(drop),
        Command::Why(why) => self::why(&mut connect()?, why),
        Command::Dead(dead) => dead::run(&mut connect()?, dead),
        Command::Names(it) => names::names(&mut connect()?, it.registry.as_deref(), it.json),
        Command::Groups(output) => names::groups(&mut connect()?, output.json),
        Command::Table(table) => tables::run(&mut connect()?, &table.command),
        Command::Down(down) => {
            let mut client = connect()?;
            client.expect_of_tree(TreeRequest::Down)?;
            if !down.no_wait {
                client.wait_for_end();
            }
            Ok(())
        }
    }
}

fn call(client: &mut Client, call: &args::Call) -> Result<(), Failure> {
    let timeout = config::parse_seconds("timeout", call.timeout)?;
    let message = &call.message;
    let request = Request::Call {
        name: message.name.clone(),
        method: message.method.clone(),
        timeout_ms: timeout.as_millis() as u64,
    };
    let (answer, payload) = client.ask(request, &value::encode(&values::arguments(&message.args)))?;
    match answer {
        Answer::Outcome(Outcome::Returned(_)) => {
            let value = value::decode(&payload).map_err(Failure::request)?;
            let json = values::to_json(&value);
            match (&json, call.json) {
                (serde_json::Value::String(text), false) => render::text(text),
                (serde_json::Value::Null, false) => {}
                _ => render::data(&json.to_string()),
            }
            Ok(())
        }
        Answer::Outcome(Outcome::Raised(raised)) => {
            Err(Failure::request(format!("`{}` of `{}` raised {raised}", message.method, message.name))
                .detail(raised.traceback.trim_end().to_owned()))
        }
        Answer::Outcome(Outcome::Failed(failure)) => Err(client::call_failure(&failure)),
        Answer::NotFound { name, similar } => Err(client::not_found(&name, &similar)),
        Answer::Refused(text) => Err(Failure::request(text)),
        other => Err(client::unexpected(&other)),
    }
}

fn cast(client: &mut Client, message: &args::Message) -> Result<(), Failure> {
    let request = Request::Cast { name: message.name.clone(), method: message.method.clone() };
    match client.ask(request, &value::encode(&values::arguments(&message.args)))?.0 {
        Answer::NotFound { name, similar } => Err(client::not_found(&name, &similar)),
        Answer::Outcome(Outcome::Failed(CallFailure::NoProc { target, .. })) => {
            Err(Failure::request(format!("`{target}` is down")).hint(format!("`rebeam restart {target}` starts it")))
        }
        Answer::Refused(text) => Err(Failure::request(text)),
        _ => Ok(()),
    }
}

fn reload(client: &mut Client, json: bool) -> Result<(), Failure> {
    let answer = client.ask(Request::Reload, &[])?.0;
    match answer {
        Answer::Reloaded(reloaded) if json => {
            let changes = reloaded.as_ref().map(view::reload::changes).unwrap_or_default();
            let version = reloaded.as_ref().map(|reloaded| reloaded.version.0);
            render::data(&serde_json::json!({ "version": version, "changes": changes }).to_string());
            reloaded.map_or(Ok(()), |reloaded| failed_reload(&reloaded))
        }
        Answer::Reloaded(None) => {
            render::data("no code has changed");
            Ok(())
        }
        Answer::Reloaded(Some(reloaded)) => {
            render::data(&view::reload::outcome(&reloaded));
            view::reload::details(&reloaded).iter().for_each(|line| render::data(line));
            failed_reload(&reloaded)
        }
        Answer::NotReloaded(error) => {
            let mut failure = Failure::request(format!("not reloaded, the old code goes on: {}", error.message));
            if let Some(traceback) = error.traceback {
                failure = failure.detail(traceback.trim_end().to_owned());
            }
            Err(match error.hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            })
        }
        Answer::Refused(text) => Err(Failure::request(text)),
        other => Err(client::unexpected(&other)),
    }
}

/// The failure of a reload in which some actor's new code has failed.
fn failed_reload(reloaded: &Reloaded) -> Result<(), Failure> {
    match view::reload::failures(reloaded).into_iter().next() {
        Some((line, traceback)) => Err(Failure::request(line).detail(traceback.trim_end().to_owned())),
        None => Ok(()),
    }
}

fn why(client: &mut Client, why: &args::Why) -> Result<(), Failure> {
    let deaths = match client.expect_of_tree(TreeRequest::Why { name: why.name.clone() })? {
        Answer::Why(deaths) => deaths,
        other => return Err(client::unexpected(&other)),
    };
    if why.json {
        let all: Vec<_> = deaths.iter().map(|(it, next)| certificate_json(it, *next)).collect();
        render::data(&serde_json::Value::Array(all).to_string());
    } else if deaths.is_empty() {
        render::data(&format!("`{}` has not died", why.name));
    } else {
        let blocks = deaths.iter().map(|(certificate, next)| plain_crash_block(certificate, *next));
        render::data(&blocks.collect::<Vec<_>>().join("\n\n"));
    }
    Ok(())
}
