//! One incarnation of an actor: one life, served by one process after another.
//!
//! [`machine::Machine`] decides what its life allows; this module keeps what belongs to it besides: what it owes, what it
//! was asked, and when it is looked at.

mod before;
mod machine;
mod made;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::address::ReplyTo;
use rebeam_protocol::id::{ProcessId, Seq, Version};
use rebeam_protocol::message::Outcome;

pub(crate) use before::{Before, Code};
pub(crate) use machine::{Command, End, Limit, Machine, Manner, Stop};
pub(crate) use made::{Made, MadeBefore, MadeEntry};

use crate::event::{Launch, Ticket};
use crate::mailbox::Message;
use crate::timers::TimerKey;

/// What a process is asked to handle no mail for now, and to go on.
pub(crate) const SUSPEND: &str = "suspend";
pub(crate) const RESUME: &str = "resume";

#[derive(Debug)]
pub(crate) struct Incarnation {
    pub(crate) machine: Machine,
    pub(crate) since: Duration,
    /// When the limit of its life has passed.
    pub(crate) limit: Option<TimerKey>,
    /// Calls that it has taken and will answer later, in whichever process.
    owed: BTreeSet<ReplyTo>,
    /// What its process was asked and has not answered, oldest first. The next process is asked again.
    asked: Vec<Message>,
    /// Calls whose answers are passed on when it has ended.
    pub(crate) last_answers: Vec<LastAnswer>,
    /// The message whose handler has failed, if its process says that it ends for that.
    pub(crate) failed: Option<Seq>,
    /// Its process could not be made, and is tried again.
    pub(crate) postponed: Option<Postponed>,
    pub(crate) failed_launches: u32,
    /// Whether it was told to handle no mail for now.
    pub(crate) is_suspended: bool,
    /// Whether it is to be recycled once it handles mail again.
    pub(crate) recycles_later: bool,
    /// What its `init` has made.
    pub(crate) made: Made,
    /// What the process before this one had made, until this one is up, and what then becomes of it.
    pub(crate) made_before: Option<MadeBefore>,
    /// What of that is in registries, and `init` may enter again.
    pub(crate) inherited: Vec<MadeEntry>,
    /// The version that its process runs.
    pub(crate) version: Version,
    /// Its code, and the version that a further process gets that from: the newest that has it.
    pub(crate) code: Code,
    /// Whether the current version has other code for it.
    pub(crate) is_behind: bool,
    /// What it goes back to, should the code that it has taken over fail.
    pub(crate) before: Option<Before>,
    /// Whether it takes its own mail, by `receive`: a function, which runs from its beginning in the next process.
    pub(crate) is_function: bool,
    /// Whether exit signals come to it as messages.
    pub(crate) traps_exits: bool,
    /// What its `init` handed back for whoever starts it.
    pub(crate) info: Bytes,
    /// Nobody will start the actor again after this incarnation.
    pub(crate) is_last: bool,
    /// Why it is not ready, if it says so.
    pub(crate) not_ready: Option<String>,
    /// Whether it has been asked where it is, since its time is over.
    pub(crate) has_shown_stacks: bool,
    /// Messages that it has handled in this process.
    pub(crate) handled: u64,
    /// When this process is too old.
    pub(crate) aged: Option<TimerKey>,
    /// When it is looked at next.
    pub(crate) look: Option<TimerKey>,
    /// When its process last got on: was up, was done with a message, or got the first one after it had none.
    pub(crate) got_on: Duration,
    /// Since when it seems to take no mail, if that was seen and is to be seen again.
    pub(crate) suspected: Option<Duration>,
    /// The last message that was seen done on its page.
    pub(crate) seen_done: Option<Seq>,
}

/// The answer to a call that ended its callee.
#[derive(Debug)]
pub(crate) struct LastAnswer {
    pub(crate) to: ReplyTo,
    pub(crate) outcome: Outcome,
    pub(crate) payload: Bytes,
    pub(crate) buffers: Option<Ticket>,
}

