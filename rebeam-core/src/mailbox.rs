//! The mail of one actor: what waits, what was handed over, and what becomes of it when the process dies.
//!
//! It belongs to the *actor* and outlives incarnations. Of what waits, a small window is handed over ahead of need, so
//! that the worker's socket is never idle; what the worker has not begun at its death comes back to the front, in order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::address::{Address, ReplyTo};
use rebeam_protocol::certificate::Certificate;
use rebeam_protocol::id::{ActorId, ProcessId, Seq};
use rebeam_protocol::message::{Form, Head, Lane};
use rebeam_protocol::page::{Snapshot, Stage};
use rebeam_protocol::spec::{MailboxOptions, Overflow};

use rustc_hash::FxBuildHasher;

use crate::event::Ticket;
use crate::timers::AlarmId;
use crate::tracing::Traced;

/// Messages handed over and not settled, beyond those that are handled at once.
const WINDOW: u64 = 64;

/// Messages handed over at most, whatever a worker asks for.
const MOST_HANDED: u64 = 1 << 32;

/// So many more may be handed over on the high lane, so that it does not wait for a full window to drain.
const HIGH_WINDOW: u64 = 16;

/// Bytes handed over and not settled, beyond which nothing is handed over but a first message.
const WINDOW_BYTES: usize = 1024 * 1024;

/// A message that waits or is in hand.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) sender: Sender,
    /// Whether it dies with the incarnation it was sent to.
    pub(crate) for_pid: bool,
    pub(crate) reply_to: Option<ReplyTo>,
    /// When it came.
    pub(crate) at: Duration,
    pub(crate) head: Head,
    /// Handed over so many times before.
    pub(crate) deliveries: u32,
    /// When nobody waits any more.
    pub(crate) deadline: Option<Duration>,
    pub(crate) payload: Bytes,
    /// The timer that sends it again and again, if one does. Most messages have none, and are moved about.
    pub(crate) tick_of: Option<Box<AlarmId>>,
    pub(crate) buffers: Option<Ticket>,
    pub(crate) traced: Option<Box<Traced>>,
    /// The deaths with it in hand that count.
    pub(crate) deaths: Vec<Arc<Certificate>>,
}

impl Message {
    /// Of what comes at that moment, for a receiver in whichever incarnation.
    pub(crate) fn new(sender: Sender, head: Head, payload: Bytes, at: Duration) -> Self {
        Message {
            sender,
            for_pid: false,
            reply_to: None,
            at,
            deadline: head.deadline_ms.map(|left| at + Duration::from_millis(left)),
            head,
            deliveries: 0,
            payload,
            tick_of: None,
            buffers: None,
            traced: None,
            deaths: Vec::new(),
        }
    }

    /// Bytes of its content, large buffers and what a notice tells included.
    pub(crate) fn size(&self) -> usize {
        let signal = if let Form::Signal(signal) = &self.head.form { signal.size() } else { 0 };
        signal + self.payload.len() + self.buffers.as_ref().map_or(0, |buffers| buffers.bytes as usize)
    }
}

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Process(ProcessId, ActorId),
    Outside,
    /// The supervisor itself.
    Node,
}

/// What death makes of a message that was handed over.
#[derive(Debug)]
pub(crate) enum Fate {
    /// It was being handled.
    InHand { seq: Seq, message: Message, since_ns: u64 },
    /// It was for this incarnation alone, and never begun.
    ForPid(Message),
    /// It was handled. If it was a call, its answer was sent before, or is owed.
    Done(Message),
}

/// What a process has left behind that handed its state over, beside what it had not begun.
#[derive(Debug, Default)]
pub(crate) struct Recycled {
    /// Handled; the acknowledgement was still under way.
    pub(crate) done: Vec<Message>,
    /// In hand.
    pub(crate) begun: Vec<Message>,
}

/// A sender that was told to wait.
#[derive(Debug, Default)]
struct ShutOut {
    /// The addresses by which it knows this mailbox.
    addresses: Vec<Address>,
    /// How often it has sent since.
    sent: u32,
}

#[derive(Debug)]
pub(crate) struct Mailbox {
    options: MailboxOptions,
    high: VecDeque<Message>,
    normal: VecDeque<Message>,
    bytes: usize,
    handed: VecDeque<(Seq, Message)>,
    handed_bytes: usize,
    next_seq: u64,
    /// How many messages may be handed over and not settled, at first and now.
    first_window: u64,
    window: u64,
    /// How many of the waiting messages may still be handed over; `None`: all.
    sealed_after: Option<usize>,
    /// Senders that were told to wait.
    shut_out: HashMap<ProcessId, ShutOut, FxBuildHasher>,
    /// A message that was in hand at a death is handed over again: alone, so that the next death has one cause.
    has_suspect: bool,
}

