//! One incarnation of an actor: one life, served by one process after another.
//!
//! [`machine::Machine`] decides what its life allows; this module keeps what belongs to it besides: what it owes, what it
//! was asked, and when it is looked at.

mod machine;

use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::address::ReplyTo;
use rebeam_protocol::id::{ProcessId, Seq};

pub(crate) use machine::{Command, End, Limit, Machine, Manner, Stop};

use crate::mailbox::Message;
use crate::timers::TimerKey;

#[derive(Debug)]
pub(crate) struct Incarnation {
    pub(crate) machine: Machine,
    pub(crate) since: Duration,
    /// When the limit of its life has passed.
    pub(crate) limit: Option<TimerKey>,
    /// Calls that it has taken and will answer later, in whichever process.
    owed: Vec<ReplyTo>,
    /// What its process was asked and has not answered, oldest first. The next process is asked again.
    asked: Vec<Message>,
    /// Whether exit signals come to it as messages.
    pub(crate) traps_exits: bool,
    /// What its `init` handed back for whoever starts it.
    pub(crate) info: Bytes,
    /// Nobody will start the actor again after this incarnation.
    pub(crate) is_last: bool,
    /// Why it is not ready, if it says so.
    pub(crate) not_ready: Option<String>,
    /// Messages that it has handled in this process.
    pub(crate) handled: u64,
    /// When this process is too old.
    pub(crate) aged: Option<TimerKey>,
    /// When it is looked at next.
    pub(crate) look: Option<TimerKey>,
    /// The message that waited longest when it was last looked at, and since when it did.
    pub(crate) waited: Option<(Seq, Duration)>,
}

impl Incarnation {
    pub(crate) fn new(process: ProcessId, since: Duration) -> Self {
        Incarnation {
            machine: Machine::new(process),
            since,
            limit: None,
            owed: Vec::new(),
            asked: Vec::new(),
            traps_exits: false,
            info: Bytes::new(),
            is_last: false,
            not_ready: None,
            handled: 0,
            aged: None,
            look: None,
            waited: None,
        }
    }

    /// The process that serves it now.
    pub(crate) fn process(&self) -> ProcessId {
        self.machine.process()
    }

    /// It has taken a call and will answer it later.
    pub(crate) fn owe(&mut self, call: ReplyTo) {
        self.owed.push(call);
    }

    /// Its process is asked something.
    pub(crate) fn ask(&mut self, message: Message) {
        self.asked.push(message);
    }

    /// What its process was asked and has not answered.
    pub(crate) fn asked(&self) -> &[Message] {
        &self.asked
    }

    /// A call is answered, or nobody waits for the answer any more.
    pub(crate) fn answered(&mut self, call: ReplyTo) {
        self.owed.retain(|other| *other != call);
        self.asked.retain(|message| message.reply_to != Some(call));
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
        self.waited = None;
        self.not_ready = None;
        [self.look.take(), self.aged.take()]
    }
}
