//! How far a node is on its way down, and what is said at its end.

use std::sync::Arc;
use std::time::Duration;

use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::spec::Shutdown;

use crate::event::{NodeEnd, NodeEvent};

#[derive(Debug, Default)]
pub(crate) struct NodeShutdown {
    /// No stop may take longer, once the node is in a hurry.
    limit: Option<Duration>,
    is_stopping: bool,
    /// The death that used up the root's restart limit, once one has.
    gave_up: Option<Option<(Arc<Certificate>, Next)>>,
    /// The last death that used up any supervisor's.
    last_give_up: Option<(Arc<Certificate>, Next)>,
    /// What is left to say when the last of what was spawned is down, too.
    last_word: Option<NodeEvent>,
}

impl NodeShutdown {
    /// The node is on its way down; true the first time.
    pub(crate) fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.is_stopping, true)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    pub(crate) fn hurry(&mut self, limit: Duration) {
        self.limit = Some(limit);
    }

    pub(crate) fn is_hurried(&self) -> bool {
        self.limit.is_some()
    }

    /// How long a stop may take by its own setting and by the node's hurry; `None`: forever.
    pub(crate) fn stop_time(&self, shutdown: Shutdown) -> Option<Duration> {
        match (shutdown, self.limit) {
            (Shutdown::Timeout(limit), None) => Some(Duration::from_millis(limit)),
            (Shutdown::Timeout(limit), Some(most)) => Some(Duration::from_millis(limit).min(most)),
            (_, most) => most,
        }
    }

    /// A supervisor has used up its restart limit with this death.
    pub(crate) fn gives_up(&mut self, is_root: bool, death: Option<(Arc<Certificate>, Next)>) {
        if death.is_some() {
            self.last_give_up = death;
        }
        if is_root {
            self.gave_up = Some(self.last_give_up.clone());
        }
    }

    /// How the node ends, its tree being down.
    pub(crate) fn end(&mut self) -> NodeEnd {
        match self.gave_up.take() {
            Some(last) => NodeEnd::GaveUp { last },
            None => NodeEnd::Clean,
        }
    }

    /// Keeps what is to be said when everything is down.
    pub(crate) fn say_last(&mut self, word: NodeEvent) {
        self.last_word = Some(word);
    }

    pub(crate) fn take_last_word(&mut self) -> Option<NodeEvent> {
        self.last_word.take()
    }
}