/// How many messages are handed over at once: no more ahead than may wait at all.
fn window(options: MailboxOptions, concurrency: u32) -> u64 {
    let ahead = options.messages.map_or(WINDOW, |most| most.clamp(1, WINDOW));
    ahead + u64::from(concurrency).max(1) - 1
}

impl Mailbox {
    /// Of an actor that handles so many messages at once.
    pub(crate) fn new(options: MailboxOptions, concurrency: u32) -> Self {
        let window = window(options, concurrency);
        Mailbox {
            options,
            high: VecDeque::new(),
            normal: VecDeque::new(),
            bytes: 0,
            handed: VecDeque::new(),
            handed_bytes: 0,
            next_seq: 0,
            first_window: window,
            window,
            sealed_after: None,
            shut_out: HashMap::default(),
            has_suspect: false,
        }
    }

    /// From now on this holds; what waits stays.
    pub(crate) fn respecify(&mut self, options: MailboxOptions, concurrency: u32) {
        self.options = options;
        self.first_window = window(options, concurrency);
        self.window = self.first_window;
    }

    /// Messages that count towards the bound: all that wait, here or handed over, but for the one in hand.
    pub(crate) fn used(&self) -> usize {
        self.len() + self.handed.len().saturating_sub(1)
    }

    /// Messages that wait here, not counting those handed over.
    pub(crate) fn len(&self) -> usize {
        self.high.len() + self.normal.len()
    }

