//! Access to the reconciler's state for work that runs beside it. It decides nothing.

use super::Reconciler;

/// Runs steps on the reconciler's state, one at a time and each as a whole. Between two steps the state may change.
pub trait Steps {
    /// Returns the step's result. An error if the step fails, or if the reconciler has ended.
    fn run<T: Send + 'static>(
        &mut self,
        step: impl FnOnce(&mut Reconciler) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T>;
}

/// For `confgen once`, where nothing runs beside anything.
impl Steps for Reconciler {
    fn run<T: Send + 'static>(
        &mut self,
        step: impl FnOnce(&mut Reconciler) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        step(self)
    }
}
