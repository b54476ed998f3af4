//! Which trees are valid. What the types of [`rebeam_protocol::spec`] already rule out is not checked again.

use std::collections::HashSet;

use rebeam_protocol::spec::{AutoShutdown, ChildKind, Restart, SupervisorSpec};

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
            SpecError::TooDeep => "is a supervisor its own descendant?".into(),
        }
    }
}

/// How many supervisors may stand above one another.
pub const MAX_DEPTH: usize = 32;

/// Checks a whole tree, before anything of it is started (SUP-002, SUP-003, SUP-060).
///
/// # Errors
/// The first fault found, in tree order.
pub fn check(root: &SupervisorSpec) -> Result<(), SpecError> {
    check_supervisor(root, &root.id, 1, &mut HashSet::new())
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
    let mut ids = HashSet::new();
    for child in &spec.children {
        if !ids.insert(&child.id) {
            return Err(SpecError::DuplicateId { supervisor: supervisor(), id: child.id.clone() });
        }
        let because = match (child.significant, child.restart, spec.auto_shutdown) {
            (true, Restart::Permanent, _) => Some("but its restart type is permanent"),
            (true, _, AutoShutdown::Never) => Some("but the supervisor's auto_shutdown is never"),
            _ => None,
        };
        if let Some(because) = because {
            return Err(SpecError::Significant { supervisor: supervisor(), id: child.id.clone(), because });
        }
        match &child.kind {
            ChildKind::Actor(actor) => {
                if let Some(name) = &actor.name
                    && !names.insert(name)
                {
                    return Err(SpecError::DuplicateName { name: name.clone() });
                }
            }
            ChildKind::Supervisor(inner) => check_supervisor(inner, &format!("{path}/{}", child.id), depth + 1, names)?,
        }
    }
    Ok(())
}