    /// Bytes that wait here or were handed over and are not settled.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.handed_bytes
    }

    /// When the oldest message came of those that wait here.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.high.front().into_iter().chain(self.normal.front()).map(|message| message.at).min()
    }

    /// Messages handed over and not settled, oldest first.
    pub(crate) fn handed(&self) -> impl Iterator<Item = &(Seq, Message)> {
        self.handed.iter()
    }

    /// The number of a call that was handed over and is not settled.
    pub(crate) fn handed_call(&self, call: ReplyTo) -> Option<Seq> {
        self.handed.iter().find_map(|(seq, message)| (message.reply_to == Some(call)).then_some(*seq))
    }

    /// A call that waits here or was handed over.
    pub(crate) fn find_call(&self, call: ReplyTo) -> Option<&Message> {
        let handed = self.handed.iter().map(|(_, message)| message);
        handed.chain(&self.high).chain(&self.normal).find(|message| message.reply_to == Some(call))
    }

    /// Whether a tick that came at this time waits still. (Of what was handed over, the first is in hand.)
    pub(crate) fn waits(&self, alarm: AlarmId, came: Duration) -> bool {
        let is_ahead = self.handed.iter().skip(1).any(|(_, message)| message.tick_of.as_deref() == Some(&alarm));
        // Normal mail is in the order in which it came.
        is_ahead || self.normal.front().is_some_and(|oldest| oldest.at <= came)
    }

    /// What happens to mail when it is full.
    pub(crate) fn overflow(&self) -> Overflow {
        self.options.overflow
    }

    /// Whether the next sender should wait. An empty mailbox takes one message of any size (rule 6).
    pub(crate) fn is_full(&self) -> bool {
        let over = |limit: Option<u64>, used: usize| limit.is_some_and(|limit| used as u64 >= limit);
        self.len() > 0 && (over(self.options.messages, self.used()) || over(self.options.bytes, self.bytes))
    }

    /// Whether senders who wait may go on: at half of the bound, so that gates do not flutter.
    fn has_room_again(&self) -> bool {
        let under = |limit: Option<u64>, used: usize| limit.is_none_or(|limit| used as u64 * 2 <= limit);
        let is_roomy = under(self.options.messages, self.used()) && under(self.options.bytes, self.bytes);
        is_roomy || (self.len() == 0 && self.handed.len() < 2)
    }

    /// Takes the oldest normal message out, if more waits than may. The newest stays in any case.
    pub(crate) fn take_surplus(&mut self) -> Option<Message> {
        let over = |limit: Option<u64>, used: usize| limit.is_some_and(|limit| used as u64 > limit);
        if self.len() < 2 || !(over(self.options.messages, self.used()) || over(self.options.bytes, self.bytes)) {
            return None;
        }
        // Notices are not mail that somebody sent: they stay.
        let is_mail = |message: &Message| !matches!(message.head.form, Form::Signal(_));
        let place = self.normal.iter().position(is_mail)?;
        let message = self.normal.remove(place)?;
        self.bytes -= message.size();
        if let Some(left) = &mut self.sealed_after {
            *left = left.saturating_sub(1);
        }
        Some(message)
    }

    pub(crate) fn push(&mut self, message: Message) {
        self.bytes += message.size();
        match message.head.lane {
            Lane::System | Lane::High => self.high.push_back(message),
            Lane::Normal => self.normal.push_back(message),
        }
    }

    /// Takes back what waits here of a monitor or a watch; whether something did.
    pub(crate) fn take_back(&mut self, of: u64) -> bool {
        let is_it = |message: &Message| match &message.head.form {
            Form::Signal(signal) => signal.is_of(of),
            Form::Arguments | Form::Message => false,
        };
        !self.take_where(is_it).is_empty()
    }

    /// Takes out what waits and fits, in order. A seal stays where it is among the rest.
    fn take_where(&mut self, fits: impl Fn(&Message) -> bool) -> Vec<Message> {
        let mut taken = Vec::new();
        let mut before_seal = self.sealed_after;
        for queue in [&mut self.high, &mut self.normal] {
            for message in std::mem::take(queue) {
                let is_before_seal = before_seal.is_some_and(|left| left > 0);
                if is_before_seal {
                    before_seal = before_seal.map(|left| left - 1);
                }
                if !fits(&message) {
                    queue.push_back(message);
                    continue;
                }
                self.bytes -= message.size();
                if is_before_seal {
                    self.sealed_after = self.sealed_after.map(|left| left - 1);
                }
                taken.push(message);
            }
        }
        taken
    }

    /// Notes that a sender was told to wait; true if it had not been told before by this address.
    pub(crate) fn shut_out(&mut self, sender: ProcessId, to: &Address) -> bool {
        let known = &mut self.shut_out.entry(sender).or_default().addresses;
        let is_new = !known.contains(to);
        if is_new {
            known.push(to.clone());
        }
        is_new
    }

    /// Counts a message of a sender that was told to wait by this address: how many there were; 0 for others.
    pub(crate) fn count_sent_though_full(&mut self, sender: ProcessId, to: &Address) -> u32 {
        let known = self.shut_out.get_mut(&sender).filter(|it| it.addresses.contains(to));
        known.map_or(0, |it| {
            it.sent += 1;
            it.sent
        })
    }

    /// Whether this sender was told to wait.
    pub(crate) fn is_shut_out(&self, sender: ProcessId) -> bool {
        self.shut_out.contains_key(&sender)
    }

    /// Senders to let go on now.
    pub(crate) fn let_in(&mut self) -> Vec<ProcessId> {
        if self.shut_out.is_empty() || !self.has_room_again() {
            return Vec::new();
        }
        let mut senders: Vec<ProcessId> = std::mem::take(&mut self.shut_out).into_keys().collect();
        senders.sort_unstable();
        senders
    }

    /// From now on only what waits already is handed over (a final stop: what comes later is not handled).
    pub(crate) fn seal(&mut self) {
        self.sealed_after.get_or_insert(self.high.len() + self.normal.len());
    }

    /// Whether everything before the seal was handed over.
    pub(crate) fn is_drained(&self) -> bool {
        self.sealed_after == Some(0) || (self.sealed_after.is_some() && self.len() == 0)
    }

    /// The next message, if there is one and room for it in the window.
    pub(crate) fn next(&mut self) -> Option<Message> {
        let is_light = self.handed.is_empty() || self.handed_bytes < WINDOW_BYTES || self.window > self.first_window;
        let has_room = |window: u64| is_light && (self.handed.len() as u64) < window;
        if self.sealed_after == Some(0) || self.has_suspect {
            return None;
        }
        let is_suspect = |message: &Message| !message.deaths.is_empty();
        if !self.handed.is_empty() && self.high.front().or(self.normal.front()).is_some_and(is_suspect) {
            return None;
        }
        let message = match (has_room(self.window + HIGH_WINDOW), has_room(self.window)) {
            (true, true) => self.high.pop_front().or_else(|| self.normal.pop_front())?,
            (true, false) => self.high.pop_front()?,
            (false, _) => return None,
        };
        self.bytes -= message.size();
        if let Some(left) = &mut self.sealed_after {
            *left -= 1;
        }
        Some(message)
    }

    /// Lets more be handed over until the process ends: it looks for one message among many.
    pub(crate) fn widen(&mut self, more: u64) {
        self.window = self.window.saturating_add(more).min(MOST_HANDED);
    }

    /// Keeps a message that is being handed over until it is settled; gives its number.
    pub(crate) fn hand_over(&mut self, message: Message) -> Seq {
        self.next_seq += 1;
        self.has_suspect |= !message.deaths.is_empty();
        self.handed_bytes += message.size();
        self.handed.push_back((Seq(self.next_seq), message));
        Seq(self.next_seq)
    }

    /// A handed message is done.
    pub(crate) fn settle(&mut self, seq: Seq) -> Option<Message> {
        let place = self.handed.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        let (_, message) = self.handed.remove(place)?;
        self.has_suspect &= message.deaths.is_empty();
        self.handed_bytes -= message.size();
        Some(message)
    }

    /// The process has handed its state over: what it had not begun comes back to the front, in order, mail to the pid
    /// too. Gives the rest: what it had done, and what it had begun and not done.
    pub(crate) fn process_recycled(&mut self, page: &Snapshot) -> Recycled {
        let mut rest = Recycled::default();
        for (Seq(seq), mut message) in std::mem::take(&mut self.handed).into_iter().rev() {
            match page.stage(seq) {
                Stage::Waiting => {
                    message.deliveries -= 1;
                    self.put_back(message);
                }
                Stage::Begun => rest.begun.push(message),
                Stage::Done => rest.done.push(message),
            }
        }
        self.begin_anew();
        rest
    }

    fn begin_anew(&mut self) {
        self.handed_bytes = 0;
        self.has_suspect = false;
        self.window = self.first_window;
    }

    /// Puts a message to the front of what waits, and so before a seal.
    pub(crate) fn put_back(&mut self, message: Message) {
        self.bytes += message.size();
        if let Some(left) = &mut self.sealed_after {
            *left += 1;
        }
        match message.head.lane {
            Lane::System | Lane::High => self.high.push_front(message),
            Lane::Normal => self.normal.push_front(message),
        }
    }

    /// The process is gone: what it had not begun comes back to the front, in order; the rest is told.
    pub(crate) fn process_died(&mut self, page: &Snapshot) -> Vec<Fate> {
        let mut fates = Vec::new();
        let mut back = Vec::new();
        for (Seq(seq), mut message) in std::mem::take(&mut self.handed) {
            match page.stage(seq) {
                Stage::Done => fates.push(Fate::Done(message)),
                Stage::Begun => fates.push(Fate::InHand { seq: Seq(seq), message, since_ns: page.since_ns(seq) }),
                Stage::Waiting if message.for_pid => fates.push(Fate::ForPid(message)),
                Stage::Waiting => {
                    message.deliveries -= 1;
                    back.push(message);
                }
            }
        }
        back.into_iter().rev().for_each(|message| self.put_back(message));
        fates.extend(self.take_where(|message| message.for_pid).into_iter().map(Fate::ForPid));
        self.begin_anew();
        self.sealed_after = None;
        fates
    }

    /// Takes out the calls that wait.
    pub(crate) fn take_calls(&mut self) -> Vec<Message> {
        self.take_where(|message| message.reply_to.is_some())
    }

    /// Empties it: nobody will come for this mail.
    pub(crate) fn drain(&mut self) -> Vec<Message> {
        self.bytes = 0;
        self.high.drain(..).chain(self.normal.drain(..)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rebeam_protocol::id::{Generation, NodeStart, Pid};

    fn message(number: u64, lane: Lane, for_pid: bool) -> Message {
        let pid = Pid { at: NodeStart::default(), serial: 1 };
        let sender = Sender::Process(ProcessId { pid, generation: Generation(0) }, ActorId(0));
        let head = Head { lane, ..Head::new(number.to_string()) };
        Message { for_pid, ..Message::new(sender, head, Bytes::from_static(b"12345678"), Duration::ZERO) }
    }

    fn hand_over_all(mailbox: &mut Mailbox) -> Vec<String> {
        std::iter::from_fn(|| {
            let mut next = mailbox.next()?;
            next.deliveries += 1;
            let method = next.head.method.clone();
            mailbox.hand_over(next);
            Some(method)
        })
        .collect()
    }

    #[test]
    fn msg_006_what_was_not_begun_comes_back_in_order_and_what_was_for_the_pid_does_not() {
        let mut mailbox = Mailbox::new(MailboxOptions::default(), 1);
        for number in 1..=6 {
            mailbox.push(message(number, Lane::Normal, number == 4));
        }
        assert_eq!(hand_over_all(&mut mailbox).len(), 6);
        let mut page = Snapshot::default();
        page.note(1, Stage::Done, 1);
        page.note(2, Stage::Begun, 2);
        let fates = mailbox.process_died(&page);
        assert!(matches!(&fates[0], Fate::Done(message) if &*message.head.method == "1"));
        assert!(matches!(&fates[1], Fate::InHand { message, since_ns: 2, .. } if &*message.head.method == "2"));
        assert!(matches!(&fates[2], Fate::ForPid(message) if &*message.head.method == "4"));
        assert_eq!(fates.len(), 3);
        assert_eq!(hand_over_all(&mut mailbox), ["3", "5", "6"]);
    }

    #[test]
    fn gen_018_a_seal_lets_earlier_mail_through_and_nothing_later() {
        let mut mailbox = Mailbox::new(MailboxOptions::default(), 1);
        mailbox.push(message(1, Lane::Normal, false));
        mailbox.seal();
        mailbox.push(message(2, Lane::Normal, false));
        assert!(!mailbox.is_drained());
        assert_eq!(hand_over_all(&mut mailbox), ["1"]);
        assert!(mailbox.is_drained());
    }

    #[test]
    fn map_13_an_empty_mailbox_takes_one_message_of_any_size() {
        let mut mailbox =
            Mailbox::new(MailboxOptions { messages: Some(10), bytes: Some(4), ..MailboxOptions::default() }, 1);
        assert!(!mailbox.is_full());
        mailbox.push(message(1, Lane::Normal, false));
        assert!(mailbox.is_full());
    }

    #[test]
    fn high_mail_does_not_wait_for_a_full_window_to_drain() {
        let mut mailbox = Mailbox::new(MailboxOptions::default(), 1);
        for number in 1..=200 {
            mailbox.push(message(number, Lane::Normal, false));
        }
        assert_eq!(hand_over_all(&mut mailbox).len() as u64, WINDOW);
        mailbox.push(message(1000, Lane::High, false));
        assert_eq!(hand_over_all(&mut mailbox), ["1000"]);
        assert_eq!(mailbox.settle(Seq(WINDOW + 1)).expect("it was handed over").head.lane, Lane::High);
    }

    #[test]
    fn the_oldest_make_room_if_the_mailbox_is_told_so() {
        let mut mailbox = Mailbox::new(MailboxOptions { messages: Some(2), ..MailboxOptions::default() }, 1);
        for number in 1..=3 {
            mailbox.push(message(number, Lane::Normal, false));
        }
        let dropped = std::iter::from_fn(|| mailbox.take_surplus()).map(|message| message.head.method);
        assert_eq!(dropped.collect::<Vec<_>>(), ["1"]);
        assert_eq!(hand_over_all(&mut mailbox), ["2", "3"]);
    }

    proptest! {
        /// However many are handed over, done and begun at a death: none is lost, none is twice there, order is kept.
        #[test]
        fn nothing_is_lost_or_doubled_at_a_death(count in 0u64..200, done in 0u64..70, begun in any::<bool>()) {
            let mut mailbox = Mailbox::new(MailboxOptions::default(), 1);
            for number in 1..=count {
                mailbox.push(message(number, Lane::Normal, false));
            }
            let handed = hand_over_all(&mut mailbox).len() as u64;
            let done = done.min(handed);
            let begun = u64::from(begun && done < handed);
            let mut page = Snapshot::default();
            (1..=done).for_each(|seq| page.note(seq, Stage::Done, 1));
            (done + 1..=done + begun).for_each(|seq| page.note(seq, Stage::Begun, 1));
            let fates = mailbox.process_died(&page);
            let in_hand = fates.iter().filter(|fate| matches!(fate, Fate::InHand { .. })).count();
            prop_assert_eq!((fates.len() as u64, in_hand as u64), (done + begun, begun));
            let left: Vec<String> = mailbox.drain().into_iter().map(|message| message.head.method).collect();
            let expected: Vec<String> = (done + begun + 1..=count).map(|number| number.to_string()).collect();
            prop_assert_eq!(left, expected);
        }
    }
}
