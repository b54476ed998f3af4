//! `rebeam dead`: messages that nobody handled.

use std::time::Duration;

use rebeam_protocol::message::DeadLetter;
use rebeam_protocol::outside::{Answer, DeadLetters, TreeRequest, Which};
use serde_json::json;

use crate::cli::args::{Dead, DeadCommand, Selection};
use crate::cli::client::{Client, unexpected};
use crate::cli::render;
use crate::view::crash::certificate_json;
use crate::view::crash::plain_crash_block;
use crate::view::failure::Failure;
use crate::view::text::{bytes, duration, in_line, table};

/// Does what `rebeam dead` says.
pub(crate) fn run(client: &mut Client, dead: &Dead) -> Result<(), Failure> {
    match &dead.command {
        DeadCommand::List(output) => list(client, output.json),
        DeadCommand::Show { id, json } => show(client, *id, *json),
        DeadCommand::Replay(selection) => {
            let count = count(client, DeadLetters::Replay(which(selection)?))?;
            render::data(&format!("{count} sent again"));
            Ok(())
        }
        DeadCommand::Drop(selection) => {
            let count = count(client, DeadLetters::Drop(which(selection)?))?;
            render::data(&format!("{count} forgotten"));
            Ok(())
        }
    }
}

fn which(selection: &Selection) -> Result<Which, Failure> {
    match (&selection.ids[..], &selection.to, selection.all) {
        (ids @ [_, ..], None, false) => Ok(Which::Ids(ids.to_vec())),
        ([], Some(actor), false) => Ok(Which::To(actor.clone())),
        ([], None, true) => Ok(Which::All),
        _ => Err(Failure::usage("which dead letters?").hint("give their numbers, or `--to ACTOR`, or `--all`")),
    }
}

fn count(client: &mut Client, request: DeadLetters) -> Result<u64, Failure> {
    let is_replay = matches!(request, DeadLetters::Replay(_));
    match client.expect_of_tree(TreeRequest::DeadLetters(request))? {
        Answer::Count(0) => Err(Failure::request("no dead letter was touched").hint(if is_replay {
            "only what has somebody to go to can be sent again; `rebeam dead list` shows what is kept"
        } else {
            "`rebeam dead list` shows what is kept"
        })),
        Answer::Count(count) => Ok(count),
        other => Err(unexpected(&other)),
    }
}

fn letters(client: &mut Client, request: DeadLetters) -> Result<(Vec<DeadLetter>, u64), Failure> {
    match client.expect_of_tree(TreeRequest::DeadLetters(request))? {
        Answer::DeadLetters { letters, forgotten } => Ok((letters, forgotten)),
        other => Err(unexpected(&other)),
    }
}

fn list(client: &mut Client, is_json: bool) -> Result<(), Failure> {
    let (letters, forgotten) = letters(client, DeadLetters::List)?;
    if is_json {
        let all: Vec<_> = letters.iter().map(as_json).collect();
        render::data(&json!({ "dead_letters": all, "forgotten": forgotten }).to_string());
        return Ok(());
    }
    let row = |letter: &DeadLetter| {
        vec![
            letter.id.to_string(),
            letter.to.clone(),
            letter.method.clone(),
            letter.sender.clone(),
            letter.cause.word().to_owned(),
            letter.deliveries.to_string(),
            bytes(letter.bytes),
        ]
    };
    let rows: Vec<_> = letters.iter().map(row).collect();
    render::data(&table(&["ID", "TO", "METHOD", "FROM", "CAUSE", "DELIVERIES", "SIZE"], &rows));
    if forgotten > 0 {
        render::note(&format!("{forgotten} older ones were forgotten for want of room"));
    }
    Ok(())
}

fn show(client: &mut Client, id: u64, is_json: bool) -> Result<(), Failure> {
    let (letters, _) = letters(client, DeadLetters::Show(id))?;
    let Some(letter) = letters.first() else { return Err(Failure::request(format!("there is no dead letter {id}"))) };
    if is_json {
        render::data(&as_json(letter).to_string());
        return Ok(());
    }
    let at = duration(Duration::from_millis(letter.at_ms));
    let mut text = format!(
        "dead letter {}: `{}` from {} to {}, {}\n{}; handed over {} times; {at} after the start of the node",
        letter.id,
        in_line(&letter.method),
        in_line(&letter.sender),
        in_line(&letter.to),
        bytes(letter.bytes),
        letter.cause.words(),
        letter.deliveries,
    );
    if !letter.is_kept {
        text += "\nits content was too large to be kept: it cannot be sent again";
    }
    for certificate in &letter.certificates {
        text += "\n\n";
        text += &plain_crash_block(certificate, certificate.next);
    }
    render::data(&text);
    Ok(())
}

fn as_json(letter: &DeadLetter) -> serde_json::Value {
    let mut fields = json!({
        "id": letter.id,
        "to": letter.to,
        "method": letter.method,
        "from": letter.sender,
        "cause": letter.cause.word(),
        "at_s": letter.at_ms as f64 / 1000.0,
        "deliveries": letter.deliveries,
        "bytes": letter.bytes,
        "is_kept": letter.is_kept,
    });
    // A list does without them.
    if !letter.certificates.is_empty() {
        fields["certificates"] = letter.certificates.iter().map(|it| certificate_json(it, it.next)).collect();
    }
    fields
}
