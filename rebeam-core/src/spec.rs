//! Which trees are valid. What the types of [`rebeam_protocol::spec`] already rule out is not checked again.

use std::collections::HashSet;

use rebeam_protocol::address::LONGEST_NAME;
use rebeam_protocol::page::MOST_CONCURRENCY;
use rebeam_protocol::spec::{
    AutoShutdown, ChildKind, ChildSpec, MAX_DEPTH, Pauses, Restart, Strategy, SupervisorKind, SupervisorSpec,
};

/// Why a tree is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Two siblings share an id.
    #[error("supervisor `{supervisor}` has two children with the id `{id}`")]
    DuplicateId {
        /// Path of the supervisor.
        supervisor: String,
        /// The id.
        id: String,
    },
    /// Two actors of the tree share a name.
    #[error("two actors of the tree have the name `{name}`")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// The window of the restart limit is empty.
    #[error("supervisor `{supervisor}` has `max_seconds` of 0")]
    EmptyWindow {
        /// Path of the supervisor.
        supervisor: String,
    },
    /// A significant child where that can have no meaning (SUP-060).
    #[error("child `{id}` of supervisor `{supervisor}` is significant, {because}")]
    Significant {
        /// Path of the supervisor.
        supervisor: String,
        /// The child.
        id: String,
        /// Which rule it breaks.
        because: &'static str,
    },
    /// A dynamic supervisor with what only a static one has.
    #[error("supervisor `{supervisor}` is dynamic: it starts empty and restarts one for one")]
    NotDynamic {
        /// Path of the supervisor.
        supervisor: String,
    },
    /// Pauses so long that a child which always crashes would be restarted forever (MAP-11).
    #[error(
        "child `{id}` of supervisor `{supervisor}` could crash forever: {restarts} restarts take at least {least_ms} ms \
         with its backoff, and only those within {max_ms} ms count towards the limit"
    )]
    EndlessBackoff {
        /// Path of the supervisor.
        supervisor: String,
        /// The child.
        id: String,
        /// The limit.
        restarts: u32,
        /// What so many pauses take at least, in milliseconds.
        least_ms: u64,
        /// The window of the limit, in milliseconds.
        max_ms: u64,
    },
    /// More messages at once than a worker can account for.
    #[error("child `{id}` of supervisor `{supervisor}` has a `concurrency` of {concurrency}")]
    TooConcurrent {
        /// Path of the supervisor.
        supervisor: String,
        /// The child.
        id: String,
        /// What it asks for.
        concurrency: u32,
    },
    /// A name or an id that is longer than any may be: they are kept and shown everywhere.
    #[error("a child of supervisor `{supervisor}` has a name or an id of {length} bytes")]
    TooLong {
        /// Path of the supervisor.
        supervisor: String,
        /// How long it is.
        length: usize,
    },
    /// Supervisors nest too deep.
    #[error("the tree nests deeper than {MAX_DEPTH} supervisors")]
    TooDeep,
}

impl SpecError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            SpecError::DuplicateId { .. } => {
                "give one of them another `id=` (by default the name, else the class)".into()
            }
            SpecError::DuplicateName { .. } => "a name belongs to one actor: give one of them another `name=`".into(),
            SpecError::EmptyWindow { .. } => "the default is `max_restarts=3, max_seconds=5`".into(),
            SpecError::Significant { .. } => {
                "use `restart=\"transient\"` or `\"temporary\"` and the supervisor's `auto_shutdown=`".into()
            }
            SpecError::NotDynamic { .. } => "children are added with `start_child`".into(),
            SpecError::EndlessBackoff { least_ms, .. } => {
                let seconds = least_ms.div_ceil(1000) + 1;
                format!("set `max_seconds={seconds}` or more on the supervisor, or shorten the backoff")
            }
            SpecError::TooConcurrent { .. } => format!("it is {MOST_CONCURRENCY} at most"),
            SpecError::TooLong { .. } => format!("it may have {LONGEST_NAME}"),
            SpecError::TooDeep => "is a supervisor its own descendant?".into(),
        }
    }
}

