//! Which entries of a walk a build gets to see (fsutil's `FilterFS`).

use super::{Below, Patterns};

/// What to show of a tree. Without anything in it, all.
#[derive(Default)]
pub(crate) struct Filter {
    /// Only what these mean.
    pub(crate) include: Option<Patterns>,
    /// Nothing that any of these mean.
    pub(crate) exclude: Vec<Patterns>,
}

/// What was said about a folder: what is asked about its entries starts from there. The default is the root's.
#[derive(Default)]
pub(crate) struct State {
    include: Below,
    exclude: Vec<Below>,
}

/// What was said about an entry.
pub(crate) struct Verdict {
    /// It is shown, and all folders it is in.
    pub(crate) shown: bool,
    /// Something in it may be shown: it has to be looked at. Only asked of folders.
    pub(crate) entered: bool,
    /// For its own entries.
    pub(crate) state: State,
}

impl Filter {
    /// About one entry of a folder that was asked about before.
    pub(crate) fn ask(&self, path: &str, folder: &State) -> Verdict {
        let (mut shown, mut entered, mut state) = (true, true, State::default());
        if let Some(include) = &self.include {
            let (meant, below) = include.matches_in(path, &folder.include);
            state.include = below;
            if !meant {
                shown = false;
                entered = include.reaches_into(path, false);
            }
        }
        let root = Below::default();
        for (at, exclude) in self.exclude.iter().enumerate() {
            let (meant, below) = exclude.matches_in(path, folder.exclude.get(at).unwrap_or(&root));
            state.exclude.push(below);
            if meant {
                shown = false;
                entered &= exclude.reaches_into(path, true);
            }
        }
        Verdict { shown, entered, state }
    }
}