/// A process that is yet to be made.
#[derive(Debug)]
pub(crate) struct Postponed {
    pub(crate) launch: Box<Launch>,
    pub(crate) timer: TimerKey,
}

impl Incarnation {
    pub(crate) fn new(process: ProcessId, code: Code, since: Duration) -> Self {
        Incarnation {
            machine: Machine::new(process),
            since,
            limit: None,
            owed: BTreeSet::new(),
            asked: Vec::new(),
            last_answers: Vec::new(),
            failed: None,
            postponed: None,
            failed_launches: 0,
            is_suspended: false,
            recycles_later: false,
            made: Made::default(),
            made_before: None,
            inherited: Vec::new(),
            version: code.version,
            code,
            is_behind: false,
            before: None,
            is_function: false,
            traps_exits: false,
            info: Bytes::new(),
            is_last: false,
            not_ready: None,
            has_shown_stacks: false,
            handled: 0,
            aged: None,
            look: None,
            got_on: since,
            suspected: None,
            seen_done: None,
        }
    }

    /// The process that serves it now.
    pub(crate) fn process(&self) -> ProcessId {
        self.machine.process()
    }

    /// Notes what it has made, if that is to be replaced when it is recycled: what it makes in `init`.
    pub(crate) fn note_made(&mut self, note: impl FnOnce(&mut Made)) {
        if self.machine.is_starting() {
            note(&mut self.made);
        }
    }

    /// It has taken a call and will answer it later.
    pub(crate) fn owe(&mut self, call: ReplyTo) {
        self.owed.insert(call);
    }

    /// The calls that it has taken and will answer later.
    pub(crate) fn owed(&self) -> &BTreeSet<ReplyTo> {
        &self.owed
    }

    /// Nobody is left who knows of calls that were put off since then: gives those.
    pub(crate) fn take_owed_since(&mut self, then: &BTreeSet<ReplyTo>) -> Vec<ReplyTo> {
        let since = self.owed.difference(then).copied().collect();
        self.owed.retain(|call| then.contains(call));
        since
    }

    /// Its process is asked something.
    pub(crate) fn ask(&mut self, message: Message) {
        self.asked.push(message);
    }

    /// What its process was asked and has not answered.
    pub(crate) fn asked(&self) -> &[Message] {
        &self.asked
    }

    /// The system request that a call is, if its process was asked that.
    pub(crate) fn asked_method(&self, call: ReplyTo) -> Option<&str> {
        let message = self.asked.iter().find(|message| message.reply_to == Some(call))?;
        Some(&message.head.method)
    }

    /// A call is answered.
    pub(crate) fn answered(&mut self, call: ReplyTo) {
        self.owed.remove(&call);
        self.asked.retain(|message| message.reply_to != Some(call));
    }

    /// Nobody waits for the answer to a call any more. What its process is to do all the same is remembered: whether it
    /// handles mail.
    pub(crate) fn unwanted(&mut self, call: ReplyTo) {
        self.owed.remove(&call);
        let stays = |message: &Message| matches!(message.head.method.as_str(), SUSPEND | RESUME);
        self.asked.retain(|message| message.reply_to != Some(call) || stays(message));
    }

    /// Nobody is left who could answer what was put off: gives those calls.
    pub(crate) fn take_owed_answers(&mut self) -> Vec<ReplyTo> {
        std::mem::take(&mut self.owed).into_iter().collect()
    }

    /// It has ended: gives the calls that nobody will answer.
    pub(crate) fn take_owed(&mut self) -> Vec<ReplyTo> {
        let asked = std::mem::take(&mut self.asked);
        let asked = asked.into_iter().filter_map(|message| message.reply_to);
        std::mem::take(&mut self.owed).into_iter().chain(asked).collect()
    }

    /// Its process has ended: gives the timers that were set for it, and forgets what was known of it.
    pub(crate) fn process_ended(&mut self) -> [Option<TimerKey>; 2] {
        self.handled = 0;
        self.seen_done = None;
        self.suspected = None;
        self.not_ready = None;
        [self.look.take(), self.aged.take()]
    }
}