/// Checks a whole tree, before anything of it is started (SUP-002, SUP-003, SUP-060).
///
/// # Errors
/// The first fault found, in tree order.
pub fn check(root: &SupervisorSpec) -> Result<(), SpecError> {
    check_supervisor(root, &root.id, 1, &mut HashSet::new())
}

/// Checks a child that is to be added to a supervisor at run time, by the rules of [`check`].
///
/// # Errors
/// The first fault found.
pub fn check_child(supervisor: &SupervisorSpec, child: &ChildSpec, path: &str, depth: usize) -> Result<(), SpecError> {
    check_one(supervisor, child, path, depth, &mut HashSet::new())
}

fn check_supervisor<'a>(
    spec: &'a SupervisorSpec,
    path: &str,
    depth: usize,
    names: &mut HashSet<&'a str>,
) -> Result<(), SpecError> {
    let supervisor = || path.to_owned();
    if depth > MAX_DEPTH {
        return Err(SpecError::TooDeep);
    }
    if spec.max_ms == 0 {
        return Err(SpecError::EmptyWindow { supervisor: supervisor() });
    }
    if let SupervisorKind::Dynamic { .. } = spec.kind
        && (spec.strategy != Strategy::OneForOne || !spec.children.is_empty())
    {
        return Err(SpecError::NotDynamic { supervisor: supervisor() });
    }
    if let Some(name) = &spec.name
        && !names.insert(name)
    {
        return Err(SpecError::DuplicateName { name: name.clone() });
    }
    let mut ids = HashSet::new();
    for child in &spec.children {
        if !ids.insert(&child.id) {
            return Err(SpecError::DuplicateId { supervisor: supervisor(), id: child.id.clone() });
        }
        check_one(spec, child, path, depth, names)?;
    }
    Ok(())
}

fn check_one<'a>(
    spec: &SupervisorSpec,
    child: &'a ChildSpec,
    path: &str,
    depth: usize,
    names: &mut HashSet<&'a str>,
) -> Result<(), SpecError> {
    let because = match (child.significant, child.restart, spec.auto_shutdown, spec.kind) {
        (true, _, _, SupervisorKind::Dynamic { .. }) => Some("but the supervisor is dynamic"),
        (true, Restart::Permanent, _, _) => Some("but its restart type is permanent"),
        (true, _, AutoShutdown::Never, _) => Some("but the supervisor's auto_shutdown is never"),
        _ => None,
    };
    let name = match &child.kind {
        ChildKind::Actor(actor) => actor.name.as_ref(),
        ChildKind::Supervisor(inner) => inner.name.as_ref(),
    };
    let length = child.id.len().max(name.map_or(0, String::len));
    if length > LONGEST_NAME {
        return Err(SpecError::TooLong { supervisor: path.to_owned(), length });
    }
    let (supervisor, id) = (path.to_owned(), child.id.clone());
    if let Some(because) = because {
        return Err(SpecError::Significant { supervisor, id, because });
    }
    if let Pauses::Backoff(backoff) = &child.pauses
        && child.restart != Restart::Temporary
    {
        let shortest = |attempt| backoff.pause_ms(attempt) * (1000 - backoff.jitter_milli.min(1000)) / 1000;
        let least_ms = (0..spec.max_restarts).map(shortest).fold(0, u64::saturating_add);
        if least_ms > spec.max_ms {
            return Err(SpecError::EndlessBackoff {
                supervisor,
                id,
                restarts: spec.max_restarts,
                least_ms,
                max_ms: spec.max_ms,
            });
        }
    }
    match &child.kind {
        ChildKind::Actor(actor) if actor.concurrency > MOST_CONCURRENCY => {
            Err(SpecError::TooConcurrent { supervisor, id, concurrency: actor.concurrency })
        }
        ChildKind::Actor(actor) => match &actor.name {
            Some(name) if !names.insert(name) => Err(SpecError::DuplicateName { name: name.clone() }),
            _ => Ok(()),
        },
        ChildKind::Supervisor(inner) => check_supervisor(inner, &format!("{path}/{}", child.id), depth + 1, names),
    }
}
