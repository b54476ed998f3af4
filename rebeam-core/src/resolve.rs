//! What is behind an address.

use rebeam_protocol::id::ActorId;

/// Who is behind an address. (An actor of another node will be a variant of its own.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// A member of this node.
    Local {
        /// Which.
        id: ActorId,
        /// Whether mail is for its incarnation of this moment and no later one: somebody else may have the address by
        /// then, if it is not the member's own over all its lives.
        for_pid: bool,
    },
    /// Nobody.
    Nobody,
}

impl Resolved {
    /// A member in whichever incarnation.
    pub(crate) fn member(id: ActorId) -> Self {
        Resolved::Local { id, for_pid: false }
    }

    /// The incarnation that a member has now.
    pub(crate) fn incarnation(id: Option<ActorId>) -> Self {
        id.map_or(Resolved::Nobody, |id| Resolved::Local { id, for_pid: true })
    }

    /// The member.
    pub(crate) fn id(self) -> Option<ActorId> {
        match self {
            Resolved::Local { id, .. } => Some(id),
            Resolved::Nobody => None,
        }
    }
}
